"""Networks, and what trains them."""

from .distributions import Categorical, Gaussian
from .heads import (
    Actor,
    ActorValue,
    Critics,
    DeterministicActor,
    Head,
    QValues,
    SquashedGaussianActor,
    StateCritics,
    Temperature,
    orthogonal_,
    orthogonal_layers_,
)
from .optimisers import SGD, Adam, LeanAdam, Optimiser
from .policies import BoundedGaussian, DensityActor, LayerNormCritics, action_values
from .precision import check_precision
from .stacks import Activation, LayerNormMLP, Precision, StackedMLP
from .tracked import Tracked, TrackedModules, clip_

__all__ = [
    "SGD",
    "Activation",
    "Actor",
    "ActorValue",
    "Adam",
    "BoundedGaussian",
    "Categorical",
    "Critics",
    "DensityActor",
    "DeterministicActor",
    "Gaussian",
    "Head",
    "LayerNormCritics",
    "LayerNormMLP",
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
    "action_values",
    "check_precision",
    "clip_",
    "orthogonal_",
    "orthogonal_layers_",
]
