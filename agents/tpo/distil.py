"""The loss by which a policy and a value are fitted to what was found of many states.

Shapes: B rows, K candidates, A action; of a Discrete space candidates are (B, K) and policies (B, A) log probabilities.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.nets import ActorValue, Categorical
from .config import TPOConfig
from .moments import (
    Targets,
    a0c_loss,
    advantage_loss,
    bound_loss,
    cross_entropy,
    gaussian_kl,
    log_probs,
    moment_kl,
    moment_loss,
    moments,
)
from .policy import StateGaussian


class Record(NamedTuple):
    """What was found in B states."""

    obs: Any
    """(B, *O)"""
    candidates: Tensor
    """a, (B, K, A) or (B, K) int64"""
    visits: Tensor
    """n, (B, K)"""
    q: Tensor
    """Q, (B, K)"""
    outputs: Tensor
    """The policy that the candidates were drawn from, see :class:`~headway.agents.tpo.guides.Guide`, (B, ·)"""
    before: Tensor
    """The policy before this round's updates, likewise"""
    values: Tensor
    """v: what the search expected, (B,)"""
    returns: Tensor
    """What values are fitted to, (B,)"""


class Distilled(NamedTuple):
    """What is minimised, and what is watched; scalars."""

    loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    kl: Tensor
    std: Tensor
    effective_candidates: Tensor


def distil_losses(nets: ActorValue, batch: Record, bounds: tuple[Tensor, Tensor], cfg: TPOConfig) -> Distilled:
    """L = L_pi + c_v (V - V_hat)^2 + c_kl KL(pi_before || pi) - c_H H(pi) + c_b (distance from the bounds)^2 / 2.

    L_pi is one of those of :mod:`.moments`, by what ``policy_loss`` says.

    :param nets: actor and value
    :param batch: B states
    :param bounds: of actions of a Box, in the policy's scale, (A,) each
    :param cfg: for the coefficients
    :return: scalars
    """
    outputs, values = nets(batch.obs)
    weights = batch.visits.pow(1 / cfg.visit_temperature)
    weights = weights / weights.sum(1, keepdim=True)
    parts = _of_choices if isinstance(nets.policy, Categorical) else _of_gaussians
    policy_loss, kl, entropy, std, outside = parts(nets.policy, outputs, batch, weights, bounds, cfg)
    value_loss = (values - batch.returns).square().mean()
    loss = policy_loss + cfg.vf_coef * value_loss + cfg.kl_coef * kl - cfg.ent_coef * entropy + cfg.bound_coef * outside
    return Distilled(loss, policy_loss, value_loss, kl, std, (1 / weights.square().sum(1)).mean())


def _of_gaussians(
    policy: Any, outputs: Tensor, batch: Record, weights: Tensor, bounds: tuple[Tensor, Tensor], cfg: TPOConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """:return: of a Box: L_pi, divergence, entropy, standard deviation, distance from the bounds; scalars"""
    if isinstance(policy, StateGaussian):
        mean, log_std = policy.moments(outputs)
    else:
        mean, log_std = outputs, policy.log_std
    old_mean, old_std = batch.outputs.chunk(2, -1)
    before_mean, before_std = batch.before.chunk(2, -1)
    half = 0.5 * (bounds[1] - bounds[0])
    aim = moments(batch.candidates, weights, old_std, 0.05 * torch.where(half.isfinite(), half, 1.0), cfg.correction)
    if cfg.policy_loss == "policy_moments":
        aim = Targets(old_mean, old_std)
    if cfg.policy_loss in ("moments", "policy_moments"):
        policy_loss = moment_loss(mean, log_std, aim, old_std, cfg.std_coef)
    elif cfg.policy_loss == "kl_moments":
        policy_loss = moment_kl(mean, log_std, aim)
    else:
        old = log_probs(old_mean, old_std.log(), batch.candidates)
        policy_loss = _by_candidates(log_probs(mean, log_std, batch.candidates), old, batch, weights, cfg)
    kl = gaussian_kl(before_mean, before_std.log(), mean, log_std).mean()
    return policy_loss, kl, log_std.sum(-1).mean(), log_std.exp().mean(), bound_loss(mean, *bounds)


def _of_choices(
    policy: Any, outputs: Tensor, batch: Record, weights: Tensor, bounds: tuple[Tensor, Tensor], cfg: TPOConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """:return: of a Discrete space: L_pi, divergence, entropy, and twice 0, of what there is not; scalars"""
    log_p = outputs.log_softmax(-1)  # (B, A)
    chosen, old = log_p.gather(1, batch.candidates), batch.outputs.gather(1, batch.candidates)
    policy_loss = _by_candidates(chosen, old, batch, weights, cfg)
    kl = (batch.before.exp() * (batch.before - log_p)).sum(1).mean()
    entropy, zero = -(log_p.exp() * log_p).sum(1).mean(), outputs.new_zeros(())
    return policy_loss, kl, entropy, zero, zero


def _by_candidates(log_p: Tensor, old: Tensor, batch: Record, weights: Tensor, cfg: TPOConfig) -> Tensor:
    """:return: L_pi of the losses that see candidates one by one"""
    if cfg.policy_loss == "a0c":
        return a0c_loss(log_p, batch.visits, cfg.a0c_temperature)
    if cfg.policy_loss == "adv":
        advantages = batch.q - batch.values.unsqueeze(1)
        return advantage_loss(log_p, old, advantages, weights, cfg.clip_range, cfg.normalize_advantage)
    return cross_entropy(log_p, weights)
