"""Networks: multilayer perceptrons stacked into ensembles, actor heads and critics.

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

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
"""Bounds on a squashed Gaussian's log standard deviation, as in Stable-Baselines3."""

SATURATION = 1e-6
"""Added to the slope of tanh inside its logarithm, as in Stable-Baselines3: keeps it finite where tanh rounds to 1."""

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


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


class Actor(nn.Module):
    """A policy network: features of the observation, a perceptron, a head. Base of the three heads below.

    Actions are in the agents' own scale, [-1, 1] in every dimension.

    :param features: maps observations (B, *O) to features (B, D), with an attribute ``features_dim``
    :param outputs: numbers the head needs
    :param net_arch: widths of the hidden layers
    :param activation: the non-linearity
    """

    def __init__(self, features: nn.Module, outputs: int, net_arch: Sequence[int], activation: Activation) -> None:
        super().__init__()
        self.features = features
        self.mlp = StackedMLP(1, int(features.features_dim), outputs, net_arch, activation)  # type: ignore[arg-type]

    def head(self, obs: Tensor) -> Tensor:
        """:return: the perceptron's outputs, (B, outputs)"""
        return self.mlp(self.features(obs)).squeeze(0)  # type: ignore[no-any-return]

    def mode(self, obs: Tensor) -> Tensor:
        """:return: the deterministic action, (B, A)"""
        raise NotImplementedError


class SquashedGaussianActor(Actor):
    """tanh of a diagonal Gaussian with state-dependent mean and log standard deviation (arXiv 1812.05905, app. C)."""

    def __init__(
        self, features: nn.Module, action_dim: int, net_arch: Sequence[int], activation: Activation = "relu"
    ) -> None:
        super().__init__(features, 2 * action_dim, net_arch, activation)

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions by reparametrisation.

        :param obs: observations, (B, *O)
        :param noise: standard normal numbers, (B, A)
        :return: actions (B, A) in [-1, 1] and their log densities (B,), in nats
        """
        mean, log_std = self.head(obs).chunk(2, -1)  # (B, A) each
        log_std = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        actions = torch.addcmul(mean, log_std.exp(), noise).tanh()
        log_slope = torch.log1p(SATURATION - actions.square())
        # The sum over dimensions of -noise^2 / 2 - log_std - log(2 pi) / 2 - log_slope, in few operations.
        negative = torch.addcmul(log_std + log_slope, noise, noise, value=0.5)
        return actions, -negative.sum(-1) - _HALF_LOG_2PI * noise.shape[-1]

    def mode(self, obs: Tensor) -> Tensor:
        """:return: tanh of the mean, (B, A)"""
        return self.head(obs).chunk(2, -1)[0].tanh()


class GaussianActor(Actor):
    """A diagonal Gaussian with state-dependent mean and one learned log standard deviation per action dimension.

    Not squashed: the environment's side clips, as in Stable-Baselines3's PPO.
    """

    def __init__(
        self,
        features: nn.Module,
        action_dim: int,
        net_arch: Sequence[int],
        activation: Activation = "tanh",
        log_std_init: float = 0.0,
    ) -> None:
        super().__init__(features, action_dim, net_arch, activation)
        self.log_std = nn.Parameter(torch.full((action_dim,), log_std_init))

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions by reparametrisation; arguments and results as in :meth:`SquashedGaussianActor.sample`."""
        actions = self.head(obs) + self.log_std.exp() * noise
        return actions, (-0.5 * noise.square() - self.log_std - _HALF_LOG_2PI).sum(-1)

    def log_prob(self, obs: Tensor, actions: Tensor) -> Tensor:
        """:return: log density of given actions (B, A), in nats, (B,)"""
        scaled = (actions - self.head(obs)) * (-self.log_std).exp()
        return (-0.5 * scaled.square() - self.log_std - _HALF_LOG_2PI).sum(-1)

    def mode(self, obs: Tensor) -> Tensor:
        """:return: the mean, (B, A)"""
        return self.head(obs)


class DeterministicActor(Actor):
    """tanh of the perceptron's output (arXiv 1802.09477)."""

    def __init__(
        self, features: nn.Module, action_dim: int, net_arch: Sequence[int], activation: Activation = "relu"
    ) -> None:
        super().__init__(features, action_dim, net_arch, activation)

    def mode(self, obs: Tensor) -> Tensor:
        """:return: the action, (B, A)"""
        return self.head(obs).tanh()


class Critics(nn.Module):
    """``E`` action-value functions Q(s, a) as one stacked network on shared features.

    :param features: maps observations (B, *O) to features (B, D)
    :param action_dim: A
    :param net_arch: widths of the hidden layers
    :param activation: the non-linearity
    :param n_critics: E
    """

    def __init__(
        self,
        features: nn.Module,
        action_dim: int,
        net_arch: Sequence[int],
        activation: Activation = "relu",
        n_critics: int = 2,
    ) -> None:
        super().__init__()
        self.features = features
        inputs = int(features.features_dim) + action_dim  # type: ignore[arg-type]
        self.mlp = StackedMLP(n_critics, inputs, 1, net_arch, activation)

    def forward(self, obs: Tensor, actions: Tensor, *, frozen: bool = False) -> Tensor:
        """Evaluate all critics.

        :param obs: observations, (B, *O)
        :param actions: actions in [-1, 1], (B, A)
        :param frozen: differentiate with respect to the actions only, as an actor's loss does
        :return: values, (E, B)
        """
        features = self.features(obs)
        features = features.detach() if frozen else features
        return self.mlp(torch.cat([features, actions], -1), frozen=frozen).squeeze(-1)  # type: ignore[no-any-return]

    def first(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Evaluate the first critic alone, differentiating with respect to the actions only.

        :param obs: observations, (B, *O)
        :param actions: actions in [-1, 1], (B, A)
        :return: values, (B,)
        """
        features = self.features(obs).detach()
        return self.mlp(torch.cat([features, actions], -1), frozen=True, members=1)[0].squeeze(-1)  # type: ignore[no-any-return]


class StateCritics(nn.Module):
    """``E`` state-value functions V(s) as one stacked network.

    :param inputs: state features, D
    :param net_arch: widths of the hidden layers
    :param activation: the non-linearity
    :param n_critics: E
    """

    def __init__(
        self, inputs: int, net_arch: Sequence[int], activation: Activation = "relu", n_critics: int = 2
    ) -> None:
        super().__init__()
        self.mlp = StackedMLP(n_critics, inputs, 1, net_arch, activation)

    def forward(self, states: Tensor, *, frozen: bool = False) -> Tensor:
        """Evaluate all critics.

        :param states: (B, D)
        :param frozen: differentiate with respect to the states only
        :return: values, (E, B)
        """
        return self.mlp(states, frozen=frozen).squeeze(-1)  # type: ignore[no-any-return]


class Temperature(nn.Module):
    """The weight of the entropy bonus, kept positive by its logarithm.

    :param initial: starting value
    """

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(math.log(initial)))

    @property
    def alpha(self) -> Tensor:
        """The temperature, a scalar without gradient."""
        return self.log_alpha.detach().exp()
