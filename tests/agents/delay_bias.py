"""What choosing n by later delays does to DCAC's values, exactly, in a world of two states and two actions."""

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from headway.wrappers.delays import Categorical, parse
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, gmres

Array = np.ndarray[Any, Any]


class World(NamedTuple):
    """Two states, two actions, and a policy that looks at the state observed."""

    moves: Array
    """P(next state is 1 | state, action), (2, 2)."""
    pays: Array
    """Reward of a state and an action, (2, 2)."""
    policy: tuple[float, float] = (0.1, 0.9)
    """P(action 1 | state observed)."""


class Bias(NamedTuple):
    """In per cent of the mean of |V|; means are over the policy's stationary states."""

    backup: float
    """Mean of E[y|x_0] - V(x_0), where y bootstraps from the exact V."""
    backup_rms: float
    """Root mean square of the same: backups that err in different directions do not cancel in it."""
    fixed_point: float
    """Mean of W - V, where W is what repeating such backups leads to: E[y|x_0] = W(x_0), where y bootstraps from W."""
    uneven: float
    """Standard deviation of W - V: how much of it is not the same in every state."""


def ages(law: Categorical) -> Array:
    """:return: P(age in the next tick | age) of the newest packet to have arrived, (ages, ages)"""
    chances = np.concatenate([np.zeros(law.start), law.probs])
    hazard = chances / chances[::-1].cumsum()[::-1]  # it arrives at this age, if it has not before
    after = np.zeros((len(chances), len(chances)))
    for old in range(len(chances)):
        left = 1.0
        for new in range(min(old + 2, len(chances))):
            arrives = hazard[new] if new <= old else 1.0
            after[old, new] = left * arrives
            left *= 1 - arrives
    return after


def chain(laws: tuple[Categorical, Categorical], world: World) -> tuple[Any, Any, Array]:
    """The policy's chain of z = (m, u, omega, kappa, beta - 1); only ages that occur.

    :return: transition probabilities (Z, Z), the same times rewards delivered on the way, and d = omega + beta, (Z,)
    """
    w, k = (ages(law) for law in laws)
    n_omega, n_kappa = len(w), len(k)
    size = 2 ** (n_omega + n_kappa - 1)
    shape, u, parts = (2, size, n_omega, n_kappa, n_kappa), np.arange(size), []  # the newest action is bit 0 of u
    for m, omega, kappa in product(range(2), range(laws[0].min, n_omega), range(laws[1].min, n_kappa)):
        # From the capture that was shown to one that is newer by so many ticks: state, ages -> chance and reward, by u.
        now = {(m, -1, kappa): (np.ones(size), np.zeros(size))}
        for ticks in range(omega + 2):
            then = omega + 1 - ticks
            for ((s, before, age), (chance, paid)), a in product(now.items(), range(2)):
                if then < n_omega and w[omega, then]:
                    weight = w[omega, then] * abs(1 - a - world.policy[m])
                    for b in range(n_kappa):
                        start = np.ravel_multi_index((m, u, omega, kappa, b), shape)
                        late = b if before < 0 else before
                        end = np.ravel_multi_index((s, (u << 1 | a) & (size - 1), then, age, late), shape)
                        parts.append(np.stack([start, end, weight * chance, weight * paid]))
            moved: dict[tuple[int, int, int], tuple[Any, Any]] = {}
            if then:
                for ((s, _, age), (chance, paid)), to, younger in product(now.items(), range(2), range(n_kappa)):
                    action = u >> (then - 1 + age) & 1  # executed now
                    step = k[age, younger] * abs(1 - to - world.moves[s, action])
                    sums = moved.get((to, age, younger), (0.0, 0.0))
                    paid_then = (paid + chance * world.pays[s, action]) * step
                    moved[to, age, younger] = sums[0] + chance * step, sums[1] + paid_then
            now = moved
    start, end, weight, paid = np.concatenate(parts, 1)
    total, used = int(np.prod(shape)), np.unique(start.astype(int))
    used = used[used % n_kappa >= laws[1].min]
    place = (start.astype(int), end.astype(int))
    P, R = (sparse.csr_matrix((values, place), (total, total))[used][:, used] for values in (weight, paid))
    _, _, omegas, _, late = np.unravel_index(used, shape)
    return P, R, omegas + late + 1


def biases(laws: str, gamma: float, world: World, longest: int | None = None) -> Bias:
    """What backups over n = max{j : d_t >= t for all t <= j}, or ``longest``, make of values.

    Resampled fragments are on-policy, so E[y|x_0] is an expectation over the policy's own chain, linear in the values.

    :param laws: of both channels, with a table
    """
    law = parse(laws)
    assert isinstance(law, Categorical)
    P, R, delays = chain((law, law), world)

    def solve(matrix: Any, right: Array) -> Array:
        solution, failed = gmres(LinearOperator(P.shape, matrix), right, rtol=1e-11, restart=60)
        assert not failed
        return np.asarray(solution)

    def target(values: Array, rewards: float = 1.0) -> Array:
        y = values
        for t in range((longest or int(delays.max())) - 1, -1, -1):
            goes_on = delays > t  # x_(t + 1) owes nothing to a_0 and later
            y = rewards * (R @ goes_on) + gamma * (P @ (goes_on * y)) + values * (P @ ~goes_on)
        return y

    values = solve(lambda v: v - gamma * (P @ v), R @ np.ones(len(delays)))
    error = target(values) - values
    shift = solve(lambda v: v - target(v, rewards=0.0), error)
    often = np.full(len(delays), 1 / len(delays))
    for _ in range(1_000):
        often = P.T @ often
    mean = often @ shift
    found = np.array([often @ error, np.sqrt(often @ error**2), mean, np.sqrt(often @ (shift - mean) ** 2)])
    return Bias(*(100 * found / (often @ np.abs(values))))
