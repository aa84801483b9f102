"""Population search coupled with policy gradients."""

from .agent import CEM, PGPS, CEMConfig, PGPSConfig
from .cem import CEMSearch
from .evolution import PopulationAgent, PopulationConfig
from .population import Population, evaluate, flatten, unflatten

__all__ = [
    "CEM",
    "PGPS",
    "CEMConfig",
    "CEMSearch",
    "PGPSConfig",
    "Population",
    "PopulationAgent",
    "PopulationConfig",
    "evaluate",
    "flatten",
    "unflatten",
]
