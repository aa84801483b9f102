"""What one row of stored data holds, and batches of observations that may be one tensor or several."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Obs = Tensor | dict[str, Tensor]
"""Encoded observations of B rows: one tensor (B, …), or several by name."""


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """What one stored field holds per row.

    :param shape: shape of one row's value, without environment or batch dimension; ``()`` for a scalar
    :param dtype: the dtype it is stored in and sampled as
    """

    shape: tuple[int, ...]
    dtype: torch.dtype


Fields = FieldSpec | Mapping[str, FieldSpec]
"""Of one tensor, or of several by name."""


def count_rows(obs: Obs) -> int:
    """:return: B"""
    return len(obs if isinstance(obs, Tensor) else next(iter(obs.values())))


def map_obs(function: Callable[[Tensor], Tensor], obs: Obs) -> Obs:
    """:return: what a function makes of every tensor of some observations."""
    return function(obs) if isinstance(obs, Tensor) else {name: function(part) for name, part in obs.items()}
