"""Crowds on a graph: games in which the members of each state choose where to go (Yang et al., arXiv 1711.03156).

A crowd pi spreads over the d states of a directed graph. Those in state i choose a row P_i, a distribution over i and
the states it has edges to; then pi' = P^T pi. State i earns r_i(pi, P_i). Rewards are terms that add up, so

    make_reward("entropy + linear_congestion", u=u, tau=0.5, c=2.0)

is ``Linear(u) + RowEntropy(0.5) + LinearCongestion(2.0)``.

Two sums can be made of a reward, and they are two questions. ``population_reward`` is sum_i pi_i r_i, the welfare of
all (Definition 2 of the paper): who maximises it answers as a planner would. Members who each look after themselves are
at rest elsewhere, in a Nash equilibrium, which maximises ``potential`` = F(pi) + sum_i pi_i g_i(P_i) where
r_i = f_i(pi) + g_i(P_i) and f is the gradient of F. The paper takes the two for one. They agree where
sum_k pi_k df_k/dpi_i is the same for every i: without f, and for ``log_congestion``; not for ``linear_congestion``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..naming import nearest
from .game import MFGame
from .regularisers import Entropy, Quadratic, Regulariser

Objective = Literal["population", "potential"]

EPS = 1e-25
"""What a logarithm sees of masses and probabilities that are smaller; float32 can hold it."""

Numbers = Tensor | Sequence[Any]


class GraphReward(ABC):
    """What a crowd pi (…, d) earns in each state when its members move by the rows of P (…, d, d)."""

    @abstractmethod
    def reward_per_state(self, pi: Tensor, P: Tensor) -> Tensor:
        """:return: r_i(pi, P_i), (…, d)."""

    @abstractmethod
    def potential(self, pi: Tensor, P: Tensor) -> Tensor:
        """:return: F(pi) + sum_i pi_i g_i(P_i), (…,), whose maximisers are Nash equilibria.

        :raises ValueError: there is no such F
        """

    def population_reward(self, pi: Tensor, P: Tensor) -> Tensor:
        """:return: sum_i pi_i r_i(pi, P_i), (…,)."""
        return (pi * self.reward_per_state(pi, P)).sum(-1)

    def total(self, objective: Objective, pi: Tensor, P: Tensor) -> Tensor:
        """Sum over states.

        :param objective: "population" for :meth:`population_reward`, "potential" for :meth:`potential`
        :param pi: the crowd, (…, d)
        :param P: its moves, (…, d, d)
        :return: (…,)
        """
        return self.potential(pi, P) if check_objective(objective) == "potential" else self.population_reward(pi, P)

    @property
    def terms(self) -> tuple["GraphReward", ...]:
        """What it is the sum of."""
        return (self,)

    def __add__(self, other: "GraphReward") -> "GraphReward":
        return Sum((*self.terms, *other.terms))


@dataclass(frozen=True)
class Sum(GraphReward):
    """Several rewards at once.

    :param parts: the rewards
    """

    parts: tuple[GraphReward, ...]

    def reward_per_state(self, pi: Tensor, P: Tensor) -> Tensor:
        """See :class:`GraphReward`."""
        return reduce(torch.add, (part.reward_per_state(pi, P) for part in self.parts))

    def potential(self, pi: Tensor, P: Tensor) -> Tensor:
        """See :class:`GraphReward`."""
        return reduce(torch.add, (part.potential(pi, P) for part in self.parts))

    @property
    def terms(self) -> tuple[GraphReward, ...]:
        """See :class:`GraphReward`."""
        return self.parts


class RowTerm(GraphReward):
    """g_i(P_i): a reward of the moves alone."""

    @abstractmethod
    def of_rows(self, P: Tensor) -> Tensor:
        """:return: g_i(P_i), (…, d, d) -> (…, d)."""

    def reward_per_state(self, pi: Tensor, P: Tensor) -> Tensor:
        """See :class:`GraphReward`."""
        return self.of_rows(P)

    def potential(self, pi: Tensor, P: Tensor) -> Tensor:
        """See :class:`GraphReward`."""
        return self.population_reward(pi, P)


class StateTerm(GraphReward):
    """f_i(pi): a reward of being somewhere in this crowd."""

    @abstractmethod
    def of_crowd(self, pi: Tensor) -> Tensor:
        """:return: f_i(pi), (…, d) -> (…, d)."""

    def reward_per_state(self, pi: Tensor, P: Tensor) -> Tensor:
        """See :class:`GraphReward`."""
        return self.of_crowd(pi)


@dataclass(frozen=True, eq=False)
class Linear(RowTerm):
    """u_ij for each move.

    :param u: (d, d)
    :raises ValueError: another shape, or not finite
    """

    u: Tensor

    def __post_init__(self) -> None:
        if self.u.ndim != 2 or self.u.shape[0] != self.u.shape[1] or not self.u.isfinite().all():
            raise ValueError(f"rewards of moves must be (d, d) finite numbers, got {tuple(self.u.shape)}: {self.u}")

    def of_rows(self, P: Tensor) -> Tensor:
        """See :class:`RowTerm`."""
        if P.shape[-2:] != self.u.shape:
            raise ValueError(f"rewards of moves are {tuple(self.u.shape)}, the crowd has {P.shape[-1]} states")
        return (P * self.u.to(P)).sum(-1)


@dataclass(frozen=True)
class RowEntropy(RowTerm):
    """-tau sum_j P_ij log P_ij.

    :param tau: temperature, above 0
    """

    tau: float

    def of_rows(self, P: Tensor) -> Tensor:
        """See :class:`RowTerm`."""
        return -self.tau * (P * P.clamp(min=EPS).log()).sum(-1)  # unlike xlogy, with a finite gradient at 0


@dataclass(frozen=True)
class RowSquares(RowTerm):
    """-scale/2 sum_j P_ij^2.

    :param scale: above 0
    """

    scale: float = 1.0

    def of_rows(self, P: Tensor) -> Tensor:
        """See :class:`RowTerm`."""
        return -self.scale / 2 * P.square().sum(-1)


@dataclass(frozen=True)
class LogCongestion(StateTerm):
    """f_i = -a log pi_i.

    F = -a sum_i pi_i log pi_i, whose gradient is f up to a constant, which does not matter to a mass that stays 1.

    :param a: weight
    """

    a: float = 1.0

    def of_crowd(self, pi: Tensor) -> Tensor:
        """See :class:`StateTerm`."""
        return -self.a * pi.clamp(min=EPS).log()

    def potential(self, pi: Tensor, P: Tensor) -> Tensor:
        """See :class:`GraphReward`."""
        return self.population_reward(pi, P)


@dataclass(frozen=True)
class LinearCongestion(StateTerm):
    """f_i = -c pi_i, F = -c/2 sum_i pi_i^2.

    :param c: weight
    """

    c: float = 1.0

    def of_crowd(self, pi: Tensor) -> Tensor:
        """See :class:`StateTerm`."""
        return -self.c * pi

    def potential(self, pi: Tensor, P: Tensor) -> Tensor:
        """See :class:`GraphReward`."""
        return -self.c / 2 * pi.square().sum(-1)


@dataclass(frozen=True)
class TwitterHand(GraphReward):
    """r_ij = P_ij (pi_j - pi_i): the reward that the paper's authors wrote by hand before they learnt one."""

    def reward_per_state(self, pi: Tensor, P: Tensor) -> Tensor:
        """See :class:`GraphReward`."""
        return (P.square() * (pi.unsqueeze(-2) - pi.unsqueeze(-1))).sum(-1)

    def potential(self, pi: Tensor, P: Tensor) -> Tensor:
        """See :class:`GraphReward`."""
        raise ValueError(
            "twitter_hand is no sum of f(pi) and g(P), so it has no potential: take objective='population'"
        )


