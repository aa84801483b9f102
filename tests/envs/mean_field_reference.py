"""Mean field games in loops over plain numbers: what the package's tensors are held against.

A :class:`Numbers` says what a random game is. :func:`as_game` makes the package's game of it (or of many);
:class:`Loops` computes everything one number at a time, from a dense kernel, and is meant to be checked by reading it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import combinations
from math import cos, log
from typing import Any

import numpy as np
import torch
from headway.envs.mean_field import Entropy, MFGame, Quadratic
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Rows = Callable[[Array], tuple[Array, float]]

FORMS = ("noise", "successors", "crowded")
BONUSES = {"entropy": Entropy, "quadratic": Quadratic}


@dataclass(frozen=True)
class Numbers:
    """A game with P populations, S states, A actions and K outcomes of a move.

    In state x at time t, population p earns ``place[p, x] - aversion log(mu_p(x) + 0.01) + sum_q cross[p, q] mu_q(x)
    + wave cos(t + phase[x])``, pays ``cost[x, a] (1 + t / 10) mu_p(x)`` for action a, and ``final[p, x] - mu_p(x)`` is
    what it gets at the end. With form "noise" it moves to ``post``, then by ``noise_p`` to ``noise_idx``; with
    "successors" to ``succ_idx`` by ``succ_p``; with "crowded" to the same by ``w succ_p + (1 - w) other_p``, where
    w = cos(t)^2 mu_p(beacon).
    """

    form: str
    H: int
    mu0: Array
    place: Array
    cross: Array
    cost: Array
    final: Array
    aversion: Array
    wave: Array
    phase: Array
    beacon: NDArray[np.int64]
    legal: NDArray[np.bool_]
    post: NDArray[np.int64]
    noise_idx: NDArray[np.int64]
    noise_p: Array
    succ_idx: NDArray[np.int64]
    succ_p: Array
    other_p: Array
    bonus: str = "none"
    strength: float = 0.3


def numbers(seed: int, form: str = "noise", P: int = 2, S: int = 4, A: int = 3, H: int = 4, K: int = 3) -> Numbers:
    """Draw a game; some of its actions are illegal, in every state but one."""
    rng = np.random.default_rng(seed)
    shape = np.random.default_rng(S * 100 + A)  # what all games of a batch have in common
    legal = shape.random((S, A)) < 0.6
    legal[np.arange(S), shape.integers(A, size=S)] = True
    legal[0] = True
    return Numbers(
        form=form,
        H=H,
        mu0=rng.dirichlet(np.ones(S), P),
        place=rng.normal(size=(P, S)),
        cross=rng.normal(size=(P, P)),
        cost=rng.normal(size=(S, A)),
        final=rng.normal(size=(P, S)),
        aversion=rng.uniform(0.2, 1, ()),
        wave=rng.normal(size=()),
        phase=rng.uniform(0, 6, S),
        beacon=np.array(S - 2),
        legal=legal,
        post=shape.integers(S, size=(S, A)),
        noise_idx=shape.integers(S, size=(S, K)),
        noise_p=rng.dirichlet(np.ones(K), S),
        succ_idx=shape.integers(S, size=(S, A, K)),
        succ_p=rng.dirichlet(np.ones(K), (S, A)),
        other_p=rng.dirichlet(np.ones(K), (S, A)),
    )


def as_game(law: Numbers | list[Numbers], dtype: torch.dtype = torch.float64, device: str = "cpu") -> MFGame:
    """:return: the package's game; of a list, the batch of them."""
    laws, axes = (law, 1) if isinstance(law, list) else ([law], 0)
    first = laws[0]

    def own(name: str, dims: int) -> Any:
        """:return: the games' own numbers, with so many dimensions put in before those that belong to them."""
        part = np.stack([getattr(one, name) for one in laws]) if axes else getattr(first, name)
        part = part.reshape(*part.shape[:axes], *[1] * dims, *part.shape[axes:])
        return torch.as_tensor(part, device=device).to(dtype if part.dtype == np.float64 else None)

    place, cross, cost, final = own("place", 0), own("cross", 0), own("cost", 1), own("final", 0)
    aversion, wave, phase = own("aversion", 2), own("wave", 2), own("phase", 1)

    def r_state(t: Any, mu: Tensor) -> Tensor:
        return place - aversion * (mu + 0.01).log() + cross @ mu + wave * torch.cos(t + phase)

    def r_action(t: Any, mu: Tensor) -> Tensor:
        late = 1 + torch.as_tensor(t, device=device, dtype=dtype).unsqueeze(-1) / 10
        return -cost * late * mu.unsqueeze(-1)

    shared = {
        name: torch.as_tensor(getattr(first, name), device=device)
        for name in ("legal", *(["post", "noise_idx"] if first.form == "noise" else ["succ_idx"]))
    }
    p = own("succ_p", 1)
    if first.form == "noise":
        shared["noise_p"] = own("noise_p", 1 if axes else 0)
    elif first.form == "successors":
        shared["succ_p"] = own("succ_p", 1 if axes else 0)
    else:
        other = own("other_p", 1)

        def transition(t: Any, mu: Tensor) -> Tensor:
            w = torch.cos(torch.as_tensor(t, device=device, dtype=dtype)) ** 2 * mu[..., first.beacon, None]
            w = w[..., None, None]
            return w * p + (1 - w) * other

        shared["transition"] = transition  # type: ignore[assignment]
    return MFGame(
        name=f"random {first.form}",
        S=len(first.legal),
        A=first.legal.shape[1],
        H=first.H,
        mu0=own("mu0", 0),
        r_state=r_state,
        r_action=r_action,
        terminal=lambda mu: final - mu,
        regulariser=None if first.bonus == "none" else BONUSES[first.bonus](first.strength),
        **shared,  # type: ignore[arg-type]
    )


