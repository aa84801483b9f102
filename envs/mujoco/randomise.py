"""Physics that differ from row to row and from episode to episode."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..streams import Draws


@dataclass(frozen=True)
class Variation:
    """How a model field is drawn: evenly between two bounds, then multiplied with the model's value or added to it.

    Made by :func:`scale` and :func:`shift`.
    """

    how: Literal["scale", "shift"]
    low: float
    high: float
    shared: bool

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"{self.how}({self.low}, {self.high}): the lower bound must not exceed the upper one")

    def draw(self, nominal: Tensor, random: Draws) -> Tensor:
        """Draw a field.

        :param nominal: the model's values, (…)
        :param random: draws (N, …)
        :return: (N, …)
        """
        drawn = random.uniform(self.low, self.high, 1 if self.shared else nominal.numel())
        drawn = drawn.view(-1, *([1] * nominal.ndim if self.shared else nominal.shape))
        return nominal * drawn if self.how == "scale" else nominal + drawn


def scale(low: float, high: float, *, shared: bool = False) -> Variation:
    """Multiply every number of a model field by one of its own from [low, high).

    :param low: smallest factor
    :param high: largest factor
    :param shared: one factor for the whole field
    """
    return Variation("scale", low, high, shared)


def shift(low: float, high: float, *, shared: bool = False) -> Variation:
    """Add to every number of a model field one of its own from [low, high), in the field's unit.

    :param low: smallest change
    :param high: largest change
    :param shared: one change for the whole field
    """
    return Variation("shift", low, high, shared)


Randomise = Mapping[str, Variation]
"""Model fields by name, and how each is drawn."""