@dataclass(frozen=True, eq=False)
class Network(GraphReward):
    """Any function of a crowd and its moves, such as a learned one.

    :param function: maps pi (…, d) and P (…, d, d) to r_i (…, d), or to one number for all, (…,) or (…, 1)
    """

    function: Callable[[Tensor, Tensor], Tensor]

    def reward_per_state(self, pi: Tensor, P: Tensor) -> Tensor:
        """See :class:`GraphReward`.

        :raises ValueError: what the function returned has another shape
        """
        found = self.function(pi, P)
        if found.shape == pi.shape:
            return found
        if found.shape in (pi.shape[:-1], (*pi.shape[:-1], 1)):
            return found.reshape(*pi.shape[:-1], 1).expand(pi.shape)
        raise ValueError(
            f"the reward must return {tuple(pi.shape)}, one number per state, or {tuple(pi.shape[:-1])}, "
            f"one for all; it returned {tuple(found.shape)}"
        )

    def potential(self, pi: Tensor, P: Tensor) -> Tensor:
        """See :class:`GraphReward`."""
        raise ValueError("nothing is known of a potential of this function: take objective='population'")


def check_objective(objective: str) -> Objective:
    """:return: the objective, if there is such a one; a ValueError if not."""
    if objective not in get_args(Objective):
        raise ValueError(f"objective is {objective!r}: it can be {' or '.join(map(repr, get_args(Objective)))}")
    return objective  # type: ignore[return-value]


