"""HDCR and its family: golden values, optimality, limits, the identities of weights and returns, small problems."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from headway.agents import HDCR, Dataset, HDCRConfig
from headway.agents.hdcr import normalising_shift, q_exponential, td_lambda, weigh
from scipy.optimize import minimize
from torch import Tensor
from toys import Point, played, vec

MU, GAINS = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64), torch.tensor([1.0, 0.5, 0.0, -0.5]).double()
"""A policy of four actions, and their advantages; as ten samples, each action as often as its probability says."""
SAMPLES = GAINS.repeat_interleave((10 * MU).round().long())


def solved(lam: float, samples: Tensor = SAMPLES) -> tuple[float, Tensor]:
    """:return: alpha and weights of the closed form w = (lambda / (alpha - A))^2, by the code's normaliser."""
    shift = normalising_shift(samples, 0.5, lam / 2)
    return float(lam + shift), q_exponential((samples - shift) / (lam / 2), 0.5, 2.0 * len(samples))


def hellinger(pi: Any, mu: Any) -> Any:
    return 1 - (pi * mu) ** 0.5 @ np.ones(len(pi))


# -- the constrained problem -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lam", "alpha", "weights", "h2", "gain", "kl"),
    [
        (1.0, 1.438047, (5.21145, 1.136451, 0.483564, 0.266239), 0.143495, 0.581542, 0.643074),
        (2.0, 2.21904, (2.691684, 1.353593, 0.812325, 0.541039), 0.03864, 0.29632, None),
        (10.0, None, None, 0.001324, None, None),
    ],
)
def test_golden_values(lam: float, alpha: Any, weights: Any, h2: float, gain: Any, kl: Any) -> None:
    """Worked out with NumPy and SciPy beforehand, to six digits."""
    found, each = solved(lam)
    w = each[[0, 1, 3, 6]]
    assert (MU * w).sum().item() == pytest.approx(1, abs=1e-12)
    assert 1 - (MU * w.sqrt()).sum().item() == pytest.approx(h2, abs=1e-6)
    same = 1 - (MU * lam / (found - GAINS)).sum().item()
    assert hellinger((MU * w).numpy(), MU.numpy()) == pytest.approx(same, abs=1e-12)
    if alpha is not None:
        assert found == pytest.approx(alpha, abs=1e-6)
        assert w.tolist() == pytest.approx(weights, abs=1e-5)
        assert (MU * w * GAINS).sum().item() == pytest.approx(gain, abs=1e-5)
    if kl is not None:
        assert (MU * w * w.log()).sum().item() == pytest.approx(kl, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_no_other_policy_so_near_gains_more(seed: int) -> None:
    """Six actions; SLSQP looks for a better one at the same distance, from where the closed form is and from mu."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 8, 6)
    mu, gains = counts / counts.sum(), rng.normal(size=6)
    _, each = solved(1.5, torch.from_numpy(np.repeat(gains, counts)))
    pi = mu * each.numpy()[np.cumsum(counts) - 1]
    limit = hellinger(pi, mu)
    rules = [
        {"type": "eq", "fun": lambda p: p.sum() - 1},
        {"type": "ineq", "fun": lambda p: limit - hellinger(p, mu)},
    ]
    for start in (pi, mu):
        found = minimize(
            lambda p: -p @ gains,
            start,
            method="SLSQP",
            bounds=[(1e-9, 1)] * 6,
            constraints=rules,
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert -found.fun <= pi @ gains + 1e-7
        assert found.x == pytest.approx(pi, abs=1e-3)


def test_shifted_advantages_shift_alpha_alone() -> None:
    alpha, weights = solved(1.3)
    shifted, same = solved(1.3, SAMPLES + 0.7)
    assert shifted - alpha == pytest.approx(0.7, abs=1e-12)
    assert torch.allclose(same, weights, atol=1e-12)


def test_distances_bound_each_other() -> None:
    """TV^2 <= 2 H^2 <= KL on pairs, and H^2 is a quarter of KL nearby."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        p, q = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
        h2 = hellinger(p, q)
        assert (0.5 * np.abs(p - q).sum()) ** 2 <= 2 * h2 + 1e-12
        assert 2 * h2 <= (p * np.log(p / q)).sum() + 1e-12
    _, w = solved(20.0)
    kl = (w * w.log()).mean().item()
    h2 = 1 - w.sqrt().mean().item()
    assert h2 == pytest.approx(kl / 4, rel=0.02)
    assert h2 < solved(10.0)[1].sqrt().mean().neg().add(1).item() < solved(2.0)[1].sqrt().mean().neg().add(1).item()


# -- weights ---------------------------------------------------------------------------------------------------------

STEPS = torch.tensor([-5, -3, -1, 0, 0.5, 1, 1.5, 1.5528, 1.9], dtype=torch.float64)


def test_the_family_is_the_q_exponential() -> None:
    """The table of both ends, and clip(1 + (q - 1) x, 0)^(1 / (q - 1)) word by word for others."""
    hdcr = [0.0816, 0.160, 0.444, 1, 1.778, 4, 16, 20, 400]
    awr = [0.0067, 0.0498, 0.368, 1, 1.649, 2.718, 4.482, 4.725, 6.686]
    assert q_exponential(STEPS, 0.5, 1e6).tolist() == pytest.approx(hdcr, rel=2e-3)
    assert q_exponential(STEPS, 1.0, 1e6).tolist() == pytest.approx(awr, rel=7e-3)
    assert q_exponential(STEPS, 0.5, 1e6).tolist() == pytest.approx(((1 - STEPS / 2) ** -2).tolist(), rel=1e-12)
    for q in (0.3, 0.5, 0.8, 1.3, 1.5, 2.0):
        x = STEPS[STEPS * (1 - q) < 0.99]
        expected = (1 + (q - 1) * x).clamp(min=0) ** (1 / (q - 1))
        assert q_exponential(x, q, 1e6).tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    near = q_exponential(STEPS, 1 - 1e-9, 1e6)
    assert near.tolist() == pytest.approx(q_exponential(STEPS, 1.0, 1e6).tolist(), rel=1e-6)


def test_weights_rise_with_advantages_and_stay_finite() -> None:
    a = torch.linspace(-4, 1.55, 500).double()
    w, exponential = q_exponential(a, 0.5, 20.0), q_exponential(a, 1.0, 1e6)
    assert (w.diff() > 0).all()
    assert q_exponential(torch.zeros(1).double(), 0.5, 20.0) == 1
    assert (w >= exponential - 1e-12).all()
    small = torch.tensor([1e-3, -1e-3]).double()
    quarter = (q_exponential(small, 0.5, 20.0) - small.exp()) / small.square()
    assert quarter.tolist() == pytest.approx([0.25, 0.25], abs=1e-3)  # w - exp = A^2 / 4 + O(A^3) for lambda = 2
    far = torch.tensor([-1e6, -2.0, 2.0, 1e3, 1e6])
    for q in (0.1, 0.5, 1.0, 1.7, 2.0):
        for kind in (far, far.double()):
            clipped = q_exponential(kind, q, 20.0)
            assert clipped.isfinite().all()
            assert (clipped.max(), clipped[-1]) == (20, 20)  # exactly: what is clipped can be counted


@pytest.mark.parametrize("q", [0.3, 0.5, 1.0, 1.5, 2.0])
def test_normalised_weights(q: float) -> None:
    a = torch.randn(400, generator=torch.Generator().manual_seed(0)).double()
    tau = 1.5
    w = q_exponential((a - normalising_shift(a, q, tau)) / tau, q, 800.0)
    assert w.mean().item() == pytest.approx(1, abs=1e-10)
    double = torch.cat((a, a))
    twice = q_exponential((double - normalising_shift(double, q, tau)) / tau, q, 1600.0)
    assert torch.allclose(twice, torch.cat((w, w)), atol=1e-10)  # duplicates change nothing
    scaled = normalising_shift(2 * a, q, 2 * tau)
    assert scaled.item() == pytest.approx(2 * normalising_shift(a, q, tau).item(), abs=1e-10)  # w(k A, k lambda) = w
    if q == 1:
        closed = tau * (a / tau).exp().mean().log().item()
        assert normalising_shift(a, 1.0, tau).item() == pytest.approx(closed, abs=1e-10)


def config(**kwargs: Any) -> HDCRConfig:
    return HDCRConfig(**kwargs)


def standard_normal(count: int) -> Tensor:
    """Quantiles: as drawn ones, without their noise."""
    return torch.special.ndtri((torch.arange(count).double() + 0.5) / count)


@pytest.mark.parametrize(
    ("clip", "lam", "greatest", "ess", "h2"),
    [
        (1.5, 0.5, 10.7, 0.120, 0.400),
        (1.5, 2, 3.7, 0.521, 0.086),
        (2.0, 1, 21.3, 0.080, 0.333),
        (2.0, 2, 8.0, 0.335, 0.120),
        (2.5, 4, 4.5, 0.728, 0.034),
    ],
)
def test_winsorised_weights_do_not_condense(clip: float, lam: float, greatest: float, ess: float, h2: float) -> None:
    """A hundred thousand standard normal advantages; the table was measured on drawn ones."""
    found = weigh(standard_normal(100_000), config(normaliser="dataset", temperature=lam / 2, upper_clip=clip))
    assert found.weights.max().item() == pytest.approx(greatest, rel=0.02)
    assert (found.ess.item(), found.h2.item()) == pytest.approx((ess, h2), rel=0.02)
    assert found.clipped.item() == pytest.approx(0.5 * math.erfc(clip / 2**0.5), abs=1e-3)


def test_exact_weights_condense() -> None:
    found = weigh(standard_normal(100_000), config(normaliser="dataset", temperature=1.0, upper_clip=1e9))
    assert found.weights.max() > 70_000
    assert found.ess < 3e-5
    tame = weigh(standard_normal(100_000), config(normaliser="dataset", temperature=4.0, upper_clip=1e9))
    assert tame.ess > 0.9


@pytest.mark.parametrize(
    ("hyper", "ess", "clipped", "gain"),
    [
        ({"q": 1.0, "temperature": 1.0}, 0.396, None, 0.983),
        ({"temperature": 1.0}, 0.255, 0.059, None),
        ({"temperature": 1.5}, 0.307, 0.010, 0.996),
        ({"temperature": 2.0}, 0.530, 0.001, None),
    ],
)
def test_fixed_weights(hyper: dict[str, Any], ess: float, clipped: float | None, gain: float | None) -> None:
    found = weigh(standard_normal(100_000), config(**hyper))
    assert found.ess.item() == pytest.approx(ess, rel=0.02)
    if clipped is not None:
        assert found.clipped.item() == pytest.approx(clipped, abs=2e-3)
    if gain is not None:  # under the weights: what makes lambda = 3 AWR's equal
        assert found.advantage.item() == pytest.approx(gain, rel=0.02)


def test_a_target_divergence_finds_the_temperature() -> None:
    a = standard_normal(10_000)
    for q in (0.5, 1.0):
        for h2 in (0.02, 0.1, 0.3):
            found = weigh(torch.stack((a, 3 * a)), config(q=q, normaliser="dataset", target_divergence=h2))
            assert found.h2.tolist() == pytest.approx([h2, h2], abs=1e-6)
        assert found.weights.mean(-1).tolist() == pytest.approx([1, 1], abs=1e-9)
    by_temperature = weigh(a, config(normaliser="dataset", temperature=1.0))
    by_distance = weigh(a, config(normaliser="dataset", target_divergence=by_temperature.h2.item()))
    assert torch.allclose(by_distance.weights, by_temperature.weights, atol=1e-6)
    by_hand = weigh(a, config(normaliser="dataset", temperature=1.1))
    assert by_hand.h2.item() == pytest.approx(0.1, abs=0.01)  # at lambda = 2.2
    with pytest.raises(ValueError, match=r"train_freq must lie in \[1, inf\), got 0"):
        config(train_freq=0)
    with pytest.raises(ValueError, match="target_divergence needs normaliser"):
        config(target_divergence=0.1)
    with pytest.raises(ValueError, match="weight='step' keeps them"):
        config(weight="step", normaliser="batch")


def test_limits() -> None:
    a = standard_normal(1000)
    for hyper in ({"temperature": 1e6}, {"temperature": 1e6, "normaliser": "dataset"}, {"temperature": 1e6, "q": 1.0}):
        assert torch.allclose(weigh(a, config(**hyper)).weights, torch.ones(1000).double(), atol=1e-5)
    all_on_one = weigh(a, config(temperature=1e-6, normaliser="dataset", upper_clip=1e9)).weights
    assert all_on_one[-1].item() == pytest.approx(1000, rel=1e-3)
    assert weigh(a[:1], config(normaliser="dataset")).weights.tolist() == [1]
    esses = [weigh(a, config(normaliser="dataset", temperature=t)).ess.item() for t in (0.25, 0.5, 1, 2, 4)]
    assert esses == sorted(esses)


def test_steps_and_lines() -> None:
    a = torch.tensor([-3.0, -0.1, 0.0, 0.1, 3.0])
    assert weigh(a, config(weight="step")).weights.tolist() == [0, 0, 1, 1, 1]
    line = weigh(a, config(weight="linear", temperature=2.0)).weights
    assert line.tolist() == pytest.approx([0, 0.95, 1, 1.05, 2.5], abs=1e-6)


def test_weights_that_cannot_be() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="advantages are not finite: V has diverged"):
            weigh(torch.tensor([0.0, bad]), config())
    with pytest.raises(ValueError, match=r"all weights are zero \(weight=linear, temperature=0.1\): raise temperature"):
        weigh(torch.tensor([-1.0, -2.0]), config(weight="linear", temperature=0.1))


