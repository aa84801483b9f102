"""Between an agent's actions and the environment's."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from .as_json import shown


class ActionScaler:
    """Between an agent's actions, in [-1, 1], and the environment's Box.

    :param space: a bounded Box
    :param device: where actions are computed
    """

    def __init__(self, space: spaces.Box, device: torch.device) -> None:
        self.shape = tuple(space.shape)
        self.size = int(np.prod(self.shape))
        bounds = (_inner_float32(space.low, np.inf), _inner_float32(space.high, -np.inf))
        self.low, self.high = (torch.as_tensor(bound, device=device).flatten() for bound in bounds)

    def to_env(self, actions: Tensor) -> Tensor:
        """:return: actions (N, A) in [-1, 1] mapped to the environment's bounds, (N, *A)"""
        scaled = self.low + 0.5 * (actions + 1) * (self.high - self.low)
        return torch.clamp(scaled, self.low, self.high).reshape(-1, *self.shape)

    def from_env(self, actions: Tensor) -> Tensor:
        """:return: actions in the environment's bounds, (…, A), mapped to [-1, 1], (…, A)"""
        return 2 * (actions - self.low) / (self.high - self.low) - 1


def _inner_float32(bound: np.ndarray[Any, Any], inwards: float) -> np.ndarray[Any, Any]:
    """Round a float64 bound to the nearest float32 that is not outside of it."""
    rounded = np.asarray(bound).astype(np.float32)
    outside = rounded < bound if inwards > 0 else rounded > bound
    return np.where(outside, np.nextafter(rounded, np.float32(inwards)), rounded)


def check_action_space(space: spaces.Space[Any], agent: str, alternatives: str) -> None:
    """Refuse what a continuous agent cannot act in.

    :param space: the environment's action space
    :param agent: the agent's name
    :param alternatives: what to say about agents that could
    :raises ValueError: not a Box, or one whose bounds are not finite in float32 or leave no room
    """
    if not isinstance(space, spaces.Box):
        raise ValueError(f"{agent} needs a Box action space, got {shown(space)}: {alternatives}")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        spans = np.abs([low, high, high - low])
    if not (spans <= np.finfo(np.float32).max).all():  # NaN and infinity fail as well as what float32 cannot hold
        raise ValueError(
            f"{agent} needs an action space with finite bounds, got {shown(space)}: "
            "declare the bounds, or wrap the environment in gymnasium.wrappers.TransformAction with a bounded space"
        )
    if not (space.low < space.high).all():
        raise ValueError(f"{agent} needs action bounds with low < high in every dimension, got {shown(space)}")
