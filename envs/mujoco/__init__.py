"""MuJoCo tasks, written once on tensors, stepped by the thousand on the CPU and on the GPU."""

from ..streams import Draws
from .batch import MujocoBatch
from .engine import Sim
from .numerics import centre_of_mass, cos, row_norm, row_sum, sin
from .randomise import Variation, scale, shift
from .rendering import Camera
from .task import MujocoTask

__all__ = [
    "Camera",
    "Draws",
    "MujocoBatch",
    "MujocoTask",
    "Sim",
    "Variation",
    "centre_of_mass",
    "cos",
    "row_norm",
    "row_sum",
    "scale",
    "shift",
    "sin",
]
