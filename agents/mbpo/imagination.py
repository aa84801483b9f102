"""Steps that a model imagines, and where they are kept.

Shapes: ``A`` agents, ``B`` rows of each, ``E`` members of the model, ``O`` observation, ``d = 1 + O``.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...envs.schema import array, group, maybe, whole
from ...envs.terminations import Termination
from ..core.data import Transitions
from .dynamics import Dynamics

GIB = 2**30


class Imagined(NamedTuple):
    """One imagined step of every row, (A, B, …)."""

    rewards: Tensor
    next_obs: Tensor
    terminated: Tensor


class Rollouts:
    """The rollouts that go on, between two of their steps.

    :param agents: A
    :param rows: of each agent (B)
    :param obs_dim: O
    :param device: where they are
    """

    def __init__(self, agents: int, rows: int, obs_dim: int, device: torch.device) -> None:
        self.obs: Tensor | None = None
        """Where they are, (A, B, O); None: none goes on."""
        self.alive = torch.zeros(agents, rows, dtype=torch.bool, device=device)
        """Which of them have not ended, (A, B)."""
        self._obs_dim = obs_dim

    def begin(self, obs: Tensor) -> None:
        """Start all of them.

        :param obs: in these states, (A, B, O)
        """
        self.obs, self.alive = obs, torch.ones_like(self.alive)

    def end(self) -> None:
        """Let none go on."""
        self.obs = None

    def state(self) -> dict[str, Any]:
        """:return: where they are, and which go on"""
        return {"obs": None if self.obs is None else self.obs.clone(), "alive": self.alive.clone()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` returned.

        :raises ValueError: it does not fit
        """
        shape, device = tuple(self.alive.shape), self.alive.device
        fields = {"obs": maybe(array((*shape, self._obs_dim), "float32")), "alive": array(shape, "bool")}
        group(fields)(state, "the rollouts")
        self.obs = None if state["obs"] is None else state["obs"].to(device).clone()
        self.alive = state["alive"].to(device).clone()


def by_own_member(model: Dynamics, obs: Tensor, actions: Tensor, noise: Tensor, termination: Termination) -> Imagined:
    """Step the rows of each agent by its own member; agents ``n P`` to ``n P + P - 1`` have member n (TS-infinity).

    :param model: of E members, A = E P
    :param obs: (A, B, O)
    :param actions: (A, B, ·)
    :param noise: standard normal, (A, B, d)
    :param termination: of next observations
    :return: the step
    """
    members = len(model)
    own, done, drawn = (part.reshape(members, -1, part.shape[-1]) for part in (obs, actions, noise))  # (E, P B, ·)
    rewards, next_obs = model.predict(own, done, drawn)
    next_obs = next_obs.view(obs.shape)
    return Imagined(rewards.view(obs.shape[:-1]), next_obs, termination(next_obs))


def by_any_elite(
    model: Dynamics, obs: Tensor, actions: Tensor, noise: Tensor, termination: Termination, chosen: Tensor
) -> Imagined:
    """Step each row by a member that is chosen anew every time (TS1), as MBPO does.

    On a CPU each member is asked for its own rows alone; elsewhere all of them for all, so that nothing has to wait to
    learn how many these are.

    :param model: of E members
    :param obs: (A, B, O)
    :param actions: (A, B, ·)
    :param noise: standard normal, (A, B, d)
    :param termination: of next observations
    :param chosen: the member of each row, (A, B) int64
    :return: the step
    """
    picked, (own, done, drawn) = chosen.flatten(), (part.flatten(0, 1) for part in (obs, actions, noise))
    if picked.device.type == "cpu":
        rewards, next_obs = torch.empty(len(picked)), torch.empty_like(own)
        for member in range(len(model)):
            rows = (picked == member).nonzero().squeeze(1)
            rewards[rows], next_obs[rows] = model.predict(own[rows], done[rows], drawn[rows], member)
    else:
        every = model.predict(own, done, drawn)  # (E, A B), (E, A B, O)
        row = torch.arange(len(picked), device=picked.device)
        rewards, next_obs = (part[picked, row] for part in every)
    next_obs = next_obs.view(obs.shape)
    return Imagined(rewards.view(chosen.shape), next_obs, termination(next_obs))


