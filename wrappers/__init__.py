"""What changes how an environment is met."""

from .batching import VecEnvBatch, VectorEnvBatch, as_batched
from .sb3 import BatchedVecEnv
from .snapshot import Snapshot, StateNotSavable, capture, restore

__all__ = [
    "BatchedVecEnv",
    "Snapshot",
    "StateNotSavable",
    "VecEnvBatch",
    "VectorEnvBatch",
    "as_batched",
    "capture",
    "restore",
]
