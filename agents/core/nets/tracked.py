"""Tracked modules: each network is registered once, and its optimiser, target, clipping, device and state follow."""

import math
import operator
from collections import defaultdict
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ....envs.schema import check_numbers
from .optimisers import Adam, Optimiser

M = TypeVar("M", bound=nn.Module)


class Tracked(Generic[M]):
    """A network with its optimiser and, where asked for, a slowly following target.

    Parameters are looked up whenever they are needed, so that it does not matter whether they were replaced. Those that
    do not require gradients are not trained, but are in files.

    :param module: the network
    :param learning_rate: step size
    :param optimiser: what trains it; its own learning rate, if it has one, counts instead
    :param target: keep a target copy
    :param frozen: do not train any of it
    :param max_grad_norm: clip the gradient's Euclidean norm, see :func:`clip_`
    :param joint_norm: clip by one norm of all gradients, also where they belong to members of a stack
    """

    def __init__(
        self,
        module: M,
        learning_rate: float,
        *,
        optimiser: Optimiser | None = None,
        target: bool = False,
        frozen: bool = False,
        max_grad_norm: float | None = None,
        joint_norm: bool = False,
    ) -> None:
        self.module = module.requires_grad_(False) if frozen else module
        self.target = deepcopy(module).requires_grad_(False) if target else None
        self.max_grad_norm = max_grad_norm
        self.joint_norm = joint_norm
        self.optimiser: Optimiser = Adam() if optimiser is None else optimiser
        own = self.optimiser.learning_rate
        self.learning_rate = learning_rate if own is None else own
        self._fraction = 1.0
        self._optimizer: torch.optim.Optimizer | None = None
        self._optimizer = self._current(self.parameters)

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """What trains the parameters, as they are now; None where none is trained."""
        return self._current(self.parameters)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained, as they are now."""
        return [p for p in _tensors(self.module) if p.requires_grad]

    def minimise(self, loss: Tensor) -> None:
        """Take one optimiser step down the gradient of a loss with respect to this network alone.

        Parameters that the loss does not reach stay as they are.

        :param loss: a scalar
        :raises RuntimeError: nothing of the network is trained, or the loss reaches nothing of it
        """
        parameters = self.parameters
        optimizer = self._current(parameters)
        if optimizer is None:
            raise RuntimeError(f"{type(self.module).__name__} is frozen: no parameter of it requires a gradient")
        # Asking for these gradients only keeps a loss that runs through another network from filling that one's.
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        if all(grad is None for grad in grads):
            raise RuntimeError(f"the loss does not depend on any trained parameter of {type(self.module).__name__}")
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        if self.max_grad_norm is not None:
            if self.joint_norm:
                clip_jointly_([grad for grad in grads if grad is not None], self.max_grad_norm)
            else:
                clip_(self.module, self.max_grad_norm)
        optimizer.step()

    def _current(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
        """:return: the optimiser, made anew, with what it knew, where parameters were replaced, frozen or freed"""
        known = [] if self._optimizer is None else [p for g in self._optimizer.param_groups for p in g["params"]]
        if len(known) == len(parameters) and all(map(operator.is_, known, parameters)):
            return self._optimizer
        state = {} if self._optimizer is None else dict(self._optimizer.state)
        if [p.shape for p in known] == [p.shape for p in parameters]:  # as after load_state_dict(assign=True)
            state = {new: state[old] for old, new in zip(known, parameters, strict=True) if old in state}
        self._optimizer = self.optimiser.build(parameters, self.learning_rate * self._fraction) if parameters else None
        if self._optimizer is not None:
            self._optimizer.state.update({p: state[p] for p in parameters if p in state})
        return self._optimizer

    def scale_learning_rate(self, fraction: float) -> None:
        """Set the step size.

        :param fraction: of the network's own learning rate
        """
        self._fraction = fraction
        for group in self._optimizer.param_groups if self._optimizer is not None else ():
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self.learning_rate * fraction)
            else:
                group["lr"] = self.learning_rate * fraction

    @torch.no_grad()
    def restart_optimiser(self) -> None:
        """Forget all moments and count from the first step again, as a new optimiser would."""
        for state in self.optimizer.state.values() if self.optimizer is not None else ():
            for tensor in state.values():
                tensor.zero_()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Change the network's learning rate, unless its optimiser has one of its own.

        :param learning_rate: step size
        """
        if self.optimiser.learning_rate is None:
            self.learning_rate = learning_rate
            self.scale_learning_rate(self._fraction)

    @torch.no_grad()
    def follow(self, tau: float) -> None:
        """Move the target towards the network; buffers that are not floating-point numbers are copied.

        :param tau: share of the network's weights that enters
        """
        assert self.target is not None
        following, online = _tensors(self.target, buffers=True), _tensors(self.module, buffers=True)
        if not all(slow.is_floating_point() for slow in following):
            for slow, fast in zip(following, online, strict=True):
                slow.lerp_(fast, tau) if slow.is_floating_point() else slow.copy_(fast)
            return
        torch._foreach_lerp_(following, online, tau)


