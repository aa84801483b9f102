"""DCAC: its losses against a loop, a closed form and a table; its fragments against what an environment showed."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from headway.agents import SAC, NonFiniteError
from headway.agents.core.nets import SquashedGaussianActor, StateCritics
from headway.agents.core.spaces import VectorFeatures
from headway.agents.dcac import DCAC, Fragments, critic_loss, resample, soft_return, valid_length
from headway.wrappers.random_delay import RandomDelay
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from support import Stop
from torch import Tensor, nn
from toys import Point

from .delay_bias import World, biases
from .reference_dcac import State, losses, network_input

D, A, ALPHA, GAMMA, SCALE = 3, 2, 0.3, 0.9, 5.0


# -- losses on made-up fragments ---------------------------------------------------------------------------------------


def fragment(
    K: int, steps: int, generator: torch.Generator, dtype: torch.dtype = torch.float64, longest: bool = False
) -> list[State]:
    """A recorded fragment of ``steps`` steps: one line of actions runs through its buffers, delays are any, or K."""

    def number(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    def below(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    actions = [number(A).tanh() for _ in range(K + steps)]
    w = below(K)  # the longest of observations; of actions K - 1 - w
    states = []
    for t in range(steps + 1):
        u = actions[t : t + K][::-1]
        ages = (w, K - 1 - w, K - w) if longest else (below(w + 1), below(K - w), 1 + below(K - w))
        states.append(State(number(D), u, *ages, reward=number().item()))
    return states


def fragments(K: int, rows: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[list[State]]:
    """Fragments of K steps, of which some end before, and some of these with a terminal state."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(rows):
        steps = K if i % 2 else 1 + int(torch.randint(K, (), generator=generator))
        states = fragment(K, steps, generator, dtype, longest=i % 3 == 0)
        if i % 4 < 2:
            last = states[-1]
            states[-1] = State(last.m, last.u, last.omega, last.kappa, last.beta, last.reward, terminated=True)
        found.append(states)
    return found


def batch(rows: list[list[State]], steps: int | None = None, junk: float = math.nan) -> Fragments:
    """The same as tensors, junk where nothing was recorded; backups over ``steps``, by default K of them."""
    K, dtype = len(rows[0][0].u), rows[0][0].m.dtype
    steps = steps or K
    seen = torch.full((len(rows), steps + 1, D + 2 * K), junk, dtype=dtype)
    ages = torch.zeros(len(rows), steps + 1, 3, dtype=torch.int64)
    rewards = torch.full((len(rows), steps), junk, dtype=dtype)
    terminated = torch.ones(len(rows), steps, dtype=torch.bool)
    present = torch.zeros(len(rows), steps, dtype=torch.bool)
    for i, states in enumerate(rows):
        for t, x in enumerate(states[: steps + 1]):
            seen[i, t] = network_input(x, [], (K, K))[0]
            ages[i, t] = torch.tensor([x.omega, x.kappa, x.beta])
            if t > 0:
                rewards[i, t - 1], terminated[i, t - 1], present[i, t - 1] = x.reward, x.terminated, True
    seen = torch.where(torch.cat([torch.ones(len(rows), 1, dtype=torch.bool), present], 1).unsqueeze(2), seen, 0.0)
    buffer = torch.stack([torch.cat(states[0].u) for states in rows])
    return Fragments(seen, buffer, ages, rewards, terminated, valid_length(ages, present))


def networks(K: int, dtype: torch.dtype = torch.float64, net_arch: tuple[int, ...] = (16, 8)) -> tuple[Any, Any, Any]:
    """Actor, critics and target critics."""
    inputs = D + 2 * K + K * A
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        actor = SquashedGaussianActor(VectorFeatures(inputs), A, net_arch, activation="tanh")
        critics, slow = (StateCritics(VectorFeatures(inputs), net_arch, activation="tanh") for _ in range(2))
    return actor.to(dtype), critics.to(dtype), slow.to(dtype)


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=dtype)


def everyone(data: Fragments) -> list[int]:
    return [len(data.length)] * data.rewards.shape[1]


def target(data: Fragments, actor: Any, slow: Any, noise: Tensor, alpha: float = ALPHA) -> Tensor:
    """y, as an update computes it."""
    with torch.no_grad():
        log_probs, final = resample(actor, data, noise, everyone(data))
        return soft_return(
            data, SCALE * data.rewards, log_probs, slow(final), torch.tensor(alpha, dtype=torch.float64), GAMMA
        )


def policy_loss(data: Fragments, actor: Any, critics: Any, noise: Tensor) -> Tensor:
    log_probs, final = resample(actor, data, noise, everyone(data))
    return -soft_return(
        data, 0.0, log_probs, critics(final, frozen=True), torch.tensor(ALPHA, dtype=torch.float64), GAMMA
    ).mean()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("K", [1, 2, 3, 5, 8])
def test_losses_equal_a_loop_over_rows(K: int, dtype: torch.dtype, tolerance: float) -> None:
    rows = fragments(K, 24, seed=K, dtype=dtype)
    data, (actor, critics, slow), noise = batch(rows), networks(K, dtype), normal(K, 24, A, dtype=dtype)
    setting = {"alpha": ALPHA, "gamma": GAMMA, "scale": SCALE, "widths": (K, K)}
    y, critic, policy = losses(rows, actor, critics, slow, noise=noise, **setting)

    ours = target(data, actor, slow, noise)
    assert ours.dtype is dtype
    assert torch.allclose(ours, y, rtol=tolerance, atol=tolerance)
    assert torch.allclose(critic_loss(critics, data.first(), ours), critic, rtol=tolerance)
    loss = policy_loss(data, actor, critics, noise)
    assert torch.allclose(loss, policy, rtol=tolerance)
    for left, right in zip(*(torch.autograd.grad(x, [*actor.parameters()]) for x in (loss, policy)), strict=True):
        assert torch.allclose(left, right, rtol=tolerance, atol=tolerance)
    assert data.length.max() == K
    assert data.length.min() < K or K == 1


