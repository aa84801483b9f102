"""Who acts: an agent is drawn when an episode begins, and acts to its end. And who knows which real rows."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...envs.schema import array, group, whole

RESETS = 256
"""First observations of episodes that are remembered, by which agents are judged. Our choice."""


class Acting:
    """The agent of each environment, and that of which most is expected.

    :param agents: A, from which is drawn
    :param n_envs: N
    :param obs_dim: O
    :param device: where observations are
    """

    def __init__(self, agents: int, n_envs: int, obs_dim: int, device: torch.device) -> None:
        self.agents = agents
        self.drawn = torch.zeros(n_envs, dtype=torch.int64, device=device)
        """The agent that acts in each environment, (N,)."""
        self.best = 0
        """The agent of which most is expected."""
        self.starts = torch.zeros(0, obs_dim, device=device)
        """Where the last episodes began, (at most RESETS, O)."""
        self._begins = np.ones(n_envs, dtype=bool)

    def end_episodes(self, dones: np.ndarray[Any, Any] | bool) -> None:
        """Draw anew before the next step.

        :param dones: in which environments, (N,) bool; True: in all
        """
        self._begins |= dones

    def begin_episodes(self, obs: Tensor, optimistic: bool, generator: torch.Generator) -> None:
        """Note where episodes begin, and draw an agent for each.

        :param obs: what is acted on next, (N, O)
        :param optimistic: the best acts, instead of any
        :param generator: of the draws
        """
        if not self._begins.any():
            return
        rows = torch.from_numpy(self._begins).to(self.drawn.device)
        self.starts = torch.cat((self.starts, obs[rows]))[-RESETS:]
        self.drawn = torch.where(rows, self.draw(optimistic, generator), self.drawn)
        self._begins[:] = False

    def draw(self, optimistic: bool, generator: torch.Generator) -> Tensor:
        """:return: who would act in each environment in an episode that begins now, (N,)"""
        if optimistic or self.agents == 1:
            return torch.full_like(self.drawn, self.best)
        return torch.randint(self.agents, self.drawn.shape, generator=generator, device=self.drawn.device)

    def state(self) -> dict[str, Any]:
        """:return: who acts, and where episodes began"""
        tensors = {"drawn": self.drawn.clone(), "starts": self.starts.clone()}
        return tensors | {"best": self.best, "begins": self._begins.copy()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` returned.

        :raises ValueError: it does not fit
        """
        rows, most, device = len(self.drawn), self.agents - 1, self.drawn.device
        fields = {"drawn": array((rows,), "int64", low=0, high=most), "begins": array((rows,), "bool")}
        fields |= {"starts": array((None, self.starts.shape[1]), "float32"), "best": whole(0, most)}
        group(fields)(state, "who acts")
        self.drawn, self.starts = (state[name].to(device).clone() for name in ("drawn", "starts"))
        self._begins, self.best = np.array(state["begins"]), state["best"]


class Counted(NamedTuple):
    """The rows of the real store, and how often each agent counts them."""

    rows: Tensor
    """(R,) int64, for the store."""

    sums: Tensor
    """Running sums of counts, (A, R) int64."""

    def draw(self, shares: Tensor) -> Tensor:
        """:return: rows of each agent, by their counts, from uniform numbers (A, B), (A, B) int64"""
        goal = (shares * self.sums[:, -1:]).long()
        found = torch.searchsorted(self.sums, goal, right=True).clamp(max=len(self.rows) - 1)
        return self.rows[found]
