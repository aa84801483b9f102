"""States of many rows in one place, written and read by number: the memory of a search through a simulator."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .batched import BatchedEnv, RowSnapshots, require


class RowStates:
    """``capacity`` places, each for the state of one row of an environment.

    Which parts of a state belong to rows, and which all rows have in common, is read from the state of no rows: the
    former have none there. What is in common is taken from the state that was written last.

    :param env: a batch whose rows can be copied
    :param capacity: places
    :raises TypeError: its rows cannot be copied
    """

    def __init__(self, env: BatchedEnv, capacity: int) -> None:
        none = torch.zeros(0, dtype=torch.int64, device=env.device)
        self.capacity, self.device = capacity, env.device
        self._held = self._room(require(env, RowSnapshots).state(none))

    def _room(self, part: Any) -> Any:
        """:return: where to hold a part of a state, of which the part of no rows is given."""
        if isinstance(part, Mapping):
            return {name: self._room(inner) for name, inner in part.items()}
        if isinstance(part, Tensor) and part.ndim and not len(part):
            return part.new_zeros((self.capacity, *part.shape[1:]))
        if isinstance(part, np.ndarray) and part.ndim and not len(part):
            return np.zeros((self.capacity, *part.shape[1:]), part.dtype)
        if isinstance(part, list) and not part:
            return [None] * self.capacity
        return _Common(part)

    def write(self, places: Tensor, state: Any) -> None:
        """Hold the states of K rows.

        :param places: numbers (K,) int64; of one that is named twice, which row it holds is not said
        :param state: what ``state(rows)`` of K rows returned
        """
        _write(self._held, places.to(self.device), state)

    def read(self, places: Tensor) -> Any:
        """:return: the state of K rows, held at places (K,) int64, for ``load_state``"""
        return _read(self._held, places.to(self.device))

    def equal(self, places: Tensor, state: Any) -> Tensor:
        """Compare states.

        :param places: (K,) int64
        :param state: of K rows
        :return: whether it is what is held there, (K,) bool; a number that is NaN equals none
        """
        return _equal(self.read(places), state, torch.ones(len(places), dtype=torch.bool, device=self.device))


class _Common:
    """What all rows have in common."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _write(held: Any, places: Tensor, part: Any) -> None:
    if isinstance(held, dict):
        for name, inner in held.items():
            _write(inner, places, part[name])
    elif isinstance(held, _Common):
        held.value = part
    elif isinstance(held, list):
        for place, entry in zip(places.tolist(), part, strict=True):
            held[place] = entry
    else:
        held[places if isinstance(held, Tensor) else places.numpy()] = part


def _read(held: Any, places: Tensor) -> Any:
    if isinstance(held, dict):
        return {name: _read(inner, places) for name, inner in held.items()}
    if isinstance(held, _Common):
        return held.value
    if isinstance(held, list):
        return [held[place] for place in places.tolist()]
    return held[places if isinstance(held, Tensor) else places.numpy()]


def _equal(one: Any, other: Any, rows: Tensor) -> Tensor:
    """:return: ``rows``, without those in which two states of as many rows differ"""
    if isinstance(one, dict):
        for name, part in one.items():
            rows = _equal(part, other[name], rows)
        return rows
    if isinstance(one, list):
        same = [_same(a, b) for a, b in zip(one, other, strict=True)]
        return rows & torch.tensor(same, dtype=torch.bool, device=rows.device)
    one, other = torch.as_tensor(one), torch.as_tensor(other)
    if one.shape[:1] != rows.shape:  # in common
        return rows & torch.equal(one, other)
    alike: Tensor = (one == other).view(len(one), -1).all(1)
    return rows & alike


def _same(one: Any, other: Any) -> bool:
    """Equality of nested plain data."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else bool(one == other)