def test_rows_sorted_by_length_may_leave_off_steps() -> None:
    K = 5
    rows = sorted(fragments(K, 40), key=lambda states: -int(batch([states]).length))
    data, (actor, _, _), noise = batch(rows), networks(K), normal(K, 40, A)
    left = [int((data.length > t).sum()) for t in range(K)]
    assert left[0] == 40 > left[1] > left[-1] > 0
    full, short = resample(actor, data, noise, everyone(data)), resample(actor, data, noise, left)
    taken = torch.arange(K) < data.length.unsqueeze(1)
    assert torch.allclose(full[0][taken], short[0][taken], rtol=1e-12)
    assert torch.allclose(full[1], short[1], rtol=1e-12)
    assert torch.equal(short[0][~taken], torch.zeros(int((~taken).sum()), dtype=torch.float64))


def test_one_step_is_the_real_time_actor_critic() -> None:
    """For K = 1, and for any delays when n is forced to 1 (arXiv 1911.04448, eq. of V; on augmented states)."""
    for K in (1, 4):
        rows = fragments(K, 12, seed=3)
        data, (actor, critics, slow), noise = batch(rows, steps=1), networks(K), normal(1, 12, A)
        assert data.length.tolist() == [1] * 12
        now = torch.cat([network_input(x[0], x[0].u, (K, K)) for x in rows])
        action, log_prob = actor.sample(now, noise[0])
        then = torch.cat([network_input(x[1], [action[i], *x[0].u[:-1]], (K, K)) for i, x in enumerate(rows)])
        reward = torch.tensor([x[1].reward for x in rows], dtype=torch.float64)
        goes_on = torch.tensor([float(not x[1].terminated) for x in rows], dtype=torch.float64)
        y = (SCALE * reward - ALPHA * log_prob + GAMMA * goes_on * slow(then).amin(0)).detach()
        policy = -(-ALPHA * log_prob + GAMMA * goes_on * critics(then).amin(0)).mean()
        assert torch.allclose(target(data, actor, slow, noise), y, rtol=1e-12)
        assert torch.allclose(policy_loss(data, actor, critics, noise), policy, rtol=1e-12)


def test_without_entropy_and_noise_y_is_the_return_over_resampled_buffers() -> None:
    K, rows = 4, fragments(4, 16, seed=5)
    data, (actor, _, slow) = batch(rows), networks(4)
    y = target(data, actor, slow, torch.zeros(K, 16, A, dtype=torch.float64), alpha=0.0)
    for i, states in enumerate(rows):
        n, u = int(data.length[i]), list(states[0].u)
        for x in states[:n]:
            u = [actor.mode(network_input(x, u, (K, K)))[0], *u[:-1]]
        tail = 0.0 if states[n].terminated else slow(network_input(states[n], u, (K, K))).min().item()
        expected = sum(GAMMA**t * SCALE * states[t + 1].reward for t in range(n)) + GAMMA**n * tail
        assert y[i].item() == pytest.approx(expected, rel=1e-9)


def test_on_the_policys_own_actions_y_is_the_ordinary_soft_target() -> None:
    """If the recorded actions are those that the noise gives, then resampling changes nothing."""
    K, rows = 4, fragments(4, 10, seed=6)
    actor, _, slow = networks(K)
    noise, logged = normal(K, 10, A), torch.zeros(10, K, dtype=torch.float64)
    for i, states in enumerate(rows):
        for t in range(len(states) - 1):
            action, log_prob = actor.sample(network_input(states[t], states[t].u, (K, K)), noise[t, i : i + 1])
            logged[i, t] = log_prob.item()
            for later in range(t + 1, min(len(states), t + 1 + K)):
                states[later].u[later - t - 1] = action[0].detach()
    data = batch(rows)
    y = target(data, actor, slow, noise)
    for i, states in enumerate(rows):
        n = int(data.length[i])
        own = slow(network_input(states[n], states[n].u, (K, K))).min().item() * (not states[n].terminated)
        soft = [SCALE * states[t + 1].reward - ALPHA * logged[i, t].item() for t in range(n)]
        assert y[i].item() == pytest.approx(sum(GAMMA**t * r for t, r in enumerate(soft)) + GAMMA**n * own, rel=1e-9)


