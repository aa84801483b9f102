"""Population search coupled with policy gradients."""

from .cem import CEMSearch

__all__ = ["CEMSearch"]