# ---- by name ---------------------------------------------------------------------------------------------------------

_PARAMETERS: dict[str, dict[str, Any]] = {
    "linear": {"u": None},
    "entropy": {"u": None, "tau": 1.0},
    "quadratic": {"b": None, "scale": 1.0},
    "log_congestion": {"a": 1.0},
    "linear_congestion": {"c": 1.0},
    "twitter_hand": {},
}
"""Rewards by name, with the defaults of their parameters (our choice)."""

REWARDS = tuple(_PARAMETERS)


def make_reward(name: str, **parameters: Any) -> GraphReward:
    """Make a reward.

    =====================  ==========================================================  =================
    name                   r_i                                                         parameters
    =====================  ==========================================================  =================
    ``linear``             sum_j P_ij u_ij                                             u (d, d)
    ``entropy``            sum_j P_ij (u_ij - tau log P_ij)                            u; tau = 1
    ``quadratic``          b_i · P_i - scale/2 |P_i|^2                                 b (d, d); scale = 1
    ``log_congestion``     -a log pi_i                                                 a = 1
    ``linear_congestion``  -c pi_i                                                     c = 1
    ``twitter_hand``       sum_j P_ij^2 (pi_j - pi_i)
    =====================  ==========================================================  =================

    :param name: one of these, or several with "+" between them
    :param parameters: theirs; u and b may be left out for 0, except in "linear"
    :return: the reward
    :raises ValueError: an unknown name or parameter (the nearest is named), or one out of range
    """
    names = [part.strip() for part in name.split("+")]
    for part in names:
        if part not in REWARDS:
            raise ValueError(f"there is no reward {part!r}: {nearest(part, REWARDS)}")
    known = {key: value for part in names for key, value in _PARAMETERS[part].items()}
    for key in parameters:
        if key not in known:
            raise ValueError(f"reward {name!r} has no parameter {key!r}: {nearest(key, known)}")
    chosen = known | {key: value for key, value in parameters.items() if value is not None}
    for key, value in chosen.items():
        if key not in ("u", "b"):
            _check_number(key, value, above_zero=key in ("tau", "scale"))
    return reduce(lambda left, right: left + right, (_one_reward(part, chosen) for part in names))


