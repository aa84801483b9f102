"""One episode per row and reset: what a population is evaluated in."""

from typing import Any

import torch
from torch import Tensor

from ..envs.batched import BatchedEnv, Info, Obs
from ..envs.schema import array, flag, group, whole
from .playback import Playback


class WholeEpisodes(BatchedEnv):
    """A batch whose rows rest when their episode is over, until all are reset, and whose episodes can be cut.

    A resting row is stepped with the others, but nothing comes of it: ``info["dummy"]`` says that it is no transition,
    its rewards are 0, and it does not end again. A row that is cut at :attr:`horizon` is truncated there. In the place
    of the batch it can show episodes that were recorded, see :attr:`playback`.

    :param env: the batch
    :param horizon: steps after which an episode is cut; None: never
    """

    def __init__(self, env: BatchedEnv, horizon: int | None = None) -> None:
        self.env, self.horizon = env, horizon
        self.num_envs, self.device, self.metadata = env.num_envs, env.device, env.metadata  # type: ignore[misc]
        self.single_observation_space, self.observation_space = env.single_observation_space, env.observation_space
        self.single_action_space, self.action_space = env.single_action_space, env.action_space
        self.render_mode, self.spec = env.render_mode, env.spec
        self.playback: Playback | None = None
        """What is reset and stepped instead of the batch; None: the batch itself."""
        self._begin()

    def _begin(self) -> None:
        self.running = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        """Rows whose episode is not over, (N,)."""
        self.returns = torch.zeros(self.num_envs, dtype=torch.float64, device=self.device)
        """Sums of rewards as the environment gave them, (N,)."""
        self.lengths = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self.any_rests = False

    @property
    def _source(self) -> BatchedEnv:
        return self.env if self.playback is None else self.playback

    @property
    def _singles(self) -> list[Any]:
        return getattr(self.env, "_singles", [])  # which tell how far they have gone

    def reset(self, *, seed: int | list[int | None] | None = None, options: Info | None = None) -> tuple[Obs, Info]:
        """See :meth:`BatchedEnv.reset`."""
        shown = self._source.reset(seed=seed, options=options)
        self._begin()
        return shown

    def rest(self, first: int) -> None:
        """Let rows rest from the start.

        :param first: number of the first of them; all that follow rest too
        """
        self.running[first:] = False
        self.any_rests = first < self.num_envs

    def step(self, actions: Tensor) -> tuple[Obs, Tensor, Tensor, Tensor, Info]:
        """See :meth:`BatchedEnv.step`."""
        obs, rewards, terminated, truncated, info = self._source.step(actions)
        running = self.running & ~info["dummy"] if "dummy" in info else self.running
        given = info["raw"][1] if "raw" in info else rewards
        self.returns = self.returns + given.masked_fill(~running, 0)
        self.lengths = self.lengths + running
        over = terminated | truncated
        over = running & (over & ~info["goes_on"] if "goes_on" in info else over)
        if self.horizon is not None:
            cut = running & ~over & (self.lengths >= self.horizon)
            truncated, over = truncated | cut, over | cut
            info = self._cut(info, cut, obs)
        if self.any_rests:
            resting = ~self.running
            rewards = rewards.masked_fill(resting, 0)
            terminated, truncated = terminated & ~resting, truncated & ~resting
            info = info | {"dummy": info["dummy"] | resting if "dummy" in info else resting}
        self.running = self.running & ~over
        self.any_rests = not bool(self.running.all())
        return obs, rewards, terminated, truncated, info

    def _cut(self, info: Info, cut: Tensor, obs: Obs) -> Info:
        """Account for the rows that are cut, of which the batch inside does not know."""
        account = {
            "r": torch.where(cut, self.returns.to(info["episode"]["r"].dtype), info["episode"]["r"]),
            "l": torch.where(cut, self.lengths, info["episode"]["l"]),
        }
        info = info | {"episode": account}
        if "sb3" in info and cut.any():  # dicts by row, as of Stable-Baselines3's environments
            rows = list(info["sb3"])
            for row in cut.nonzero().flatten().tolist():
                last = {k: part[row].numpy() for k, part in obs.items()} if isinstance(obs, dict) else obs[row].numpy()
                rows[row] = {**rows[row], "TimeLimit.truncated": True, "terminal_observation": last}
            info["sb3"] = rows
        return info

    def state(self) -> Any:
        """See :meth:`BatchedEnv.state`."""
        own: dict[str, Any] = {name: getattr(self, name).clone() for name in ("running", "returns", "lengths")}
        own |= {"horizon": self.horizon or 0, "any_rests": self.any_rests}
        return {**own, "env" if self.playback is None else "playback": self._source.state()}

    def load_state(self, state: Any) -> None:
        """See :meth:`BatchedEnv.load_state`."""
        kinds = {"running": "bool", "returns": "float64", "lengths": "int64"}
        fields: dict[str, Any] = {name: array((self.num_envs,), kind) for name, kind in kinds.items()}
        source = "playback" if "playback" in state else "env"
        group(fields | {source: lambda *_: None, "horizon": whole(), "any_rests": flag})(state, "whole episodes")
        self.playback = None if source == "env" else Playback(self.env)
        self._source.load_state(state[source])
        self.horizon, self.any_rests = state["horizon"] or None, state["any_rests"]
        for name in kinds:
            setattr(self, name, state[name].to(self.device).clone())
