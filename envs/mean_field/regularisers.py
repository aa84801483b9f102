"""What a game pays for spread-out choices, by state: a concave function of the row of the policy."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Regulariser(Protocol):
    """A bonus g(p) on the probabilities p with which a state's actions are taken."""

    def bonus(self, policy: Tensor, dim: int) -> Tensor:
        """:return: g(p), with the dimension of the actions removed."""

    def best(self, values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Maximise p · q + g(p) over distributions; an action whose value is -inf gets nothing.

        :param values: q, at least one of each row finite
        :param dim: the dimension of the actions
        :return: the distribution, like ``values``, and the maximum, without that dimension
        """


@dataclass(frozen=True)
class Entropy:
    """g(p) = -tau sum_a p_a log p_a, whose best rows are a softmax.

    :param tau: temperature, in the reward's unit, above 0
    :raises ValueError: it is not
    """

    tau: float

    def __post_init__(self) -> None:
        if not 0 < self.tau < float("inf"):
            raise ValueError(f"tau must lie in (0, inf), got {self.tau}; leave the regulariser out for none")

    def bonus(self, policy: Tensor, dim: int) -> Tensor:
        """See :class:`Regulariser`."""
        return -self.tau * torch.xlogy(policy, policy).sum(dim)

    def best(self, values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """See :class:`Regulariser`."""
        scaled = values / self.tau
        return scaled.softmax(dim), self.tau * scaled.logsumexp(dim)


@dataclass(frozen=True)
class Quadratic:
    """g(p) = -scale/2 sum_a p_a^2, whose best rows are projections on the simplex (sparsemax, arXiv 1602.02068).

    :param scale: in the reward's unit, above 0
    :raises ValueError: it is not
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale must lie in (0, inf), got {self.scale}; leave the regulariser out for none")

    def bonus(self, policy: Tensor, dim: int) -> Tensor:
        """See :class:`Regulariser`."""
        return -self.scale / 2 * policy.square().sum(dim)

    def best(self, values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """See :class:`Regulariser`."""
        scaled = (values / self.scale).movedim(dim, -1)
        # relative to the greatest, so that large values cost no digits and -inf stays out of the sums
        scaled = scaled - scaled.amax(-1, keepdim=True)
        ranked = scaled.sort(-1, descending=True).values.clamp(min=-2)  # whatever is 1 below the greatest gets nothing
        counts = torch.arange(1, ranked.shape[-1] + 1, dtype=ranked.dtype, device=ranked.device)
        thresholds = (ranked.cumsum(-1) - 1) / counts
        support = (ranked > thresholds).sum(-1, keepdim=True)
        policy = (scaled - thresholds.gather(-1, support - 1)).clamp(min=0).movedim(-1, dim)
        chosen = torch.where(policy > 0, values, 0)
        return policy, (policy * chosen).sum(dim) + self.bonus(policy, dim)