class Always:
    """A policy that knows one action, at no entropy."""

    def __init__(self, action: float) -> None:
        self.action = action

    def sample(self, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(noise, self.action), torch.zeros(len(noise), dtype=noise.dtype)


def test_closed_form_of_a_constant_delay() -> None:
    """The reward is the action executed; those recorded are b, the policy's c: V is known, whatever n is.

    More than D steps trust rewards that the policy would have changed. Not resampling trusts the old actions.
    """
    D_total, gamma, b, c = 5, 0.95, -1.0, 2.0
    powers = gamma ** torch.arange(D_total, dtype=torch.float64)
    value = b * powers.sum() + gamma**D_total * c / (1 - gamma)
    assert value.item() == pytest.approx(26.426856, abs=1e-6)

    def values(states: Tensor) -> Tensor:
        buffer = states[:, -D_total:]  # newest first: its last is executed next
        return (buffer.flip(1) @ powers + gamma**D_total * c / (1 - gamma)).unsqueeze(0)

    def y(n: int, policy: float = c) -> float:
        data = Fragments(
            torch.zeros(1, n + 1, 1, dtype=torch.float64),
            torch.full((1, D_total), b, dtype=torch.float64),
            torch.zeros(1, n + 1, 3, dtype=torch.int64),
            torch.full((1, n), b, dtype=torch.float64),
            torch.zeros(1, n, dtype=torch.bool),
            torch.tensor([n]),
        )
        noise = torch.zeros(n, 1, 1, dtype=torch.float64)
        log_probs, final = resample(Always(policy), data, noise, [1] * n)  # type: ignore[arg-type]
        return float(soft_return(data, data.rewards, log_probs, values(final), torch.tensor(0.0), gamma))

    for n in range(1, D_total + 1):
        assert y(n) == pytest.approx(value.item(), abs=1e-9)
    assert y(D_total + 1) - value.item() == pytest.approx(-2.321343, abs=1e-6)
    assert y(D_total, policy=b) - value.item() == pytest.approx(-10.502640, abs=1e-6)


def test_a_row_is_worth_the_same_in_any_company() -> None:
    """Rows with a larger n make the batch take more steps; these leave no trace (in the authors' code they do)."""
    K = 6
    rows = fragments(K, 30, seed=8)
    actor, _, slow = networks(K)
    noise = normal(K, 30, A)
    together = target(batch(rows), actor, slow, noise)
    short = int(batch(rows).length.argmin())
    assert batch(rows).length[short] < batch(rows).length.max()
    alone = target(batch([rows[short]]), actor, slow, noise[:, short : short + 1])
    assert together[short].item() == pytest.approx(alone.item(), rel=1e-12)


def test_a_reward_that_comes_at_the_end_only_is_seen() -> None:
    """With values of zero, y is gamma^(T-1) rho R where the end lies within the valid steps, and zero elsewhere."""
    K = 4
    actor, _, slow = networks(K)
    for parameter in slow.parameters():
        nn.init.zeros_(parameter)
    generator = torch.Generator().manual_seed(2)
    for T in range(1, K + 1):
        for delay in range(1, K + 1):
            states = fragment(K, T, generator)
            ended = [State(x.m, x.u, delay - 1, 0, 1, 10.0 * (t == T), terminated=t == T) for t, x in enumerate(states)]
            data = batch([ended])
            y = target(data, actor, slow, normal(K, 1, A), alpha=0.0)
            expected = GAMMA ** (T - 1) * SCALE * 10 if delay >= T else 0.0
            assert y.item() == pytest.approx(expected, rel=1e-12)


def test_gradients_stay_where_they_belong() -> None:
    K = 3
    data, (actor, critics, slow), noise = batch(fragments(K, 12)), networks(K), normal(K, 12, A)
    y = target(data, actor, slow, noise)
    assert not y.requires_grad
    critic = critic_loss(critics, data.first(), y)
    policy = policy_loss(data, actor, critics, noise)
    for loss, mine, others in ((critic, critics, actor), (policy, actor, critics)):
        parameters = [*mine.parameters(), *others.parameters(), *slow.parameters()]
        grads = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
        own = len(list(mine.parameters()))
        assert all(grad is not None and grad.abs().max() > 0 for grad in grads[:own])
        assert all(grad is None for grad in grads[own:])


class Spy:
    """An actor that keeps what it drew, to differentiate with respect to it."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.actions: list[Tensor] = []

    def sample(self, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        action, log_prob = self.actor.sample(states, noise)
        self.actions.append(action)
        return action, log_prob


def test_an_earlier_action_answers_for_later_ones() -> None:
    """From n = 2 on the loss depends on a_0 through the policy's later inputs too, not only through x_n."""
    K = 4
    data, (actor, critics, _), noise = batch(fragments(K, 40, seed=1)), networks(K), normal(K, 40, A)
    spy = Spy(actor)
    policy_loss(data, spy, critics, noise)
    log_probs, _ = resample(spy, data, noise, everyone(data))
    first = spy.actions[K]  # of the second run
    later = torch.where(torch.arange(1, K) < data.length.unsqueeze(1), log_probs[:, 1:], 0.0).sum()
    (grad,) = torch.autograd.grad(later, [first], retain_graph=True)
    assert ((grad.abs().sum(1) > 1e-6) == (data.length >= 2)).all()


def test_gradients_agree_with_finite_differences() -> None:
    K = 3
    data, noise = batch(fragments(K, 10, seed=4)), normal(K, 10, A)
    actor, critics, _ = networks(K, net_arch=())  # a linear policy, linear values
    grads = torch.autograd.grad(policy_loss(data, actor, critics, noise), [*actor.parameters()])
    step = 1e-5
    for parameter, grad in zip(actor.parameters(), grads, strict=True):
        flat = parameter.data.view(-1)
        for index in range(0, flat.numel(), 5):
            sides = []
            for sign in (1, -1):
                flat[index] += sign * step
                sides.append(policy_loss(data, actor, critics, noise).item())
                flat[index] -= sign * step
            assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(grad.view(-1)[index].item(), rel=1e-4, abs=1e-7)


# -- how far a fragment is valid ---------------------------------------------------------------------------------------


def lengths(delays: list[list[int]], present: list[list[bool]] | None = None) -> list[int]:
    """n of rows of total delays d_0, d_1, …"""
    d = torch.tensor(delays)
    ages = torch.stack([d - 1, torch.zeros_like(d), torch.ones_like(d)], 2)
    there = torch.ones(d.shape[0], d.shape[1] - 1, dtype=torch.bool) if present is None else torch.tensor(present)
    return valid_length(ages, there).tolist()


def test_lengths_of_the_worked_time_line() -> None:
    d = [1, 1, 2, 3, 2, 1, 2, 3, 2]  # of x_0 … x_8, K = 4; the delay of x_0 itself plays no role
    assert lengths([d[i : i + 5] for i in range(5)]) == [3, 2, 2, 1, 3]


def test_lengths_at_the_edges() -> None:
    assert lengths([[9, 1, 1, 1]]) == [1]  # always at least 1
    assert lengths([[1, 3, 3, 3]]) == [3]  # all maximal: K
    assert lengths([[1, 1, 2, 3], [1, 1, 1, 3]]) == [3, 1]  # at the bound, and below it for good
    assert lengths([[1, 1]]) == [1]
    assert lengths([[3, 3, 3, 3]] * 3, [[True, True, True], [True, True, False], [True, False, False]]) == [3, 2, 1]
    assert lengths([[3, 3, 3, 3]], [[True, False, True]]) == [1]  # what comes after a gap is another episode's


# -- a table where everything is known ---------------------------------------------------------------------------------


class Table:
    """Two states, two actions, delays of 1 with probability ``p`` and else of 0, on both channels; K = 3.

    Such delays are the ages themselves: omega = w, kappa = k, and the action executed in tick t is a_(t-1-k_(t-1)). So
    the chain of (m, u, omega, kappa) is written down at once, and its values solved for.
    """

    gamma = 0.9
    moves = np.array([[0.9, 0.3], [0.2, 0.7]])  # P(s' = 1 | s, a)
    pays = np.array([[0.0, 1.0], [2.0, 0.3]])  # R(s, a)
    policy = np.random.default_rng(3).uniform(0.05, 0.95, 64)  # P(a = 1 | x)

    def __init__(self, p: float) -> None:
        self.p = p
        chain, reward = np.zeros((64, 64)), np.zeros(64)
        for x in range(64):
            m, u, omega, kappa = x >> 5, [x >> 4 & 1, x >> 3 & 1, x >> 2 & 1], x >> 1 & 1, x & 1
            for chance, pending, s, k in self.arrivals(m, u, omega, kappa):
                for action, w, k_new, moved in np.ndindex(2, 2, 2, 2):
                    pay, up = self.pays[s, u[k]], self.moves[s, u[k]]
                    weight = chance * self.coin(action, self.policy[x]) * self.coin(w, p) * self.coin(k_new, p)
                    weight *= self.coin(moved, up)
                    shown = (s, 1, k) if w else (moved, 0, k_new)
                    reward[x] += weight * (pending if w else pending + pay)
                    chain[x, self.index(shown[0], [action, *u[:2]], *shown[1:])] += weight
        self.values = np.linalg.solve(np.eye(64) - self.gamma * chain, reward)

    @staticmethod
    def coin(side: Any, p: Any) -> Any:
        return np.where(side, p, 1 - p)

    @staticmethod
    def index(m: Any, u: Any, omega: Any, kappa: Any) -> Any:
        return m << 5 | u[0] << 4 | u[1] << 3 | u[2] << 2 | omega << 1 | kappa

    def arrivals(self, m: int, u: list[int], omega: int, kappa: int) -> Iterator[tuple[float, float, int, int]]:
        """Chance, reward on its way, true state and true age of the action to come, given what is seen."""
        if omega == 0:
            yield 1.0, 0.0, m, kappa
            return
        executed = u[1 + kappa]
        for s, k in np.ndindex(2, 2):
            chance = float(self.coin(s, self.moves[m, executed]) * self.coin(k, self.p))
            yield chance, self.pays[m, executed], s, k

    def record(self, rows: int, rng: np.random.Generator) -> Fragments:
        """Fragments of K steps by a uniformly random behaviour, after enough ticks to forget the start."""
        ticks, K = 16, 3
        k, w = (rng.random((ticks, rows)) < self.p).astype(int), (rng.random((ticks, rows)) < self.p).astype(int)
        a = rng.integers(0, 2, (ticks, rows))
        s, rewards = np.zeros((ticks + 1, rows), int), np.zeros((ticks, rows))
        every = np.arange(rows)
        for t in range(2, ticks):
            executed = a[t - 1 - k[t - 1], every]
            rewards[t] = self.pays[s[t], executed]
            s[t + 1] = rng.random(rows) < self.moves[s[t], executed]
        total = np.concatenate([np.zeros((1, rows)), rewards.cumsum(0)])  # before tick t
        seen, ages, delivered = [], [], []
        for t in range(ticks - 1 - K, ticks):  # what tick t returns
            omega, capture = w[t], t - w[t]
            kappa, beta = k[capture, every], 1 + k[capture - 1, every]
            m = s[capture + 1, every]
            seen.append(np.stack([m, 1 - omega, omega, 1 - kappa, kappa], 1))
            ages.append(np.stack([omega, kappa, beta], 1))
            delivered.append(total[capture + 1, every] - total[t - w[t - 1], every])
        start = ticks - 1 - K
        buffer = np.stack([a[start], a[start - 1], a[start - 2]], 1) * 2 - 1
        ages_ = torch.from_numpy(np.stack(ages, 1))
        present = torch.ones(rows, K, dtype=torch.bool)
        return Fragments(
            torch.from_numpy(np.stack(seen, 1)).double(),
            torch.from_numpy(buffer).double(),
            ages_,
            torch.from_numpy(np.stack(delivered[1:], 1)),
            ~present,
            valid_length(ages_, present),
        )

    def look_up(self, table: np.ndarray[Any, Any], states: Tensor) -> Tensor:
        x = states.round().int().numpy()
        u = (x[:, 5:] + 1) // 2
        return torch.from_numpy(table[self.index(x[:, 0], u.T, x[:, 2], x[:, 4])])

    def sample(self, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The policy, as an actor; noise is normal."""
        drawn = torch.special.ndtr(noise[:, 0]) < self.look_up(self.policy, states)
        return drawn.double().unsqueeze(1) * 2 - 1, torch.zeros(len(states), dtype=torch.float64)

    def errors(self, data: Fragments, generator: torch.Generator) -> Tensor:
        """y - V(x_0) with the exact values as critics."""
        noise = torch.randn(3, len(data.length), 1, generator=generator, dtype=torch.float64)
        log_probs, final = resample(self, data, noise, everyone(data))  # type: ignore[arg-type]
        values = self.look_up(self.values, final).unsqueeze(0)
        y = soft_return(data, data.rewards, log_probs, values, torch.tensor(0.0), self.gamma)
        return y - self.look_up(self.values, data.first())


@pytest.mark.parametrize(
    ("p", "adaptive", "bias"), [(1.0, True, 0.0), (0.5, False, 0.0), (0.5, True, 0.01)], ids=["constant", "n=1", "n"]
)
def test_targets_are_unbiased_in_a_table(p: float, adaptive: bool, bias: float) -> None:
    """The mean of y - V is zero up to five standard errors of its estimate; with n by random delays, up to 1 % of V.

    That n depends on the delays seen, hence on what the values are an average over, is no fault of the code.
    """
    table = Table(p)
    data = table.record(200_000, np.random.default_rng(0))
    if p == 1:
        assert (data.length == 3).all()
    if not adaptive:
        data = data._replace(length=torch.ones_like(data.length))
    errors = table.errors(data, torch.Generator().manual_seed(0))
    noise = 5 * errors.std().item() / len(errors) ** 0.5
    assert noise < 0.012
    assert abs(errors.mean().item()) < noise + bias * table.values.mean()


ROWS = np.array([[0.9, 0.3], [0.2, 0.7]])
CONSTANT = World(ROWS, np.ones((2, 2)))
UNLIKE = World(ROWS, np.array([[0.0, 1.0], [2.0, 0.3]]))
MATCH = World(np.array([[0.05, 0.95], [0.95, 0.05]]), np.array([[1.0, -1.0], [-1.0, 1.0]]))
"""Rewards of 1 for the action that fits a state, which lasts, and of -1 for the other: they nearly cancel."""


@pytest.mark.parametrize(
    ("world", "gamma", "expected"),
    [
        (CONSTANT, 0.9, [-0.479, 0.479, -1.923, 0.0]),
        (CONSTANT, 0.99, [-0.006, 0.006, -0.219, 0.0]),
        (UNLIKE, 0.9, [-0.475, 0.552, -1.880, 0.272]),
        (UNLIKE, 0.99, [-0.005, 0.033, -0.141, 0.031]),
        (MATCH, 0.9, [-0.894, 2.870, -3.768, 2.696]),
        (MATCH, 0.99, [-0.152, 0.514, -5.928, 0.516]),
    ],
)
def test_the_bias_of_choosing_n_by_later_delays_is_what_the_page_says(
    world: World, gamma: float, expected: list[float]
) -> None:
    np.testing.assert_allclose(biases("uniform:0-2", gamma, world), expected, atol=6e-4)


def test_a_longest_n_of_the_least_total_delay_has_no_bias() -> None:
    np.testing.assert_allclose(biases("uniform:0-2", 0.9, MATCH, longest=1), 0, atol=1e-7)
    np.testing.assert_allclose(biases("categorical:1@1", 0.9, MATCH), 0, atol=1e-7)


# -- fragments from a store --------------------------------------------------------------------------------------------


class Clock(gym.Env[Any, Any]):
    """Shows a number that it never shows again; pays the first coordinate of the action; ends when told.

    :param row: keeps its numbers apart from other rows'
    :param lengths: of its episodes, over and over; negative ones terminate, the others are truncated
    """

    def __init__(self, row: int = 0, lengths: tuple[int, ...] = (9,)) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,))
        self.action_space = spaces.Box(np.array([-2, 0.5], np.float32), np.array([1, 3], np.float32))
        self.number, self.episode, self.lengths = 100_000.0 * row, -1, lengths

    def _show(self) -> Any:
        self.number += 1
        return np.array([self.number], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        length = self.lengths[self.episode % len(self.lengths)]
        over = self.t >= abs(length)
        return self._show(), float(action[0]), over and length < 0, over and length > 0, {}


class Recorder(gym.Wrapper[Any, Any, Any, Any]):
    """Writes down what an agent is shown, episode by episode: (x, reward, terminated)."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.episodes: list[list[tuple[dict[str, Any], float, bool]]] = []

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        self.episodes.append([(obs, 0.0, False)])
        return obs, info

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        self.episodes[-1].append((obs, float(reward), terminated))
        return obs, reward, terminated, truncated, info


TINY: dict[str, Any] = {"net_arch": [8], "learning_starts": 20, "buffer_size": 400, "batch_size": 16}


def dcac(env: Any, **hyper: Any) -> DCAC:
    return DCAC("MultiInputPolicy", env, seed=3, device="cpu", **TINY | hyper)


def delayed_point(delay: str = "uniform:0-2", rows: int = 1, length: int = 7) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(RandomDelay(Point(length), delay, delay)) for _ in range(rows)])


