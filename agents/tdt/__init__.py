"""Imitation by instructions: the Text Decision Transformer, its ablations, and cloning with text beside it."""

from .agent import TDT
from .config import TDTConfig
from .text import END, HASHES, KNOWN, PAD, START
from .windows import Windows

__all__ = ["END", "HASHES", "KNOWN", "PAD", "START", "TDT", "TDTConfig", "Windows"]
