"""Inverse reinforcement learning in mean field games: what a crowd wants, from how it moves."""

from .fitting import METHODS, Recovery, cycle_invariant, fit, gauge_error, recovery
from .gcl import GCLConfig, GCLFit
from .mce import MCEConfig, MCEFit

__all__ = [
    "METHODS",
    "GCLConfig",
    "GCLFit",
    "MCEConfig",
    "MCEFit",
    "Recovery",
    "cycle_invariant",
    "fit",
    "gauge_error",
    "recovery",
]