LAWS = [("constant:0", "constant:0"), ("constant:2", "constant:1"), ("uniform:0-2", "uniform:0-1"), ("wifi", "wifi")]
LENGTHS = (9, -1, 4, 30, -2, 14, -25)


@pytest.mark.filterwarnings("ignore:delays of up to")
@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize(
    ("rows", "capacity", "adapter"),
    [(1, 500, DummyVecEnv), (1, 60, DummyVecEnv), (3, 150, DummyVecEnv), (3, 150, SyncVectorEnv)],
    ids=["all kept", "gone round", "three rows", "resets of their own"],
)
def test_fragments_are_what_was_shown(law: tuple[str, str], rows: int, capacity: int, adapter: Any) -> None:
    """Buffers rebuilt from single steps, and everything else, against what the environment handed out."""
    recorders = [Recorder(RandomDelay(Clock(row, LENGTHS[row:] + LENGTHS[:row]), *law)) for row in range(rows)]
    env = adapter([lambda r=r: r for r in recorders])
    agent = dcac(env, learning_starts=10_000, buffer_size=capacity, batch_size=3000).learn(240)
    low, high = recorders[0].action_space.low, recorders[0].action_space.high  # type: ignore[attr-defined]
    where = {}  # a capture and its age tell the tick
    for recorder in recorders:
        for episode in recorder.episodes:
            for t, (x, _, _) in enumerate(episode):
                where[float(x["observation"][0]), int(x["observation_age"])] = (episode, t)
    data, K = agent.sample_fragments(), agent.horizon
    assert (data.length.diff() <= 0).all()
    seen = Counter(zip(data.seen[:, 0, 0].tolist(), data.ages[:, 0, 0].tolist(), strict=True))
    assert len(seen) > 0.7 * min(len(agent.store), 200)
    checked = set()
    for i, key in enumerate(zip(data.seen[:, 0, 0].tolist(), data.ages[:, 0, 0].tolist(), strict=True)):
        episode, start = where[key]
        n = int(data.length[i])
        if (key, n) in checked:
            continue
        checked.add((key, n))
        buffer = 2 * (episode[start][0]["action_buffer"] - low) / (high - low) - 1
        assert np.allclose(data.buffer[i].view(K, 2), buffer, atol=1e-6)
        assert data.seen[i, 0, 1:].sum() == 2  # two one-hot numbers
        for t in range(n + 1):
            x, reward, terminated = episode[start + t]
            ages = [int(x[key]) for key in ("observation_age", "action_age", "applied_action_age")]
            assert data.ages[i, t].tolist() == ages
            assert data.seen[i, t, 0] == x["observation"][0]
            assert data.seen[i, t, 1 + ages[0]] == 1
            assert data.seen[i, t, 1 + agent.widths["observation_age"] + ages[1]] == 1
            if t > 0:
                assert data.rewards[i, t - 1].item() == pytest.approx(reward, abs=1e-6)
                assert data.terminated[i, t - 1] == terminated
        delays = [int(x["observation_age"]) + int(x["applied_action_age"]) for x, _, _ in episode[start:]]
        limit = min(K, len(delays) - 1)  # at the end of the episode, or at the newest row
        assert n == next((t for t in range(1, limit + 1) if delays[t] < t), limit + 1) - 1
    assert any(episode[-1][2] for recorder in recorders for episode in recorder.episodes)


