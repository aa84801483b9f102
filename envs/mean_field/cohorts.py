"""Crowds observed over time: from panels of people, from packages that hold such panels, or sampled from games."""

import csv
import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..naming import nearest
from .dynamics import flow as flow_of
from .game import MFGame
from .regularisers import Entropy
from .solvers import solve
from .sweeps import Sweeps

LOG_FLOOR = 1e-6
"""Logarithms of shares are those of at least so much, so that empty states have one (our choice)."""


@dataclass(frozen=True, eq=False)
class Planted:
    """What crowds were sampled from."""

    game: MFGame
    """One of the games; the others differ from it in ``mu0`` alone"""
    policy: Tensor
    """(n, 1, N, S, A)"""
    kernels: Tensor
    """Probabilities of moves from state to state, (n, N, d, d)"""
    flow: Tensor
    """(n, N + 1, d)"""
    parameters: dict[str, float] = field(default_factory=dict)
    """Of the reward, by name, where it has some"""

    def games(self) -> MFGame:
        """:return: all n games as one batch."""
        return replace(self.game, mu0=self.flow[:, :1])


@dataclass(frozen=True, eq=False)
class Trajectories:
    """n crowds, each observed N + 1 times in d states.

    :param pi: share of people by state, (n, N + 1, d)
    :param counts: people (or shares) by move from state i to state j between two observations, (n, N, d, d)
    :param labels: names of the states
    :param names: names of the crowds
    :param planted: what they were sampled from, if they were
    :raises ValueError: a shape, share or count that cannot be, or a crowd of which nobody is seen moving at some time
    """

    pi: Tensor
    counts: Tensor
    labels: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    planted: Planted | None = None

    def __post_init__(self) -> None:
        for name in ("pi", "counts"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=torch.float64))
        _check_shapes(self)
        _check_numbers(self)

    @classmethod
    def from_paths(
        cls, paths: ArrayLike, groups: ArrayLike | None = None, labels: Sequence[str] = (), names: Sequence[str] = ()
    ) -> Self:
        """Count people.

        :param paths: state of each person at each time, from 0, (people, N + 1)
        :param groups: crowd of each person, from 0, (people,); None: one crowd
        :param labels: names of all states; none: there are as many as the largest number says
        :param names: names of the crowds
        :raises ValueError: a shape that does not fit, a state that is none, or a group without people
        """
        where = np.asarray(paths)
        if where.ndim != 2 or where.shape[1] < 2 or not np.issubdtype(where.dtype, np.integer):
            raise ValueError(
                f"paths must be integers (people, times), at least two times, got {where.shape} of {where.dtype}"
            )
        d = len(labels) or int(where.max()) + 1
        if where.min() < 0 or where.max() >= d:
            raise ValueError(f"paths hold states {where.min()} to {where.max()}, there are 0 to {d - 1}")
        of = np.zeros(len(where), int) if groups is None else np.asarray(groups)
        if of.shape != (len(where),) or not np.issubdtype(of.dtype, np.integer) or of.min() < 0:
            raise ValueError(
                f"groups must be one number from 0 per person, ({len(where)},), got {of.shape} of {of.dtype}"
            )
        n, horizon = int(of.max()) + 1, where.shape[1] - 1
        if missing := sorted(set(range(n)) - set(of.tolist())):
            raise ValueError(f"group {missing[0]} has no people: number groups from 0 without gaps")
        present, counts = np.zeros((n, horizon + 1, d)), np.zeros((n, horizon, d, d))
        times = np.arange(horizon + 1)
        np.add.at(present, (of[:, None], times, where), 1)
        np.add.at(counts, (of[:, None], times[:-1], where[:, :-1], where[:, 1:]), 1)
        pi = present / present.sum(-1, keepdims=True)
        return cls(torch.from_numpy(pi), torch.from_numpy(counts), tuple(labels), tuple(names))

    @property
    def d(self) -> int:
        """Number of states."""
        return self.pi.shape[2]

    @property
    def horizon(self) -> int:
        """N, the number of moves."""
        return self.counts.shape[1]

    def matrices(self) -> Tensor:
        """:return: shares of moves by state, (n, N, d, d); uniform where nobody was (as arXiv 1711.03156 has it)."""
        people = self.counts.sum(-1, keepdim=True)
        return torch.where(people > 0, self.counts / people, 1 / self.d)

    def split(self, first: int) -> tuple[Self, Self]:
        """:return: the first so many crowds, and the others.

        :param first: how many, from 1 to n - 1
        :raises ValueError: one part would be empty
        """
        if len(self) < 2:
            raise ValueError("there is one crowd: at least two are needed, some to fit and some to test")
        if not 0 < first < len(self):
            raise ValueError(f"there are {len(self)} crowds to split, first must be 1 to {len(self) - 1}, got {first}")
        return self[:first], self[first:]

    def __len__(self) -> int:
        return len(self.pi)

    def __getitem__(self, which: slice | Sequence[int]) -> Self:
        chosen = torch.arange(len(self))[which if isinstance(which, slice) else list(which)]
        planted = self.planted
        if planted is not None:
            planted = replace(
                planted, policy=planted.policy[chosen], kernels=planted.kernels[chosen], flow=planted.flow[chosen]
            )
        names = tuple(self.names[i] for i in chosen.tolist()) if self.names else ()
        return replace(self, pi=self.pi[chosen], counts=self.counts[chosen], names=names, planted=planted)


