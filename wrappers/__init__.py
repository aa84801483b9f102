"""What changes how an environment is met. Importing it registers ``headway/Delayed-v0`` with Gymnasium."""

from .batching import VecEnvBatch, VectorEnvBatch, as_batched
from .random_delay import BatchedRandomDelay, RandomDelay
from .registration import register_all
from .sb3 import BatchedVecEnv
from .snapshot import Snapshot, StateNotSavable, capture, restore
from .spaces_only import SpacesOnlyVecEnv

__all__ = [
    "BatchedRandomDelay",
    "BatchedVecEnv",
    "RandomDelay",
    "Snapshot",
    "SpacesOnlyVecEnv",
    "StateNotSavable",
    "VecEnvBatch",
    "VectorEnvBatch",
    "as_batched",
    "capture",
    "restore",
]

register_all()
