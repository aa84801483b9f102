"""Rewards for data that have none, from a few demonstrations."""

from .config import Constants, RelabelConfig
from .costs import EpisodeCosts, Matcher, compare
from .labels import Labels, label, relabel, squash
from .sinkhorn import Transport, cosine_cost, log_domain, transport, unit
from .states import Problem, best, prepare

__all__ = [
    "Constants",
    "EpisodeCosts",
    "Labels",
    "Matcher",
    "Problem",
    "RelabelConfig",
    "Transport",
    "best",
    "compare",
    "cosine_cost",
    "label",
    "log_domain",
    "prepare",
    "relabel",
    "squash",
    "transport",
    "unit",
]
