"""Mean field games, learnt: deep solvers, agents' policies as crowds'; rewards from moves in :mod:`.inverse`."""

from .agent import AverageDQN, BestResponseDQN, MirrorDescentDQN
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
from .policies import CrowdFollowsLearner, NashConvCallback, exploitability_of, tabular_policy

__all__ = [
    "AverageConfig",
    "AverageDQN",
    "BestResponseConfig",
    "BestResponseDQN",
    "CrowdFollowsLearner",
    "DeepHistory",
    "DeepSolution",
    "Iteration",
    "MirrorDescentConfig",
    "MirrorDescentDQN",
    "NashConvCallback",
    "average_fictitious_play",
    "deep_fictitious_play",
    "deep_mirror_descent",
    "exploitability_of",
    "fictitious_play_with",
    "log_iterations",
    "tabular_policy",
]
