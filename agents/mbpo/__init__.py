"""Policies that learn in what a model imagines."""

from .agent import MBPO, MBPOConfig
from .dynamics import Dynamics, Fit, FitSettings, Prediction, keep_weights

__all__ = ["MBPO", "Dynamics", "Fit", "FitSettings", "MBPOConfig", "Prediction", "keep_weights"]
