"""What games' parameters may be, as OpenSpiel writes them or as Python does, and how they enter rewards."""

import re
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

Number = float | Tensor
"""A number, or a tensor of numbers whose dimensions become the leading dimensions of a batch of games."""
Cells = str | Iterable[Sequence[int]]
"""Cells (x, y) of a grid: pairs, or OpenSpiel's ``"[x|y;x|y]"``."""
Parts = dict[str, Any]
"""Some of a game's parts, by name."""
Values = str | Iterable[float]
"""Numbers, or OpenSpiel's ``"[v;v]"``."""


def check_whole(low: int = 1, **sizes: Any) -> None:
    """See that sizes are whole numbers.

    :param low: the least that they may be
    :param sizes: by name
    :raises ValueError: one is not
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, Integral) or size < low:
            raise ValueError(f"{name} must be a whole number of at least {low}, got {size!r}")


def check_positive(**values: Any) -> None:
    """See that things are positive numbers.

    :param values: by name
    :raises ValueError: one is not
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < np.inf:
            raise ValueError(f"{name} must be a number in (0, inf), got {value!r}")


def even_start(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """:return: mu0 of a crowd that is equally everywhere, (1, S)."""
    return torch.full((1, size), 1 / size, dtype=dtype, device=device)


class Numbers:
    """Reads a game's numbers, each alone or one for every game of a batch.

    :param device: where the game is
    :param dtype: the game's
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._seen: dict[str, tuple[int, ...]] = {}

    def __call__(self, name: str, value: Any, low: float = -np.inf, high: float = np.inf) -> Tensor:
        """Read a number.

        :param name: of the parameter
        :param value: a number, or a tensor of them
        :param low: the least that it may be
        :param high: the greatest
        :return: (*batch), no dimension for a single one
        :raises ValueError: it is no number, out of range, or does not go with the batch of another
        """
        try:
            number = torch.as_tensor(value, dtype=self.dtype, device=self.device)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{name} must be a number or a tensor of numbers, got {value!r}") from None
        wrong = ~((number >= low) & (number <= high) & number.isfinite())
        if wrong.any():
            raise ValueError(f"{name} must lie in [{low:g}, {high:g}] and be finite, got {float(number[wrong][0]):g}")
        self._seen[name] = tuple(number.shape)
        try:
            np.broadcast_shapes(*self._seen.values())
        except ValueError:
            sizes = ", ".join(f"{known} {shape}" for known, shape in self._seen.items() if shape)
            raise ValueError(f"parameters given per game must have sizes that broadcast, got {sizes}") from None
        return number


def spread(number: Tensor, dims: int) -> Tensor:
    """Make a number of each game broadcast against what there are several of per game.

    :param number: (*batch)
    :param dims: how many dimensions follow the batch: 2 for (n_pop, S), 3 for (n_pop, S, A)
    :return: (*batch, 1, …, 1); a single number as it is
    """
    return number.reshape(*number.shape, *[1] * dims) if number.ndim else number


def along(table: Tensor, t: Any) -> Tensor:
    """Look up a table of times and states.

    :param table: (T, S)
    :param t: as a game's functions get it: a time, or many of them as (T, 1, …, 1)
    :return: (S,) or (T, …, 1, S)
    """
    return table[t] if isinstance(t, int) else table[t[..., 0]]


def read_cells(name: str, cells: Cells, width: int, height: int) -> list[tuple[int, int]]:
    """Read cells of a grid.

    :param name: of the parameter
    :param cells: them
    :param width: of the grid
    :param height: of the grid
    :return: pairs (x, y)
    :raises ValueError: they are something else, or lie outside
    """
    try:
        pairs = [part.split("|") for part in _parts(cells)] if isinstance(cells, str) else cells
        read = [(int(x), int(y)) for x, y in pairs]
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be cells as '[x|y;x|y]' or as pairs (x, y), got {cells!r}") from None
    for x, y in read:
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"{name} names cell ({x}, {y}): x goes from 0 to {width - 1}, y from 0 to {height - 1}")
    return read


def read_values(name: str, values: Values, of: str, wanted: int, default: float) -> list[float]:
    """Read as many numbers as there are of something else.

    :param name: of the parameter
    :param values: them, or none
    :param of: what they belong to
    :param wanted: how many there are of that
    :param default: each number, if none are given
    :return: the numbers
    :raises ValueError: they are something else, or more or fewer
    """
    try:
        read = [float(value) for value in (_parts(values) if isinstance(values, str) else values)]
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers as '[v;v]' or in a sequence, got {values!r}") from None
    read = read or [default] * wanted
    if len(read) != wanted:
        raise ValueError(f"{name} must hold as many numbers as {of} has cells, {wanted}, got {len(read)}")
    return read


def _parts(text: str) -> list[str]:
    """:return: what stands between semicolons, with or without brackets around."""
    inside = re.sub(r"^\s*\[(.*)\]\s*$", r"\1", text)
    return [part for part in inside.split(";") if part.strip()]
