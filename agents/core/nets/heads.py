"""Actors, critics and the temperature. Noise is an argument, never drawn inside.

Shapes: ``B`` batch, ``E`` ensemble, ``D`` observation features, ``A`` action.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .stacks import Activation, StackedMLP

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
"""Bounds on a squashed Gaussian's log standard deviation, as in Stable-Baselines3."""

SATURATION = 1e-6
"""Added to the slope of tanh inside its logarithm, as in Stable-Baselines3: keeps it finite where tanh rounds to 1."""

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


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
