"""Whole episodes of any batch, chosen by any function: for evaluation, populations of policies, and data sets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ....envs.batched import BatchedEnv, Info, Obs

Act = Callable[[Obs, "Turn"], Tensor | Mapping[str, Tensor]]
"""Chooses what all rows do: actions as the batch takes them, (N, *A); or by name, "actions" among others to be kept."""

_CUDA_STEPS = 16  # between questions whether all rows are done, each of which waits for the device


@dataclass(frozen=True)
class Turn:
    """What a policy is told besides observations."""

    episodes: Tensor
    """Number of the episode that each row is in, (N,) int64: which member of a population acts in it. Rows that have
    none left have the number of the last episode."""

    starts: Tensor
    """Rows that show the first observation of an episode, (N,) bool: where memory begins anew."""

    running: Tensor
    """Rows whose episode is not over, (N,) bool; of the others nothing counts."""


@dataclass(frozen=True)
class Episodes:
    """E whole episodes, in the order of their numbers; plain tensors, which can be sent to another process."""

    returns: Tensor
    """(E,) float64, undiscounted; a Monitor's own account has precedence."""

    lengths: Tensor
    """(E,) int64, in steps."""

    terminated: Tensor
    """(E,) bool: the episode ended by itself."""

    truncated: Tensor
    """(E,) bool: it was cut, by the environment or at the horizon, and would have gone on."""

    successes: Tensor
    """1 where the environment says that the episode succeeded, 0 where it failed, -1 where it says nothing, (E,)
    int8."""

    steps: dict[str, Any] | None = None
    """If kept: ``obs``, ``actions``, ``rewards`` and what else the policy gave, (S, …) each: all steps of the first
    episode, then of the second. Observations and rewards are those of the environment, before any normalisation."""

    final_obs: Obs | None = None
    """If kept: what the last step of each episode led to, (E, *O)."""

    @staticmethod
    def join(parts: "Sequence[Episodes]") -> "Episodes":
        """:return: the episodes of all parts, in turn"""
        return Episodes(**{name: _join([getattr(p, name) for p in parts]) for name in Episodes.__dataclass_fields__})

    def split(self) -> Iterator[dict[str, Any]]:
        """:return: the kept steps of each episode, (T, …) each, in turn."""
        assert self.steps is not None, "run_episodes(…, keep=True) keeps steps"
        end = 0
        for length in self.lengths.tolist():
            start, end = end, end + length
            yield _each(self.steps, partial(_sliced, start=start, end=end))


