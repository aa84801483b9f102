"""Behaviour cloning, and the best episodes."""

from typing import Any

import numpy as np
import pytest
import torch
from headway.agents import BC
from headway.agents.bc import best_episodes
from toys import Point, homewards_in_halves, played

FAST: dict[str, Any] = {"net_arch": [16], "batch_size": 64, "device": "cpu", "seed": 0, "learning_rate": 1e-2}


def test_the_best_episodes_are_kept() -> None:
    data = played(Point(), 10)
    best = best_episodes(data, 0.3)
    assert sorted(best.returns.tolist(), reverse=True) == data.returns.sort(descending=True).values[:3].tolist()
    assert best_episodes(data, 1e-6).episodes == 1
    assert best_episodes(data.select(range(10)), 0.7).episodes == 7
    hundred = data.select(list(range(10)) * 10)
    assert best_episodes(hundred, 0.29).episodes == 29  # whose product is 28.999999999999996
    assert len(BC("MlpPolicy", dataset=data, keep_best=0.3, **FAST).data.rewards) == len(best)


@pytest.mark.parametrize("moves", ["box", "discrete"])
def test_it_does_what_was_done(moves: str) -> None:
    """Half moves to the left of the origin and to its right; a Gaussian learns their deviation too."""
    if moves == "box":
        data = played(Point(), 30, lambda obs, rng: (-0.5 * obs + 0.1 * rng.normal(size=1)).astype(np.float32))
    else:
        data = played(Point(moves=moves), 30, homewards_in_halves)
    agent: Any = BC("MlpPolicy", dataset=data, **FAST).learn(250)
    obs = np.float32([[-1], [-0.5], [0], [0.5], [1]])
    actions, _ = agent.predict(obs, deterministic=True)
    if moves == "discrete":
        assert actions.tolist() == [4, 3, 2, 1, 0]
        return
    assert np.allclose(actions, -0.5 * obs, atol=0.1)
    assert agent.actor.module.policy.log_std.exp().item() == pytest.approx(0.1, rel=0.2)
    noisy = np.stack([agent.predict(obs)[0] for _ in range(300)])
    assert noisy.std(0).mean() == pytest.approx(0.1, rel=0.25)


def test_a_share_of_none() -> None:
    with pytest.raises(ValueError, match=r"keep_best must lie in \(0, 1\], got 0"):
        BC("MlpPolicy", dataset=played(Point(), 2), keep_best=0.0, device="cpu")


def test_one_step_is_the_likelihoods() -> None:
    agent: Any = BC("MlpPolicy", dataset=played(Point(), 5), **FAST | {"learning_rate": 1e-3})
    twin: Any = BC("MlpPolicy", dataset=played(Point(), 5), **FAST | {"learning_rate": 1e-3})
    batch, actor = twin.sample(), twin.actor.module
    spread = actor.policy.log_std.exp()
    density = torch.distributions.Normal(actor.outputs(batch.obs).tanh(), spread).log_prob(batch.actions).sum(-1)
    (-density.mean()).backward()
    torch.optim.Adam(actor.parameters(), 1e-3).step()
    agent.learn(1)
    for mine, theirs in zip(agent.actor.module.parameters(), actor.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
