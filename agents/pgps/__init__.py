"""Population search coupled with policy gradients."""

from .cem import CEMSearch
from .population import Population, evaluate, flatten, unflatten

__all__ = ["CEMSearch", "Population", "evaluate", "flatten", "unflatten"]