@pytest.mark.parametrize(("observations", "actions"), [(0, 0), (2, 0), (0, 3), (2, 2), (1, 3)])
def test_a_constant_delay_is_bridged_from_every_start(observations: int, actions: int) -> None:
    """n = D = K, right after the reset too; towards the end of an episode its end is the limit."""
    recorder = Recorder(RandomDelay(Clock(0, (20, -13)), f"constant:{observations}", f"constant:{actions}"))
    agent = dcac(recorder, learning_starts=10_000, batch_size=2000).learn(200)
    data, total = agent.sample_fragments(), observations + actions + 1
    assert agent.horizon == total
    ends = {}
    for episode in recorder.episodes:
        for t, (x, _, _) in enumerate(episode):
            ends[float(x["observation"][0]), int(x["observation_age"])] = len(episode) - 1 - t
    for i in range(2000):
        left = ends[data.seen[i, 0, 0].item(), int(data.ages[i, 0, 0])]
        assert data.length[i] == min(total, left)
    assert (data.ages[:, 0, 0] + data.ages[:, 0, 2] == 1).any()  # a start right after the reset


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        ("wifi", {3: 0.095, 4: 0.384, 5: 0.429, 6: 0.085, 7: 0.006}),
        ("uniform:0-1", {1: 0.25, 2: 0.50, 3: 0.25}),
        ("uniform:0-2", {1: 0.11, 2: 0.30, 3: 0.35, 4: 0.20, 5: 0.05}),
    ],
)
def test_the_law_of_n(law: str, expected: dict[int, float]) -> None:
    """Over 12,000 ticks a share of a half is known to about 0.01 (neighbours share delays): 0.03 is three of these."""
    env = RandomDelay(Clock(0, (10**6,)), law, law)
    env.reset(seed=0)
    action = np.array([0.0, 1.0], np.float32)
    shown = [env.step(action)[0] for _ in range(12_000)][20:]
    keys = ("observation_age", "action_age", "applied_action_age")
    ages = torch.tensor([[int(x[key]) for key in keys] for x in shown])
    windows = ages.unfold(0, env.horizon + 1, 1).transpose(1, 2)
    n = valid_length(windows, torch.ones(len(windows), env.horizon, dtype=torch.bool))
    shares = n.bincount(minlength=8) / len(n)
    assert all(shares[k].item() == pytest.approx(expected.get(k, 0), abs=0.03) for k in range(8))
    delay = (ages[:, 0] + ages[:, 2]).double()
    assert n.double().mean().item() == pytest.approx(delay.mean().item(), abs=0.05)  # one law, where all is stationary