# -- returns ---------------------------------------------------------------------------------------------------------

ENDS = [(3, True), (1, False), (5, False), (1, True), (7, True)]
"""Lengths of episodes, and whether they terminated."""


def episodes() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    lengths = torch.tensor([length for length, _ in ENDS])
    last = lengths.cumsum(0) - 1
    ended = torch.zeros(int(lengths.sum()), dtype=torch.bool)
    ended[last] = True
    terminated = ended.clone()
    terminated[last] = torch.tensor([end for _, end in ENDS])
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(len(ended), generator=generator) for _ in range(2))
    return rewards, values, terminated, ended


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_td_lambda_against_a_loop(lam: float) -> None:
    rewards, values, terminated, ended = episodes()
    expected = [0.0] * len(rewards)
    for t in reversed(range(len(rewards))):
        v = 0.0 if terminated[t] else values[t].item()
        rest = v if ended[t] else (1 - lam) * v + lam * expected[t + 1]
        expected[t] = rewards[t].item() + 0.9 * rest
    found = td_lambda(rewards, values, terminated, ended, 0.9, lam)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    stacked = td_lambda(rewards, torch.stack((values, values)), terminated, ended, 0.9, lam)
    assert torch.equal(stacked, torch.stack((found, found)))


def test_ends_of_lambda() -> None:
    rewards, values, terminated, ended = episodes()
    one_step = td_lambda(rewards, values, terminated, ended, 0.9, 0.0)
    assert torch.allclose(one_step, rewards.double() + 0.9 * values.double() * ~terminated, atol=1e-12)
    whole = td_lambda(rewards, values, terminated, ended, 0.9, 1.0)
    tail = sum(0.9**k * rewards[-7 + k].item() for k in range(7))
    assert whole[-7].item() == pytest.approx(tail, abs=1e-12)
    cut = terminated.clone()
    cut[-1] = False
    goes_on, ends = (td_lambda(rewards, values, flags, ended, 0.9, 0.3) for flags in (cut, terminated))
    assert (goes_on - ends)[-1].item() == pytest.approx(0.9 * values[-1].item(), abs=1e-12)