class ImaginedStore:
    """A ring of imagined steps for each agent, drawn from uniformly, of which nothing waits for the device.

    Heads and sizes are tensors there. Rows that are not to be kept go into a slot of their own beyond the ring.

    :param agents: A
    :param capacity: rows of each agent's ring (C)
    :param obs_dim: O
    :param action_dim: numbers of an action
    :param device: where rows are
    :raises ValueError: they would not fit into this machine's memory
    """

    def __init__(self, agents: int, capacity: int, obs_dim: int, action_dim: int, device: torch.device) -> None:
        self.agents, self.device = agents, device
        self._widths = {"obs": obs_dim, "actions": action_dim, "next_obs": obs_dim}
        self.heads = torch.zeros(agents, dtype=torch.int64, device=device)
        self.sizes = torch.zeros_like(self.heads)
        self._allocate(capacity)

    def _allocate(self, capacity: int) -> None:
        row_bytes = self.agents * (4 * (sum(self._widths.values()) + 1) + 1)
        present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if self.device.type == "cpu" and capacity * row_bytes > present:
            raise ValueError(
                f"{capacity:,} imagined rows for each of {self.agents} agents need {capacity * row_bytes / GIB:.1f} "
                f"GiB, this machine has {present / GIB:.1f} GiB of memory: imagine fewer or shorter rollouts, or "
                "retain them for fewer epochs"
            )
        self.capacity = capacity
        lead = (self.agents, capacity + 1)
        self._data = {name: torch.zeros(*lead, width, device=self.device) for name, width in self._widths.items()}
        self._data["rewards"] = torch.zeros(lead, device=self.device)
        self._data["terminated"] = torch.zeros(lead, dtype=torch.bool, device=self.device)

    @torch.no_grad()
    def add(self, rows: Mapping[str, Tensor], alive: Tensor) -> None:
        """Keep one step of every row that goes on, in their order.

        :param rows: ``obs``, ``actions``, ``rewards``, ``terminated`` and ``next_obs``, (A, B, …) each, B at most C
        :param alive: rows to be kept, (A, B) bool
        """
        assert alive.shape[1] <= self.capacity, "more rows at once than the ring has"
        places = (self.heads.unsqueeze(1) + alive.cumsum(1) - 1) % self.capacity
        places = torch.where(alive, places, self.capacity)  # (A, B)
        first = torch.arange(self.agents, device=self.device).unsqueeze(1) * (self.capacity + 1)
        flat = (first + places).flatten()
        for name, data in self._data.items():
            data.flatten(0, 1).index_copy_(0, flat, rows[name].flatten(0, 1).to(data.dtype))
        added = alive.sum(1)
        self.heads.copy_((self.heads + added) % self.capacity)
        self.sizes.copy_((self.sizes + added).clamp(max=self.capacity))

    def sample(self, shares: Tensor) -> Transitions:
        """Draw rows.

        :param shares: uniform in [0, 1), (A, B)
        :return: a batch, (A, B, …); of an agent without rows, zeros
        """
        rows = (shares * self.sizes.unsqueeze(1)).long()  # (A, B); a share just below 1 can round to the size
        rows = torch.minimum(rows, (self.sizes - 1).clamp(min=0).unsqueeze(1))
        first = torch.arange(self.agents, device=self.device).unsqueeze(1) * (self.capacity + 1)
        flat = (first + rows).flatten()
        drawn = {
            name: data.flatten(0, 1).index_select(0, flat).view(*shares.shape, *data.shape[2:])
            for name, data in self._data.items()
        }
        return Transitions(**drawn, truncated=torch.zeros_like(drawn["terminated"]))

    def resize(self, capacity: int) -> None:
        """Give the rings another length; the newest rows stay.

        :param capacity: C
        """
        if capacity == self.capacity:
            return
        length = min(int(self.sizes.max()), capacity)
        sizes = self.sizes.clamp(max=capacity)
        slots = torch.arange(length, device=self.device)  # the oldest that is kept goes to the first
        places = (self.heads.unsqueeze(1) - sizes.unsqueeze(1) + slots) % self.capacity  # (A, L)
        agents = torch.arange(self.agents, device=self.device).unsqueeze(1)
        kept = {name: data[agents, places] for name, data in self._data.items()}
        self._allocate(capacity)
        for name, part in kept.items():
            self._data[name][:, :length] = part
        self.sizes.copy_(sizes)
        self.heads.copy_(sizes % capacity)

    def state(self) -> dict[str, Any]:
        """:return: capacity, heads, sizes and the rows that are kept, slot by slot"""
        longest = int(self.sizes.max())
        rows = {name: data[:, :longest].clone() for name, data in self._data.items()}
        return {"capacity": self.capacity, "heads": self.heads.clone(), "sizes": self.sizes.clone(), "rows": rows}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` returned.

        :raises ValueError: it does not fit
        """
        group({"capacity": whole(1), "heads": lambda *_: None, "sizes": lambda *_: None, "rows": lambda *_: None})(
            state, "the imagined steps"
        )
        capacity = state["capacity"]
        for name, most in (("heads", capacity - 1), ("sizes", capacity)):
            array((self.agents,), "int64", low=0, high=most)(state[name], f"the imagined steps' {name}")
        if capacity != self.capacity:
            self._allocate(capacity)
        longest = int(state["sizes"].max())
        kinds = {name: str(data.dtype).removeprefix("torch.") for name, data in self._data.items()}
        shapes = {name: (self.agents, longest, *data.shape[2:]) for name, data in self._data.items()}
        group({name: array(shapes[name], kinds[name]) for name in kinds})(state["rows"], "the imagined steps")
        for name, data in self._data.items():
            data[:, :longest] = state["rows"][name].to(self.device)
        self.heads.copy_(state["heads"])
        self.sizes.copy_(state["sizes"])


def rollout_length(epoch: int, schedule: tuple[int, int, int, int]) -> int:
    """k = int(lo + clip((epoch - a) / (b - a), 0, 1) (hi - lo)).

    :param epoch: from 0
    :param schedule: a, b, lo, hi
    :return: steps of a rollout
    """
    a, b, low, high = schedule
    return int(low + min(max((epoch - a) / (b - a), 0.0), 1.0) * (high - low))
