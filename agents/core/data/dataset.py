"""Recorded steps to learn from: all of a data set as flat tensors, one episode after the other."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..spaces import Obs, ObservationCodec, map_obs, shown
from .store import by_path


class DatasetError(ValueError):
    """A data set that nobody could learn from.

    :param name: of the data set
    :param problems: what is wrong, a line each; the message is the first
    """

    def __init__(self, name: str, problems: Sequence[str]) -> None:
        self.name, self.problems = name, list(problems)
        more = f" (and {len(problems) - 1} more: headway datasets check lists them)" if len(problems) > 1 else ""
        super().__init__(f"data set {name}: {problems[0]}{more}" if name else f"{problems[0]}{more}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """E episodes of R steps in all, in the order of time, on the CPU.

    Observations and actions are the environment's, in its own unit and dtype; an observation of a Dict space is a dict
    of tensors.

    :raises DatasetError: (a ``ValueError``) it has no episodes, lengths, shapes or dtypes do not fit each other or the
        spaces, or numbers are not finite; field, episode and step are named
    """

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]

    obs: Obs
    """What each step started from, (R, *O)."""

    final_obs: Obs
    """What the last step of each episode led to, (E, *O)."""

    actions: Tensor
    """(R, *A)"""

    rewards: Tensor
    """(R,) float64"""

    lengths: Tensor
    """Steps of each episode, (E,) int64, at least one."""

    terminated: Tensor
    """Whether each episode ended by itself, (E,) bool. All others were cut and would have gone on."""

    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """What else was recorded of every step, (R, …) each: ``behavior_logp``, the log density (nats) with which the
    action was chosen, in the unit of the action space; ``policy_id``, which of several policies chose it, int64."""

    name: str = ""
    """Its id, ns/name-v0, or the file it was read from."""

    env_id: str | None = None
    """The environment it was recorded in, where known."""

    ref_min_score: float | None = None
    """Return that counts as 0 in normalised scores: a random policy's."""

    ref_max_score: float | None = None
    """Return that counts as 1: an expert's."""

    about: Mapping[str, Any] = field(default_factory=dict)
    """What else its metadata say: provenance."""

    def __post_init__(self) -> None:
        if problems := list(_problems(self)):
            raise DatasetError(self.name, problems)

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def episodes(self) -> int:
        """E."""
        return len(self.lengths)

    @property
    def ends(self) -> Tensor:
        """The last step of each episode, (E,) int64."""
        return self.lengths.cumsum(0) - 1

    @property
    def episode_of_step(self) -> Tensor:
        """Which episode each step belongs to, (R,) int64."""
        return torch.repeat_interleave(torch.arange(self.episodes), self.lengths)

    @property
    def returns(self) -> Tensor:
        """The undiscounted sum of each episode's rewards, (E,) float64."""
        return torch.zeros(self.episodes, dtype=torch.float64).index_add_(0, self.episode_of_step, self.rewards)

    @property
    def next_obs(self) -> Obs:
        """What each step led to, (R, *O)."""

        def shifted(part: Tensor, final: Tensor) -> Tensor:
            following = part.roll(-1, 0)
            following[self.ends] = final
            return following

        if isinstance(self.obs, Tensor):
            assert isinstance(self.final_obs, Tensor)
            return shifted(self.obs, self.final_obs)
        assert not isinstance(self.final_obs, Tensor)
        return {key: shifted(part, self.final_obs[key]) for key, part in self.obs.items()}

    def observation_statistics(self) -> tuple[Obs, Obs]:
        """Mean and standard deviation of what steps started from, for normalising.

        :return: of each number of an observation, (*O) float64 each, by key where the observation is a dict
        """
        numbers = map_obs(lambda part: part.double(), self.obs)
        return map_obs(lambda part: part.mean(0), numbers), map_obs(lambda part: part.std(0, correction=0), numbers)

    def normalised(self, returns: Tensor) -> Tensor:
        """Put returns on the scale of the two references (arXiv 2004.07219).

        :param returns: of any shape
        :return: 100 (R - min) / (max - min): a random policy has 0, an expert 100
        :raises ValueError: the references are not known, or equal
        """
        low, high = self.ref_min_score, self.ref_max_score
        if low is None or high is None or low == high:
            raise ValueError(
                f"data set {self.name} has the reference scores {low} and {high}, and two different ones are needed: "
                "record it with headway collect --ref-min random --ref-max POLICY"
            )
        return 100 * (returns - low) / (high - low)

    def digest(self) -> str:
        """:return: the SHA-256 of all steps, in hexadecimal: of equal data it is equal."""
        found = hashlib.sha256()
        parts = {"obs": self.obs, "final_obs": self.final_obs, "actions": self.actions, "rewards": self.rewards}
        parts |= {"lengths": self.lengths, "terminated": self.terminated, **self.extras}
        for name, part in sorted(by_path(parts).items()):
            found.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
            found.update(part.contiguous().view(torch.uint8).numpy().data if part.numel() else b"")
        return found.hexdigest()

    def select(self, episodes: Tensor | Sequence[int]) -> Self:
        """Keep some episodes.

        :param episodes: their numbers, in the order in which they shall stand, (F,) int64
        :return: a data set of these
        """
        chosen = torch.as_tensor(episodes, dtype=torch.int64)
        lengths = self.lengths[chosen]
        starts = (self.lengths.cumsum(0) - self.lengths)[chosen]
        within = torch.arange(int(lengths.sum())) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        rows = torch.repeat_interleave(starts, lengths) + within
        return replace(
            self,
            obs=map_obs(lambda part: part[rows], self.obs),
            final_obs=map_obs(lambda part: part[chosen], self.final_obs),
            actions=self.actions[rows],
            rewards=self.rewards[rows],
            lengths=lengths,
            terminated=self.terminated[chosen],
            extras={name: values[rows] for name, values in self.extras.items()},
        )

    def with_rewards(self, rewards: Tensor) -> Self:
        """:return: the same steps with other rewards, (R,)"""
        return replace(self, rewards=rewards.double())

    def transitions(self, codec: ObservationCodec) -> dict[str, Any]:
        """Encode for an agent.

        :param codec: of its observations
        :return: the fields of :class:`~headway.agents.core.data.Transitions`, the environment's actions, (R, …) each
        """
        last = torch.zeros(len(self), dtype=torch.bool)
        last[self.ends] = True
        terminated = last & self.terminated[self.episode_of_step]
        cpu = torch.device("cpu")
        return {
            "obs": codec.encode(self.obs, cpu),
            "actions": self.actions,
            "rewards": self.rewards.float(),
            "terminated": terminated,
            "truncated": last & ~terminated,
            "next_obs": codec.encode(self.next_obs, cpu),
        }


