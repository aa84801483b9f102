"""Imitation by instructions: the Text Decision Transformer, its ablations, and cloning with text beside it."""

from .agent import TDT
from .config import TDTConfig
from .windows import Windows

__all__ = ["TDT", "TDTConfig", "Windows"]
