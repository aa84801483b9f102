"""Search through a simulator that can be copied, by any trained policy and value."""

from .guides import Guide, guide_of
from .planners import MPPIConfig, Planner, ShootingConfig, SMCConfig, TreePlanner
from .search_policy import Search, SearchPolicy
from .tree import Tree, TreeConfig

__all__ = [
    "Guide",
    "MPPIConfig",
    "Planner",
    "SMCConfig",
    "Search",
    "SearchPolicy",
    "ShootingConfig",
    "Tree",
    "TreeConfig",
    "TreePlanner",
    "guide_of",
]
