"""Collectors: where an agent's data come from. Each keeps its place in its state, so that any stop can be continued."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from ....wrappers.sb3 import row_infos

if TYPE_CHECKING:
    from ..off_policy import OffPolicyAgent


class NonFiniteError(ValueError):
    """An environment returned NaN or infinity; nothing of that step was stored."""


class Collector(Protocol):
    """What ``learn`` asks of a source of data, be it environment steps, whole episodes of a population, or a dataset.

    ``collect`` gathers one round of data, calls ``callback.on_rollout_start()`` before it, ``update_locals(locals())``
    and ``on_step()`` after every step (with local variables ``dones`` and ``infos``, which stock callbacks read) and
    ``on_rollout_end()`` after it. Whenever it calls ``on_step``, and whenever it returns, the agent is in a state that
    a checkpoint can hold: the step is stored, counted and logged. It returns False as soon as a callback, or
    ``agent.request_stop()``, asks to stop; the next call then goes on with the same round.
    """

    @property
    def in_progress(self) -> bool:
        """A round has begun and not ended."""

    def collect(self, callback: BaseCallback) -> bool:
        """:return: True when the round is complete, False when it was stopped inside it."""

    def state(self) -> dict[str, Any]:
        """:return: the place in the round."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go back to that place."""


def _read(rewards: Tensor, ended: Tensor, finite: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], bool]:
    """Bring to the host what is needed there of every step: from a GPU in one transfer, on the CPU without a copy.

    :param rewards: (N,)
    :param ended: (N,) bool
    :param finite: scalar bool
    :return: the same
    """
    if rewards.device.type == "cpu":
        return rewards.numpy(), ended.numpy(), bool(finite)
    count = len(ended)
    read = torch.cat((rewards.float(), ended.float(), finite.float().view(1))).cpu().numpy()
    return read[:count], read[count:-1] > 0, bool(read[-1])


class OffPolicyCollector:
    """Steps the environments and stores every transition; a round is ``train_freq`` steps, or episodes.

    :param agent: the agent whose environment, store and exploration are used
    """

    def __init__(self, agent: "OffPolicyAgent[Any]") -> None:
        self.agent = agent
        frequency = agent.config.train_freq
        self.frequency, self.unit = frequency if isinstance(frequency, tuple) else (frequency, "step")
        self.steps = 0
        self.episodes = 0
        self._blank: list[dict[str, Any]] = [{} for _ in range(agent.n_envs)]

    @property
    def in_progress(self) -> bool:
        """See :class:`Collector`."""
        return self.steps > 0

    @property
    def complete(self) -> bool:
        """The round has all its steps or episodes."""
        return bool((self.steps if self.unit == "step" else self.episodes) >= self.frequency)

    def collect(self, callback: BaseCallback) -> bool:
        """See :class:`Collector`."""
        agent = self.agent
        if not self.in_progress:
            callback.on_rollout_start()
        while not self.complete:
            if agent.stop_requested:
                return False
            dones, infos, rewards = self._step()
            callback.update_locals(locals())
            if not callback.on_step():
                return False
        callback.on_rollout_end()
        agent.schedule_updates(self.steps * agent.n_envs)
        self.steps = self.episodes = 0
        return True

    def _step(self) -> tuple[np.ndarray[Any, Any], list[dict[str, Any]], np.ndarray[Any, Any]]:
        """Step once and bring the agent into a complete state: stored, counted, logged."""
        agent, env = self.agent, self.agent.batched_env
        actions = self._actions()
        obs, rewards, terminated, truncated, info = env.step(agent.scaler.to_env(actions).to(env.device))
        acting_obs, next_obs = agent.codec.encode(obs, env.device), agent.codec.encode(info["final_obs"], env.device)
        raw_obs, raw_rewards = info.get("raw", (None, rewards))
        total = raw_rewards.sum() + (0.0 if agent.codec.is_image else next_obs.sum() + acting_obs.sum())
        host_rewards, dones, finite = _read(rewards, terminated | truncated, torch.isfinite(total))
        if not finite:
            self._refuse_non_finite(next_obs, acting_obs, raw_rewards)
        cut = truncated & ~terminated  # an episode may end in both ways at once; it then does not go on
        rows = {
            "obs": agent.last_raw_obs,
            "actions": actions,
            "rewards": raw_rewards.to(agent.device),
            "terminated": terminated.to(agent.device),
            "truncated": cut.to(agent.device),
            "next_obs": next_obs.to(agent.device),
        }
        agent.store.add(agent.to_store(rows), ~info["dummy"] if "dummy" in info else None)
        raw_obs = None if raw_obs is None else agent.codec.encode(raw_obs, agent.device)
        agent.observe(acting_obs.to(agent.device), raw_obs)
        agent.num_timesteps += agent.n_envs
        self.steps += 1
        infos = row_infos(info, dones, cut, self._blank)
        self.episodes += int(dones.sum())
        agent.count_episodes(dones, infos)
        return dones, infos, host_rewards

    def _actions(self) -> Tensor:
        """Uniformly random actions before ``learning_starts``, the agent's own exploration after, (N, A) in [-1, 1]."""
        agent = self.agent
        if agent.num_timesteps < agent.config.learning_starts:
            shape = (agent.n_envs, agent.scaler.size)
            return 2 * torch.rand(shape, generator=agent.generators["collect"], device=agent.device) - 1
        with torch.no_grad():
            return agent.explore(agent.last_obs)

    def _refuse_non_finite(self, next_obs: Tensor, acting_obs: Tensor, rewards: Tensor) -> None:
        """Name the first number that is not finite; there is none where only the sum was too large."""
        agent = self.agent
        found = [("reward", rewards.unsqueeze(1)), ("", next_obs.flatten(1)), ("", acting_obs.flatten(1))]
        for name, values in found:
            bad = (~torch.isfinite(values)).nonzero()
            if len(bad):
                row, column = bad[0].tolist()
                where = name or agent.codec.locate(column)
                agent.env_is_broken = True
                raise NonFiniteError(
                    f"environment {row} ({agent.env_id or 'no id'}) returned {where} = {values[row, column].item()} "
                    f"at step {agent.num_timesteps + agent.n_envs}: nothing of this step was stored; "
                    "mend the environment, then resume from the last checkpoint"
                )

    def state(self) -> dict[str, Any]:
        """See :class:`Collector`."""
        return {"steps": self.steps, "episodes": self.episodes}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See :class:`Collector`."""
        self.steps, self.episodes = state["steps"], state["episodes"]
