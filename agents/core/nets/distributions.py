"""Distributions of actions, as functions of what a network says of them. Noise is an argument, never drawn inside.

Shapes: ``*stack`` members (none for a single network), ``B`` batch, ``A`` action.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .stacks import transformed

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Gaussian(nn.Module):
    """A diagonal Gaussian with a given mean and one learned log standard deviation per action dimension.

    Not squashed: the environment's side clips, as in Stable-Baselines3's PPO.

    :param action_dim: A
    :param log_std_init: where the log standard deviation begins
    :param stack: axes of members, each with a log standard deviation of its own
    """

    def __init__(self, action_dim: int, log_std_init: float = 0.0, *, stack: Sequence[int] = ()) -> None:
        super().__init__()
        self.outputs, self.stack = action_dim, tuple(stack)
        self.log_std = nn.Parameter(torch.full((*self.stack, 1, action_dim), log_std_init))

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draw what :meth:`sample` takes for so many rows of each member.

        :param rows: B
        :param generator: the stream to draw from, on the network's device
        :return: standard normal, (*stack, B, A)
        """
        return torch.randn(*self.stack, rows, self.outputs, generator=generator, device=generator.device)

    def sample(self, mean: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions by reparametrisation.

        :param mean: (*stack, B, A)
        :param noise: standard normal numbers, (*stack, B, A)
        :return: actions (*stack, B, A) and their log densities (*stack, B), in nats
        """
        return torch.addcmul(mean, self.log_std.exp(), noise), _sum_of_logs(self.log_std, noise)

    def evaluate(self, mean: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log density and differential entropy, in nats.

        :param mean: (*stack, B, A)
        :param actions: (*stack, B, A)
        :return: the log density (*stack, B), and the entropy, which is the same for all rows, (*stack, 1)
        """
        return gaussian_density(mean, self.log_std, actions), (self.log_std + 0.5 + HALF_LOG_2PI).sum(-1)

    def mode(self, mean: Tensor) -> Tensor:
        """:return: the mean, (*stack, B, A)"""
        return mean


def gaussian_log_prob(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """log N(a; mu, sigma^2) = sum_i -z_i^2 / 2 - log sigma_i - log(2 pi) / 2, z = (a - mu) / sigma.

    :param mean: mu, (*stack, B, A)
    :param log_std: log sigma, (*stack, 1, A)
    :param actions: a, (*stack, B, A)
    :return: in nats, (*stack, B)
    """
    return _sum_of_logs(log_std, (actions - mean) * (-log_std).exp())


def gaussian_density(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """:func:`gaussian_log_prob`, differentiated in one go where torch allows that; :return: (*stack, B)"""
    plain = torch.compiler.is_compiling() or transformed()
    density: Any = gaussian_log_prob if plain else _GaussianLogProb.apply
    return density(mean, log_std, actions)  # type: ignore[no-any-return]


def _sum_of_logs(log_std: Tensor, scaled: Tensor) -> Tensor:
    """:return: the log density of a Gaussian at mu + sigma z, (*stack, B)"""
    return -torch.addcmul(log_std + HALF_LOG_2PI, scaled, scaled, value=0.5).sum(-1)


class _GaussianLogProb(torch.autograd.Function):
    """:func:`gaussian_log_prob` as one node of the autograd graph. Its gradients, summed over i and rows where needed::

        d / d mu = z / sigma,   d / d log sigma = z^2 - 1,   d / d a = -z / sigma

    They are worked out from what was given, by operations that can be differentiated in turn.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
        ctx.save_for_backward(mean, log_std, actions)
        return gaussian_log_prob(mean, log_std, actions)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mean, log_std, actions = ctx.saved_tensors
        precision = (-log_std).exp()
        scaled = (actions - mean) * precision
        grad = grad.unsqueeze(-1)  # (*stack, B, 1)
        weighted = grad * scaled
        by_mean = weighted * precision
        by_log_std = torch.addcmul(-grad, weighted, scaled).sum(-2, keepdim=True)
        return by_mean, by_log_std, -by_mean.sum_to_size(actions.shape) if ctx.needs_input_grad[2] else None


class Categorical(nn.Module):
    """Independent choices among finitely many actions, by a softmax over logits.

    :param n_actions: choices of a Discrete action space, whose actions are (B,) int64; or of each dimension of a
        MultiDiscrete one of K dimensions, whose actions are (B, K) int64. They count from 0.
    :param stack: axes of members
    """

    columns: Tensor

    def __init__(self, n_actions: int | Sequence[int], *, stack: Sequence[int] = ()) -> None:
        super().__init__()
        counts = torch.as_tensor(n_actions)
        choices = counts.flatten().tolist()
        self.outputs, self.stack, self.several = sum(choices), tuple(stack), counts.dim() > 0
        # Dimensions with fewer choices are filled up from a column of impossible ones, the last.
        starts = [sum(choices[:k]) for k in range(len(choices))]
        columns = [
            [start + i if i < n else self.outputs for i in range(max(choices))]
            for start, n in zip(starts, choices, strict=True)
        ]
        self.register_buffer("columns", torch.tensor(columns), persistent=False)

    def log_probs(self, logits: Tensor) -> Tensor:
        """:return: log probabilities of all choices, in nats, (*stack, B, K, most choices); K = 1 for Discrete"""
        if not self.several:
            return logits.log_softmax(-1).unsqueeze(-2)
        # exp(-1e8) is 0, and so is its product with -1e8; with -inf the entropy would be NaN.
        return F.pad(logits, (0, 1), value=-1e8)[..., self.columns].log_softmax(-1)

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """As :meth:`Gaussian.noise`.

        :return: uniform in [0, 1), (*stack, B, K * most choices)
        """
        return torch.rand(*self.stack, rows, self.columns.numel(), generator=generator, device=generator.device)

    def sample(self, logits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions by the Gumbel-max trick.

        :param logits: (*stack, B, outputs)
        :param noise: uniform numbers in [0, 1), (*stack, B, K * most choices)
        :return: actions (*stack, B) or (*stack, B, K) int64 and their log probabilities (*stack, B), in nats
        """
        log_probs = self.log_probs(logits)
        gumbel = -(-noise.view_as(log_probs).log()).log()
        chosen = (log_probs.detach() + gumbel).argmax(-1)
        actions = chosen if self.several else chosen.squeeze(-1)
        return actions, self._taken(log_probs, actions)

    def evaluate(self, logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log probability and entropy, in nats.

        :param logits: (*stack, B, outputs)
        :param actions: (*stack, B) or (*stack, B, K)
        :return: (*stack, B) each
        """
        log_probs = self.log_probs(logits)
        return self._taken(log_probs, actions), -(log_probs.exp() * log_probs).sum((-1, -2))

    def log_prob(self, logits: Tensor, actions: Tensor) -> Tensor:
        """:return: the log probability alone, as of :meth:`evaluate`"""
        return self._taken(self.log_probs(logits), actions)

    def mode(self, logits: Tensor) -> Tensor:
        """:return: the likeliest actions, (*stack, B) or (*stack, B, K) int64"""
        likeliest = self.log_probs(logits).argmax(-1)
        return likeliest if self.several else likeliest.squeeze(-1)

    def _taken(self, log_probs: Tensor, actions: Tensor) -> Tensor:
        chosen = actions if self.several else actions.unsqueeze(-1)
        chosen = chosen.expand(log_probs.shape[:-1])  # actions without the stack's axes are those of all members
        return log_probs.gather(-1, chosen.unsqueeze(-1)).squeeze(-1).sum(-1)
