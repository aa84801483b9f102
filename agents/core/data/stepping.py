"""One step of the environments: taken, checked, kept, counted and logged, the same for every source of steps."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ....envs import BatchedEnv
from ....wrappers.sb3 import row_infos
from ..normalization import BatchNormalizer, moments_of, put_back
from ..spaces import Actions, Obs, ObservationCodec, map_obs
from .finite import NonFiniteError, check_chosen, check_shown, sums_of


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of N environments gave. Tensors are on the agent's device.

    Two things come in two forms, the same where no ``VecNormalize`` stands between: as the environment gave it, and as
    it was *seen*, normalised with the statistics of the moment.

    :param chosen: what the agent chose, (N, …): ``actions``, and whatever else it wants kept
    :param obs: what the step started from, (N, *O)
    :param seen_obs: the same, as actions were chosen by it
    :param rewards: (N,)
    :param seen_rewards: (N,)
    :param terminated: (N,) bool
    :param truncated: (N,) bool; an episode that ends in both ways at once is terminated
    :param next_obs: what the step led to, of a row that ended its final observation, (N, *O)
    :param real: rows that are transitions, (N,) bool; None: all of them. The others only did a delayed reset.
    :param dones: rows that ended, (N,), on the host, where callbacks and agents read it without waiting
    :param host_rewards: ``seen_rewards`` on the host, (N,)
    :param infos: Stable-Baselines3's dict per row
    """

    chosen: dict[str, Tensor]
    obs: Obs
    seen_obs: Obs
    rewards: Tensor
    seen_rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    next_obs: Obs
    real: Tensor | None
    dones: np.ndarray[Any, Any]
    host_rewards: np.ndarray[Any, Any]
    infos: list[dict[str, Any]]
    rows: int
    """How many rows are transitions."""

    def transitions(self) -> dict[str, Any]:
        """:return: the fields of :class:`~headway.agents.core.data.Transitions`, (N, …)"""
        return {
            "obs": self.obs,
            "actions": self.chosen["actions"],
            "rewards": self.rewards,
            "terminated": self.terminated,
            "truncated": self.truncated,
            "next_obs": self.next_obs,
        }


class Host(Protocol):
    """What a step asks of an agent."""

    device: torch.device
    batched_env: BatchedEnv
    codec: ObservationCodec
    actions: Actions
    n_envs: int
    num_timesteps: int
    normalizer: BatchNormalizer | None
    env_is_broken: bool
    stop_requested: bool
    last_checkpoint: Path | None

    @property
    def env_id(self) -> str | None:
        """What the environment is called."""

    def broken_weights(self) -> str | None:
        """Name a network's tensor that is not finite."""

    @property
    def last_obs(self) -> Obs:
        """What to act on."""

    @property
    def last_raw_obs(self) -> Obs:
        """The same before normalisation."""

    def choose(self) -> dict[str, Tensor]:
        """Choose ``actions``, and what else is to be kept."""

    def keep(self, step: Step) -> None:
        """Store a step."""

    def observe(self, obs: Obs, raw_obs: Obs | None) -> None:
        """Take up what the environments show next."""

    def count(self, dones: np.ndarray[Any, Any], infos: list[dict[str, Any]], rows: int) -> None:
        """Count a step of so many rows and the episodes that ended in it, and log when it is time."""

    def keep_environment(self) -> None:
        """Begin anew where somebody else has moved the environments since the last step."""

    def end_round(self, collected: int) -> None:
        """Set what follows a round of data."""


def take_step(host: Host, chosen: dict[str, Tensor], blank: list[dict[str, Any]]) -> Step:
    """Step once, and bring the agent into a state that a checkpoint can hold: the step is kept, counted and logged.

    :param host: the agent
    :param chosen: what it chose
    :param blank: N empty dicts, for rows of which there is nothing to say
    :return: the step
    :raises NonFiniteError: the environment returned NaN or infinity; nothing was kept
    :raises DivergedError: the agent chose such an action; likewise
    """
    env, codec, device = host.batched_env, host.codec, host.device
    sent, own = host.actions.to_env(chosen["actions"]).to(env.device), sums_of(chosen)
    if env.device.type == "cpu":  # where actions come to the host anyway; elsewhere after the step
        if not all(map(math.isfinite, own)):
            check_chosen(host, chosen)
        own = []
    moments = moments_of(host.normalizer)
    obs, rewards, terminated, truncated, info = env.step(sent)
    acting_obs = codec.encode(obs, env.device)
    same = info["final_obs"] is obs  # as where no row ended
    raw_obs, raw_rewards = info.get("raw", (None, rewards))
    if raw_obs is None:
        next_obs = acting_obs if same else codec.encode(info["final_obs"], env.device)
    else:
        next_obs = codec.encode(info["final_obs"], env.device, raw=True)
    total = sum(own, raw_rewards.sum())
    for shown in (acting_obs,) if same else (acting_obs, next_obs):
        for part in codec.numbers(shown).values():
            total = total + part.sum()
    host_rewards, dones, total_read = _read(rewards, terminated | truncated, total)
    if not math.isfinite(total_read):
        try:
            check_chosen(host, chosen)
            check_shown(host, f"at step {host.num_timesteps + host.n_envs}", [next_obs, acting_obs], raw_rewards)
        except NonFiniteError:
            host.env_is_broken = True
            put_back(moments)
            raise
    cut = truncated & ~terminated if np.count_nonzero(dones) else truncated
    infos = row_infos(info, dones, cut, blank)
    real = ~info["dummy"] if "dummy" in info else None
    step = Step(
        chosen=chosen,
        obs=host.last_raw_obs,
        seen_obs=host.last_obs,
        rewards=raw_rewards.to(device),
        seen_rewards=rewards.to(device),
        terminated=terminated.to(device),
        truncated=cut.to(device),
        next_obs=map_obs(lambda part: part.to(device), next_obs),
        real=real,
        dones=dones,
        host_rewards=host_rewards,
        infos=infos,
        rows=host.n_envs if real is None else int(real.sum()),
    )
    host.keep(step)
    host.observe(
        map_obs(lambda part: part.to(device), acting_obs),
        None if raw_obs is None else codec.encode(raw_obs, device, raw=True),
    )
    host.count(dones, infos, step.rows)
    return step


def _read(rewards: Tensor, ended: Tensor, total: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], float]:
    """Bring to the host what is needed there of every step: from a GPU in one transfer, on the CPU without a copy.

    :param rewards: (N,)
    :param ended: (N,) bool
    :param total: scalar
    :return: the same
    """
    if rewards.device.type == "cpu":
        return rewards.numpy(), ended.numpy(), float(total)
    count = len(ended)
    read = torch.cat((rewards.float(), ended.float(), total.float().view(1))).cpu().numpy()
    return read[:count], read[count:-1] > 0, float(read[-1])