def draw(agent: DCAC, row: int, monkeypatch: pytest.MonkeyPatch) -> Fragments:
    """The fragment that begins at a row of the store."""
    monkeypatch.setattr(agent.store, "_draw", lambda count, length: torch.full((count,), row))
    return agent.sample_fragments()


def test_what_lies_outside_a_fragment_has_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metamorphic: later actions, what comes after x_n, and what comes after the end, may be anything."""
    env = RandomDelay(Clock(0, (12, -9, -3)), "uniform:0-2", "uniform:0-2")
    agent = dcac(env, learning_starts=10_000, batch_size=1).learn(120)
    noise = normal(agent.horizon, 1, 2, dtype=torch.float32)
    flat = agent.store._flat
    kinds = Counter[str]()
    for row in range(5, 110):
        data = draw(agent, row, monkeypatch)
        y, n = target(data, agent.actor.module, agent.critics.target, noise), int(data.length)
        kept = {name: values.clone() for name, values in flat.items()}
        last = row + n - 1  # the row that ends in x_n
        ended = bool(flat["terminated"][last] | flat["truncated"][last])
        after = slice(last + 1 + (not ended and n < agent.horizon), 120)  # d_(n+1) made n what it is
        flat["actions"][row:] = 9.0
        flat["obs"][row + 1 :], flat["oldest"][row + 1 :], flat["ages"][row + 1 :] = math.nan, math.nan, 2
        flat["next_obs"][last + 1 :], flat["rewards"][last + 1 :] = math.nan, math.nan
        flat["next_ages"][after] = 2
        flat["terminated"][last + 1 :] = True
        garbled = draw(agent, row, monkeypatch)
        assert torch.equal(target(garbled, agent.actor.module, agent.critics.target, noise), y)
        assert not ended or torch.isfinite(garbled.seen).all()  # zero times NaN would reach the gradients
        kinds["after the end" if ended else "valid to the last" if n == agent.horizon else "cut by a delay"] += 1
        for name, values in kept.items():
            flat[name].copy_(values)
        # And what is inside does have one.
        flat["rewards"][last] += 1
        changed = target(draw(agent, row, monkeypatch), agent.actor.module, agent.critics.target, noise)
        assert (changed - y).item() == pytest.approx(GAMMA ** (n - 1) * SCALE, rel=1e-3)
        flat["rewards"][last] -= 1
    assert len(kinds) == 3, kinds


# -- the agent ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("hyper", [{}, {"rtac": True}, {"ent_coef": "auto_0.5"}, {"train_freq": 4}], ids=str)
def test_it_runs_and_logs(rows: int, hyper: dict[str, Any]) -> None:
    agent = dcac(delayed_point(rows=rows), **hyper)
    before = [p.clone() for p in (*agent.actor.parameters, *agent.critics.parameters)]
    agent.learn(120)
    assert agent._n_updates > 0
    metrics = agent.metrics.flush()
    assert {"actor_loss", "critic_loss", "n", "observation_age", "total_delay", "entropy", "ent_coef"} <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())
    assert (metrics["n"] == 1) == bool(hyper.get("rtac"))
    assert ("ent_coef_loss" in metrics) == (metrics["ent_coef"] != 1) == ("ent_coef" in hyper)
    after = (*agent.actor.parameters, *agent.critics.parameters)
    assert all(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert agent.steps == (1 if "rtac" in hyper else 5)
    action, _ = agent.predict(agent.get_env().reset(), deterministic=True)  # type: ignore[union-attr]
    assert action.shape == (rows, 1)


def test_updates_descend_the_losses() -> None:
    """One update moves actor and critics as Adam moves them down the losses of the same draw, and targets by tau."""
    agent, twin = (dcac(delayed_point(), max_grad_norm=None).learn(40) for _ in range(2))
    data = twin.sample_fragments()
    noise = twin.noise(5, 16, 1)
    log_probs, final = resample(twin.actor.module, data, noise, everyone(data))
    alpha = torch.tensor(1.0)
    slow = twin.critics.target
    assert slow is not None
    y = soft_return(data, 5.0 * data.rewards, log_probs, slow(final), alpha, 0.99).detach()
    policy = -soft_return(data, 0.0, log_probs, twin.critics.module(final), alpha, 0.99).mean()
    critic = critic_loss(twin.critics.module, data.first(), y)
    twin.actor.minimise(policy)
    twin.critics.minimise(critic)
    twin.critics.follow(0.005)
    metrics = agent._update("update")
    assert metrics["actor_loss"].item() == pytest.approx(policy.item(), rel=1e-4)
    assert metrics["critic_loss"].item() == pytest.approx(critic.item(), rel=1e-4)
    ours, theirs = agent.modules.state(), twin.modules.state()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], atol=1e-5, rtol=1e-3), name


def test_computing_every_step_changes_nothing() -> None:
    """What a GPU and compiled losses do, so as not to wait for the number of steps that a batch needs."""
    short, full = (dcac(delayed_point()).learn(40) for _ in range(2))
    full._fixed_shapes = True
    for _ in range(5):
        ours, theirs = short._update("update"), full._update("update")
        assert all(torch.allclose(value, theirs[name], rtol=1e-4, atol=1e-5) for name, value in ours.items())


def test_compile_reaches_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("headway.agents.dcac.compiled", lambda function, mode, device: seen.append(mode) or function)
    agent = dcac(delayed_point(), compile="default").learn(30)
    assert seen == ["default"] * 3
    assert agent._n_updates > 0


class Rows(KVWriter):
    """Keeps what is logged, but for the clock."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        kept = {k: v for k, v in key_values.items() if k not in ("time/fps", "time/time_elapsed")}
        self.rows.append({k: v.tolist() if isinstance(v, Tensor) else v for k, v in kept.items()})

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("rows", "stop"), [(1, 13), (1, 24), (3, 42)])
def test_resumed_with_packets_in_flight_equals_uninterrupted(rows: int, stop: int, tmp_path: Path) -> None:
    logs = Rows(), Rows()
    straight, agent = dcac(delayed_point(rows=rows)), dcac(delayed_point(rows=rows))
    straight.set_logger(Logger(None, [logs[0]]))
    straight.learn(90, log_interval=2)
    agent.set_logger(Logger(None, [logs[1]]))
    agent.learn(90, Stop(stop), log_interval=2)
    agent.save_checkpoint(tmp_path)
    resumed = DCAC.resume(tmp_path, delayed_point(rows=rows))
    resumed.set_logger(Logger(None, [logs[1]]))
    resumed.learn(resumed.remaining_timesteps, log_interval=2, reset_num_timesteps=False)
    for left, right in (
        (straight.modules.state(), resumed.modules.state()),
        (straight.store.state(), resumed.store.state()),
    ):
        assert left.keys() == right.keys()
        assert all(torch.equal(v, right[k]) if isinstance(v, Tensor) else v == right[k] for k, v in left.items())
    assert logs[0].rows == logs[1].rows
    assert "delay/resampled_steps" in logs[0].rows[-1]


