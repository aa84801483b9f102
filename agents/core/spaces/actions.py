"""Between an agent's actions and the environment's."""

from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from .as_json import shown
from .fields import FieldSpec


class Actions(Protocol):
    """How an agent's actions are stored, drawn, and turned into the environment's."""

    size: int
    """A: numbers that make up an action of a Box, choices of a Discrete, or of all dimensions of a MultiDiscrete."""
    field: FieldSpec
    """What is stored of one row."""

    @property
    def choices(self) -> int | tuple[int, ...] | None:
        """Choices of a Discrete, or of each dimension of a MultiDiscrete; None of a Box."""

    def to_env(self, actions: Tensor) -> Tensor:
        """:return: the agent's actions (N, *field.shape) as the environment's, (N, *A)"""

    def from_env(self, actions: Tensor) -> Tensor:
        """:return: the environment's actions as the agent's"""

    def random(self, rows: int, generator: torch.Generator) -> Tensor:
        """:return: uniformly random actions of the agent's, (rows, *field.shape)"""


class BoxActions:
    """A bounded Box; the agent's actions are (N, A) in [-1, 1]. Those of a Box of integers are rounded for it.

    :param space: the Box
    :param device: where actions are computed
    """

    choices = None

    def __init__(self, space: spaces.Box, device: torch.device) -> None:
        self.shape, self.device = tuple(space.shape), device
        self.size = int(np.prod(self.shape))
        self.field = FieldSpec((self.size,), torch.float32)
        self.whole = getattr(torch, str(space.dtype)) if space.dtype.kind in "iu" else None
        bounds = (_inner_float32(space.low, np.inf), _inner_float32(space.high, -np.inf))
        self.low, self.high = (torch.as_tensor(bound, device=device).flatten() for bound in bounds)

    def to_env(self, actions: Tensor) -> Tensor:
        """:return: actions (N, A) in [-1, 1] mapped to the environment's bounds, (N, *A)"""
        return self._within(self.low + 0.5 * (actions + 1) * (self.high - self.low))

    def _within(self, actions: Tensor) -> Tensor:
        """:return: actions (N, A) that are in the space, (N, *A)"""
        if self.whole is not None:
            actions = actions.round()
        clipped = torch.clamp(actions, self.low, self.high).reshape(-1, *self.shape)
        return clipped if self.whole is None else clipped.to(self.whole)

    def from_env(self, actions: Tensor) -> Tensor:
        """:return: actions in the environment's bounds, (…, A), mapped to [-1, 1], (…, A)"""
        return 2 * (actions - self.low) / (self.high - self.low) - 1

    def random(self, rows: int, generator: torch.Generator) -> Tensor:
        """:return: (rows, A) in [-1, 1]"""
        return 2 * torch.rand((rows, self.size), generator=generator, device=self.device) - 1


class ClippedActions(BoxActions):
    """A Box, bounded or not; the agent's actions are (N, A) in the environment's own unit, clipped to its bounds."""

    def to_env(self, actions: Tensor) -> Tensor:
        """:return: actions (N, A) clipped, (N, *A)"""
        return self._within(actions)

    def from_env(self, actions: Tensor) -> Tensor:
        """:return: the actions, (N, A)"""
        return actions.flatten(1)

    def random(self, rows: int, generator: torch.Generator) -> Tensor:
        """:return: (rows, A): uniform between bounds, standard normal where there are none"""
        uniform = torch.rand((rows, self.size), generator=generator, device=self.device)
        normal = torch.randn((rows, self.size), generator=generator, device=self.device)
        bounded = self.low.isfinite() & self.high.isfinite()
        low, high = (bound.where(bounded, 0.0) for bound in (self.low, self.high))
        return torch.where(bounded, low + uniform * (high - low), normal)


class DiscreteActions:
    """A Discrete; the agent's actions are (N,) int64, counted from 0.

    :param space: the Discrete
    :param device: where actions are computed
    """

    def __init__(self, space: spaces.Discrete, device: torch.device) -> None:
        self.size = self.choices = int(space.n)
        self.start, self.device = int(space.start), device
        self.field = FieldSpec((), torch.int64, self.size)

    def to_env(self, actions: Tensor) -> Tensor:
        """:return: actions (N,) counted from the space's start, (N,)"""
        return actions + self.start

    def from_env(self, actions: Tensor) -> Tensor:
        """:return: actions (N,) counted from 0, (N,)"""
        return actions - self.start

    def random(self, rows: int, generator: torch.Generator) -> Tensor:
        """:return: (rows,)"""
        return torch.randint(self.size, (rows,), generator=generator, device=self.device)


