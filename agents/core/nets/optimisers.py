"""What a network is trained with: settings of Adam and SGD, and torch's fused Adam without what surrounds it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch
from torch import nn

SWEEP = 128
"""Steps between sweeps; in so many, a first moment shrinks by 1e-6 at most."""

NEGLIGIBLE = 1e-25
"""Moments below this are dropped: far above denormal numbers (1e-38), far below Adam's eps (1e-8) squared."""


STATE = ("exp_avg", "exp_avg_sq", "step")
"""What Adam keeps of a parameter, under torch's names."""


class Optimiser(Protocol):
    """Settings from which a network's optimiser is made."""

    @property
    def learning_rate(self) -> float | None:
        """Step size; None for the agent's."""

    def build(self, parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        """Make an optimiser that skips parameters whose ``.grad`` is None.

        :param parameters: dense tensors of one type, on one device
        :param learning_rate: step size
        :return: the optimiser; its ``state`` is complete from the start, so that files can be read into it
        """


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam (arXiv 1412.6980), or AdamW (arXiv 1711.05101). Defaults are torch's."""

    learning_rate: float | None = None
    """Step size; None for the agent's."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and the second moment per step."""

    eps: float = 1e-8
    """Added to the root of the second moment."""

    weight_decay: float = 0.0
    """Share of a weight added to its gradient; or, decoupled, taken from the weight, times the learning rate."""

    decoupled: bool = False
    """Whether the decay bypasses the moments (AdamW)."""

    def build(self, parameters: list[nn.Parameter], learning_rate: float) -> "LeanAdam":
        """See :meth:`Optimiser.build`."""
        return LeanAdam(parameters, learning_rate, self.betas, self.eps, self.weight_decay, self.decoupled)


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent, with momentum if asked for. Defaults are torch's."""

    learning_rate: float | None = None
    """Step size; None for the agent's."""

    momentum: float = 0.0
    """Share of the last step's direction that is kept."""

    weight_decay: float = 0.0
    """Share of a weight added to its gradient."""

    def build(self, parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.SGD:
        """See :meth:`Optimiser.build`."""
        optimizer = torch.optim.SGD(
            parameters, lr=learning_rate, momentum=self.momentum, weight_decay=self.weight_decay, fused=True
        )
        if self.momentum:  # a first step from zero is torch's first step
            for parameter in parameters:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer


class LeanAdam(torch.optim.Adam):
    """torch's fused Adam, and its state, without what surrounds it at each step.

    With a dozen small parameters, torch's own ``step`` spends more time on sorting tensors by device than on Adam. Here
    all go to the kernel in one call. Parameters without gradient are left alone, as by torch's optimisers. Hooks around
    steps are refused: torch's wrapper that calls them takes longer than such a step itself.

    On a CPU, moments that have decayed below ``NEGLIGIBLE`` are set to zero every ``SWEEP`` steps. They belong to units
    that no longer get gradients, decay on into denormal numbers, and made Adam take three to five times as long; a
    weight moves by less than 1e-17 times the learning rate for their lack.

    :param parameters: dense tensors of one type, on one device
    :param learning_rate: step size
    :param betas: see :class:`Adam`, as the others
    :param eps: see :class:`Adam`
    :param weight_decay: see :class:`Adam`
    :param decoupled: see :class:`Adam`
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
    ) -> None:
        super().__init__(
            parameters, learning_rate, betas, eps, weight_decay, decoupled_weight_decay=decoupled, fused=True
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take up parameters, with moments of zero from the start."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        parameters = group["params"]
        if parameters[0].is_cuda:  # where a recorded step reads it anew each time
            group["lr"] = torch.full((), group["lr"], device=parameters[0].device)
        for parameter, step in zip(parameters, torch.zeros(len(parameters), device=parameters[0].device), strict=True):
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self.state[parameter] = {"step": step, **moments}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step along the gradients in ``.grad``."""
        # Looked up each time: what torch's own load_state_dict, or an owner, put there counts.
        for group in self.param_groups:
            columns: Any = [
                (p, p.grad, *map(self.state[p].__getitem__, STATE)) for p in group["params"] if p.grad is not None
            ]
            if columns:
                self._step(group, *zip(*columns, strict=True))

    step.hooked = True  # type: ignore[attr-defined]  # so torch.optim.Optimizer leaves it unwrapped

    def register_step_pre_hook(self, hook: Any) -> NoReturn:
        """:raises NotImplementedError: always."""
        raise NotImplementedError("LeanAdam calls no hooks around its steps: override the agent's update instead")

    register_step_post_hook = register_step_pre_hook

    def _step(self, group: dict[str, Any], parameters: Any, grads: Any, means: Any, squares: Any, steps: Any) -> None:
        counts = steps[0]._base
        if counts is not None and counts.numel() == len(steps) and all(step._base is counts for step in steps):
            counts += 1  # all are still the views that add_param_group made
        else:
            torch._foreach_add_(steps, 1)
        if parameters[0].device.type == "cpu" and steps[0].item() % SWEEP == 0:
            for moment in (*means, *squares):
                moment.masked_fill_(moment.abs() < NEGLIGIBLE, 0.0)
        fused: Callable[..., None] = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
        fused(
            parameters,
            grads,
            means,
            squares,
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