def join(datasets: Sequence[Dataset], **changes: Any) -> Dataset:
    """Put data sets of one environment behind each other.

    :param datasets: at least one; extras are kept that all of them have
    :param changes: fields of the result that shall not be those of the first
    :return: all their episodes, in order
    :raises ValueError: their spaces differ
    """
    first = datasets[0]
    for other in datasets[1:]:
        for name in ("observation_space", "action_space"):
            here, there = getattr(first, name), getattr(other, name)
            if here != there:
                raise ValueError(
                    f"{first.name or 'the first'} and {other.name or 'another'} cannot be put together: one has the "
                    f"{name.replace('_', ' ')} {shown(here)}, the other {shown(there)}"
                )
    kept = set(first.extras).intersection(*(other.extras for other in datasets))
    joined: dict[str, Any] = {
        name: _joined([getattr(dataset, name) for dataset in datasets])
        for name in ("obs", "final_obs", "actions", "rewards", "lengths", "terminated")
    }
    joined["extras"] = {name: _joined([d.extras[name] for d in datasets]) for name in first.extras if name in kept}
    return replace(first, **{**joined, **changes})


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Mapping):
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    return torch.cat(list(parts))


# -- validation ------------------------------------------------------------------------------------------------------


def _problems(data: Dataset) -> Iterator[str]:
    """:return: what keeps a data set from being used, a line for each kind and field"""
    lengths, rows = data.lengths, len(data.rewards)
    if lengths.dtype is not torch.int64 or lengths.dim() != 1:
        yield f"lengths must be (E,) int64, got {_described(lengths)}"
        return
    if not len(lengths):
        yield "it has no episodes"
        return
    if (lengths < 1).any():
        yield f"episode {int((lengths < 1).nonzero()[0])} has no steps"
        return
    if int(lengths.sum()) != rows:
        yield f"its episodes have {int(lengths.sum())} steps in all, and there are {rows} rewards"
        return
    starts = lengths.cumsum(0) - lengths
    for name, value, count, space in _parts(data):
        fault = _misfit(value, count, space)
        if fault is not None:
            yield f"{name}: {fault}"
        elif (row := _first(~value.isfinite() if value.is_floating_point() else None)) is not None:
            yield f"{name} are not finite at {_place(name, row, starts)}"
        elif (row := _first(_beyond(value, space))) is not None:
            yield f"{name} are not in {shown(space)} at {_place(name, row, starts)}"