class MultiDiscreteActions:
    """A MultiDiscrete of D dimensions; the agent's actions are (N, D) int64, counted from 0.

    :param space: the MultiDiscrete
    :param device: where actions are computed
    """

    def __init__(self, space: spaces.MultiDiscrete, device: torch.device) -> None:
        self.shape, self.device = tuple(space.nvec.shape), device
        self.choices = tuple(int(n) for n in space.nvec.ravel())
        self.size = sum(self.choices)
        self.start = torch.as_tensor(space.start.ravel(), device=device)
        self.field = FieldSpec((len(self.choices),), torch.int64, self.choices)

    def to_env(self, actions: Tensor) -> Tensor:
        """:return: actions (N, D) counted from the space's starts, (N, *A)"""
        return (actions + self.start).reshape(-1, *self.shape)

    def from_env(self, actions: Tensor) -> Tensor:
        """:return: actions (N, *A) counted from 0, (N, D)"""
        return actions.flatten(1) - self.start

    def random(self, rows: int, generator: torch.Generator) -> Tensor:
        """:return: (rows, D)"""
        columns = [torch.randint(n, (rows,), generator=generator, device=self.device) for n in self.choices]
        return torch.stack(columns, 1)


_KINDS: dict[str, type[spaces.Space[Any]]] = {
    "Box": spaces.Box,
    "Discrete": spaces.Discrete,
    "MultiDiscrete": spaces.MultiDiscrete,
}


def check_actions(space: spaces.Space[Any], agent: type[Any], able: list[str]) -> None:
    """Refuse what an agent cannot act in.

    :param space: the environment's action space
    :param agent: the agent's class, with ``action_kinds`` and ``squashes``
    :param able: the names of agents that take spaces of this kind
    :raises ValueError: another kind of space, or, for an agent whose actions fill a Box, one whose bounds are not
        finite in float32 or leave no room
    """
    name = agent.__name__
    if not isinstance(space, tuple(_KINDS[kind] for kind in agent.action_kinds)):
        others = f"agents that take it: {', '.join(able)}" if able else "no agent here takes it yet"
        raise ValueError(f"{name} needs a {' or '.join(agent.action_kinds)} action space, got {shown(space)}: {others}")
    if not isinstance(space, spaces.Box) or not agent.squashes:
        return
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        spans = np.abs([low, high, high - low])
    if not (spans <= np.finfo(np.float32).max).all():  # NaN and infinity fail as well as what float32 cannot hold
        raise ValueError(
            f"{name} needs an action space with finite bounds, got {shown(space)}: "
            "declare the bounds, or wrap the environment in gymnasium.wrappers.TransformAction with a bounded space"
        )
    if not (space.low < space.high).all():
        raise ValueError(f"{name} needs action bounds with low < high in every dimension, got {shown(space)}")


def takes(agent: type[Any], space: spaces.Space[Any]) -> bool:
    """:return: whether an agent acts in spaces of this kind."""
    return isinstance(space, tuple(_KINDS[kind] for kind in agent.action_kinds))


def actions_of(space: spaces.Space[Any], device: torch.device, squashes: bool) -> Actions:
    """Make what stands between an agent and a space.

    :param space: that :func:`check_actions` has let pass
    :param device: where actions are computed
    :param squashes: whether the agent's actions fill [-1, 1], or are in the environment's unit and clipped
    :return: it
    """
    if isinstance(space, spaces.Discrete):
        return DiscreteActions(space, device)
    if isinstance(space, spaces.MultiDiscrete):
        return MultiDiscreteActions(space, device)
    assert isinstance(space, spaces.Box)
    return BoxActions(space, device) if squashes else ClippedActions(space, device)


def _inner_float32(bound: np.ndarray[Any, Any], inwards: float) -> np.ndarray[Any, Any]:
    """Round a float64 bound to the nearest float32 that is not outside of it."""
    with np.errstate(over="ignore"):
        rounded = np.asarray(bound).astype(np.float32)
    outside = rounded < bound if inwards > 0 else rounded > bound
    return np.where(outside, np.nextafter(rounded, np.float32(inwards)), rounded)