# -- small problems ----------------------------------------------------------------------------------------------------


def bandit(actions: Tensor, rewards: Tensor, space: spaces.Space[Any] | None = None, **extras: Tensor) -> Dataset:
    """One state, one step an episode."""
    count = len(actions)
    return Dataset(
        observation_space=spaces.Box(-1, 1, (1,)),
        action_space=spaces.Box(-1, 1, (1,)) if space is None else space,
        obs=torch.zeros(count, 1),
        final_obs=torch.zeros(count, 1),
        actions=actions,
        rewards=rewards.double(),
        lengths=torch.ones(count, dtype=torch.int64),
        terminated=torch.ones(count, dtype=torch.bool),
        extras=extras,
    )


FAST: dict[str, Any] = {"net_arch": [16], "batch_size": 256, "device": "cpu", "seed": 0, "normalize_obs": False}
FAST |= {"learning_rate": 1e-2, "value_learning_rate": 1e-2, "value_steps": 60, "actor_steps": 140}


def test_a_bandit_moves_to_the_weighted_mean() -> None:
    """With quadratic rewards around 0.3: to E[w a] / E[w], within the noise of minibatches of 256."""
    actions = (0.3 * torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    rewards = -(actions[:, 0] - 0.3).square()
    agent = HDCR("MlpPolicy", dataset=bandit(actions, rewards), **FAST).learn(200)
    advantages = (rewards - rewards.mean()) / rewards.std()
    w = weigh(advantages, HDCRConfig()).weights
    wanted = ((w * actions[:, 0]).sum() / w.sum()).item()
    assert wanted > 0.1
    assert agent.predict(np.zeros(1, np.float32), deterministic=True)[0][0] == pytest.approx(wanted, abs=0.03)


def test_equal_advantages_clone_the_data() -> None:
    agent = HDCR("MlpPolicy", dataset=bandit(torch.rand(50, 1), torch.ones(50)), **FAST).learn(61)
    # V is the same for all but for its last bit, of which the division by the advantages' spread makes 0.015 on an AMD
    # EPYC, and less than 0.001 on an Intel Xeon.
    assert torch.allclose(agent.targets, torch.ones(50), atol=0.05)
    assert float((agent.targets - 1).abs().median()) < 1e-3


def test_far_from_the_pole_the_family_is_one() -> None:
    """lambda = 2000 and AWR at tau = 1000: their weights differ by A^2 / (4 tau^2)."""
    data = played(Point(), 10)
    small = FAST | {"actor_steps": 60, "value_steps": 20}
    one = HDCR("MlpPolicy", dataset=data, temperature=1000.0, **small).learn(160)
    other = HDCR("MlpPolicy", dataset=data, q=1.0, temperature=1000.0, **small).learn(160)
    obs = np.linspace(-1, 1, 9, dtype=np.float32).reshape(9, 1)
    assert np.allclose(one.predict(obs, deterministic=True)[0], other.predict(obs, deterministic=True)[0], atol=1e-5)


def test_steps_are_of_values_and_then_of_the_actor() -> None:
    agent = HDCR(
        "MlpPolicy", dataset=played(Point(), 5), **FAST | {"value_steps": 3, "actor_steps": 4, "batch_size": 8}
    )
    moved = []
    for _ in range(9):
        before = {name: tensor.clone() for name, tensor in agent.modules.state().items()}
        agent.learn(1, reset_num_timesteps=False)
        after = agent.modules.state()
        moved.append({name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])})
    assert moved == [{"value"}] * 3 + [{"actor"}] * 4 + [{"value"}] * 2


