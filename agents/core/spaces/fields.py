"""What one row of stored data holds, and batches of observations that may be one tensor or several."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....envs.schema import array, check_numbers

Obs = Tensor | dict[str, Tensor]
"""Encoded observations of B rows: one tensor (B, …), or several by name."""


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """What one stored field holds per row.

    :param shape: shape of one row's value, without environment or batch dimension; ``()`` for a scalar
    :param dtype: the dtype it is stored in and sampled as
    :param choices: of an index, how many it chooses from, by column where there are several; None: it is none
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    choices: int | tuple[int, ...] | None = None

    def check(self, rows: object, where: str, lead: Sequence[int]) -> None:
        """See that stored values, from a file say, are what this says.

        :param rows: the values
        :param where: what errors call them
        :param lead: the axes before those of one row
        :raises ValueError: they are of another shape or dtype, not finite, or beyond their choices
        """
        array((*lead, *self.shape), dtype_name(self.dtype))(rows, where)
        assert isinstance(rows, Tensor)
        if isinstance(self.choices, int):
            check_numbers(rows, where, 0, self.choices - 1)
        elif self.choices is not None:
            for column, choices in enumerate(self.choices):
                check_numbers(rows[..., column], f"{where}, column {column},", 0, choices - 1)


def dtype_name(dtype: torch.dtype) -> str:
    """:return: a dtype's name, as NumPy has it."""
    return str(dtype).removeprefix("torch.")


Fields = FieldSpec | Mapping[str, FieldSpec]
"""Of one tensor, or of several by name."""


def count_rows(obs: Obs) -> int:
    """:return: B"""
    return len(obs if isinstance(obs, Tensor) else next(iter(obs.values())))


def map_obs(function: Callable[[Tensor], Tensor], obs: Obs) -> Obs:
    """:return: what a function makes of every tensor of some observations."""
    return function(obs) if isinstance(obs, Tensor) else {name: function(part) for name, part in obs.items()}
