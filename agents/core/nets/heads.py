"""Actors, critics and the temperature. Noise is an argument, never drawn inside.

Shapes: ``*stack`` members (none for a single network), ``B`` batch, ``E`` ensemble, ``D`` observation features, ``A``
action. Observations are (*lead, B, *O), where ``lead`` broadcasts to ``stack``: (B, *O) is read by all members.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, TypedDict, Unpack

import torch
from torch import Tensor, nn

from ..spaces.fields import Obs
from .distributions import HALF_LOG_2PI, Categorical, Gaussian
from .stacks import Activation, Precision, StackedMLP

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
"""Bounds on a squashed Gaussian's log standard deviation, as in Stable-Baselines3."""

SATURATION = 1e-6
"""Added to the slope of tanh inside its logarithm, as in Stable-Baselines3: keeps it finite where tanh rounds to 1."""


class Options(TypedDict, total=False):
    """What all heads hand on to :class:`Head`."""

    activation: Activation
    stack: Sequence[int]
    precision: Precision


class Head(nn.Module):
    """Features of the observation, read by a stacked perceptron. Base of all heads below.

    :param features: maps observations (…, B, *O) to features (…, B, D), with an attribute ``features_dim``; shared by
        all members
    :param outputs: numbers the head needs
    :param net_arch: widths of the hidden layers
    :param activation: the non-linearity
    :param stack: leading axes of members
    :param precision: of the perceptron, see :class:`StackedMLP`
    :param each: axes after those, of the networks that each member has
    :param beside: inputs of the perceptron beside the features
    """

    perceptron: ClassVar[type[StackedMLP]] = StackedMLP

    def __init__(
        self,
        features: nn.Module,
        outputs: int,
        net_arch: Sequence[int],
        activation: Activation = "relu",
        stack: Sequence[int] = (),
        precision: Precision = "float32",
        each: Sequence[int] = (),
        beside: int = 0,
    ) -> None:
        super().__init__()
        self.features = features
        inputs = int(features.features_dim) + beside  # type: ignore[arg-type]
        self.mlp = self.perceptron((*stack, *each), inputs, outputs, net_arch, activation, precision)


class Actor(Head):
    """A policy network. Base of the actors below.

    Continuous actions are in the agents' own scale, [-1, 1] in every dimension.

    :param outputs: numbers that describe a distribution of actions
    :param noise_dim: random numbers that an action takes; 0 where none is drawn
    :param stack: leading axes of members

    The others as :class:`Head`.
    """

    def __init__(
        self, features: nn.Module, outputs: int, noise_dim: int, net_arch: Sequence[int], **options: Unpack[Options]
    ) -> None:
        super().__init__(features, outputs, net_arch, **options)
        self.stack = self.mlp.stack
        self.noise_dim = noise_dim

    def head(self, obs: Obs, members: slice | None = None) -> Tensor:
        """:return: the perceptron's outputs, of these members alone where they are named, (*stack, B, outputs)"""
        return self.mlp(self.features(obs), members=members)  # type: ignore[no-any-return]

    def mode(self, obs: Obs) -> Tensor:
        """:return: the deterministic action, (*stack, B, A)"""
        raise NotImplementedError

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draw what :meth:`sample` of an actor takes for so many rows of each member.

        :param rows: B
        :param generator: the stream to draw from, on the actor's device
        :return: standard normal, (*stack, B, A)
        """
        return torch.randn(*self.stack, rows, self.noise_dim, generator=generator, device=generator.device)


class SquashedGaussianActor(Actor):
    """tanh of a diagonal Gaussian with state-dependent mean and log standard deviation (arXiv 1812.05905, app. C)."""

    def __init__(
        self, features: nn.Module, action_dim: int, net_arch: Sequence[int], **options: Unpack[Options]
    ) -> None:
        super().__init__(features, 2 * action_dim, action_dim, net_arch, **options)

    def gaussian(self, obs: Obs, members: slice | None = None) -> tuple[Tensor, Tensor]:
        """Describe the distribution of actions before tanh.

        :param obs: observations, (*lead, B, *O)
        :param members: only these of the last axis of the stack
        :return: means and log standard deviations, (*stack, B, A) each
        """
        mean, log_std = self.head(obs, members).chunk(2, -1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def sample(self, obs: Obs, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions by reparametrisation.

        :param obs: observations, (*lead, B, *O)
        :param noise: standard normal numbers, (*stack, B, A)
        :return: actions (*stack, B, A) in [-1, 1] and their log densities (*stack, B), in nats
        """
        mean, log_std = self.gaussian(obs)
        actions = torch.addcmul(mean, log_std.exp(), noise).tanh()
        log_slope = torch.log1p(SATURATION - actions.square())
        # The sum over dimensions of -noise^2 / 2 - log_std - log(2 pi) / 2 - log_slope, in few operations.
        negative = torch.addcmul(log_std + log_slope, noise, noise, value=0.5)
        return actions, -negative.sum(-1) - HALF_LOG_2PI * noise.shape[-1]

    def mode(self, obs: Obs) -> Tensor:
        """:return: tanh of the mean, (*stack, B, A)"""
        return self.head(obs).chunk(2, -1)[0].tanh()


