"""Multilayer perceptrons, stacked into ensembles.

An ensemble of ``E`` networks is one parameter tensor per layer and one ``baddbmm``, whether it is a pair of critics, a
population of actors or a single network. Noise is an argument, never drawn inside, so that a loss is a function of its
arguments: testable by hand, compilable, and reproducible from the agent's own generators.

Shapes: ``B`` batch, ``E`` ensemble, ``D`` observation features, ``A`` action, ``H`` hidden.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["relu", "tanh", "elu"]


def _activate_(x: Tensor, activation: Activation) -> Tensor:
    """Apply the non-linearity in place."""
    if activation == "relu":
        return x.relu_()
    return x.tanh_() if activation == "tanh" else F.elu_(x)


def _chain_(grad: Tensor, out: Tensor, activation: Activation) -> Tensor:
    """Multiply ``grad`` in place by the derivative of the non-linearity, written in terms of its output."""
    if activation == "relu":
        return torch.ops.aten.threshold_backward.grad_input(grad, out, 0, grad_input=grad)  # type: ignore[no-any-return]
    if activation == "tanh":
        return grad.mul_(1 - out.square())
    return grad.mul_(torch.where(out > 0, 1.0, out + 1))


class _StackedMLPFunction(torch.autograd.Function):
    """A whole perceptron as one node of the autograd graph.

    Against a chain of ``baddbmm`` and activation nodes this computes the non-linearity and its derivative in place,
    which saves an allocation of half a megabyte per layer and direction at 2 x 256 x 256 activations. First derivatives
    only.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Activation, frozen: bool, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[::2], parameters[1::2]
        layers = [x]  # inputs of the layers
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            layers.append(_activate_(torch.baddbmm(bias, layers[-1], weight), activation))
        ctx.activation, ctx.frozen = activation, frozen
        ctx.save_for_backward(*layers, *weights)
        return torch.baddbmm(biases[-1], layers[-1], weights[-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        depth = len(ctx.saved_tensors) // 2
        layers, weights = ctx.saved_tensors[:depth], ctx.saved_tensors[depth:]
        needs_x, needs_weights = ctx.needs_input_grad[0], ctx.needs_input_grad[3] and not ctx.frozen
        grads: list[Tensor | None] = [None] * (2 * depth)
        for k in reversed(range(depth)):
            if needs_weights:
                grads[2 * k] = torch.bmm(layers[k].transpose(1, 2), grad)
                grads[2 * k + 1] = grad.sum(1, keepdim=True)
            if k > 0:
                grad = _chain_(torch.bmm(grad, weights[k].transpose(1, 2)), layers[k], ctx.activation)
            elif needs_x:
                grad = torch.bmm(grad, weights[0].transpose(1, 2))
        return (grad if needs_x else None, None, None, *grads)


class StackedMLP(nn.Module):
    """``E`` perceptrons of one architecture, evaluated together.

    Each member is initialised as a chain of ``torch.nn.Linear`` would be. Weights lie as (E, inputs, outputs).

    :param ensemble: number of members, E
    :param inputs: input features
    :param outputs: output features, linear
    :param net_arch: widths of the hidden layers
    :param activation: the non-linearity after each hidden layer
    """

    def __init__(
        self, ensemble: int, inputs: int, outputs: int, net_arch: Sequence[int], activation: Activation = "relu"
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        widths = [inputs, *net_arch, outputs]
        for fan_in, fan_out in itertools.pairwise(widths):
            bound = 1 / math.sqrt(fan_in)
            self.weights.append(nn.Parameter(torch.empty(ensemble, fan_in, fan_out).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(ensemble, 1, fan_out).uniform_(-bound, bound)))
        self._link()

    def _link(self) -> None:
        # The same parameters once more, in the order of use: walking a ParameterList costs as much as a small layer.
        self._chain = tuple(p for pair in zip(self.weights, self.biases, strict=True) for p in pair)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moving to another device or type may replace the parameters."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._link()
        return self

    def forward(self, x: Tensor, *, frozen: bool = False, members: int | None = None) -> Tensor:
        """Evaluate the members.

        :param x: inputs, (E, B, inputs), or (B, inputs) for all members alike
        :param frozen: differentiate with respect to ``x`` only: a backward pass then skips the weights' gradients
        :param members: evaluate only so many, from the first; all by default
        :return: outputs, (E, B, outputs)
        """
        parameters: Sequence[Tensor] = self._chain
        if members is not None:
            parameters = [(p.detach() if frozen else p)[:members] for p in parameters]
        if x.dim() == 2:
            x = x.expand(len(parameters[0]), -1, -1)
        if torch.compiler.is_compiling():  # a compiler fuses the plain form by itself
            return self._plain(x, [p.detach() for p in parameters] if frozen else parameters)
        return _StackedMLPFunction.apply(x, self.activation, frozen, *parameters)  # type: ignore[no-untyped-call, no-any-return]

    def _plain(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """The same, as a chain of separate operations."""
        activate = {"relu": torch.relu, "tanh": torch.tanh, "elu": F.elu}[self.activation]
        *hidden, last = zip(parameters[::2], parameters[1::2], strict=True)
        for weight, bias in hidden:
            x = activate(torch.baddbmm(bias, x, weight))
        return torch.baddbmm(last[1], x, last[0])