def test_targets_against_a_loop() -> None:
    """Returns and weights of the first round, with V as it is before and after."""
    data, gamma = played(Point(), 5), 0.9
    small = FAST | {"value_steps": 1, "actor_steps": 1, "gamma": gamma, "return_lambda": 0.0}
    agent = HDCR("MlpPolicy", dataset=data, **small)
    rewards, last = data.rewards, torch.zeros(len(data), dtype=torch.bool)
    last[data.ends] = data.terminated

    def value(obs: Any) -> Tensor:
        return agent.value.module(obs).detach()[0].double() / (1 - gamma)

    expected = rewards.float() + gamma * value(data.next_obs) * ~last
    agent.learn(1)
    assert torch.allclose(agent.targets, expected.float() * (1 - gamma), atol=1e-5)
    advantages = rewards.float() + gamma * value(data.next_obs) * ~last - value(data.obs)
    agent.learn(1, reset_num_timesteps=False)
    standardised = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-5)
    assert torch.allclose(agent.targets, weigh(standardised, agent.config).weights.float(), rtol=1e-3)


def test_a_replay_of_several_policies_is_their_mixture() -> None:
    """Two halves of one policy weigh as the whole; so does the same data twice."""
    a = standard_normal(1000)
    cfg = config(normaliser="dataset", temperature=1.0)
    shuffled = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(weigh(a[shuffled], cfg).weights, weigh(a, cfg).weights[shuffled], atol=1e-9)
    assert torch.allclose(weigh(a.repeat(3), cfg).weights, weigh(a, cfg).weights.repeat(3), atol=1e-9)


