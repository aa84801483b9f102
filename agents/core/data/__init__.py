"""Where data come from, and where they are kept."""

from .collectors import Collector, NonFiniteError, OffPolicyCollector
from .store import FieldSpec, ReplayStore, Transitions

__all__ = ["Collector", "FieldSpec", "NonFiniteError", "OffPolicyCollector", "ReplayStore", "Transitions"]