_REWARDS = spaces.Box(-np.inf, np.inf, (), np.float64)
_FLAGS: spaces.Box = spaces.Box(0, 1, (), np.bool_)  # type: ignore[arg-type]


def _parts(data: Dataset) -> Iterator[tuple[str, Any, int, Any]]:
    """:return: name, values, rows and space of everything that is stored; of extras the space is None"""
    rows, episodes = len(data.rewards), len(data.lengths)
    for name, obs, count in (("obs", data.obs, rows), ("final_obs", data.final_obs, episodes)):
        space: Any = data.observation_space
        if isinstance(space, spaces.Dict) and isinstance(obs, Mapping) and obs.keys() == space.keys():
            for key, part in obs.items():
                yield f"{name}[{key!r}]", part, count, space[key]
        else:
            yield name, obs, count, space
    yield "actions", data.actions, rows, data.action_space
    yield "rewards", data.rewards, rows, _REWARDS
    yield "terminated", data.terminated, episodes, _FLAGS
    for name, values in data.extras.items():
        yield f"extras[{name!r}]", values, rows, None


def _misfit(value: Any, count: int, space: Any) -> str | None:
    """:return: why values cannot be elements of a space, one per row"""
    if not isinstance(value, Tensor) or isinstance(space, spaces.Dict):
        got = f"by {', '.join(map(repr, value))}" if isinstance(value, Mapping) else type(value).__name__
        return f"they must be those of {shown(space)}, got {got}"
    if space is None:
        return None if value.shape[:1] == (count,) else f"expected ({count}, …), got {_described(value)}"
    expected = (count, *(space.shape or ()))
    kinds = {"f": value.is_floating_point(), "b": value.dtype is torch.bool}
    fits = kinds.get(space.dtype.kind, not any(kinds.values()))
    if space is _REWARDS:
        fits = value.dtype is torch.float64
    if value.shape == expected and fits:
        return None
    return f"expected {expected} {space.dtype}, got {_described(value)}"


def _described(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _beyond(value: Tensor, space: Any) -> Tensor | None:
    """:return: choices that a space does not have; numbers beyond the bounds of a Box harm nobody"""
    if isinstance(space, spaces.Discrete):
        return (value < int(space.start)) | (value >= int(space.start) + int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        start, choices = (torch.as_tensor(np.asarray(part), dtype=torch.int64) for part in (space.start, space.nvec))
        return (value < start) | (value >= start + choices)
    return None


def _first(wrong: Tensor | None) -> int | None:
    """:return: the first row in which something is wrong"""
    if wrong is None or not wrong.any():
        return None
    return int(wrong.flatten(1).any(1).nonzero()[0]) if wrong.dim() > 1 else int(wrong.nonzero()[0])


def _place(name: str, row: int, starts: Tensor) -> str:
    """:return: where a row is"""
    if name.startswith("final_obs"):
        return f"the end of episode {row}"
    episode = int(torch.searchsorted(starts, row, right=True)) - 1
    return f"episode {episode}, step {row - int(starts[episode])}"
