"""Where data come from, and where they are kept."""

from .collectors import Collector, GradientSteps, StepCollector
from .rollout import RolloutStore, generalised_advantages
from .stepping import NonFiniteError, Step
from .store import ReplayStore, Transitions

__all__ = [
    "Collector",
    "GradientSteps",
    "NonFiniteError",
    "ReplayStore",
    "RolloutStore",
    "Step",
    "StepCollector",
    "Transitions",
    "generalised_advantages",
]