def test_logging_draws_nothing_from_training() -> None:
    often, never = dcac(delayed_point()), dcac(delayed_point())
    often.learn(60, log_interval=1)
    never.learn(60, log_interval=None)
    assert all(torch.equal(v, never.modules.state()[k]) for k, v in often.modules.state().items())


def test_it_learns_under_a_normaliser() -> None:
    """Observations and rewards may be normalised; a fragment then holds them by the statistics of the moment."""
    env = VecNormalize(delayed_point(rows=2), norm_obs_keys=["observation"], clip_obs=1.5)
    agent = dcac(env).learn(80)
    plain = dcac(delayed_point(rows=2))
    plain.store.load_state(agent.store.state())
    raw, data = plain.sample_fragments(), agent.sample_fragments()
    assert torch.equal(raw.buffer, data.buffer)
    assert torch.equal(raw.ages, data.ages)
    there = torch.arange(6) <= raw.length.unsqueeze(1)
    shown = env.normalize_obs({"observation": raw.seen[..., 0].reshape(-1, 1).numpy()})["observation"].reshape(16, 6)
    assert torch.allclose(data.seen[..., 0][there], torch.from_numpy(shown)[there], atol=1e-5)
    paid = torch.from_numpy(env.normalize_reward(raw.rewards.numpy()))
    assert torch.allclose(data.rewards[there[:, 1:]], paid[there[:, 1:]].float(), atol=1e-5)
    assert data.seen.abs().max() <= 1.5
    action = agent.predict(env.reset(), deterministic=True)[0]
    assert np.isfinite(action).all()