def test_hellinger_to_mixtures_is_convex() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        pi, *mus = rng.dirichlet(np.ones(5), 4)
        shares = rng.dirichlet(np.ones(3))
        apart = sum(share * hellinger(pi, mu) for share, mu in zip(shares, mus, strict=True))
        assert hellinger(pi, shares @ np.stack(mus)) <= apart + 1e-12


def test_the_distance_to_what_was_recorded_is_measured() -> None:
    """Before the actor has moved it is known: a Gaussian of 0.4 against uniform actions on [-2, 2]."""
    space = spaces.Box(-2, 2, (1,))
    actions = torch.linspace(-2, 2, 1001).unsqueeze(1)
    data = bandit(actions, torch.zeros(1001), space, behavior_logp=torch.full((1001,), -math.log(4.0)))
    agent: Any = HDCR("MlpPolicy", dataset=data, **FAST | {"value_steps": 1, "actor_steps": 1})
    agent.learn(1)
    mean = agent.actor.module.mode(torch.zeros(1, 1)).item()
    density = torch.exp(-0.5 * ((actions[:, 0] / 2 - mean) / 0.4) ** 2) / (0.4 * math.sqrt(2 * math.pi)) / 2
    found = agent._update("weigh")["h2_measured"].item()
    assert found == pytest.approx(1 - (density / 0.25).sqrt().mean().item(), abs=1e-5)


def test_few_effective_samples_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    actions = torch.rand(500, 1)
    rewards = torch.zeros(500)
    rewards[0] = 1e3
    HDCR("MlpPolicy", dataset=bandit(actions, rewards), **FAST | {"value_steps": 1, "actor_steps": 2}, max_weight=1e5,
         temperature=0.02).learn(6)  # fmt: skip
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 1  # once, not in every round
    assert "effective samples" in warned[0]
    assert "raise temperature" in warned[0]


def test_it_learns_from_what_it_does(tmp_path: Any) -> None:
    """Without data, in an environment, a round at a time."""
    agent: Any = HDCR(
        "MlpPolicy", vec(), **FAST | {"train_freq": 20, "learning_starts": 10, "value_steps": 5, "actor_steps": 7}
    )
    agent.learn(40)
    assert agent.updates == 2 * (5 + 7 + 2)
    assert agent.targets.shape == (40,)
    rows, ended = agent.rows()
    assert torch.equal(rows.obs[1:][~ended[:-1]], rows.next_obs[:-1][~ended[:-1]])
    last = rows.terminated | rows.truncated
    last[-1] = True
    assert torch.equal(ended, last)
