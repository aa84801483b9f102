"""Networks, and what trains them."""

from .adam import LeanAdam
from .heads import (
    Actor,
    Critics,
    DeterministicActor,
    GaussianActor,
    SquashedGaussianActor,
    StateCritics,
    Temperature,
)
from .stacks import Activation, StackedMLP
from .tracked import Tracked, TrackedModules

__all__ = [
    "Activation",
    "Actor",
    "Critics",
    "DeterministicActor",
    "GaussianActor",
    "LeanAdam",
    "SquashedGaussianActor",
    "StackedMLP",
    "StateCritics",
    "Temperature",
    "Tracked",
    "TrackedModules",
]
