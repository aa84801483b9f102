"""Policies whose density can be asked for at any action: what agents that learn from data need of an actor.

Shapes as in :mod:`.heads`.
"""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from ..spaces.fields import Obs
from .distributions import Categorical, gaussian_density, gaussian_log_prob
from .heads import Critics, Head, Options, QValues
from .stacks import LayerNormMLP


class BoundedGaussian(nn.Module):
    """A diagonal Gaussian around tanh of a network's output, with one learned log standard deviation per dimension.

    Samples are not squashed: actions are clipped to [-1, 1] on their way to the environment, and the density is that
    before clipping. As in the public code of IQL.

    :param action_dim: A
    :param log_std_init: where the log standard deviation begins
    :param bounds: between which it is clamped
    :param stack: axes of members
    """

    def __init__(
        self,
        action_dim: int,
        log_std_init: float = 0.0,
        bounds: tuple[float, float] = (-5.0, 2.0),
        *,
        stack: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.outputs, self.stack, self.bounds = action_dim, tuple(stack), bounds
        self.raw_log_std = nn.Parameter(torch.full((*self.stack, 1, action_dim), log_std_init))

    @property
    def log_std(self) -> Tensor:
        """(*stack, 1, A)"""
        return self.raw_log_std.clamp(*self.bounds)

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """:return: standard normal, (*stack, B, A)"""
        return torch.randn(*self.stack, rows, self.outputs, generator=generator, device=generator.device)

    def sample(self, outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Gaussian.sample`."""
        mean, log_std = outputs.tanh(), self.log_std
        actions = torch.addcmul(mean, log_std.exp(), noise)
        return actions, gaussian_log_prob(mean, log_std, actions)

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """:return: the log density of actions (*stack, B, A), in nats, (*stack, B)"""
        return gaussian_density(outputs.tanh(), self.log_std, actions)

    def mode(self, outputs: Tensor) -> Tensor:
        """:return: the mean, (*stack, B, A)"""
        return outputs.tanh()


class DensityActor(Head):
    """A policy network and the distribution that it describes.

    :param policy: the distribution

    The others as :class:`Head`.
    """

    def __init__(
        self,
        features: nn.Module,
        policy: BoundedGaussian | Categorical,
        net_arch: Sequence[int],
        **options: Unpack[Options],
    ) -> None:
        super().__init__(features, policy.outputs, net_arch, **options)
        self.policy = policy

    def outputs(self, obs: Obs) -> Tensor:
        """:return: what describes the distribution, (*stack, B, ·)"""
        return self.mlp(self.features(obs))  # type: ignore[no-any-return]

    def log_prob(self, obs: Obs, actions: Tensor) -> Tensor:
        """:return: the log density of actions, in nats, (*stack, B)"""
        return self.policy.log_prob(self.outputs(obs), actions)

    def sample(self, obs: Obs, noise: Tensor) -> tuple[Tensor, Tensor]:
        """:return: actions by reparametrisation, and their log densities, (*stack, B, …)"""
        return self.policy.sample(self.outputs(obs), noise)

    def mode(self, obs: Obs) -> Tensor:
        """:return: the likeliest action"""
        return self.policy.mode(self.outputs(obs))


def action_values(critics: Critics | QValues, obs: Obs, actions: Tensor, *, frozen: bool = False) -> Tensor:
    """Q(s, a) of critics of either kind.

    :param critics: of continuous actions, or with a value for each of finitely many
    :param obs: (*stack, B, *O)
    :param actions: (*stack, B, A), or (*stack, B) int64
    :param frozen: of continuous ones: differentiate with respect to the actions only
    :return: (*stack, E, B)
    """
    if isinstance(critics, Critics):
        return critics(obs, actions, frozen=frozen)  # type: ignore[no-any-return]
    values: Tensor = critics(obs)  # (*stack, E, B, A)
    chosen = actions.unsqueeze(-2).expand(values.shape[:-1])
    return values.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


class LayerNormCritics(Critics):
    """Critics with a layer norm after each hidden layer; parameters as :class:`Critics`."""

    perceptron = LayerNormMLP