def _one_reward(name: str, chosen: dict[str, Any]) -> GraphReward:
    makers: dict[str, Callable[[], GraphReward]] = {
        "linear": lambda: _with_moves(chosen["u"], None),
        "entropy": lambda: _with_moves(chosen["u"], RowEntropy(chosen["tau"])),
        "quadratic": lambda: _with_moves(chosen["b"], RowSquares(chosen["scale"])),
        "log_congestion": lambda: LogCongestion(chosen["a"]),
        "linear_congestion": lambda: LinearCongestion(chosen["c"]),
        "twitter_hand": TwitterHand,
    }
    return makers[name]()


def _with_moves(u: Numbers | None, rest: GraphReward | None) -> GraphReward:
    if u is None:
        if rest is None:
            raise ValueError("reward 'linear' needs u, the reward (d, d) of each move")
        return rest
    linear = Linear(torch.as_tensor(u, dtype=None if isinstance(u, Tensor) else torch.float64))
    return linear if rest is None else linear + rest


def _check_number(name: str, value: Any, above_zero: bool) -> None:
    low = 0.0 if above_zero else float("-inf")
    if not low < value < float("inf"):
        raise ValueError(f"{name} must be a finite number{' above 0' if above_zero else ''}, got {value}")


def as_reward(reward: str | GraphReward | Callable[[Tensor, Tensor], Tensor], **parameters: Any) -> GraphReward:
    """Make a reward of whatever stands for one.

    :param reward: as :func:`make_reward` takes it; a reward; or a module or function of pi and P
    :param parameters: of a reward given by name
    :return: the reward
    :raises ValueError: see :func:`make_reward`; or parameters for a reward that has its own
    """
    if isinstance(reward, str):
        return make_reward(reward, **parameters)
    if given := [name for name, value in parameters.items() if value is not None]:
        raise ValueError(f"{', '.join(given)}: parameters belong to rewards given by name, this one has its own")
    return reward if isinstance(reward, GraphReward) else Network(reward)


# ---- moves -----------------------------------------------------------------------------------------------------------


def edges(graph: Numbers | None, d: int, device: torch.device | str = "cpu") -> Tensor:
    """Read a graph.

    :param graph: (d, d), whether there is an edge from i to j; None: everywhere
    :param d: number of states
    :param device: where to
    :return: (d, d) bool; staying is always possible
    :raises ValueError: another shape
    """
    if graph is None:
        return torch.ones(d, d, dtype=torch.bool, device=device)
    given = torch.as_tensor(graph, device=device).bool()
    if given.shape != (d, d):
        raise ValueError(f"graph must be (d, d) = ({d}, {d}), got {tuple(given.shape)}")
    return given | torch.eye(d, dtype=torch.bool, device=device)


def rows_from_logits(logits: Tensor, graph: Tensor) -> Tensor:
    """Make moves of numbers.

    :param logits: (…, d, d); a constant added to a row changes nothing
    :param graph: (d, d) bool
    :return: a softmax of each row over the edges of its state, (…, d, d)
    """
    return logits.masked_fill(~graph, -torch.inf).softmax(-1)


def trajectory(pi0: Tensor, P: Tensor) -> Tensor:
    """Follow a crowd; gradients flow through it.

    :param pi0: (…, d)
    :param P: its moves, (…, N, d, d)
    :return: pi^0 … pi^N, (…, N + 1, d)
    """
    crowd = [pi0]
    for n in range(P.shape[-3]):
        crowd.append((crowd[-1].unsqueeze(-2) @ P[..., n, :, :]).squeeze(-2))
    return torch.stack(crowd, -2)


def total_reward(reward: GraphReward, pi0: Tensor, P: Tensor, objective: Objective = "population") -> Tensor:
    """Sum up what a crowd earns; gradients flow through it.

    :param reward: the reward
    :param pi0: (…, d)
    :param P: moves, (…, N, d, d)
    :param objective: see :meth:`GraphReward.total`
    :return: (…,)
    """
    return reward.total(objective, trajectory(pi0, P)[..., :-1, :], P).sum(-1)


