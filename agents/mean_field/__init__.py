"""Mean field games, learnt: deep solvers here; rewards from how crowds move in :mod:`headway.agents.mean_field_irl`."""

from .config import AverageConfig, BestResponseConfig, MirrorDescentConfig
from .deep import (
    DeepHistory,
    DeepSolution,
    Iteration,
    average_fictitious_play,
    deep_fictitious_play,
    deep_mirror_descent,
    fictitious_play_with,
    log_iterations,
)

__all__ = [
    "AverageConfig",
    "BestResponseConfig",
    "DeepHistory",
    "DeepSolution",
    "Iteration",
    "MirrorDescentConfig",
    "average_fictitious_play",
    "deep_fictitious_play",
    "deep_mirror_descent",
    "fictitious_play_with",
    "log_iterations",
]