class Loops:
    """What follows from a game's numbers; policies (P, H, S, A), flows (P, H + 1, S), as the package has them.

    :param law: the numbers
    """

    def __init__(self, law: Numbers) -> None:
        self.law, self.H = law, law.H
        self.P, self.S = law.mu0.shape
        self.A = law.legal.shape[1]

    def kernel(self, t: int, mu: Array, p: int, x: int, a: int) -> Array:
        """:return: probabilities of the next state."""
        law, row = self.law, np.zeros(self.S)
        if law.form == "noise":
            y = law.post[x, a]
            for k in range(law.noise_idx.shape[1]):
                row[law.noise_idx[y, k]] += law.noise_p[y, k]
            return row
        w = cos(t) ** 2 * mu[p, law.beacon] if law.form == "crowded" else 1.0
        for k in range(law.succ_idx.shape[2]):
            row[law.succ_idx[x, a, k]] += w * law.succ_p[x, a, k] + (1 - w) * law.other_p[x, a, k]
        return row

    def reward(self, t: int, mu: Array, p: int, x: int, a: int) -> float:
        """:return: of one action, that of the state included."""
        law = self.law
        earned = law.place[p, x] - law.aversion * log(mu[p, x] + 0.01) + law.wave * cos(t + law.phase[x])
        for q in range(self.P):
            earned += law.cross[p, q] * mu[q, x]
        return float(earned - law.cost[x, a] * (1 + t / 10) * mu[p, x])

    def actions(self, x: int) -> list[int]:
        """:return: the legal ones."""
        return [a for a in range(self.A) if self.law.legal[x, a]]

    def places(self) -> Iterator[tuple[int, int]]:
        """:return: populations and states."""
        return ((p, x) for p in range(self.P) for x in range(self.S))

    def bonus(self, row: Array) -> float:
        """:return: what a row of the policy earns by itself."""
        if self.law.bonus == "entropy":
            return float(-self.law.strength * sum(p * log(p) for p in row if p > 0))
        return float(-self.law.strength / 2 * (row**2).sum()) if self.law.bonus == "quadratic" else 0.0

    def respond(self, q: Array) -> tuple[Array, float]:
        """:return: the best row for values of legal actions, ties split, and what it is worth."""
        if self.law.bonus == "entropy":
            row = soft(q / self.law.strength)
        elif self.law.bonus == "quadratic":
            row = projection(q / self.law.strength)
        else:
            row = (q > q.max() - 1e-9) / (q > q.max() - 1e-9).sum()
        return row, float(row @ q) + self.bonus(row)

    def uniform(self) -> Array:
        """:return: the policy that takes every legal action equally often."""
        rows = self.law.legal / self.law.legal.sum(1, keepdims=True)
        return np.broadcast_to(rows, (self.P, self.H, self.S, self.A)).copy()

    def flow(self, policy: Array) -> Array:
        """:return: where a policy takes the crowd."""
        mu = np.zeros((self.P, self.H + 1, self.S))
        mu[:, 0] = self.law.mu0
        for t in range(self.H):
            for p, x in self.places():
                for a in self.actions(x):
                    mu[p, t + 1] += mu[p, t, x] * policy[p, t, x, a] * self.kernel(t, mu[:, t], p, x, a)
        return mu

    def values(self, mu: Array, policy: Array | None = None) -> tuple[Array, Array, Array]:
        """Go backwards through a flow, with a policy, or with the best one.

        :return: values of actions (P, H, S, A), -inf where illegal, of states (P, H + 1, S), and the policy
        """
        q = np.full((self.P, self.H, self.S, self.A), -np.inf)
        v = np.zeros((self.P, self.H + 1, self.S))
        rows = np.zeros(q.shape)
        v[:, self.H] = self.law.final - mu[:, self.H]
        for t in reversed(range(self.H)):
            for p, x in self.places():
                legal = self.actions(x)
                for a in legal:
                    ahead = self.kernel(t, mu[:, t], p, x, a) @ v[p, t + 1]
                    q[p, t, x, a] = self.reward(t, mu[:, t], p, x, a) + ahead
                if policy is None:
                    rows[p, t, x, legal], v[p, t, x] = self.respond(q[p, t, x, legal])
                else:
                    rows[p, t, x] = policy[p, t, x]
                    v[p, t, x] = rows[p, t, x, legal] @ q[p, t, x, legal] + self.bonus(rows[p, t, x])
        return q, v, rows

    def summed(self, policy: Array) -> Array:
        """:return: value (P,) of a policy on its own flow, added up forwards."""
        mu, total = self.flow(policy), np.zeros(self.P)
        for p, x in self.places():
            total[p] += mu[p, self.H, x] * (self.law.final[p, x] - mu[p, self.H, x])
            for t in range(self.H):
                earned = self.bonus(policy[p, t, x])
                for a in self.actions(x):
                    earned += policy[p, t, x, a] * self.reward(t, mu[:, t], p, x, a)
                total[p] += mu[p, t, x] * earned
        return total

    def nash_conv(self, policy: Array) -> float:
        """:return: what members gain by leaving the policy, summed over populations."""
        mu = self.flow(policy)
        best, own = self.values(mu)[1], self.values(mu, policy)[1]
        return float((self.law.mu0 * (best - own)[:, 0]).sum())

    def softmax(self, logits: Array) -> Array:
        """:return: a policy of legal actions."""
        policy = np.zeros(logits.shape)
        for t in range(self.H):
            for p, x in self.places():
                policy[p, t, x, self.actions(x)] = soft(logits[p, t, x, self.actions(x)])
        return policy

    # -- solvers: each yields its policies, without the one it starts from ---------------------------------------------

    def fictitious_play(self, policy: Array, weight: float | None = None, temperature: float = 0) -> Iterator[Array]:
        """Mix in best responses, by the mass that follows them."""
        for k in range(1, 1000):
            w = 1 / (k + 1) if weight is None else weight
            old = self.flow(policy)
            response = self.response(old, temperature)
            new = self.flow(response)
            mixed = self.uniform()
            for t in range(self.H):
                for p, x in self.places():
                    was, is_ = (1 - w) * old[p, t, x], w * new[p, t, x]
                    if was + is_ > 0:
                        mixed[p, t, x] = (was * policy[p, t, x] + is_ * response[p, t, x]) / (was + is_)
            policy = mixed
            yield policy

    def response(self, mu: Array, temperature: float) -> Array:
        """:return: the best response to a flow, or the softmax of its values."""
        q, _, best = self.values(mu)
        return self.softmax(q / temperature) if temperature else best

    def mirror_descent(self, policy: Array, rate: float) -> Iterator[Array]:
        """Take the softmax of the sum of all values so far; the first policy's logarithm is where the sum starts."""
        total = np.log(np.maximum(policy, 1e-300))
        while True:
            total = total + rate * self.values(self.flow(policy), policy)[0]
            policy = self.softmax(total)
            yield policy

    def boltzmann(self, policy: Array, rate: float) -> Iterator[Array]:
        """Take the softmax of the last policy's values."""
        while True:
            policy = self.softmax(rate * self.values(self.flow(policy), policy)[0])
            yield policy

    def fixed_point(self, policy: Array, damping: float = 0, temperature: float = 0) -> Iterator[Array]:
        """Respond to a crowd that follows the responses."""
        crowd = self.flow(policy)
        while True:
            policy = self.response(crowd, temperature)
            crowd = damping * crowd + (1 - damping) * self.flow(policy)
            yield policy


