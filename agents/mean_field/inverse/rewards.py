"""What the members of a crowd may earn, with parameters to learn.

A :class:`RewardModel` gives r_ij(pi), what a member earns who moves from state i to j among a crowd pi: it may depend
on everybody's place, on nobody's choice. A :class:`PopulationReward` gives R(pi, P), what a whole crowd earns by its
matrix of moves P, which is what guided cost learning fits.
Shapes: ``d`` states, ``N`` moves.
"""

from collections.abc import Callable, Sequence

import torch
from stable_baselines3.common.torch_layers import create_mlp
from torch import Tensor, nn
from torch.nn import functional as F

from ....envs.mean_field.cohorts import LOG_FLOOR
from ....envs.naming import nearest

TERMS = {
    "u": "u_ij, one number for each move",
    "drift": "time u'_ij, what changes linearly from the start to the end",
    "stay": "s for i = j",
    "popularity": "b (pi_j - pi_i)",
    "log_congestion": "-a log pi_i",
    "linear_congestion": "-c pi_i",
}
"""What a linear reward can be a sum of."""

CROWDED = ("popularity", "log_congestion", "linear_congestion")
"""Terms that depend on the crowd."""


class RewardModel(nn.Module):
    """r_ij(pi), in float64."""

    crowded = True
    """Whether it depends on the crowd at all"""

    def forward(self, pi: Tensor, time: Tensor) -> Tensor:
        """Evaluate.

        :param pi: crowds, (…, d)
        :param time: share n/N of the horizon that is over, from 0; broadcasts with pi (…, 1)
        :return: r_ij, (…, d, d) or what broadcasts to it
        """
        raise NotImplementedError


class LinearReward(RewardModel):
    """A sum of terms, each linear in its parameters, which are 0 at first.

    :param d: states
    :param terms: some of :data:`TERMS`
    :raises ValueError: an unknown term (the nearest is named), none, one twice, or two that say the same
    """

    def __init__(self, d: int, terms: Sequence[str] = ("u",)) -> None:
        super().__init__()
        for term in terms:
            if term not in TERMS:
                raise ValueError(f"there is no reward term {term!r}: {nearest(term, TERMS)}")
        if not terms or len(set(terms)) < len(terms):
            raise ValueError(f"a linear reward needs terms, each once, got {tuple(terms)}")
        if {"u", "stay"} <= set(terms):
            raise ValueError("u holds what staying is worth already: leave one of the terms 'u' and 'stay' out")
        self.terms = tuple(terms)
        self.crowded = any(term in CROWDED for term in terms)
        for term in terms:
            size = (d, d) if term in ("u", "drift") else ()
            self.register_parameter(term, nn.Parameter(torch.zeros(size, dtype=torch.float64)))
        self.register_buffer("same", torch.eye(d, dtype=torch.float64), persistent=False)
        self.same: Tensor

    def forward(self, pi: Tensor, time: Tensor) -> Tensor:
        """See :class:`RewardModel`."""
        numbers = dict(self.named_parameters())
        shapes: dict[str, Callable[[], Tensor]] = {
            "u": lambda: torch.ones_like(time).unsqueeze(-1),
            "drift": lambda: time.unsqueeze(-1),
            "stay": lambda: self.same,
            "popularity": lambda: pi.unsqueeze(-2) - pi.unsqueeze(-1),
            "log_congestion": lambda: -pi.clamp(min=LOG_FLOOR).log().unsqueeze(-1),
            "linear_congestion": lambda: -pi.unsqueeze(-1),
        }
        total = numbers[self.terms[0]] * shapes[self.terms[0]]()
        for term in self.terms[1:]:
            total = total + numbers[term] * shapes[term]()
        return total


