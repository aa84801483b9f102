"""Networks, and what trains them."""

from .heads import (
    Actor,
    CategoricalActor,
    Critics,
    DeterministicActor,
    GaussianActor,
    Head,
    QValues,
    SquashedGaussianActor,
    StateCritics,
    Temperature,
    Value,
    orthogonal_,
    orthogonal_layers_,
)
from .optimisers import SGD, Adam, LeanAdam, Optimiser
from .precision import check_precision
from .stacks import Activation, Precision, StackedMLP
from .tracked import Tracked, TrackedModules, clip_

__all__ = [
    "SGD",
    "Activation",
    "Actor",
    "Adam",
    "CategoricalActor",
    "Critics",
    "DeterministicActor",
    "GaussianActor",
    "Head",
    "LeanAdam",
    "Optimiser",
    "Precision",
    "QValues",
    "SquashedGaussianActor",
    "StackedMLP",
    "StateCritics",
    "Temperature",
    "Tracked",
    "TrackedModules",
    "Value",
    "check_precision",
    "clip_",
    "orthogonal_",
    "orthogonal_layers_",
]
