"""Where data come from, and where they are kept."""

from .collectors import Collector, GradientSteps, StepCollector
from .episodes import Episodes, Turn, run_episodes
from .finite import DivergedError, NonFiniteError, check_losses, check_shown, diverged, first_broken
from .rollout import RolloutStore, generalised_advantages
from .stepping import Step
from .store import ReplayStore, Transitions, transition_fields

__all__ = [
    "Collector",
    "DivergedError",
    "Episodes",
    "GradientSteps",
    "NonFiniteError",
    "ReplayStore",
    "RolloutStore",
    "Step",
    "StepCollector",
    "Transitions",
    "Turn",
    "check_losses",
    "check_shown",
    "diverged",
    "first_broken",
    "generalised_advantages",
    "run_episodes",
    "transition_fields",
]