def _check_shapes(data: Trajectories) -> None:
    if data.pi.ndim != 3 or data.pi.shape[0] < 1 or data.pi.shape[1] < 2:
        raise ValueError(f"pi must be (n, N + 1, d), n and N at least 1, got {tuple(data.pi.shape)}")
    n, times, d = data.pi.shape
    if tuple(data.counts.shape) != (n, times - 1, d, d):
        raise ValueError(
            f"counts must be (n, N, d, d) = {(n, times - 1, d, d)} to go with pi, got {tuple(data.counts.shape)}"
        )
    for name, wanted in (("labels", d), ("names", n)):
        if (given := getattr(data, name)) and len(given) != wanted:
            raise ValueError(f"there must be {wanted} {name}, got {len(given)}")


def _check_numbers(data: Trajectories) -> None:
    for name in ("pi", "counts"):
        part = getattr(data, name)
        if not part.isfinite().all():
            raise ValueError(f"{name} is {part[~part.isfinite()][0]} at {_first(~part.isfinite())}: drop that crowd")
        if (part < 0).any():
            raise ValueError(f"{name} must not be negative, it is {part[part < 0][0]} at {_first(part < 0)}")
    leaving = data.counts.sum(-1)
    if (wrong := leaving.sum(-1) == 0).any():
        raise ValueError(f"counts hold no people at crowd and time {_first(wrong)}: leave that crowd or time out")
    sums = data.pi.sum(-1)
    if (wrong := (sums - 1).abs() > 1e-6).any():
        raise ValueError(f"pi must sum to 1 over states, crowd and time {_first(wrong)} sum to {sums[wrong][0]}")
    if (wrong := (leaving > 0) & (data.pi[:, :-1] == 0)).any():
        raise ValueError(f"people leave a state where pi has nobody, at crowd, time and state {_first(wrong)}")


def _first(mask: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in mask.nonzero()[0])


# -- panels that a package holds -------------------------------------------------------------------------------------

BIOFAM_LABELS = (
    "with parents",
    "left",
    "married",
    "left, married",
    "child",
    "left, child",
    "left, married, child",
    "divorced",
)
MVAD_LABELS = ("FE", "HE", "employment", "joblessness", "school", "training")
MVAD_REGIONS = ("Belfast", "N.Eastern", "Southern", "S.Eastern", "Western")


def load_cohorts(name: str = "biofam", **options: Any) -> Trajectories:
    """Read real crowds from the data files of the package ``sequenzo``, which is found but not imported.

    *biofam*: 2000 Swiss, where they stand in family life at each age from 15 to 30 (Müller, Studer, Ritschard 2007).
    Sorted by year of birth and cut into ``groups`` cohorts, 27 as the days of arXiv 1711.03156: 21 to fit, 6 to test.
    *mvad*: 712 Northern Irish after compulsory school, by month for six years (McVicar, Anyadike-Danes 2002), grouped
    by region, grades and sex.

    :param name: one of :data:`COHORTS`
    :param options: ``groups``, for biofam
    :return: the crowds; those of biofam from the oldest to the youngest
    :raises ModuleNotFoundError: the package is not installed
    :raises ValueError: an unknown name (the nearest is named), or an option that does not fit
    """
    if name not in COHORTS:
        raise ValueError(f"there are no cohorts {name!r}: {nearest(name, COHORTS)}")
    return COHORTS[name](**options)


