"""Where data come from, and where they are kept."""

from .collectors import Collector, GradientSteps, StepCollector
from .dataset import Dataset, DatasetError, join
from .dataset_files import load_dataset, write_dataset
from .episodes import Episodes, Turn, run_episodes
from .finite import DivergedError, NonFiniteError, check_losses, check_shown, diverged, first_broken
from .rollout import RolloutStore, generalised_advantages
from .stepping import Step
from .store import ReplayStore, Transitions, joined, transition_fields

__all__ = [
    "Collector",
    "Dataset",
    "DatasetError",
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
    "join",
    "joined",
    "load_dataset",
    "run_episodes",
    "transition_fields",
    "write_dataset",
]
