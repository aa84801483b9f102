"""Forecasts of a crowd without a reward, to compare fits of rewards with.

VAR and RNN are those of Yang, Ye, Trivedi, Xu, Zha: "Learning deep mean field games for modeling large population
behavior", ICLR 2018, arXiv 1711.03156.
Shapes: ``n`` crowds, ``N`` moves, ``d`` states.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from ....envs.mean_field.cohorts import Trajectories
from .crowd_models import CrowdModel, Scores, moved, score


class Persistence(CrowdModel):
    """All stay where they are.

    :param data: tells the number of moves
    """

    def __init__(self, data: Trajectories) -> None:
        self.horizon = data.horizon

    def predict(self, pi0: Tensor) -> Tensor:
        """See :class:`CrowdModel`."""
        return pi0.unsqueeze(1).expand(-1, self.horizon + 1, -1).clone()


class MeanCrowd(CrowdModel):
    """The average of the crowds so far, wherever the new one starts.

    :param data: those crowds
    """

    def __init__(self, data: Trajectories) -> None:
        self.mean = data.pi.mean(0)

    def predict(self, pi0: Tensor) -> Tensor:
        """See :class:`CrowdModel`."""
        return torch.cat((pi0.unsqueeze(1), self.mean[1:].expand(len(pi0), -1, -1)), 1)


class PooledMoves(CrowdModel):
    """People move by the shares of all moves seen; from states that nobody left, they stay.

    :param data: those moves
    :param by_time: one matrix for each time, instead of one for all
    """

    def __init__(self, data: Trajectories, by_time: bool = False) -> None:
        counts = data.counts.sum(0) if by_time else data.counts.sum((0, 1)).expand(data.horizon, -1, -1)
        people = counts.sum(-1, keepdim=True)
        self.matrices = torch.where(people > 0, counts / people, torch.eye(data.d).to(counts))  # (N, d, d)

    def predict(self, pi0: Tensor) -> Tensor:
        """See :class:`CrowdModel`."""
        return moved(pi0, self.matrices.expand(len(pi0), -1, -1, -1))


def _as_shares(values: Tensor) -> Tensor:
    """:return: numbers (…, d) made distributions: clipped at 0 and divided by their sum; uniform if all are clipped."""
    clipped = values.clamp(min=0)
    total = clipped.sum(-1, keepdim=True)
    return torch.where(total > 0, clipped / total, 1 / values.shape[-1])


class VAR(CrowdModel):
    """Vector autoregression pi^n = c + sum_{k <= order} A_k pi^(n-k), by least squares, predictions made distributions.

    The solution of least norm is taken, since shares sum to 1 and leave the intercept free.

    :param data: crowds to fit
    :param order: how far it looks back
    :param joined: the crowds are one series end to end, as the days of the paper; otherwise only what is within a crowd
        is fitted
    :raises ValueError: the order is below 1, or longer than what there is to fit
    """

    def __init__(self, data: Trajectories, order: int = 1, joined: bool = False) -> None:
        series = data.pi.reshape(1, -1, data.d) if joined else data.pi
        if not 1 <= order < series.shape[1]:
            raise ValueError(f"order must lie in [1, {series.shape[1] - 1}] for these crowds, got {order}")
        self.order, self.joined, self.horizon = order, joined, data.horizon
        lags = [series[:, order - k : series.shape[1] - k] for k in range(1, order + 1)]
        inputs = torch.cat([*lags, torch.ones_like(lags[0][..., :1])], -1).flatten(0, 1)
        targets = series[:, order:].flatten(0, 1)
        solution, *_ = np.linalg.lstsq(inputs.cpu().numpy(), targets.cpu().numpy(), rcond=None)
        self.weights = torch.from_numpy(solution).to(data.pi.device)  # (order d + 1, d)
        self._last = series[-1, series.shape[1] - order + 1 :]

    def predict(self, pi0: Tensor, past: Tensor | None = None) -> Tensor:
        """See :class:`CrowdModel`.

        :param pi0: (n, d)
        :param past: what came before, newest first, (n, order - 1, d); None: the same as the start
        :return: (n, N + 1, d)
        """
        past = pi0.unsqueeze(1).expand(-1, self.order - 1, -1) if past is None else past
        known = torch.cat((pi0.unsqueeze(1), past), 1)  # (n, order, d), newest first
        line = [pi0]
        for _ in range(self.horizon):
            line.append(_as_shares(known.flatten(1) @ self.weights[:-1] + self.weights[-1]))
            known = torch.cat((line[-1].unsqueeze(1), known[:, :-1]), 1)
        return torch.stack(line, 1)

    def score(self, trajectories: Trajectories) -> Scores:
        """:return: how well crowds are predicted from their start, and from what came before if crowds are joined.

        Joined crowds follow one another, the first of them those that were fitted.
        """
        past = _pasts(self._last, trajectories) if self.joined else None
        return score(self.predict(trajectories.pi[:, 0], past), trajectories.pi)


def _pasts(before: Tensor, data: Trajectories) -> Tensor:
    """:return: the observations before each crowd, newest first, (n, k, d), given k before the first, oldest first."""
    series = torch.cat((before, data.pi.flatten(0, 1)))
    starts = torch.arange(len(data)).unsqueeze(1) * (data.horizon + 1)
    return series[starts + torch.arange(len(before)).flip(0)]


def select_order(
    data: Trajectories,
    orders: Iterable[int] = range(1, 21),
    *,
    validation: int = 5,
    repeats: int = 10,
    joined: bool = True,
    seed: int = 0,
) -> int:
    """Choose the order of a :class:`VAR` by its mean divergence on crowds that are left out at random, repeatedly.

    :param data: crowds to fit
    :param orders: to choose from (from 1 to 20 in the paper)
    :param validation: crowds left out (5 in the paper)
    :param repeats: how often (our choice)
    :param joined: see :class:`VAR`
    :param seed: of what is left out
    :return: the order
    :raises ValueError: no crowds are left, or an order is too long for those that are
    """
    if not 1 <= validation < len(data):
        raise ValueError(f"validation must lie in [1, {len(data) - 1}] for {len(data)} crowds, got {validation}")
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(len(data)) for _ in range(repeats)]
    errors: dict[int, float] = {}
    for order in orders:
        pasts = _pasts(data.pi[0, :1].expand(order - 1, -1), data) if joined else None
        found = []
        for drawing in drawn:
            left = drawing[:validation].tolist()
            model = VAR(data[np.sort(drawing[validation:]).tolist()], order, joined)
            predicted = model.predict(data.pi[left, 0], None if pasts is None else pasts[left])
            found.append(score(predicted, data.pi[left]).jsd_mean)
        errors[order] = sum(found) / repeats
    return min(errors, key=errors.__getitem__)


class RNN(CrowdModel):
    """One recurrent layer of d rectified units, h^(n+1) = relu(W pi^n + U h^n + b), whose values are the shares.

    Trained by Adam on the squared error of the next distribution, and fed its own predictions afterwards.

    :param data: crowds to fit
    :param steps: of Adam, with all crowds each
    :param learning_rate: of Adam
    :param seed: of the first weights
    :raises ValueError: no steps, or a learning rate that is not positive
    """

    def __init__(self, data: Trajectories, steps: int = 1000, learning_rate: float = 1e-2, seed: int = 0) -> None:
        if steps < 1 or not learning_rate > 0:
            raise ValueError(f"steps must be at least 1 and learning_rate above 0, got {steps} and {learning_rate}")
        self.horizon = data.horizon
        random = torch.Generator().manual_seed(seed)
        start = torch.randn(2 * data.d + 1, data.d, generator=random, dtype=torch.float64) / data.d
        start[: data.d] += torch.eye(data.d)  # persistence, from which no unit starts dead
        self.weights = nn.Parameter(start.to(data.pi.device))
        self._train(data.pi, steps, learning_rate)

    def _train(self, pi: Tensor, steps: int, learning_rate: float) -> None:
        optimiser = torch.optim.Adam([self.weights], learning_rate)
        for _ in range(steps):
            hidden, loss = torch.zeros_like(pi[:, 0]), torch.zeros((), dtype=pi.dtype, device=pi.device)
            for now, then in zip(pi.unbind(1)[:-1], pi.unbind(1)[1:], strict=True):
                hidden = self._step(now, hidden)
                loss = loss + (hidden - then).square().sum(-1).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()

    def _step(self, pi: Tensor, hidden: Tensor) -> Tensor:
        return torch.cat((pi, hidden, torch.ones_like(pi[:, :1])), 1).matmul(self.weights).relu()

    @torch.no_grad()
    def predict(self, pi0: Tensor) -> Tensor:
        """See :class:`CrowdModel`."""
        hidden, line = torch.zeros_like(pi0), [pi0]
        for _ in range(self.horizon):
            hidden = self._step(line[-1], hidden)
            line.append(_as_shares(hidden))
        return torch.stack(line, 1)
