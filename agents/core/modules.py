"""Tracked modules: each network is registered once, and its optimiser, target, clipping, device and state follow."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

SWEEP = 128
"""Steps between sweeps; in so many, a first moment shrinks by 1e-6 at most."""

NEGLIGIBLE = 1e-25
"""Moments below this are dropped: far above denormal numbers (1e-38), far below Adam's eps (1e-8) squared."""


class LeanAdam(torch.optim.Adam):
    """torch's fused Adam, and its state, without what surrounds it at each step.

    With a dozen small parameters, torch's own ``step`` spends more time on sorting tensors by device and on counting
    the steps of each than on Adam. Here all share one step count and go to the kernel in one call.

    On a CPU, moments that have decayed below ``NEGLIGIBLE`` are set to zero every ``SWEEP`` steps. They belong to units
    that no longer get gradients, decay on into denormal numbers, and made Adam take three to five times as long; a
    weight moves by less than 1e-17 times the learning rate for their lack.

    :param parameters: dense tensors of one type, on one device
    :param learning_rate: step size
    """

    def __init__(self, parameters: list[nn.Parameter], learning_rate: float) -> None:
        super().__init__(parameters, lr=learning_rate, fused=True)
        step = torch.zeros((), dtype=torch.float32, device=parameters[0].device)
        for parameter in parameters:
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self.state[parameter] = {"step": step, **moments}
        states = [self.state[parameter] for parameter in parameters]
        self._means = [state["exp_avg"] for state in states]
        self._squares = [state["exp_avg_sq"] for state in states]
        self._steps = [step] * len(parameters)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step along the gradients in ``.grad``."""
        (group,) = self.param_groups
        parameters = group["params"]
        grads: Any = [parameter.grad for parameter in parameters]
        self._steps[0] += 1
        if parameters[0].device.type == "cpu" and self._steps[0].item() % SWEEP == 0:
            for moment in (*self._means, *self._squares):
                moment.masked_fill_(moment.abs() < NEGLIGIBLE, 0.0)
        torch._fused_adam_(
            parameters,
            grads,
            self._means,
            self._squares,
            [],
            self._steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


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
