"""Ends of episodes, learned: the last resort, where nobody can say by what is observed when an episode ends (ours)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.nets import StackedMLP, Tracked

BATCH = 256
"""Rows per gradient step."""


class LearnedEnds(nn.Module):
    """A network that says of next observations whether an episode ends there.

    It knows only ends that were experienced, and rare ones poorly: a formula is better, wherever there is one.

    :param obs_dim: O
    :param net_arch: widths of the hidden layers, with SiLU after each
    """

    def __init__(self, obs_dim: int, net_arch: tuple[int, ...] = (64, 64)) -> None:
        super().__init__()
        self.mlp = StackedMLP((), obs_dim, 1, net_arch, "silu")
        self.register_buffer("mean", torch.zeros(obs_dim))
        self.register_buffer("std", torch.ones(obs_dim))
        self.mean: Tensor
        self.std: Tensor

    @torch.no_grad()
    def fit_scales(self, obs: Tensor) -> None:
        """Take up means and standard deviations; a column that does not vary is only shifted.

        :param obs: (N, O)
        """
        std = obs.double().std(0, correction=0)
        self.mean.copy_(obs.double().mean(0))
        self.std.copy_(torch.where(std < 1e-12, 1.0, std))

    def forward(self, obs: Tensor) -> Tensor:
        """:return: logits of the probability that an episode ends there, (…)"""
        logits: Tensor = self.mlp(((obs - self.mean) / self.std).reshape(-1, obs.shape[-1]))
        return logits.view(obs.shape[:-1])

    @torch.no_grad()
    def tell(self, obs: Tensor) -> Tensor:
        """:return: where an episode more likely ends than not, (…) bool; where something is NaN, it does"""
        continues: Tensor = self(obs) <= 0
        return ~continues


def fit_ends(ends: Tracked[LearnedEnds], obs: Tensor, terminated: Tensor, generator: torch.Generator) -> Tensor:
    """Pass over all rows once, in random order, descending the cross-entropy.

    :param ends: what learns
    :param obs: next observations, (N, O)
    :param terminated: which of them ended an episode, (N,) bool
    :param generator: of the order
    :return: mean loss of the pass, scalar
    """
    ends.module.fit_scales(obs)
    goal, total = terminated.to(obs.dtype), obs.new_zeros(())
    batches = torch.split(torch.randperm(len(obs), generator=generator, device=obs.device), BATCH)
    for rows in batches:
        loss = F.binary_cross_entropy_with_logits(ends.module(obs[rows]), goal[rows])
        ends.minimise(loss)
        total = total + loss.detach()
    return total / len(batches)
