"""The newest experience of agents that learn on-policy: T steps of N environments, worked off and forgotten."""

import functools
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ....envs.schema import group, whole
from ..spaces import Fields, FieldSpec, Obs, map_obs
from .store import by_path, check_row_shapes


class RolloutStore:
    """T steps of N environments, in the order of time, as tensors (T, N, …).

    :param fields: shape and dtype of every field, or several by name for one that is several tensors
    :param n_steps: T
    :param n_envs: N
    :param device: where they are stored; rows of other devices are copied over
    """

    def __init__(self, fields: Mapping[str, Fields], *, n_steps: int, n_envs: int, device: torch.device) -> None:
        self.n_steps, self.n_envs, self.device = n_steps, n_envs, device
        self._specs = dict(fields)
        self.fields: dict[str, FieldSpec] = by_path(fields)
        self.steps = 0

    @functools.cached_property
    def _data(self) -> dict[str, Tensor]:
        """The tensors, made when they are needed: a policy that is only asked for actions needs none."""
        sizes = {name: (self.n_steps, self.n_envs, *field.shape) for name, field in self.fields.items()}
        return {k: torch.zeros(sizes[k], dtype=f.dtype, device=self.device) for k, f in self.fields.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Of its fields."""
        return tuple(self._specs)

    def __len__(self) -> int:
        return self.steps * self.n_envs

    @property
    def full(self) -> bool:
        """All T steps are there."""
        return self.steps == self.n_steps

    def clear(self) -> None:
        """Begin anew with the next step; what is there can still be read."""
        self.steps = 0

    @torch.no_grad()
    def add(self, rows: Mapping[str, Any]) -> None:
        """Store a step, by copy; the first after the last of T starts anew.

        :param rows: a tensor (N, …) for every field
        :raises ValueError: a field is missing, unknown, or of another shape or dtype
        """
        flat = by_path(rows)
        check_row_shapes(flat, self.fields, (self.n_envs,))
        step = self.steps % self.n_steps
        for name, row in flat.items():
            self._data[name][step] = row
        self.steps = step + 1

    def __getitem__(self, name: str) -> Tensor:
        """:return: a field of one tensor, (T, N, …); it may be written into."""
        return self._data[name]

    def field(self, name: str) -> Obs:
        """:return: a field, (T, N, …), by name where it is several tensors."""
        spec = self._specs[name]
        return self._data[name] if isinstance(spec, FieldSpec) else {p: self._data[f"{name}.{p}"] for p in spec}

    def take(self, names: tuple[str, ...], rows: Tensor) -> Iterator[Obs]:
        """Pick rows.

        :param names: of fields
        :param rows: (B,) int64; row t N + n is step t of environment n
        :return: these fields' values, (B, …)
        """
        return (map_obs(lambda part: part.flatten(0, 1).index_select(0, rows), self.field(name)) for name in names)

    def state(self) -> dict[str, Any]:
        """:return: everything, by copy."""
        return {"steps": self.steps, "data": {name: data.clone() for name, data in self._data.items()}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` returned.

        :param state: of a store of the same fields and sizes
        :raises ValueError: it does not fit
        """
        lead = (self.n_steps, self.n_envs)
        data = {name: partial(field.check, lead=lead) for name, field in self.fields.items()}
        group({"steps": whole(0, self.n_steps), "data": group(data)})(state, "the rollout")
        self.steps = state["steps"]
        for name, data in state["data"].items():
            self._data[name].copy_(data)


def generalised_advantages(
    rewards: Tensor, values: Tensor, last_values: Tensor, ended: Tensor, gamma: float, gae_lambda: float
) -> Tensor:
    """A_t = sum_k (gamma lambda)^k delta_(t+k), delta_t = r_t + gamma V(s_(t+1)) - V(s_t), up to the episode's end.

    Schulman, Moritz, Levine, Jordan, Abbeel: "High-Dimensional Continuous Control Using Generalized Advantage
    Estimation", arXiv 1506.02438, eq. 16. After an end nothing is added; what a truncated step would have gone on to
    earn has to be in its reward already.

    :param rewards: (T, N)
    :param values: V(s_t), (T, N)
    :param last_values: V(s_T), (N,)
    :param ended: the step ended its episode, (T, N) bool
    :param gamma: discount per step
    :param gae_lambda: 0 looks one step ahead, 1 to the end
    :return: (T, N)
    """
    goes_on = (~ended).to(values.dtype)
    next_values = torch.cat((values[1:], last_values.unsqueeze(0)))
    deltas = rewards + gamma * next_values * goes_on - values
    decay = gamma * gae_lambda * goes_on
    advantages = torch.empty_like(deltas)
    running = torch.zeros_like(last_values)
    for t in range(len(deltas) - 1, -1, -1):
        running = torch.addcmul(deltas[t], decay[t], running, out=advantages[t])
    return advantages
