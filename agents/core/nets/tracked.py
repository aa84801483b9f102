"""Tracked modules: each network is registered once, and its optimiser, target, clipping, device and state follow."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from .adam import LeanAdam

M = TypeVar("M", bound=nn.Module)


class Tracked(Generic[M]):
    """A network with its optimiser and, where asked for, a slowly following target.

    :param module: the network
    :param learning_rate: of Adam
    :param target: keep a target copy
    :param max_grad_norm: clip the gradient's Euclidean norm
    """

    def __init__(self, module: M, learning_rate: float, *, target: bool, max_grad_norm: float | None) -> None:
        self.module = module
        self.target = deepcopy(module).requires_grad_(False) if target else None
        self.max_grad_norm = max_grad_norm
        self.parameters = list(module.parameters())
        self.optimizer = LeanAdam(self.parameters, learning_rate)
        self._online = list(module.state_dict().values())
        self._following = [] if self.target is None else list(self.target.state_dict().values())

    def minimise(self, loss: Tensor) -> None:
        """Take one optimiser step down the gradient of a loss with respect to this network alone.

        :param loss: a scalar
        """
        # Asking for these gradients only keeps a loss that runs through another network from filling that one's.
        for parameter, grad in zip(self.parameters, torch.autograd.grad(loss, self.parameters), strict=True):
            parameter.grad = grad
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()

    def follow(self, tau: float) -> None:
        """Move the target towards the network.

        :param tau: share of the network's weights that enters
        """
        torch._foreach_lerp_(self._following, self._online, tau)


class TrackedModules:
    """All networks of an agent by name.

    :param device: where they live
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._tracked: dict[str, Tracked[Any]] = {}

    def add(
        self,
        name: str,
        module: M,
        learning_rate: float,
        *,
        target: bool = False,
        max_grad_norm: float | None = None,
    ) -> Tracked[M]:
        """Register a network.

        :param name: its name in saved files
        :param module: the network
        :param learning_rate: of its optimiser
        :param target: keep a target copy
        :param max_grad_norm: clip the gradient's Euclidean norm
        :return: the handle through which the agent trains it
        """
        tracked = Tracked(module.to(self.device), learning_rate, target=target, max_grad_norm=max_grad_norm)
        self._tracked[name] = tracked
        return tracked

    def __iter__(self) -> Iterator[Tracked[Any]]:
        return iter(self._tracked.values())

    def networks(self) -> dict[str, nn.Module]:
        """:return: every network by name, targets as ``<name>_target``."""
        online = {name: tracked.module for name, tracked in self._tracked.items()}
        return online | {f"{name}_target": t.target for name, t in self._tracked.items() if t.target is not None}

    def set_learning_rate(self, learning_rate: float) -> None:
        """Give every optimiser a new step size."""
        for tracked in self:
            for group in tracked.optimizer.param_groups:
                group["lr"] = learning_rate

    def state(self) -> dict[str, Tensor]:
        """:return: every weight, target weight and optimiser moment under a flat name; live tensors, not copies."""
        return dict(self._entries())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state` returned.

        :param state: names to tensors
        :raises ValueError: names or shapes differ from this agent's; nothing is changed then
        """
        entries = dict(self._entries())
        expected = {name: tuple(tensor.shape) for name, tensor in entries.items()}
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if expected != found:
            odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            name = odd[0]
            raise ValueError(
                f"network tensor {name!r} has shape {found.get(name, 'missing')}, "
                f"this agent's is {expected.get(name, 'none')} ({len(odd)} of {len(expected)} differ)"
            )
        with torch.no_grad():
            for name, tensor in entries.items():
                tensor.copy_(state[name])

    def _entries(self) -> Iterator[tuple[str, Tensor]]:
        """Name and live storage of every tensor."""
        for name, tracked in self._tracked.items():
            for kind, module in (("online", tracked.module), ("target", tracked.target)):
                for key, tensor in module.state_dict().items() if module is not None else ():
                    yield f"{name}.{kind}.{key}", tensor
            for index, parameter in enumerate(tracked.parameters):
                for key, tensor in tracked.optimizer.state[parameter].items():
                    yield f"{name}.optimizer.{index}.{key}", tensor