class DeterministicActor(Actor):
    """tanh of the perceptron's output (arXiv 1802.09477)."""

    def __init__(
        self, features: nn.Module, action_dim: int, net_arch: Sequence[int], **options: Unpack[Options]
    ) -> None:
        super().__init__(features, action_dim, 0, net_arch, **options)

    def mode(self, obs: Obs) -> Tensor:
        """:return: the action, (*stack, B, A)"""
        return self.head(obs).tanh()


class Critics(Head):
    """``E`` action-value functions Q(s, a) as one stacked network on shared features.

    :param action_dim: A
    :param n_critics: E
    :param stack: axes before E, for each of whose members there are E critics

    The others as :class:`Head`.
    """

    def __init__(
        self,
        features: nn.Module,
        action_dim: int,
        net_arch: Sequence[int],
        *,
        n_critics: int = 2,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(features, 1, net_arch, each=(n_critics,), beside=action_dim, **options)

    def forward(self, obs: Obs, actions: Tensor, *, frozen: bool = False) -> Tensor:
        """Evaluate all critics.

        :param obs: observations, (*lead, B, *O)
        :param actions: actions in [-1, 1], (*lead, B, A)
        :param frozen: differentiate with respect to the actions only, as an actor's loss does
        :return: values, (*stack, E, B)
        """
        return self.mlp(self._inputs(obs, actions, frozen), frozen=frozen).squeeze(-1)  # type: ignore[no-any-return]

    def first(self, obs: Obs, actions: Tensor) -> Tensor:
        """Evaluate the first critic alone, differentiating with respect to the actions only.

        :param obs: observations, (*lead, B, *O)
        :param actions: actions in [-1, 1], (*lead, B, A)
        :return: values, (*stack, B)
        """
        inputs = self._inputs(obs, actions, frozen=True)
        return self.mlp(inputs, frozen=True, members=slice(1)).squeeze(-1).squeeze(-2)  # type: ignore[no-any-return]

    def _inputs(self, obs: Obs, actions: Tensor, frozen: bool) -> Tensor:
        features: Tensor = self.features(obs)
        features = features.detach() if frozen else features
        if (
            features.shape[:-1] != actions.shape[:-1]
        ):  # the same observations for every member, each with actions of its own
            features = features.expand(*actions.shape[:-1], -1)
        return _to_all(torch.cat([features, actions], -1))


class StateCritics(Head):
    """``E`` state-value functions V(s) as one stacked network on shared features; parameters as :class:`Critics`."""

    def __init__(
        self, features: nn.Module, net_arch: Sequence[int], *, n_critics: int = 2, **options: Unpack[Options]
    ) -> None:
        super().__init__(features, 1, net_arch, each=(n_critics,), **options)

    def forward(self, obs: Obs, *, frozen: bool = False) -> Tensor:
        """Evaluate all critics.

        :param obs: observations, (*lead, B, *O)
        :param frozen: differentiate with respect to the observations only
        :return: values, (*stack, E, B)
        """
        return self.mlp(_to_all(self.features(obs)), frozen=frozen).squeeze(-1)  # type: ignore[no-any-return]


class ActorValue(Head):
    """A policy and a state-value function of one architecture, whose perceptrons are evaluated as a stack of two.

    The value's perceptron has as many outputs as the policy's: the first is the value; the others are never read, and
    their weights begin and stay at zero.

    :param policy: the distribution that the policy's perceptron describes
    :param stack: axes before these two, for each of whose members there are both

    The others as :class:`Head`; ``activation`` is "tanh" where none is given.
    """

    def __init__(
        self, features: nn.Module, policy: Gaussian | Categorical, net_arch: Sequence[int], **options: Unpack[Options]
    ) -> None:
        options.setdefault("activation", "tanh")
        super().__init__(features, policy.outputs, net_arch, each=(2,), **options)
        self.policy = policy
        self._silence()

    @torch.no_grad()
    def _silence(self) -> None:
        for tensor in (self.mlp.weights[-1], self.mlp.biases[-1]):
            tensor[..., 1, :, 1:] = 0.0

    def forward(self, obs: Obs) -> tuple[Tensor, Tensor]:
        """Evaluate both.

        :param obs: observations, (*lead, B, *O)
        :return: what describes the distribution, (*stack, B, outputs), and values, (*stack, B)
        """
        outputs, values = self.mlp(_to_all(self.features(obs))).unbind(-3)
        return outputs, values[..., 0]

    @torch.no_grad()
    def orthogonal_(self) -> None:
        """Begin as Stable-Baselines3's PPO does: orthogonal; gain 0.01 at the policy's end, 1 at the value's."""
        orthogonal_(self, output_gain=0.01)
        for last in self.mlp.weights[-1].view(-1, *self.mlp.weights[-1].shape[-2:])[1::2]:
            nn.init.orthogonal_(last[:, :1].T)
        self._silence()


class QValues(Head):
    """``E`` action-value functions Q(s, .) with a value for each of ``A`` actions.

    :param n_actions: A

    The others as :class:`Critics`.
    """

    def __init__(
        self,
        features: nn.Module,
        n_actions: int,
        net_arch: Sequence[int],
        *,
        n_critics: int = 1,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(features, n_actions, net_arch, each=(n_critics,), **options)

    def forward(self, obs: Obs) -> Tensor:
        """:return: values of all actions in observations (*lead, B, *O), (*stack, E, B, A)"""
        return self.mlp(_to_all(self.features(obs)))  # type: ignore[no-any-return]


def _to_all(x: Tensor) -> Tensor:
    """:return: inputs (*lead, B, ·) for each of an ensemble, (*lead, 1, B, ·); what all read has no axes before B."""
    return x if x.dim() == 2 else x.unsqueeze(-3)


def orthogonal_layers_(module: nn.Module, gain: float = math.sqrt(2)) -> None:
    """Give linear and convolutional layers, such as those of features, orthogonal weights and biases of zero.

    :param module: whose layers
    :param gain: factor on the weights
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.orthogonal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@torch.no_grad()
def orthogonal_(head: Head, output_gain: float, hidden_gain: float = math.sqrt(2)) -> None:
    """Initialise a head as Stable-Baselines3's ``ActorCriticPolicy`` does: orthogonal weights and biases of zero.

    Each member of a stack is orthogonal by itself. Stable-Baselines3 gives actors 0.01 and values 1 as output gain.

    :param head: whose perceptron, linear and convolutional features are initialised
    :param output_gain: of the last layer
    :param hidden_gain: of all others
    """
    orthogonal_layers_(head.features, hidden_gain)
    last = len(head.mlp.weights) - 1
    for index, (weight, bias) in enumerate(zip(head.mlp.weights, head.mlp.biases, strict=True)):
        for member in weight.view(-1, *weight.shape[-2:]):
            nn.init.orthogonal_(member.T, output_gain if index == last else hidden_gain)
        nn.init.zeros_(bias)


class Temperature(nn.Module):
    """The weight of the entropy bonus, kept positive by its logarithm.

    :param initial: starting value
    :param stack: axes of members, each with a temperature of its own
    """

    def __init__(self, initial: float, stack: Sequence[int] = ()) -> None:
        super().__init__()
        self.stack = tuple(stack)
        self.log_alpha = nn.Parameter(torch.full(self.stack, math.log(initial)))

    @property
    def alpha(self) -> Tensor:
        """The temperature without gradient, (*stack)."""
        return self.log_alpha.detach().exp()
