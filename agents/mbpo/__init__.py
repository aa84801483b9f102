"""Policies that learn in what a model imagines."""

from .agent import MBPO
from .config import MBPOConfig
from .dynamics import Dynamics, Fit, FitSettings, Prediction, keep_weights
from .model_env import ModelEnv

__all__ = ["MBPO", "Dynamics", "Fit", "FitSettings", "MBPOConfig", "ModelEnv", "Prediction", "keep_weights"]
