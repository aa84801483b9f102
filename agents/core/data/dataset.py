"""Recorded steps to learn from: all of a data set as flat tensors, one episode after the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from gymnasium import spaces
from torch import Tensor

from ..spaces import Obs, ObservationCodec, map_obs


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """E episodes of R steps in all, in the order of time, on the CPU.

    Observations and actions are the environment's, in its own unit and dtype; an observation of a Dict space is a dict
    of tensors.

    :raises ValueError: lengths that do not fit each other, or numbers that are not finite; the episode is named
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