def perceptron(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear layers with tanh between them, in float64 as crowds are.

    :param inputs: numbers read
    :param hidden: widths between
    :param outputs: numbers given
    :return: the network, initialised as torch does
    """
    return nn.Sequential(*create_mlp(inputs, outputs, list(hidden), nn.Tanh)).double()


class MLPReward(RewardModel):
    """r_ij(pi, time) by a perceptron that reads both.

    :param d: states
    :param hidden: widths (our choice)
    """

    def __init__(self, d: int, hidden: Sequence[int] = (32, 32)) -> None:
        super().__init__()
        self.d, self.layers = d, perceptron(d + 1, hidden, d * d)

    def forward(self, pi: Tensor, time: Tensor) -> Tensor:
        """See :class:`RewardModel`."""
        inputs = torch.cat((pi, time.expand(*pi.shape[:-1], 1)), -1)
        out: Tensor = self.layers(inputs)
        return out.view(*pi.shape[:-1], self.d, self.d)


class OwnReward(RewardModel):
    """Any module r(pi), (…, d) -> (…, d, d), as a reward that knows no time.

    :param module: the module; made float64
    :param d: states
    :raises ValueError: it returns another shape
    """

    def __init__(self, module: nn.Module, d: int) -> None:
        super().__init__()
        self.module = module.double()
        lead = (d + 1, d + 2)  # sizes that cannot be taken for one another
        with torch.no_grad():
            found = self.module(torch.full((*lead, d), 1 / d, dtype=torch.float64))
        if tuple(found.shape) not in ((d, d), (*lead, d, d)):
            raise ValueError(f"a reward of pi {(*lead, d)} must be {(*lead, d, d)}, got {tuple(found.shape)}")

    def forward(self, pi: Tensor, time: Tensor) -> Tensor:
        """See :class:`RewardModel`."""
        out: Tensor = self.module(pi)
        return out


class PopulationReward(nn.Module):
    """R(pi, P), in float64."""

    def forward(self, pi: Tensor, matrix: Tensor) -> Tensor:
        """Evaluate.

        :param pi: crowds, (…, d)
        :param matrix: P, (…, d, d)
        :return: (…)
        """
        raise NotImplementedError

    def penalty(self) -> Tensor:
        """:return: what the weights cost, scalar."""
        return torch.zeros((), dtype=torch.float64)


class PaperNetwork(PopulationReward):
    """The network of arXiv 1711.03156: P as a picture, two convolutions, a layer, beside pi another one, tanh.

    Layers, widths, dropout and initialisation are the authors' code's; the weight of its penalty is our choice.

    :param d: states
    :param widths: of the two layers
    :param dropout: share of their values that is dropped in training
    :param l1: weight of absolute values in the penalty on the two layers
    :param l2: weight of squares in it
    """

    def __init__(
        self, d: int, widths: tuple[int, int] = (8, 4), dropout: float = 0.6, l1: float = 1e-3, l2: float = 1e-3
    ) -> None:
        super().__init__()
        self.l1, self.l2, self.dropout = l1, l2, dropout
        self.first = nn.Conv2d(1, 1, 5, padding=2)
        self.second = nn.Conv2d(1, 2, 3, padding=1)
        self.wide = nn.Linear(2 * d * d, widths[0])
        self.narrow = nn.Linear(widths[0] + d, widths[1])
        self.out = nn.Linear(widths[1], 1)
        self.double()
        for name, part in self.named_parameters():
            nn.init.zeros_(part) if name.endswith("bias") else nn.init.xavier_normal_(part)

    def forward(self, pi: Tensor, matrix: Tensor) -> Tensor:
        """See :class:`PopulationReward`."""
        lead, d = pi.shape[:-1], pi.shape[-1]
        picture = self.second(self.first(matrix.reshape(-1, 1, d, d)).relu()).relu()
        wide = F.dropout(self.wide(picture.flatten(1)).relu(), self.dropout, self.training)
        narrow = self.narrow(torch.cat((wide, pi.reshape(-1, d)), 1)).relu()
        value: Tensor = self.out(F.dropout(narrow, self.dropout, self.training)).tanh()
        return value.view(lead)

    def penalty(self) -> Tensor:
        """See :class:`PopulationReward`."""
        weights = (self.wide.weight, self.narrow.weight)
        costs = [self.l1 * weight.abs().sum() + self.l2 * weight.square().sum() for weight in weights]
        return torch.stack(costs).sum()


class MembersReward(PopulationReward):
    """R(pi, P) = sum_ij pi_i P_ij (r_ij(pi) - tau log P_ij), what the members of a crowd earn together.

    :param reward: of a member
    :param tau: temperature
    """

    def __init__(self, reward: RewardModel, tau: float = 0.0) -> None:
        super().__init__()
        self.reward, self.tau = reward, tau

    def forward(self, pi: Tensor, matrix: Tensor) -> Tensor:
        """See :class:`PopulationReward`."""
        earned = matrix * self.reward(pi, torch.zeros_like(pi[..., :1])) - self.tau * torch.xlogy(matrix, matrix)
        total: Tensor = (pi * earned.sum(-1)).sum(-1)
        return total


def reward_model(model: str | nn.Module, d: int) -> RewardModel:
    """Make a member's reward.

    :param model: terms of a linear one, such as "u,log_congestion"; "mlp"; a :class:`RewardModel`, or a module r(pi)
    :param d: states
    :return: the model
    :raises ValueError: it is none, or gives the reward of a whole crowd
    """
    if isinstance(model, RewardModel):
        return model.double()
    if model == "network" or isinstance(model, PopulationReward):
        raise ValueError(
            "the paper's network earns R(pi, P) for a whole crowd, so it goes with method='gcl_population'; "
            "for members take 'mlp', or terms such as 'u,log_congestion'"
        )
    if isinstance(model, nn.Module):
        return OwnReward(model, d)
    return MLPReward(d) if model == "mlp" else LinearReward(d, [term.strip() for term in model.split(",")])
