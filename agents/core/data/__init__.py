"""Where data come from, and where they are kept."""

from .collectors import Collector, GradientSteps, StepCollector
from .episodes import Episodes, Turn, run_episodes
from .rollout import RolloutStore, generalised_advantages
from .stepping import NonFiniteError, Step
from .store import ReplayStore, Transitions, transition_fields

__all__ = [
    "Collector",
    "Episodes",
    "GradientSteps",
    "NonFiniteError",
    "ReplayStore",
    "RolloutStore",
    "Step",
    "StepCollector",
    "Transitions",
    "Turn",
    "generalised_advantages",
    "run_episodes",
    "transition_fields",
]