# ---- as a game -------------------------------------------------------------------------------------------------------


def graph_game(
    reward: str | GraphReward,
    pi0: Numbers,
    horizon: int,
    graph: Numbers | None = None,
    *,
    name: str = "graph",
    labels: tuple[str, ...] = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
    **parameters: Any,
) -> MFGame:
    """Make the game that the members of a crowd on a graph play, action j meaning "go to j".

    :param reward: a sum of terms, or its name; at most one of them spreads rows (``entropy`` or ``quadratic``)
    :param pi0: where the crowd starts, (d,), or (…, d) for a batch of games
    :param horizon: number of moves, N
    :param graph: see :func:`edges`
    :param name: of the game
    :param labels: names of the states
    :param device: where to compute
    :param dtype: of what is computed
    :param parameters: of a reward given by name
    :return: the game
    :raises ValueError: a reward that cannot be written as u_ij + f_i(pi) + g(P_i); the message names the term
    """
    terms = as_reward(reward, **parameters).terms
    mu0 = torch.as_tensor(pi0, dtype=dtype, device=device).unsqueeze(-2)
    d = mu0.shape[-1]
    moves, crowds, regulariser = _sorted_terms(terms, d)
    u = sum((term.u.to(mu0) for term in moves), mu0.new_zeros(d, d)).unsqueeze(0)

    def r_state(t: Any, mu: Tensor) -> Tensor:
        return reduce(torch.add, (term.of_crowd(mu) for term in crowds), torch.zeros_like(mu))

    return MFGame(
        name=name,
        S=d,
        A=d,
        H=horizon,
        mu0=mu0,
        r_state=r_state,
        r_action=(lambda t, mu: u) if moves else None,
        legal=edges(graph, d, device),
        post=torch.arange(d, device=device).expand(d, d).contiguous(),
        regulariser=regulariser,
        labels=labels,
    )


def _sorted_terms(terms: tuple[GraphReward, ...], d: int) -> tuple[list[Linear], list[StateTerm], Regulariser | None]:
    """:return: the terms of moves, those of crowds, and the one that spreads rows."""
    moves, crowds, spreading = [], [], list[Regulariser]()
    for term in terms:
        if isinstance(term, Linear):
            if term.u.shape[0] != d:
                raise ValueError(f"rewards of moves are {tuple(term.u.shape)}, the crowd has {d} states")
            moves.append(term)
        elif isinstance(term, StateTerm):
            crowds.append(term)
        elif isinstance(term, RowEntropy):
            spreading.append(Entropy(term.tau))
        elif isinstance(term, RowSquares):
            spreading.append(Quadratic(term.scale))
        else:
            raise ValueError(f"{type(term).__name__} is no reward of u_ij + f_i(pi) + g(P_i), as a game's has to be")
    if len(spreading) > 1:
        raise ValueError(f"a game has one term that spreads rows, got {' and '.join(map(str, spreading))}")
    return moves, crowds, spreading[0] if spreading else None


def build_graph_game(
    reward: str = "entropy",
    pi0: Numbers | None = None,
    horizon: int = 4,
    graph: Numbers | None = None,
    num_states: int = 3,
    u: Numbers | None = None,
    b: Numbers | None = None,
    tau: float | None = None,
    scale: float | None = None,
    a: float | None = None,
    c: float | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> MFGame:
    """Make a :func:`graph_game` of parameters by name, for :func:`register_game`; without pi0, crowds start evenly."""
    start = [1 / num_states] * num_states if pi0 is None else pi0
    given = {"u": u, "b": b, "tau": tau, "scale": scale, "a": a, "c": c}
    given = {key: value for key, value in given.items() if value is not None}
    return graph_game(reward, start, horizon, graph, device=device, dtype=dtype, **given)  # type: ignore[arg-type]
