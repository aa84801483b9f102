"""Multilayer perceptrons, stacked along any leading axes.

A stack of networks is one parameter tensor per layer and one ``baddbmm``, whether it is a pair of critics, a population
of actors, a pair of critics for each of a population, or a single network. Noise is an argument, never drawn inside, so
that a loss is a function of its arguments: testable by hand, compilable, and reproducible from the agent's own
generators.

Shapes: ``*stack`` members (none for a single network), ``B`` batch, ``E`` ensemble, ``D`` observation features, ``A``
action.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["relu", "tanh", "elu", "silu"]
Precision = Literal["float32", "bfloat16"]

# Whether a transformation of torch.func is at work, as torch's own Function.apply asks.
transformed: Callable[[], bool] = torch._C._are_functorch_transforms_active
# Whether a gradient stands for many, as with is_grads_batched and vectorised Jacobians.
_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor
_VECTORS = 64  # numbers, a multiple of what any processor's loop takes at a time
_PLAIN = {"relu": torch.relu, "tanh": torch.tanh, "elu": F.elu, "silu": F.silu}


def _activate_(x: Tensor, activation: Activation) -> Tensor:
    """Apply the non-linearity in place."""
    half = x.dtype == torch.bfloat16
    if activation == "relu":
        if half:  # read as integers, numbers below zero are at most -128, NaNs with a sign above: thrice as fast
            torch.threshold_(x.view(torch.int16), -128, 0)
            return x
        return x.relu_()
    if half:  # torch's bf16 loops take three times as long as these conversions
        return x.copy_(_activate_(x.float(), activation))
    if activation == "silu":
        return F.silu(x, inplace=True)
    return x.tanh_() if activation == "tanh" else _elu_(x)


def _elu_(x: Tensor) -> Tensor:
    """Apply ELU in place, each number as if it stood elsewhere.

    torch computes the last numbers, those that fill no vectors, by another function, whose last bit may differ: it
    would matter how many members a population has beside one. Filled up, they are computed as the others.
    """
    whole = x.numel() // _VECTORS * _VECTORS
    if whole == x.numel():
        return F.elu_(x)
    flat = x.view(-1)
    F.elu_(flat[:whole])
    rest = flat[whole:]
    rest.copy_(F.elu_(F.pad(rest, (0, _VECTORS - len(rest))))[: len(rest)])
    return x


def _chain_(grad: Tensor, out: Tensor, activation: Activation) -> Tensor:
    """Multiply ``grad`` in place by the derivative of the non-linearity, told from its output; of SiLU, its input."""
    if activation == "relu":
        if grad.dtype == torch.bfloat16:  # the same bits read as integers, which are positive where the numbers are
            _chain_(grad.view(torch.int16), out.view(torch.int16), activation)
            return grad
        return torch.ops.aten.threshold_backward.grad_input(grad, out, 0, grad_input=grad)  # type: ignore[no-any-return]
    if activation == "tanh":
        return torch.ops.aten.tanh_backward.grad_input(grad, out, grad_input=grad)  # type: ignore[no-any-return]
    if activation == "silu":
        return torch.ops.aten.silu_backward.grad_input(grad, out, grad_input=grad)  # type: ignore[no-any-return]
    return torch.ops.aten.elu_backward.grad_input(grad, 1, 1, 1, True, out, grad_input=grad)  # type: ignore[no-any-return]


def _flat(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """:return: a stack's tensor with one leading axis, or none for a single network."""
    if tensor.dim() > 3:
        tensor = tensor.flatten(0, -3)
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _as(tensor: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """:return: the inverse of :func:`_flat`."""
    tensor = tensor if tensor.dtype == dtype else tensor.to(dtype)
    return tensor if tensor.dim() == len(shape) else tensor.view(shape)


def _spread(x: Tensor, stack: torch.Size, dtype: torch.dtype) -> Tensor:
    """:return: inputs for each member of a stack, as :func:`_flat`."""
    x = x if x.dtype == dtype else x.to(dtype)
    return _flat(x if x.shape[:-2] == stack else x.expand(*stack, *x.shape[-2:]), dtype)


def _plain(x: Tensor, activation: Activation, dtype: torch.dtype, parameters: Sequence[Tensor]) -> Tensor:
    """Evaluate a perceptron by separate operations, which every transformation of torch knows."""
    stack = parameters[0].shape[:-2]
    affine = torch.baddbmm if stack else torch.addmm
    layer = _spread(x, stack, dtype)
    flat = [_flat(parameter, dtype) for parameter in parameters]
    for weight, bias in zip(flat[:-2:2], flat[1:-2:2], strict=True):
        layer = _PLAIN[activation](affine(bias, layer, weight))
    out = affine(flat[-1], layer, flat[-2])
    return _as(out, parameters[0].dtype, (*stack, *out.shape[-2:]))


def _through(
    x: Tensor, activation: Activation, dtype: torch.dtype, given: Sequence[Tensor], differentiated: bool = False
) -> tuple[Tensor, list[Tensor], list[Tensor], Sequence[Tensor]]:
    """Evaluate a perceptron in place, without gradients.

    :param differentiated: keep what derivatives are told from
    :return: its outputs, the inputs of its layers, for each hidden one what :func:`_chain_` takes, and its parameters
        as they were computed with
    """
    stack, own = given[0].shape[:-2], given[0].dtype
    as_given = dtype == own and len(stack) < 2
    parameters = given if as_given else [_flat(parameter, dtype) for parameter in given]
    affine = torch.baddbmm if stack else torch.addmm
    layers, told = [_spread(x, stack, dtype)], []
    for k in range(0, len(parameters) - 2, 2):
        hidden = affine(parameters[k + 1], layers[-1], parameters[k])
        told.append(hidden)
        apart = differentiated and activation == "silu"
        layers.append(F.silu(hidden) if apart else _activate_(hidden, activation))
    out = affine(parameters[-1], layers[-1], parameters[-2])
    return out if as_given else _as(out, own, (*stack, *out.shape[-2:])), layers, told, parameters


class _StackedMLPFunction(torch.autograd.Function):
    """A whole perceptron as one node of the autograd graph.

    Against a chain of ``baddbmm`` and activation nodes this computes the non-linearity and its derivative in place,
    which saves an allocation of half a megabyte per layer and direction at 2 x 256 x 256 activations. Weights are cast
    to another type once for both directions.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, activation: Activation, dtype: torch.dtype, frozen: bool, *given: Tensor
    ) -> Tensor:
        out, layers, told, parameters = _through(x, activation, dtype, given, differentiated=True)
        ctx.settings = activation, dtype, frozen, parameters is given
        apart = told if activation == "silu" else ()
        ctx.save_for_backward(x, *given, *layers, *apart, *(() if parameters is given else parameters[::2]))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        activation, dtype, frozen, as_given = ctx.settings
        needs_x, _, _, _, *needs = ctx.needs_input_grad
        depth = len(needs) // 2
        x, *saved = ctx.saved_tensors
        given, layers = saved[: 2 * depth], saved[2 * depth : 3 * depth]
        told = saved[3 * depth : 4 * depth - 1] if activation == "silu" else layers[1:]
        needs = [False] * len(needs) if frozen else needs
        if torch.is_grad_enabled() or _batched(grad):  # gradients of gradients are asked for, or many at once
            found = _again(x, activation, dtype, given, [needs_x, *needs], grad)
            return (found[0], None, None, None, *found[1:])
        weights = given[::2] if as_given else saved[-depth:]
        product = torch.bmm if given[0].dim() > 2 else torch.mm
        lowest = -1 if needs_x else needs.index(True) // 2 if any(needs) else depth  # nothing below needs a gradient
        grads: list[Tensor | None] = [None] * len(needs)
        grad = _flat(grad, dtype)
        for k in range(depth - 1, max(lowest, 0) - 1, -1):
            if needs[2 * k]:
                grads[2 * k] = product(layers[k].mT, grad)
            if needs[2 * k + 1]:
                grads[2 * k + 1] = grad.sum(-2, keepdim=True)
            if k > lowest:
                grad = product(grad, weights[k].mT)
                if k > 0:
                    _chain_(grad, told[k - 1], activation)
        if not as_given:
            pairs = zip(grads, given, strict=True)
            grads = [None if found is None else _as(found, p.dtype, p.shape) for found, p in pairs]
        if not needs_x:
            return (None, None, None, None, *grads)
        grad = _as(grad, x.dtype, (*given[0].shape[:-2], *grad.shape[-2:]))
        return (grad.sum_to_size(x.shape), None, None, None, *grads)


def _again(
    x: Tensor, activation: Activation, dtype: torch.dtype, given: Sequence[Tensor], needs: list[bool], grad: Tensor
) -> list[Tensor | None]:
    """:return: the gradients of x and of each parameter by separate operations, so that they can be differentiated."""
    if not any(needs):
        return [None] * len(needs)
    with torch.enable_grad():
        out = _plain(x, activation, dtype, given)
    inputs = [tensor for tensor, need in zip((x, *given), needs, strict=True) if need]
    grads = iter(torch.autograd.grad(out, inputs, grad, create_graph=torch.is_grad_enabled()))
    return [next(grads) if need else None for need in needs]


class StackedMLP(nn.Module):
    """Perceptrons of one architecture, evaluated together.

    Each member is initialised as a chain of ``torch.nn.Linear`` would be. Weights lie as (*stack, inputs, outputs),
    biases as (*stack, 1, outputs).

    :param stack: leading axes of members; () for a single network
    :param inputs: input features
    :param outputs: output features, linear
    :param net_arch: widths of the hidden layers
    :param activation: the non-linearity after each hidden layer
    :param precision: "bfloat16" computes products, activations and their gradients so; weights, outputs and the
        gradients of weights keep their own type. "float32" computes in the weights' type.
    :raises ValueError: an activation or a precision of another name
    """

    def __init__(
        self,
        stack: Sequence[int],
        inputs: int,
        outputs: int,
        net_arch: Sequence[int],
        activation: Activation = "relu",
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        for name, value, known in (("activation", activation, Activation), ("precision", precision, Precision)):
            if value not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
        self.stack = tuple(stack)
        self.activation: Activation = activation
        self.precision: Precision = precision
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise([inputs, *net_arch, outputs]):
            bound = 1 / math.sqrt(fan_in)
            self.weights.append(nn.Parameter(torch.empty(*self.stack, fan_in, fan_out).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(*self.stack, 1, fan_out).uniform_(-bound, bound)))
        self._keys = [str(index) for index in range(len(self.weights))]

    def forward(self, x: Tensor, *, frozen: bool = False, members: int | slice | None = None) -> Tensor:
        """Evaluate the members.

        :param x: inputs, (*lead, B, inputs), where ``lead`` broadcasts to ``stack`` as torch's axes do: (B, inputs) is
            read by all members, (P, 1, B, inputs) by the members of each row of a stack (P, E)
        :param frozen: differentiate with respect to ``x`` only: a backward pass then skips the weights' gradients
        :param members: evaluate only these of the last axis of the stack, or this one, without the axis; all by default
        :return: outputs, (*stack, B, outputs)
        """
        compiling = torch.compiler.is_compiling()
        parameters = self._chain(walk=compiling)
        if members is not None:
            parameters = [(p.detach() if frozen else p)[..., members, :, :] for p in parameters]
        dtype = torch.bfloat16 if self.precision == "bfloat16" else parameters[0].dtype
        if compiling or transformed():  # a compiler fuses the plain form by itself
            parameters = [parameter.detach() for parameter in parameters] if frozen else parameters
            return _plain(x, self.activation, dtype, parameters)
        if not torch.is_grad_enabled():
            return _through(x, self.activation, dtype, parameters)[0]
        return _StackedMLPFunction.apply(x, self.activation, dtype, frozen, *parameters)  # type: ignore[no-untyped-call, no-any-return]

    def _chain(self, walk: bool) -> Sequence[Tensor]:
        """:return: the parameters in the order of use, as they are now."""
        by_key: Any = (self.weights._parameters, self.biases._parameters)
        if not walk:  # walking a ParameterList costs as much as a small layer
            try:
                return [part[key] for key in self._keys for part in by_key]
            except KeyError:  # torch.nn.utils.parametrize put a function in a parameter's place
                pass
        return [p for pair in zip(self.weights, self.biases, strict=True) for p in pair]


class LayerNormMLP(StackedMLP):
    """Perceptrons with a layer norm (arXiv 1607.06450) after each non-linearity, each member with its own gains.

    Parameters as :class:`StackedMLP`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        widths = [weight.shape[-1] for weight in self.weights][:-1]
        self.gains = nn.ParameterList(torch.ones(*self.stack, 1, width) for width in widths)
        self.shifts = nn.ParameterList(torch.zeros(*self.stack, 1, width) for width in widths)

    def forward(self, x: Tensor, *, frozen: bool = False, members: int | slice | None = None) -> Tensor:
        """See :meth:`StackedMLP.forward`."""
        if members is not None:
            raise ValueError("a LayerNormMLP is evaluated whole")
        dtype = torch.bfloat16 if self.precision == "bfloat16" else self.weights[0].dtype
        columns = (self.weights, self.biases, self.gains, self.shifts)
        weights, biases, gains, shifts = ([p.detach() if frozen else p for p in column] for column in columns)
        layer = x.expand(*self.stack, *x.shape[-2:])
        for weight, bias, gain, shift in zip(weights, biases, gains, shifts, strict=False):
            hidden = _PLAIN[self.activation](_affine(layer, weight, bias, dtype))
            layer = torch.addcmul(shift, F.layer_norm(hidden, hidden.shape[-1:]), gain)
        return _affine(layer, weights[-1], biases[-1], dtype)


def _affine(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """:return: x W + b of each member, (*stack, B, outputs), multiplied in a type of its own."""
    product = torch.baddbmm if weight.dim() > 2 else torch.addmm
    out = product(_flat(bias, dtype), _flat(x, dtype), _flat(weight, dtype))
    return _as(out, weight.dtype, (*weight.shape[:-2], *out.shape[-2:]))
