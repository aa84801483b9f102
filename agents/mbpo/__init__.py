"""Policies that learn in what a model imagines."""

from .dynamics import Dynamics, Fit, FitSettings, Prediction, keep_weights

__all__ = ["Dynamics", "Fit", "FitSettings", "Prediction", "keep_weights"]
