"""What a search teaches: losses that fit a policy to the candidates of a root and to what was found of them.

The paper (see :mod:`.agent`) has "a loss built from means and standard deviations of trajectories"; its form could not
be read. All of this is ours, or of whom it says.

Shapes: B rows, K candidates, A action.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..core.nets.distributions import HALF_LOG_2PI

Correction = Literal["raw", "corrected", "shrunk"]


class Targets(NamedTuple):
    """What a Gaussian policy is to become, (B, A) each."""

    mean: Tensor
    std: Tensor


def moments(actions: Tensor, weights: Tensor, std: Tensor, least: Tensor, correction: Correction = "shrunk") -> Targets:
    """The moments of weighted candidates, as estimates of those of the distribution that they were drawn from::

        m = sum_k w_k a_k,   s^2 = sum_k w_k (a_k - m)^2,   n_eff = 1 / sum_k w_k^2
        "raw":       sigma^2 = s^2
        "corrected": sigma^2 = s^2 / max(1 - 1 / n_eff, 0.05)
        "shrunk":    kappa of that and 1 - kappa of the policy's own variance, kappa = (n_eff - 1) / (K - 1)

    K equally good candidates have s^2 = (K - 1) / K of the variance that they were drawn with: "raw" shrinks
    exploration at each round, and stalls before it arrives (a test shows it).

    :param actions: a, (B, K, A)
    :param weights: w, that sum to 1, (B, K)
    :param std: what they were drawn with, (B, A)
    :param least: below which no standard deviation goes, (A,) or ()
    :param correction: which of the three
    :return: m, and sigma between ``least`` and 1.5 times what it was
    """
    weights = weights.unsqueeze(-1)  # (B, K, 1)
    mean = (weights * actions).sum(1)
    spread = (weights * (actions - mean.unsqueeze(1)).square()).sum(1)
    effective = 1 / weights.square().sum(1)  # (B, 1)
    if correction != "raw":
        spread = spread / (1 - 1 / effective).clamp_min(0.05)
    if correction == "shrunk":
        trust = ((effective - 1) / max(actions.shape[1] - 1, 1)).clamp(0.0, 1.0)
        spread = torch.lerp(std.square(), spread, trust)
    most = torch.maximum(1.5 * std, least)
    return Targets(mean, torch.minimum(torch.maximum(spread.sqrt(), least), most))


def log_probs(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """:return: log N(a; mu, sigma^2) of candidates (B, K, A), of policies (B, A), in nats, (B, K)"""
    mean, log_std = mean.unsqueeze(1), log_std.unsqueeze(1)
    scaled = (actions - mean) * (-log_std).exp()
    return -(0.5 * scaled.square() + log_std + HALF_LOG_2PI).sum(-1)


def moment_loss(mean: Tensor, log_std: Tensor, targets: Targets, std: Tensor, std_coef: float) -> Tensor:
    """mean_d [(mu - m)^2 / (2 sigma_old^2) + c_s (log sigma - log sigma_hat)^2], averaged over rows.

    :param mean: mu, (B, A)
    :param log_std: log sigma, (B, A); where all rows share one, its target is the mean of theirs
    :param targets: m and sigma_hat
    :param std: sigma_old, (B, A)
    :param std_coef: c_s
    :return: scalar, never negative, and 0 only at the targets
    """
    by_mean = (mean - targets.mean).square() / (2 * std.square())
    aim = targets.std.log()
    if log_std.shape[0] == 1:
        aim = aim.mean(0, keepdim=True)
    by_std = (log_std - aim).square()
    return by_mean.mean() + std_coef * by_std.mean()


def moment_kl(mean: Tensor, log_std: Tensor, targets: Targets) -> Tensor:
    """:return: KL(N(m, sigma_hat^2) || pi), in nats, averaged over rows, scalar"""
    return gaussian_kl(targets.mean, targets.std.log(), mean, log_std).mean()


def gaussian_kl(mean: Tensor, log_std: Tensor, other_mean: Tensor, other_log_std: Tensor) -> Tensor:
    """:return: KL of one diagonal Gaussian from another, in nats, (B,)"""
    ratio = (2 * (log_std - other_log_std)).exp()
    distance = (mean - other_mean).square() * (-2 * other_log_std).exp()
    return (other_log_std - log_std + 0.5 * (ratio + distance - 1)).sum(-1)


def cross_entropy(log_probs: Tensor, weights: Tensor) -> Tensor:
    """-sum_k w_k log pi(a_k), averaged over rows (Sampled MuZero's). Of a Gaussian its minimum is at (m, s): "raw".

    :param log_probs: (B, K)
    :param weights: (B, K)
    :return: scalar
    """
    return -(weights * log_probs).sum(1).mean()


def a0c_loss(log_probs: Tensor, visits: Tensor, temperature: float) -> Tensor:
    """sum_k stopgrad(log pi(a_k) - tau log n_k) log pi(a_k) over candidates with visits (arXiv 1805.09613).

    :param log_probs: (B, K)
    :param visits: n, (B, K)
    :param temperature: tau
    :return: scalar
    """
    tried = visits > 0
    factor = (log_probs - temperature * visits.clamp_min(1.0).log()).detach()
    return torch.where(tried, factor * log_probs, 0.0).sum(1).mean()


def advantage_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, weights: Tensor, clip_range: float, whiten: bool
) -> Tensor:
    """-sum_k w_k min(rho_k A_k, clip(rho_k, 1 - c, 1 + c) A_k): PPO's loss of all candidates, A_k = Q_k - v.

    :param log_probs: log pi(a_k), (B, K)
    :param old_log_probs: of the policy that drew them, (B, K)
    :param advantages: A, (B, K)
    :param weights: shares of visits, (B, K); a candidate without one does not count
    :param clip_range: c
    :param whiten: shift and scale advantages to mean 0 and standard deviation 1, as they are weighted
    :return: scalar
    """
    if whiten:
        total = weights.sum()
        mean = (weights * advantages).sum() / total
        var = (weights * (advantages - mean).square()).sum() / total
        advantages = (advantages - mean) / (var.sqrt() + 1e-8)
    ratio = (log_probs - old_log_probs).exp()
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)
    return -(weights * gain).sum(1).mean()


def bound_loss(mean: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Half the squared distance of means from the box that clips actions, as AWR's code has it (arXiv 1910.00177).

    Outside of it all candidates act alike, and nothing else would bring the mean back.

    :param mean: (B, A)
    :param low: (A,)
    :param high: (A,)
    :return: scalar
    """
    beyond = (mean - high).clamp_min(0.0) + (low - mean).clamp_min(0.0)
    return 0.5 * beyond.square().sum(-1).mean()
