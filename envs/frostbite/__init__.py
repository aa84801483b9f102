"""Frostbite, watched frame by frame, with tasks that are told in words."""

from . import tasks  # whose import enters them
from .env import FROSTBITE, FrostbiteEnv
from .monitor import FrostbiteMonitor

__all__ = ["FROSTBITE", "FrostbiteEnv", "FrostbiteMonitor", "tasks"]
