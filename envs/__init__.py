"""What is simulated. Importing it registers Headway's own environments with Gymnasium."""

from .batched import BatchedEnv
from .registration import is_batched, make, make_batched, register_all, register_mujoco_task, supports_rgb
from .vector import NumpyVectorEnv

__all__ = [
    "BatchedEnv",
    "NumpyVectorEnv",
    "is_batched",
    "make",
    "make_batched",
    "register_mujoco_task",
    "supports_rgb",
]

register_all()
