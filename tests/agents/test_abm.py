"""ABM: what lies ahead of a step, the temperature's dual, the trust region, the prior, one update."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from headway.agents import ABM
from headway.agents.abm import Multipliers, look_ahead, moved, temperature_dual
from headway.agents.core.nets import BoundedGaussian
from scipy.optimize import minimize_scalar
from toys import Point, played

FAST: dict[str, Any] = {"net_arch": [16, 16], "batch_size": 16, "device": "cpu", "seed": 0, "learning_rate": 3e-3}


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_look_ahead_against_a_loop(steps: int) -> None:
    lengths, ends = [3, 1, 5, 1, 4], [True, False, False, True, True]
    ended = torch.zeros(14, dtype=torch.bool)
    last = torch.tensor(lengths).cumsum(0) - 1
    ended[last] = True
    terminated = torch.zeros(14, dtype=torch.bool)
    terminated[last] = torch.tensor(ends)
    rewards = torch.randn(14, generator=torch.Generator().manual_seed(0))
    partial, discount, final = look_ahead(rewards, terminated, ended, 0.9, steps)
    for t in range(14):
        total, scale, at = 0.0, 1.0, t
        for k in range(steps):
            at = t + k
            total, scale = total + scale * rewards[at].item(), scale * 0.9
            if ended[at]:
                break

        assert partial[t].item() == pytest.approx(total, abs=1e-6)
        assert final[t] == at
        assert discount[t].item() == pytest.approx(0.0 if terminated[at] else scale, abs=1e-6)


def test_the_duals_minimum_meets_the_bound() -> None:
    """At its least, the weights' divergence from the prior is epsilon, and q_j = softmax(Q / eta)."""
    q = torch.randn(20, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def dual(eta: float) -> float:
        return temperature_dual(q, torch.tensor([eta], dtype=torch.float64), 0.1).item()

    loop = 0.3 * 0.1 + 0.3 * sum(math.log(sum(math.exp(x / 0.3) for x in row) / 20) for row in q.T.tolist()) / 50
    assert dual(0.3) == pytest.approx(loop, abs=1e-9)
    eta = minimize_scalar(dual, bounds=(1e-2, 50), method="bounded", options={"xatol": 1e-8}).x
    weights = (q / eta).softmax(0)
    divergence = (weights * (20 * weights).log()).sum(0).mean().item()
    assert divergence == pytest.approx(0.1, abs=1e-5)
    two = temperature_dual(torch.stack((q, q)), torch.tensor([[0.3], [0.7]], dtype=torch.float64), 0.1).item()
    assert two == pytest.approx(dual(0.3) + dual(0.7), abs=1e-9)


def test_how_far_a_policy_moved() -> None:
    """Both parts against torch's divergence of Gaussians, each with the other kept."""
    policy = BoundedGaussian(2, -0.3)
    policy.raw_log_std.data += torch.tensor([0.1, -0.4])
    old_log_std, mean, old_mean = torch.tensor([[-0.5, -0.2]]), torch.rand(7, 2), torch.rand(7, 2)
    by_mean, by_std = moved(policy, mean, old_mean, old_log_std)
    normal, kl = torch.distributions.Normal, torch.distributions.kl_divergence
    spread, new = old_log_std.exp(), policy.log_std.exp()
    wanted = kl(normal(old_mean, spread), normal(mean, spread)).sum(-1).mean().item()
    assert by_mean.item() == pytest.approx(wanted, rel=1e-5)
    zero = torch.zeros(1, 2)
    assert by_std.item() == pytest.approx(kl(normal(zero, spread), normal(zero, new)).sum().item(), rel=1e-5)
    eta, one, other = Multipliers()()
    assert (eta.item(), one.item(), other.item()) == pytest.approx((1, 1, 1), abs=1e-5)


def test_the_policy_stays_in_its_trust_region() -> None:
    """Between two copies to the target, its mean moves by about the bound, not by many times it."""
    hyper = FAST | {"target_update_interval": 10_000, "epsilon_mean": 5e-3, "multiplier_learning_rate": 0.1}
    hyper |= {"n_samples": 5}
    agent: Any = ABM("MlpPolicy", dataset=played(Point(), 30), **hyper).learn(200)
    actor, target = agent.actor.module, agent.actor.target
    obs = agent.data.obs
    kl, _ = moved(actor.policy, actor.mode(obs).detach(), target.mode(obs), target.policy.log_std)
    assert 0 < kl.item() < 5 * 5e-3  # the multiplier is still on its way
    free: Any = ABM("MlpPolicy", dataset=played(Point(), 30), **hyper | {"epsilon_mean": 1e3}).learn(200)
    actor = free.actor.module
    far, _ = moved(actor.policy, actor.mode(obs).detach(), target.mode(obs), target.policy.log_std)
    assert far > 3 * kl


def test_the_prior_does_what_went_better_than_expected() -> None:
    """Of moves by chance, those that went well lead homewards; their mean would be to stay."""
    hyper = {"gamma": 0.5, "batch_size": 64, "target_update_interval": 20, "epsilon_mean": 0.05, "n_samples": 5}
    agent: Any = ABM("MlpPolicy", dataset=played(Point(), 60), **FAST | hyper).learn(400)
    prior = agent.prior.module.mode(torch.tensor([[-1.0], [1.0]])).flatten()
    assert prior[0] > 0.25
    assert prior[1] < -0.25
    actions, _ = agent.predict(np.float32([[-1], [1]]), deterministic=True)
    assert actions[0] > 0.25
    assert actions[1] < -0.25


def test_snippets_of_the_data() -> None:
    """What is ahead of a step is what was recorded after it."""
    data = played(Point(), 4)
    agent: Any = ABM("MlpPolicy", dataset=data, n_steps=3, **FAST)
    rows, next_obs = agent.data, data.next_obs
    ends = data.ends.tolist()
    for t in range(len(data)):
        last = min(t + 2, next(end for end in ends if end >= t))
        assert torch.equal(rows.later_obs[t], next_obs[last])
        expected = sum(0.99**k * data.rewards[t + k].item() for k in range(last - t + 1))
        assert rows.partial[t].item() == pytest.approx(expected, abs=1e-5)


def test_targets_are_copied_now_and_then() -> None:
    agent: Any = ABM("MlpPolicy", dataset=played(Point(), 4), **FAST | {"target_update_interval": 3})
    equal = []
    for _ in range(6):
        agent.learn(1, reset_num_timesteps=False)
        pairs = [(agent.actor.module, agent.actor.target), (agent.critics.module, agent.critics.target)]
        equal.append([all(map(torch.equal, one.parameters(), slow.parameters())) for one, slow in pairs])
    assert equal == [[False, False], [False, False], [True, True]] * 2