def test_sac_learns_from_the_same_observations() -> None:
    options = {"seed": 0, "device": "cpu", "learning_starts": 20, "net_arch": [8]}
    agent = SAC("MultiInputPolicy", delayed_point(rows=2), **options).learn(60)
    assert agent._n_updates > 0
    assert agent.codec.spec.shape == (1 + 5 + 3 + 3 + 4,)  # m, five actions, one-hot omega, kappa and beta


# -- bad input ---------------------------------------------------------------------------------------------------------


class Without(gym.ObservationWrapper[Any, Any, Any]):
    """Hides parts of an observation, or shows them as something else."""

    def __init__(self, env: gym.Env[Any, Any], *hidden: str, **shown: spaces.Space[Any]) -> None:
        super().__init__(env)
        parts = {**env.observation_space.spaces, **shown}  # type: ignore[attr-defined]
        self.observation_space = spaces.Dict([(key, part) for key, part in parts.items() if key not in hidden])

    def observation(self, observation: Any) -> Any:
        return {key: observation[key] for key in self.observation_space}  # type: ignore[attr-defined]


def refused(env: Any, **hyper: Any) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the caller looks at the text)
        dcac(env, **hyper)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_observations_that_are_not_delayed_are_refused() -> None:
    text = refused(Point())
    assert "action_buffer, observation_age, action_age, applied_action_age, an observation are not in" in text
    assert "headway.wrappers.RandomDelay" in text
    assert "(form 'dict')" in refused(RandomDelay(Point(), "wifi", "wifi", form="flat"))
    text = refused(Without(RandomDelay(Point(), "constant:1", "constant:1"), "applied_action_age"))
    assert "applied_action_age is not in" in text
    odd = Without(RandomDelay(Point(), "constant:1", "constant:1"), observation_age=spaces.Box(0, 1, ()))
    assert "ages that are Discrete" in refused(odd)


def test_discrete_actions_are_refused() -> None:
    env = RandomDelay(gym.make("CartPole-v1"), "constant:1", "constant:1")
    assert "DCAC needs a Box action space, got Discrete(2)" in refused(env)


def test_buffers_and_ages_must_not_be_normalised() -> None:
    env = VecNormalize(delayed_point(), norm_obs_keys=["observation", "action_buffer"])
    text = refused(env)
    assert "leave action_buffer alone" in text
    assert "norm_obs_keys=['observation']" in text
    with pytest.raises(ValueError, match="Box"):  # without keys it would be all of them, which the peer refuses
        VecNormalize(delayed_point())
    assert dcac(VecNormalize(delayed_point(), norm_obs=False)).learn(30)._n_updates > 0


def test_too_small_a_buffer_is_refused() -> None:
    assert "need a buffer_size of 12, got 11" in refused(delayed_point(rows=2), buffer_size=11)
    assert dcac(delayed_point(rows=2), buffer_size=12).learn(60)._n_updates > 0


class Broken(Clock):
    """Returns what is not a number once."""

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        return (np.array([np.nan], np.float32), reward, *rest) if self.number > 30 else (obs, reward, *rest)


def test_what_is_not_a_number_is_refused_before_it_is_stored() -> None:
    agent = dcac(RandomDelay(Broken(), "constant:1", "constant:1"))
    with pytest.raises(NonFiniteError, match=r"observation\['observation'\]\[0\] = nan"):
        agent.learn(100)
    assert torch.isfinite(agent.store.state()["data.next_obs"]).all()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("hyper", "message"),
    [({"reward_scale": 0.0}, "reward_scale must lie in"), ({"ent_coef": "fixed"}, "ent_coef must be a number")],
)
def test_hyper_parameters_are_checked(hyper: dict[str, Any], message: str) -> None:
    assert message in refused(delayed_point(), **hyper)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_computes_the_same() -> None:
    K = 5
    data, noise = batch(fragments(K, 20)), normal(K, 20, A)
    actor, critics, slow = networks(K)
    here = target(data, actor, slow, noise), policy_loss(data, actor, critics, noise)
    there = Fragments(*(part.cuda() for part in data))
    for network in (actor, critics, slow):
        network.cuda()
    assert torch.allclose(target(there, actor, slow, noise.cuda()).cpu(), here[0], rtol=1e-9)
    assert torch.allclose(policy_loss(there, actor, critics, noise.cuda()).cpu(), here[1], rtol=1e-9)
    agent = DCAC("MultiInputPolicy", delayed_point(), seed=0, device="cuda", **TINY).learn(60)
    assert all(math.isfinite(value) for value in agent.metrics.flush().values())


def test_logs_can_be_written_before_anything_is_stored() -> None:
    agent = DCAC("MultiInputPolicy", RandomDelay(Point(), "constant:1", "constant:1"), device="cpu")
    agent.set_logger(Logger(None, []))
    agent.start_time = 0
    agent.dump_logs()
    assert len(agent.store) == 0
