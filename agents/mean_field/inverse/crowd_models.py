"""What predicts a crowd from its start, fits of rewards among them, and how predictions are judged.

The measures are those of Yang, Ye, Trivedi, Xu, Zha: "Learning deep mean field games for modeling large population
behavior", ICLR 2018, arXiv 1711.03156.
Shapes: ``n`` crowds, ``N`` moves, ``d`` states.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ....envs.mean_field.cohorts import Trajectories
from ...core.config import Config


def jsd(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence, KL(p | m) / 2 + KL(q | m) / 2 with m = (p + q) / 2: symmetric, from 0 to ln 2.

    :param p: distributions (…, d)
    :param q: distributions (…, d)
    :return: in nats, (…)
    """
    middle = (p + q) / 2
    total = torch.xlogy(p, p) + torch.xlogy(q, q) - 2 * torch.xlogy(middle, middle)
    return (total.sum(-1) / 2).clamp(0, math.log(2))  # a rounding error below 0 would be no divergence


@dataclass(frozen=True)
class Scores:
    """How far predicted distributions are from observed ones, on average over crowds; the start counts as a time."""

    jsd_final: float
    """At the last time, in nats"""
    jsd_mean: float
    """Over all times"""
    l1_final: float
    """Sum of absolute differences at the last time"""
    l1_mean: float
    """Over all times"""
    jsd_final_sd: float
    """Between crowds; NaN for a single one"""
    jsd_mean_sd: float
    """Between crowds"""


def score(predicted: Tensor, observed: Tensor) -> Scores:
    """Compare flows.

    :param predicted: (n, N + 1, d)
    :param observed: (n, N + 1, d)
    :return: averages over crowds
    :raises ValueError: the shapes differ
    """
    if predicted.shape != observed.shape or predicted.ndim != 3:
        raise ValueError(f"flows must both be (n, N + 1, d), got {tuple(predicted.shape)} and {tuple(observed.shape)}")
    divergence, distance = jsd(predicted, observed), (predicted - observed).abs().sum(-1)  # (n, N + 1)
    numbers = [divergence[:, -1].mean(), divergence.mean(), distance[:, -1].mean(), distance.mean()]
    spread = [
        part.std() if len(part) > 1 else torch.tensor(torch.nan) for part in (divergence[:, -1], divergence.mean(1))
    ]
    return Scores(*(float(number) for number in numbers + spread))


class CrowdModel:
    """Predicts a crowd from its start."""

    def predict(self, pi0: Tensor) -> Tensor:
        """Predict flows.

        :param pi0: distributions at the start, (n, d)
        :return: (n, N + 1, d)
        """
        raise NotImplementedError

    def score(self, trajectories: Trajectories) -> Scores:
        """:return: how well crowds are predicted from their start alone."""
        return score(self.predict(trajectories.pi[:, 0]), trajectories.pi)


class Rollout(NamedTuple):
    """Crowds predicted from their start."""

    flow: Tensor
    """(n, N + 1, d)"""
    matrices: Tensor
    """P, (n, N, d, d)"""


@dataclass(frozen=True, kw_only=True)
class FitConfig(Config):
    """What fits of rewards have in common."""

    seed: int = 0
    """Of everything random."""


class Fit(CrowdModel):
    """A reward that was learned.

    :param method: by which
    :param config: of the method
    :param horizon: N
    """

    def __init__(self, method: str, config: FitConfig, horizon: int) -> None:
        self.method, self.config, self.horizon = method, config, horizon

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What was learned, by name."""
        raise NotImplementedError

    def rollout(self, pi0: Tensor) -> Rollout:
        """Predict crowds from their start.

        :param pi0: (n, d)
        :return: flow and matrices
        """
        raise NotImplementedError

    def predict(self, pi0: Tensor) -> Tensor:
        """See :class:`CrowdModel`."""
        return self.rollout(pi0).flow


def moved(pi0: Tensor, matrices: Tensor) -> Tensor:
    """Move crowds: pi^(n+1) = pi^n P^n.

    :param pi0: (…, d)
    :param matrices: (…, N, d, d)
    :return: (…, N + 1, d)
    """
    line = [pi0]
    for matrix in matrices.unbind(-3):
        line.append((line[-1].unsqueeze(-2) @ matrix).squeeze(-2))
    return torch.stack(line, -2)
