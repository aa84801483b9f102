"""What changes how an environment is met. Importing it registers ``headway/Delayed-v0`` with Gymnasium."""

from .batching import VecEnvBatch, VectorEnvBatch, as_batched
from .missions import Missions
from .playback import Playback
from .random_delay import BatchedRandomDelay, RandomDelay
from .registration import register_all
from .sb3 import BatchedVecEnv
from .snapshot import Snapshot, StateNotSavable, capture, restore
from .spaces_only import SpacesOnlyVecEnv
from .verification import SnapshotReport, verify_snapshot
from .whole_episodes import WholeEpisodes

__all__ = [
    "BatchedRandomDelay",
    "BatchedVecEnv",
    "Missions",
    "Playback",
    "RandomDelay",
    "Snapshot",
    "SnapshotReport",
    "SpacesOnlyVecEnv",
    "StateNotSavable",
    "VecEnvBatch",
    "VectorEnvBatch",
    "WholeEpisodes",
    "as_batched",
    "capture",
    "restore",
    "verify_snapshot",
]

register_all()
