"""torch's fused Adam without what surrounds it."""

from typing import Any

import torch
from torch import nn

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
