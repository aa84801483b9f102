"""Policies of a whole crowd: distributions of its matrix of moves P, given where it is, with samples and densities.

Shapes: ``d`` states.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .rewards import perceptron

SMALLEST = 1e-20
"""Probabilities are at least so much, as in the authors' code, so that they have logarithms."""


def dirichlet_log_prob(matrix: Tensor, concentrations: Tensor) -> Tensor:
    """log prod_i Dir(P_i; A_i).

    :param matrix: P, (…, d, d)
    :param concentrations: A, (…, d, d)
    :return: (…)
    """
    normaliser = concentrations.sum(-1).lgamma() - concentrations.lgamma().sum(-1)
    return (normaliser + ((concentrations - 1) * matrix.log()).sum(-1)).sum(-1)


def dirichlet_score(matrix: Tensor, concentrations: Tensor, slopes: Tensor) -> Tensor:
    """d log F / d theta = sum_ij [psi(sum_j A_ij) - psi(A_ij) + ln P_ij] dA_ij / d theta, whose mean is 0.

    :param matrix: P, (…, d, d)
    :param concentrations: A = c alpha, (…, d, d); the authors' code has alpha here
    :param slopes: dA / d theta, (…, d, d)
    :return: (…)
    """
    total = concentrations.sum(-1, keepdim=True)
    return ((total.digamma() - concentrations.digamma() + matrix.log()) * slopes).sum((-2, -1))


class PolicyHead(nn.Module):
    """A distribution of P given pi."""

    def sample(self, pi: Tensor, rng: np.random.Generator) -> Tensor:
        """:return: P, (…, d, d), for crowds (…, d)."""
        raise NotImplementedError

    def mean(self, pi: Tensor) -> Tensor:
        """:return: what P is on average, or without noise, (…, d, d)."""
        raise NotImplementedError

    def log_prob(self, pi: Tensor, matrix: Tensor) -> Tensor:
        """:return: log density of P, (…)."""
        raise NotImplementedError


class DirichletHead(PolicyHead):
    """Rows P_i ~ Dir(A_i)."""

    def concentrations(self, pi: Tensor) -> Tensor:
        """:return: A, (…, d, d)."""
        raise NotImplementedError

    @torch.no_grad()
    def sample(self, pi: Tensor, rng: np.random.Generator) -> Tensor:
        """See :class:`PolicyHead`."""
        gammas = torch.from_numpy(rng.standard_gamma(self.concentrations(pi).cpu().numpy())).to(pi.device)
        gammas = gammas.clamp(min=SMALLEST)
        return gammas / gammas.sum(-1, keepdim=True)

    @torch.no_grad()
    def mean(self, pi: Tensor) -> Tensor:
        """See :class:`PolicyHead`."""
        concentrations = self.concentrations(pi)
        return concentrations / concentrations.sum(-1, keepdim=True)

    def log_prob(self, pi: Tensor, matrix: Tensor) -> Tensor:
        """See :class:`PolicyHead`."""
        return dirichlet_log_prob(matrix, self.concentrations(pi))


class DirichletScalar(DirichletHead):
    """A_ij = c softplus(theta (pi_j - pi_i - shift)), the published policy with its single number theta.

    :param theta: at first
    :param shift: subtracted from differences
    :param concentration: c
    """

    def __init__(self, theta: float, shift: float, concentration: float) -> None:
        super().__init__()
        self.shift, self.concentration = shift, concentration
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def concentrations(self, pi: Tensor) -> Tensor:
        """See :class:`DirichletHead`."""
        gain = pi.unsqueeze(-2) - pi.unsqueeze(-1) - self.shift
        return self.concentration * F.softplus(self.theta * gain).clamp(min=SMALLEST)

    @torch.no_grad()
    def score(self, pi: Tensor, matrix: Tensor) -> Tensor:
        """:return: d log F / d theta, (…)."""
        gain = pi.unsqueeze(-2) - pi.unsqueeze(-1) - self.shift
        slopes = self.concentration * gain * torch.sigmoid(self.theta * gain)
        return dirichlet_score(matrix, self.concentrations(pi), slopes)


class DirichletNet(DirichletHead):
    """A = c softplus(MLP(pi)).

    :param d: states
    :param hidden: widths
    :param concentration: c
    """

    def __init__(self, d: int, hidden: tuple[int, ...], concentration: float) -> None:
        super().__init__()
        self.d, self.concentration, self.net = d, concentration, perceptron(d, hidden, d * d)

    def concentrations(self, pi: Tensor) -> Tensor:
        """See :class:`DirichletHead`."""
        return self.concentration * F.softplus(self.net(pi).view(*pi.shape, self.d)).clamp(min=SMALLEST)


class SoftmaxGaussian(PolicyHead):
    """P_i = softmax(x_i, 0) with x_i ~ N(MLP(pi)_i, sigma^2), d - 1 numbers a row; the density is that of P itself.

    :param d: states
    :param hidden: widths
    :param noise: sigma
    """

    def __init__(self, d: int, hidden: tuple[int, ...], noise: float) -> None:
        super().__init__()
        self.d, self.noise, self.net = d, noise, perceptron(d, hidden, d * (d - 1))

    def _centres(self, pi: Tensor) -> Tensor:
        out: Tensor = self.net(pi)
        return out.view(*pi.shape, self.d - 1)

    @torch.no_grad()
    def sample(self, pi: Tensor, rng: np.random.Generator) -> Tensor:
        """See :class:`PolicyHead`."""
        centres = self._centres(pi)
        noise = torch.from_numpy(rng.standard_normal(tuple(centres.shape))).to(pi.device)
        return F.pad(centres + self.noise * noise, (0, 1)).softmax(-1).clamp(min=SMALLEST)

    @torch.no_grad()
    def mean(self, pi: Tensor) -> Tensor:
        """See :class:`PolicyHead`."""
        return F.pad(self._centres(pi), (0, 1)).softmax(-1)

    def log_prob(self, pi: Tensor, matrix: Tensor) -> Tensor:
        """See :class:`PolicyHead`."""
        logs = matrix.log()
        away = (logs[..., :-1] - logs[..., -1:] - self._centres(pi)) / self.noise
        gaussian = -0.5 * away.square() - math.log(self.noise) - 0.5 * math.log(2 * math.pi)
        return (gaussian.sum(-1) - logs.sum(-1)).sum(-1)  # dx / dP has determinant 1 / prod_j P_ij