def _tensors(module: nn.Module, buffers: bool = False) -> list[Any]:
    """:return: a module's parameters, and buffers, each once, in torch's order; several times as fast as its walk."""
    found: list[Tensor | None] = []
    modules: list[nn.Module | None] = [module]
    while modules:
        part = modules.pop()
        if part is not None:
            found += part._parameters.values()
            if buffers:
                found += part._buffers.values()
            if part._modules:
                modules += reversed(part._modules.values())
    return list({id(tensor): tensor for tensor in found if tensor is not None}.values())


def clip_(module: nn.Module, max_norm: float) -> None:
    """Clip the Euclidean norm of gradients in place, of each member of a stack by itself.

    Parameters of a :class:`~.stacks.StackedMLP`, and those that a module with an attribute ``stack`` holds itself, have
    leading axes of independent members. Parameters with the same leading axes are clipped together, each member by the
    norm of its own; all without such axes by the norm of all of them, as ``torch.nn.utils.clip_grad_norm_`` does.

    :param module: whose ``.grad`` are clipped
    :param max_norm: the limit
    """
    groups: defaultdict[tuple[int, ...], dict[int, nn.Parameter]] = defaultdict(dict)
    modules: list[tuple[nn.Module, tuple[int, ...]]] = [(module, ())]
    for part, inherited in modules:  # grows while it is walked through
        stack = getattr(part, "stack", inherited)
        stack = stack if isinstance(stack, tuple) else ()  # a stranger's attribute of that name
        groups[stack].update((id(p), p) for p in part._parameters.values() if p is not None and p.grad is not None)
        for child in part.children():
            modules.append((child, stack if isinstance(child, nn.ParameterList) else ()))
    for stack, parameters in groups.items():
        grads = [p.grad for p in parameters.values() if p.grad is not None]
        if not stack and grads:
            clip_jointly_(grads, max_norm)
        elif grads:
            every = torch.cat([grad.flatten(len(stack)) for grad in grads], -1)  # (*stack, ·)
            scale = (max_norm / (torch.linalg.vector_norm(every, dim=-1) + 1e-6)).clamp(max=1.0)
            for grad in grads:
                grad.mul_(scale.view(*stack, *[1] * (grad.dim() - len(stack))))


def clip_jointly_(grads: list[Tensor], max_norm: float) -> None:
    """Clip the Euclidean norm of all gradients together in place, as ``torch.nn.utils.clip_grad_norm_`` does.

    That sorts them by device and type first, which takes longer than to clip those of a small network.

    :param grads: of one type, on one device
    :param max_norm: the limit
    """
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))