def _rows(name: str) -> list[dict[str, str]]:
    """:return: a table of sequenzo's, row by row. Its folder is looked up, since importing it takes half of SciPy."""
    spec = importlib.util.find_spec("sequenzo")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the {name} data come with the package sequenzo, which is not installed: pip install --no-deps sequenzo "
            "(its data files are all that is used)"
        )
    path = Path(spec.submodule_search_locations[0]) / "datasets" / f"{name}.csv"
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def _biofam(groups: int = 27) -> Trajectories:
    rows = _rows("biofam")
    if not 1 <= groups <= len(rows):
        raise ValueError(f"groups must lie in [1, {len(rows)}], got {groups}")
    births = np.array([int(row["birthyr"]) for row in rows])
    paths = np.array([[int(row[str(age)]) for age in range(15, 31)] for row in rows])
    cohorts = np.array_split(births.argsort(kind="stable"), groups)
    of = np.empty(len(rows), int)
    for number, members in enumerate(cohorts):
        of[members] = number
    names = [f"born {births[members[0]]}-{births[members[-1]]}" for members in cohorts]
    return Trajectories.from_paths(paths, of, BIOFAM_LABELS, names)


def _mvad() -> Trajectories:
    rows = _rows("mvad")
    months = [key for key in rows[0] if re.fullmatch(r"[A-Z][a-z]{2}\.\d\d", key)]
    paths = np.array([[MVAD_LABELS.index(row[month]) for month in months] for row in rows])

    def group(row: dict[str, str]) -> str:
        region = next(name for name in MVAD_REGIONS if row[name] == "yes")
        grades = "five good grades" if row["gcse5eq"] == "yes" else "fewer"
        return f"{region}, {grades}, {'men' if row['male'] == 'yes' else 'women'}"

    groups = [group(row) for row in rows]
    names = sorted(set(groups))
    return Trajectories.from_paths(paths, [names.index(name) for name in groups], MVAD_LABELS, names)


COHORTS: dict[str, Callable[..., Trajectories]] = {"biofam": _biofam, "mvad": _mvad}
"""Real crowds by name."""


# -- crowds sampled from games ---------------------------------------------------------------------------------------


def observe(game: MFGame, policy: Tensor, people: int | None = None, seed: int = 0) -> Trajectories:
    """Watch a crowd play a game.

    :param game: with one population; or a batch of games that differ in ``mu0`` alone
    :param policy: (1, H, S, A), or (n, 1, H, S, A) with one crowd each
    :param people: in each crowd, who start and move at random; None: infinitely many, whose moves are counted as shares
    :param seed: of what is random
    :return: n crowds in d = S states, seen H + 1 times
    :raises ValueError: several populations, or games that differ otherwise, or fewer people than 1
    """
    if game.n_pop != 1 or replace(game, mu0=game.mu0[(0,) * (game.mu0.ndim - 2)]).batch:
        raise ValueError(f"{game.name} must have one population, and a batch of mu0 alone")
    if people is not None and (people < 1 or people != int(people)):
        raise ValueError(
            f"people must be at least 1, got {people}; it is a whole number, None stands for infinitely many"
        )
    policy = game.check_policy(policy)
    policy = policy.expand(*np.broadcast_shapes(policy.shape[:-4], game.batch), *policy.shape[-4:])
    flow = flow_of(game, policy).reshape(-1, game.H + 1, game.S)
    moves = kernels(game, policy).reshape(-1, game.H, game.S, game.S)
    policy = policy.reshape(-1, *policy.shape[-4:])
    template = replace(game, mu0=flow[0, :1])
    planted = Planted(template, policy, moves, flow, dict(game.info.get("parameters", {})))
    if people is None:
        return Trajectories(flow, flow[:, :-1, :, None] * moves, game.labels, planted=planted)
    pi, counts = _people(flow[:, 0], moves, people, np.random.default_rng(seed))
    return Trajectories(pi, counts, game.labels, planted=planted)


def kernels(game: MFGame, policy: Tensor) -> Tensor:
    """Where a crowd that follows a policy moves.

    :param game: the game
    :param policy: (…, n_pop, H, S, A)
    :return: probabilities by state and next state, (…, n_pop, H, S, S)
    :raises ValueError: see :meth:`MFGame.check_policy`
    """
    policy = game.check_policy(policy)
    sweeps = Sweeps(game, tuple(policy.shape[:-4]))
    inward = sweeps.layout.inward(policy, 3)
    mu = sweeps.forward(inward)
    rows = torch.zeros(game.H, game.S, game.S, inward.shape[-1], dtype=game.dtype, device=game.device)
    for t in range(game.H):
        ways = sweeps.ways(t, mu[t])
        for state in range(game.S):
            alone = torch.zeros_like(inward[t])
            alone[state] = inward[t, state]
            rows[t, state] = ways.push(alone)
    return sweeps.layout.outward(rows)