def soft(logits: Array) -> Array:
    """:return: their softmax."""
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def projection(point: Array) -> Array:
    """:return: the nearest distribution, by trying every support."""
    found, nearest = None, np.inf
    for size in range(1, len(point) + 1):
        for support in map(list, combinations(range(len(point)), size)):
            row = np.zeros(len(point))
            row[support] = point[support] - (point[support].sum() - 1) / size
            if row.min() >= 0 and (distance := float(((row - point) ** 2).sum())) < nearest:
                found, nearest = row, distance
    assert found is not None
    return found


def policies(law: Numbers, count: int, seed: int, spread: float = 1.5) -> Array:
    """:return: random policies (count, P, H, S, A) with entries from nearly 0 to nearly 1, 0 where illegal."""
    rng = np.random.default_rng(seed)
    logits = spread * rng.normal(size=(count, len(law.mu0), law.H, *law.legal.shape))
    weights = np.where(law.legal, np.exp(logits), 0)
    rows: Array = weights / weights.sum(-1, keepdims=True)
    return rows


def relabelled(law: Numbers, states: NDArray[np.int64], actions: NDArray[np.int64]) -> Numbers:
    """:return: the game in which state i is what was ``states[i]``, and action j what was ``actions[j]``."""
    new = np.argsort(states)
    parts = {}
    for part in fields(law):
        value = getattr(law, part.name)
        if part.name in ("mu0", "place", "final"):
            value = value[:, states]
        elif part.name in ("cost", "legal", "post", "succ_idx", "succ_p", "other_p"):
            value = value[states][:, actions]
        elif part.name in ("noise_idx", "noise_p", "phase"):
            value = value[states]
        parts[part.name] = new[value] if part.name in ("post", "noise_idx", "succ_idx", "beacon") else value
    return replace(law, **parts)