class TrackedModules:
    """All networks of an agent by name.

    :param device: where they live
    :param learning_rate: of networks whose optimiser has none of its own
    """

    def __init__(self, device: torch.device, learning_rate: float) -> None:
        self.device, self.learning_rate = device, learning_rate
        self._tracked: dict[str, Tracked[Any]] = {}

    def add(
        self,
        name: str,
        module: M,
        *,
        optimiser: Optimiser | None = None,
        target: bool = False,
        frozen: bool = False,
        max_grad_norm: float | None = None,
        joint_norm: bool = False,
    ) -> Tracked[M]:
        """Register a network.

        :param name: its name in saved files
        :param module: the network
        :param optimiser: what trains it; by default Adam with the agent's learning rate
        :param target: keep a target copy
        :param frozen: do not train any of it
        :param max_grad_norm: clip the gradient's Euclidean norm, see :func:`clip_`
        :param joint_norm: clip by one norm of all gradients
        :return: the handle through which the agent trains it
        """
        tracked = Tracked(
            module.to(self.device),
            self.learning_rate,
            optimiser=optimiser,
            target=target,
            frozen=frozen,
            max_grad_norm=max_grad_norm,
            joint_norm=joint_norm,
        )
        self._tracked[name] = tracked
        return tracked

    def __iter__(self) -> Iterator[Tracked[Any]]:
        return iter(self._tracked.values())

    def networks(self) -> dict[str, nn.Module]:
        """:return: every network by name, targets as ``<name>_target``."""
        online = {name: tracked.module for name, tracked in self._tracked.items()}
        return online | {f"{name}_target": t.target for name, t in self._tracked.items() if t.target is not None}

    def places(self) -> Iterator[float]:
        """:return: where each tensor of networks and optimisers lies; of learning rates that are numbers, these."""
        for tracked in self:
            tensors = _tensors(tracked.module, buffers=True)
            if tracked.target is not None:
                tensors += _tensors(tracked.target, buffers=True)
            if tracked.optimizer is not None:
                tensors += (group["lr"] for group in tracked.optimizer.param_groups)
                tensors += (value for state in tracked.optimizer.state.values() for value in state.values())
            yield from (tensor.data_ptr() if isinstance(tensor, Tensor) else tensor for tensor in tensors)

    def scale_learning_rates(self, fraction: float) -> None:
        """Set every step size to a fraction of the network's own."""
        for tracked in self:
            tracked.scale_learning_rate(fraction)

    def settle(self, learning_rate: float, max_grad_norm: float | None) -> None:
        """Change what all networks are trained with.

        :param learning_rate: of those whose optimiser has none of its own
        :param max_grad_norm: clip gradients to this Euclidean norm
        """
        self.learning_rate = learning_rate
        for tracked in self:
            tracked.set_learning_rate(learning_rate)
            tracked.max_grad_norm = max_grad_norm

    def state(self) -> dict[str, Tensor]:
        """:return: every weight, target weight and optimiser moment under a flat name; live tensors, not copies."""
        return dict(self._entries())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state` returned.

        Files of version 0.1 hold single networks as stacks of one; their leading axis is dropped.

        :param state: names to tensors
        :raises ValueError: names, shapes or types differ from this agent's, a number is not finite, or a moment is
            none; nothing is changed then
        """
        entries = dict(self._entries())
        expected = {name: tuple(tensor.shape) for name, tensor in entries.items()}
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        found |= {name: shape for name, shape in expected.items() if found.get(name) == (1, *shape)}
        if expected != found:
            odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            name = odd[0]
            raise ValueError(
                f"network tensor {name!r} has shape {found.get(name, 'missing')}, "
                f"this agent's is {expected.get(name, 'none')} ({len(odd)} of {len(expected)} differ)"
            )
        for name, tensor in entries.items():
            _check_entry(name, state[name], tensor)
        with torch.no_grad():
            for name, tensor in entries.items():
                tensor.copy_(state[name].view(tensor.shape))

    def _entries(self) -> Iterator[tuple[str, Tensor]]:
        """Name and live storage of every tensor."""
        for name, tracked in self._tracked.items():
            for kind, module in (("online", tracked.module), ("target", tracked.target)):
                for key, tensor in module.state_dict().items() if module is not None else ():
                    yield f"{name}.{kind}.{key}", tensor
            optimizer = tracked.optimizer
            for index, parameter in enumerate(tracked.parameters):
                for key, tensor in optimizer.state[parameter].items() if optimizer is not None else ():
                    yield f"{name}.optimizer.{index}.{key}", tensor


def _check_entry(name: str, found: Tensor, live: Tensor) -> None:
    where = f"network tensor {name!r}"
    if found.dtype != live.dtype:
        raise ValueError(f"{where} holds {found.dtype}, this agent's {live.dtype}")
    never_negative = ".optimizer." in name and name.endswith((".step", ".exp_avg_sq"))
    check_numbers(found, where, 0.0 if never_negative else -math.inf)
    if name.endswith(".step") and not (found == found.floor()).all():
        raise ValueError(f"{where} must count steps, got {found.flatten()[0].item()}")