def run_episodes(
    env: BatchedEnv,
    act: Act,
    *,
    episodes: int | None = None,
    horizon: int | None = None,
    seed: int | None = None,
    keep: bool = False,
) -> Episodes:
    """Run whole episodes, one per row, in as many rounds as it takes.

    Episode ``i`` starts as a single environment reset with ``seed + i`` does, whatever the number of rows. So results
    depend on that number only as far as ``act`` does: random numbers of its own, and the last bits of products whose
    size is the number of rows.

    :param env: the batch; all its rows are reset, and left anywhere
    :param act: the policy; it is given what to act on (N, *O), on the batch's device, and a :class:`Turn`
    :param episodes: E; None: one per row
    :param horizon: steps after which an episode is cut; None: never
    :param seed: of the first episode; None goes on with the random streams as they are
    :param keep: the steps; without, memory does not grow with the length of episodes
    :return: the episodes, on the batch's device
    :raises ValueError: no episodes, or a horizon without steps
    """
    count = env.num_envs if episodes is None else episodes
    for name, value in (("episodes", count), ("horizon", horizon)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, it must be at least 1")
    rounds = [
        _Round(env, first, min(count - first, env.num_envs), keep).run(act, horizon, seed)
        for first in range(0, count, env.num_envs)
    ]
    return Episodes.join(rounds)


class _Round:
    """One episode in each of the first rows of a batch.

    :param env: the batch
    :param first: number of the episode in row 0
    :param count: episodes
    :param keep: their steps
    """

    def __init__(self, env: BatchedEnv, first: int, count: int, keep: bool) -> None:
        self.env, self.first, self.count, self.keep = env, first, count, keep
        rows = torch.arange(env.num_envs, device=env.device)
        self.episodes = first + rows.clamp(max=count - 1)
        self.running = rows < count
        self.returns = torch.zeros(env.num_envs, dtype=torch.float64, device=env.device)
        self.lengths = torch.zeros_like(rows)
        self.terminated, self.truncated = torch.zeros_like(self.running), torch.zeros_like(self.running)
        self.kept: list[dict[str, Any]] = []
        self.final_obs: Obs | None = None
        self.successes = torch.full_like(rows, -1, dtype=torch.int8)

    @torch.no_grad()
    def run(self, act: Act, horizon: int | None, seed: int | None) -> Episodes:
        """:return: the round's episodes."""
        env, every = self.env, _CUDA_STEPS if self.running.is_cuda else 1
        seeds: Any = None if seed is None else [seed + self.first + row for row in range(env.num_envs)]
        obs, info = env.reset(seed=seeds)
        raw = _raw(info, obs)
        starts, step = torch.ones_like(self.running), 0
        while step != horizon and (step % every or self.running.any()):
            chosen = act(obs, Turn(self.episodes, starts, self.running))
            named = dict(chosen) if isinstance(chosen, Mapping) else {"actions": chosen}
            obs, rewards, terminated, truncated, info = env.step(named["actions"])
            rewards = info["raw"][1] if "raw" in info else rewards
            if self.keep:
                running = self.running.clone()
                self.kept.append({"running": running, "obs": raw, "rewards": rewards, **named})
                self.final_obs = _where(running, info["final_obs"], self.final_obs)
                raw = _raw(info, obs)
            starts = terminated | truncated
            if horizon is not None:  # otherwise all rows end by themselves, and then tell their returns
                self.returns = self.returns + rewards.masked_fill(~self.running, 0)
            self._stop(starts & self.running, terminated, info)
            step += 1
        self.successes = torch.where(self.running, _successes(info, self.running), self.successes)
        self.lengths = self.lengths.masked_fill(self.running, step)
        self.truncated = self.truncated | self.running
        return self._episodes()

    def _stop(self, ended: Tensor, terminated: Tensor, info: Info) -> None:
        """Account for the rows whose episode ended."""
        if not ended.is_cuda and not ended.any():
            return
        if "goes_on" in info:
            ended = ended & ~info["goes_on"]
        self.returns = torch.where(ended, info["episode"]["r"].double(), self.returns)
        self.lengths = torch.where(ended, info["episode"]["l"], self.lengths)
        self.terminated = self.terminated | (ended & terminated)
        self.truncated = self.truncated | (ended & ~terminated)
        self.successes = torch.where(ended, _successes(info, ended), self.successes)
        self.running = self.running & ~ended

    def _episodes(self) -> Episodes:
        names = ("returns", "lengths", "terminated", "truncated", "successes")
        told = {name: getattr(self, name)[: self.count] for name in names}
        if not self.keep:
            return Episodes(**told)
        running = torch.stack([step.pop("running") for step in self.kept], 1)  # (N, T)
        steps = {
            name: _each_of([step[name] for step in self.kept], lambda parts: torch.stack(parts, 1)[running])
            for name in self.kept[0]
        }
        return Episodes(**told, steps=steps, final_obs=_each(self.final_obs, lambda part: part[: self.count]))


def _successes(info: Info, like: Tensor) -> Tensor:
    """:return: of each row 1, 0 or -1, as of :attr:`Episodes.successes`, if its episode ended here"""
    if "sb3" in info:  # dicts by row, as of Stable-Baselines3's environments
        said = [row.get("is_success") for row in info["sb3"]]
        return torch.tensor([-1 if told is None else int(bool(told)) for told in said], dtype=torch.int8)
    if "is_success" not in info:
        return torch.full_like(like, -1, dtype=torch.int8)
    successes: Tensor = info["is_success"].to(torch.int8)
    return successes.masked_fill(~info["_is_success"], -1) if "_is_success" in info else successes


def _raw(info: Info, obs: Obs) -> Obs:
    """:return: what the environment shows, before any normalisation."""
    return info["raw"][0] if "raw" in info else obs


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return {key: _each(part, change) for key, part in value.items()} if isinstance(value, dict) else change(value)


def _sliced(part: Tensor, start: int, end: int) -> Tensor:
    return part[start:end]


def _each_of(values: list[Any], change: Callable[[list[Tensor]], Tensor]) -> Any:
    """Combine values of one form, tensors or dicts of them, part by part."""
    if isinstance(values[0], dict):
        return {key: _each_of([value[key] for value in values], change) for key in values[0]}
    return change(values)


def _join(parts: list[Any]) -> Any:
    return None if parts[0] is None else _each_of(parts, torch.cat)


def _where(rows: Tensor, new: Obs, old: Obs | None) -> Obs:
    """:return: observations that are new in some rows."""
    if old is None:
        return new

    def newest(pair: list[Tensor]) -> Tensor:
        return torch.where(rows.view(-1, *[1] * (pair[0].ndim - 1)), pair[0], pair[1])

    return _each_of([new, old], newest)  # type: ignore[no-any-return]