def _people(start: Tensor, moves: Tensor, people: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """:return: pi (n, N + 1, d) and counts (n, N, d, d) of people who start by (n, d) and move by (n, N, d, d)."""
    probabilities = moves.double().cpu().numpy()  # of a float32 game too, lest rows sum to more than 1
    probabilities = probabilities / probabilities.sum(-1, keepdims=True)
    first = start.double().cpu().numpy()
    present = [rng.multinomial(people, first / first.sum(-1, keepdims=True))]  # (n, d) each
    counts = []
    for n in range(moves.shape[1]):
        counts.append(rng.multinomial(present[-1], probabilities[:, n]))  # (n, d, d) each
        present.append(counts[-1].sum(1))
    pi, stacked = np.stack(present, 1) / people, np.stack(counts, 1).astype(float)
    return torch.from_numpy(pi).to(moves.device), torch.from_numpy(stacked).to(moves.device)


def synthetic(
    days: int = 27,
    people: int | None = 406,
    *,
    d: int = 15,
    horizon: int = 15,
    popularity: float = 1.0,
    stay: float = 0.2,
    log_congestion: float = 0.0,
    tau: float = 0.05,
    step: float = 0.05,
    sweeps: int = 600,
    seed: int = 0,
) -> Trajectories:
    """Sample people who follow topics, in the equilibrium of a reward that is known.

    Stands in for the data of arXiv 1711.03156, which were never published, and has their sizes. The reward is

        r_ij(pi) = popularity (pi_j - pi_i) + stay 1[i = j] - log_congestion log pi_i - tau log P_ij

    Each day starts from shares that are drawn uniformly and sorted.

    :param days: crowds, n
    :param people: in each crowd; None: infinitely many
    :param d: topics
    :param horizon: moves per day, N
    :param popularity: what a greater crowd at the new topic is worth
    :param stay: what staying is worth
    :param log_congestion: what the crowd at the old topic costs
    :param tau: temperature
    :param step: of the damped fixed point that solves the games
    :param sweeps: so many iterations of it
    :param seed: of starts and people
    :return: the crowds, with the reward's parameters in ``planted``
    :raises ValueError: a number out of range, or games that were not solved to 1e-6
    """
    for name, value, least in (("days", days, 1), ("d", d, 2), ("horizon", horizon, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    rng = np.random.default_rng(seed)
    start = -np.sort(-rng.dirichlet(np.ones(d), size=days), axis=-1)
    given = {"popularity": popularity, "stay": stay, "log_congestion": log_congestion}
    game = _topics(torch.from_numpy(start).unsqueeze(1), horizon, tau, given)
    solution = solve(game, "fixed_point", sweeps, damping=1 - step, evaluate_every=max(sweeps, 1))
    if (worst := float(solution.exploitability.max())) > 1e-6:
        raise ValueError(
            f"the crowd's equilibrium was not found in {sweeps} sweeps of step {step} (exploitability {worst:.2g}): "
            "take a smaller step and more sweeps, or a greater tau"
        )
    return observe(game, solution.policy, people, seed=int(rng.integers(2**63)))


def _topics(mu0: Tensor, horizon: int, tau: float, parameters: dict[str, float]) -> MFGame:
    """:return: a batch of games whose members choose their next state."""
    d = mu0.shape[-1]
    own = parameters["stay"] * torch.eye(d, dtype=torch.float64)

    def reward(t: Any, mu: Tensor) -> Tensor:
        gain = parameters["popularity"] * (mu.unsqueeze(-2) - mu.unsqueeze(-1))
        return gain + own - parameters["log_congestion"] * mu.clamp(min=LOG_FLOOR).log().unsqueeze(-1)

    return MFGame(
        name="topics",
        S=d,
        A=d,
        H=horizon,
        mu0=mu0,
        r_state=lambda t, mu: torch.zeros_like(mu),
        r_action=reward,
        post=torch.arange(d).expand(d, d).contiguous(),
        regulariser=Entropy(tau),
        labels=tuple(f"topic {i + 1}" for i in range(d)),
        info={"parameters": parameters | {"tau": tau}},
    )
