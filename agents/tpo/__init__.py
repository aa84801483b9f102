"""Search through a simulator that can be copied, by any trained policy and value."""

from .agent import TPO
from .config import TPOConfig
from .gate import SearchDoesNotHelpError
from .guides import Guide, guide_of
from .lines import MPPIConfig, ShootingConfig, SMCConfig
from .planners import Planner, TreePlanner
from .search_policy import Search, SearchPolicy
from .tree import Tree, TreeConfig

__all__ = [
    "TPO",
    "Guide",
    "MPPIConfig",
    "Planner",
    "SMCConfig",
    "Search",
    "SearchDoesNotHelpError",
    "SearchPolicy",
    "ShootingConfig",
    "TPOConfig",
    "Tree",
    "TreeConfig",
    "TreePlanner",
    "guide_of",
]
