"""TPO: PPO until it searches, a gate between, two accounts of steps, a policy that becomes what the search found."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from headway.agents import PPO, SAC, TPO, TPOConfig
from headway.agents.core.nets import ActorValue, Categorical
from headway.agents.core.nets.stacks import StackedMLP
from headway.agents.core.spaces import VectorFeatures
from headway.agents.tpo import SearchDoesNotHelpError, SearchPolicy, guide_of
from headway.agents.tpo.distil import Record, distil_losses
from headway.agents.tpo.gate import judge
from headway.agents.tpo.moments import advantage_loss
from headway.agents.tpo.policy import StateGaussian
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize
from support import Stop, same_tree
from toys import Point, vec

SMALL: dict[str, Any] = {"seed": 0, "n_steps": 16, "batch_size": 16, "net_arch": (8,), "n_epochs": 2}
TREES: dict[str, Any] = {"simulations": 8, "candidates": 4, "search_batch_size": 32, "history": 2, "gate": "off"}


def tpo(env: Any = None, **options: Any) -> TPO:
    return TPO("MlpPolicy", vec(2) if env is None else env, **{**SMALL, **TREES, "bootstrap_steps": 64, **options})


# -- two parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", ["shared", "state"])
def test_before_it_searches_it_is_ppo(std: Any) -> None:
    peer = PPO("MlpPolicy", vec(2), **SMALL).learn(128)
    agent = tpo(std=std, bootstrap_steps=128).learn(128)
    assert not agent.searching
    assert agent.simulated == 0
    obs = np.linspace(-1, 1, 9, dtype=np.float32)[:, None]
    if std == "shared":
        same_tree(agent.get_parameters()["policy"], peer.get_parameters()["policy"])
    else:  # whose network says more, from other random numbers, but nothing of that counts
        policy = agent.nets.module.policy
        outputs, _ = agent.nets.module(torch.as_tensor(obs))
        mean, log_std = policy.moments(outputs)
        assert torch.equal(log_std, policy.log_std.expand_as(mean))
        assert not outputs[:, 1:].any()
        assert policy.free == 0


def test_both_accounts_of_steps_are_kept(tmp_path: Path) -> None:
    agent = tpo()
    agent.learn(64)
    assert (agent.searching, agent.simulated, agent.describe_round()) == (False, 0, "")
    agent.learn(128, reset_num_timesteps=False)
    assert agent.searching
    assert agent.rounds == 4
    assert agent.num_timesteps == 192
    assert 0.8 * 8 * 128 < agent.simulated <= 8 * 128  # fewer where episodes end in the simulator
    head, line = agent.describe_round().splitlines()
    assert head.split() == ["real", "steps", "simulated", "steps", "return", "top", "share", "best", "Q", "-", "v"]
    assert [int(cell.replace(",", "")) for cell in line.split()[:2]] == [192, 192 + agent.simulated]
    assert "\n" not in agent.describe_round()
    logged: dict[str, Any] = {}
    agent.set_logger(sb3.common.logger.Logger(None, []))
    agent.logger.dump = lambda step: logged.update(agent.logger.name_to_value)  # type: ignore[method-assign]
    agent.dump_logs()
    assert logged["time/simulator_steps"] == 192 + agent.simulated
    assert logged["search/kl"] >= 0
    assert 1 <= logged["search/effective_candidates"] <= 4


def test_the_last_rounds_are_learned_from() -> None:
    agent = tpo(bootstrap_steps=0)
    agent.learn(32)
    assert int(agent.memory["real"].sum()) == 32
    first = agent.memory.field("obs")[:16].clone()  # type: ignore[index]
    agent.learn(64, reset_num_timesteps=False)
    assert int(agent.memory["real"].sum()) == 64
    assert not torch.equal(agent.memory.field("obs")[:16], first)  # type: ignore[index]
    assert torch.equal(agent.memory["visits"].sum(-1), torch.full((32, 2), 8.0))
    mixed = 0.5 * (agent.rollout["values"] + agent.rollout["advantages"] + agent.rollout["values"])
    torch.testing.assert_close(agent.rollout["returns"], mixed)
    torch.testing.assert_close(agent.memory["returns"][:16], mixed)


@pytest.mark.parametrize("loss", ["moments", "kl_moments", "policy_moments", "nll", "a0c", "adv"])
@pytest.mark.parametrize("moves", ["box", "discrete"])
def test_every_loss_learns(loss: Any, moves: str) -> None:
    agent = tpo(vec(2, moves=moves), bootstrap_steps=0, policy_loss=loss, kl_stop=None)
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    agent.learn(64)
    assert any(not torch.equal(one, other) for one, other in zip(before, agent.policy.parameters(), strict=True))
    assert all(parameter.isfinite().all() for parameter in agent.policy.parameters())


def test_it_learns_what_its_search_finds() -> None:
    agent = tpo(vec(4), bootstrap_steps=0, n_epochs=10, gamma=0.5, learning_rate=1e-2, log_std_init=-1.0)
    before, _ = evaluate_policy(agent, vec(1), 20, warn=False)
    agent.learn(1024)
    after, _ = evaluate_policy(agent, vec(1), 20, warn=False)
    assert before < -1.0
    assert after > -0.05
    policy = agent.nets.module.policy
    outputs, _ = agent.nets.module(torch.linspace(-1, 1, 9).unsqueeze(1))
    assert policy.moments(outputs)[1].std() > 0  # each state has its own


def test_updates_stop_where_the_policy_has_moved_far_enough() -> None:
    agent = tpo(bootstrap_steps=0, kl_stop=1e-9, n_epochs=10)
    agent.learn(32)
    assert agent.updates == 2  # the first moves it, the second sees that


# -- resuming ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [20, 64, 70, 100])
def test_it_goes_on_from_any_step(tmp_path: Path, at: int) -> None:
    options = {"reward_scaling": "returns"}
    straight = tpo(VecNormalize(vec(2)), **options).learn(192, log_interval=2)
    stopped = tpo(VecNormalize(vec(2)), **options)
    stopped.learn(192, Stop(at), log_interval=2)
    stopped.save_checkpoint(tmp_path)
    resumed = TPO.resume(tmp_path, VecNormalize(vec(2)))
    resumed.learn(resumed.remaining_timesteps, reset_num_timesteps=False, log_interval=2)
    same_tree(resumed.modules.state(), straight.modules.state())
    same_tree(resumed.memory.state(), straight.memory.state())
    assert (resumed.simulated, resumed.rounds) == (straight.simulated, straight.rounds)
    assert not resumed.get_vec_normalize_env().training  # type: ignore[union-attr]
    assert resumed.reward_unit == straight.reward_unit


def test_statistics_are_frozen_by_the_first_search() -> None:
    agent = tpo(VecNormalize(vec(2), norm_reward=False), reward_scaling="returns")
    agent.learn(64)
    source, unit = agent.get_vec_normalize_env(), agent.reward_unit
    assert source is not None
    assert source.training
    mean = source.obs_rms.mean.copy()  # type: ignore[union-attr]
    agent.learn(64, reset_num_timesteps=False)
    assert not source.training
    assert np.array_equal(source.obs_rms.mean, mean)  # type: ignore[union-attr]
    assert agent.reward_unit == unit


# -- the gate ----------------------------------------------------------------------------------------------------------


def test_the_gate_stops_where_search_does_not_help(caplog: pytest.LogCaptureFixture) -> None:
    good = PPO("MlpPolicy", vec(4), **SMALL | {"gamma": 0.5, "learning_rate": 3e-3, "log_std_init": -1.0}).learn(4000)
    hopeless = {"simulations": 2, "candidates": 1, "gate_episodes": 6}
    agent = tpo(start_from=good, gate="stop", **hopeless)
    match = (
        r"with search, -0\.\d+? ± [\d.]+ without \(6 episodes each, ± standard errors\): there is nothing to learn from"
    )
    with pytest.raises(SearchDoesNotHelpError, match=match):
        agent.learn(32)
    assert agent.num_timesteps == 0
    assert not agent.searching
    with caplog.at_level(logging.INFO, "headway"):
        tpo(start_from=good, gate="warn", **hopeless).learn(32)
        assert "there is little to learn from it" in caplog.text
        caplog.clear()
        agent = tpo(bootstrap_steps=0, gate="stop", simulations=32, candidates=8, gamma=0.5, log_std_init=-1.0)
        agent.learn(32)
        assert agent.simulated > 32 * 32  # the gate's own are counted
        assert "gate: " in caplog.text
    with torch.no_grad():
        planner = agent._planner_in(agent.batched_env, 2)
        one, other = (judge(planner, agent.batched_env, 3, lambda step: torch.arange(2) + 9 * step) for _ in range(2))
    assert one == other
    assert one.helps == (one.search > one.policy)


# -- bootstraps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", ["shared", "state"])
@pytest.mark.parametrize("moves", ["box", "discrete"])
def test_a_trained_policy_is_taken_over(std: Any, moves: str, tmp_path: Path) -> None:
    env = vec(2, moves=moves)
    obs = torch.linspace(-1, 1, 9).unsqueeze(1)
    ours = PPO("MlpPolicy", env, **SMALL).learn(64)
    theirs = sb3.PPO("MlpPolicy", env, n_steps=32, batch_size=16, seed=0, policy_kwargs={"net_arch": [8]}).learn(64)
    ours.save(tmp_path / "ours.zip")
    for given in (ours, tmp_path / "ours.zip", str(tmp_path / "ours.zip"), theirs):
        source = guide_of(ours if isinstance(given, (str, Path)) else given)
        agent = tpo(env, start_from=given, std=std)
        with torch.no_grad():
            for found, expected in zip(guide_of(agent).look(obs), source.look(obs), strict=True):
                torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        assert agent.starts_search_at == 0
    agent.learn(32)
    assert agent.searching


def test_bootstraps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layers of another size \(\(4, 1\) for \(8, 1\)\): take its net_arch"):
        tpo(start_from=PPO("MlpPolicy", vec(2), **SMALL | {"net_arch": (4,)}))
    with pytest.raises(ValueError, match="the bootstrap has 3 layers, for 2: take its net_arch"):
        tpo(start_from=PPO("MlpPolicy", vec(2), **SMALL | {"net_arch": (8, 8)}))
    for other in (SAC("MlpPolicy", vec(2), net_arch=(8,)), sb3.SAC("MlpPolicy", vec(2))):
        with pytest.raises(TypeError, match="SAC cannot be a bootstrap: PPO can, and Stable-Baselines3's PPO and A2C"):
            tpo(start_from=other)
    scaled = PPO("MlpPolicy", vec(2), **SMALL, reward_scaling="returns").learn(64)
    with pytest.raises(ValueError, match=r"1 of the bootstrap's values is [\d.]+ of reward, and rewards are not"):
        tpo(start_from=scaled)
    agent = tpo(start_from=scaled, reward_scaling="returns")
    assert agent.reward_unit == pytest.approx(scaled.reward_unit)
    agent.learn(32)
    assert agent.reward_unit == pytest.approx(scaled.reward_unit)


def test_environments_that_cannot_be_searched_are_refused_before_anything_begins() -> None:
    env = SubprocVecEnv([Point] * 2)
    agent = tpo(env)
    with pytest.raises(TypeError, match="the rows of a SubprocVecEnv cannot be reached one by one"):
        agent.learn(64)
    assert agent.num_timesteps == 0
    env.close()


# -- losses ------------------------------------------------------------------------------------------------------------


def record(discrete: bool) -> tuple[ActorValue, Record]:
    generator = torch.Generator().manual_seed(0)
    policy: Any = Categorical(5) if discrete else StateGaussian(2)
    nets = ActorValue(VectorFeatures(3), policy, net_arch=(4,))
    if not discrete:
        policy.free.fill_(1.0)
    assert isinstance(nets.mlp, StackedMLP)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    old = normal(5, 5).log_softmax(1) if discrete else torch.cat((normal(5, 2), normal(5, 2).exp()), 1)
    before = normal(5, 5).log_softmax(1) if discrete else torch.cat((normal(5, 2), normal(5, 2).exp()), 1)
    candidates = torch.arange(5).expand(5, 5)[:, :3] if discrete else normal(5, 3, 2)
    visits = torch.tensor([[1.0, 2, 1], [4, 0, 0], [0, 2, 2], [1, 1, 2], [3, 1, 0]])
    return nets, Record(normal(5, 3), candidates, visits, normal(5, 3), old, before, normal(5), normal(5))


@pytest.mark.parametrize("loss", ["moments", "kl_moments", "policy_moments", "nll", "a0c", "adv"])
@pytest.mark.parametrize("discrete", [False, True])
def test_losses_against_loops(loss: Any, discrete: bool) -> None:
    nets, batch = record(discrete)
    cfg = TPOConfig(policy_loss=loss, kl_coef=0.3, ent_coef=0.2, bound_coef=2.0, visit_temperature=2.0)
    low, high = torch.full((2,), -0.1), torch.full((2,), 0.1)
    found = distil_losses(nets, batch, (low, high), cfg)
    outputs, values = nets(batch.obs)
    total, policy_total, kl_total = 0.0, 0.0, 0.0
    share = batch.visits.sqrt() / batch.visits.sqrt().sum(1, keepdim=True)
    advantages = batch.q - batch.values.unsqueeze(1)
    weighted = share / share.sum()
    centred = advantages - (weighted * advantages).sum()
    whitened = centred / ((weighted * centred.square()).sum().sqrt() + 1e-8)
    for b in range(5):
        if discrete:
            pi = torch.distributions.Categorical(logits=outputs[b])
            old = torch.distributions.Categorical(logits=batch.outputs[b])
            before = torch.distributions.Categorical(logits=batch.before[b])
            kl, entropy, outside = torch.distributions.kl_divergence(before, pi), pi.entropy(), 0.0
            aim = None
        else:
            mean, log_std = nets.policy.moments(outputs[b].detach())  # type: ignore[operator, union-attr]
            pi, old, before = (
                torch.distributions.Normal(*pair)
                for pair in ((mean, log_std.exp()), batch.outputs[b].chunk(2), batch.before[b].chunk(2))
            )
            kl, entropy = torch.distributions.kl_divergence(before, pi).sum(), log_std.sum()
            outside = 0.5 * float(((mean - high).clamp_min(0) + (low - mean).clamp_min(0)).square().sum())
            m = (share[b].unsqueeze(1) * batch.candidates[b]).sum(0)
            effective = 1 / share[b].square().sum()
            spread = (share[b].unsqueeze(1) * (batch.candidates[b] - m).square()).sum(0) / max(1 - 1 / effective, 0.05)
            kappa = (effective - 1) / 2
            std = (kappa * spread + (1 - kappa) * old.stddev.square()).sqrt()
            std = torch.minimum(std.clamp_min(0.005), (1.5 * old.stddev).clamp_min(0.005))
            aim = torch.distributions.Normal(m, std) if loss != "policy_moments" else old
        log_p, log_old = (d.log_prob(batch.candidates[b]).view(3, -1).sum(-1) for d in (pi, old))
        if loss == "a0c":
            tried = batch.visits[b] > 0
            factor = (log_p - 0.1 * batch.visits[b].clamp_min(1).log()).detach()
            part = (factor * log_p)[tried].sum()
        elif loss == "adv":
            ratio = (log_p - log_old).exp()
            part = -(share[b] * torch.minimum(ratio * whitened[b], ratio.clamp(0.8, 1.2) * whitened[b])).sum()
        elif discrete or loss == "nll":
            part = -(share[b] * log_p).sum()
        elif loss == "kl_moments":
            part = torch.distributions.kl_divergence(aim, pi).sum()
        else:
            by_mean = (mean - aim.mean).square() / (2 * old.stddev.square())  # type: ignore[union-attr]
            part = (by_mean + 0.5 * (log_std - aim.stddev.log()).square()).mean()  # type: ignore[union-attr]
        policy_total, kl_total = policy_total + float(part.detach()) / 5, kl_total + float(kl.detach()) / 5
        value = 0.5 * float((values[b] - batch.returns[b]).detach().square())
        total += (
            float(part.detach()) + value + 0.3 * float(kl.detach()) - 0.2 * float(entropy.detach()) + 2 * outside
        ) / 5
    assert float(found.policy_loss.detach()) == pytest.approx(policy_total, rel=1e-4, abs=1e-5)
    assert float(found.kl.detach()) == pytest.approx(kl_total, rel=1e-4)
    assert float(found.loss.detach()) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize(("coefficient", "least", "most"), [(0.0, 2.5, 3.5), (0.1, -1.5, 2.1)])
def test_means_beyond_the_bounds_come_back(coefficient: float, least: float, most: float) -> None:
    """Out there all candidates act alike, so that the search finds none better than another."""
    nets, batch = record(discrete=False)
    with torch.no_grad():
        nets.mlp.biases[-1][0, ..., :2] = 3.0
        nets.mlp.weights[-1][0] = 0.0
    optimiser, generator = torch.optim.Adam(nets.parameters(), 0.01), torch.Generator().manual_seed(0)
    cfg, bounds = TPOConfig(bound_coef=coefficient, vf_coef=0.0), (torch.full((2,), -1.0), torch.full((2,), 1.0))
    for step in range(1500):
        if step % 10 == 0:
            with torch.no_grad():
                mean, log_std = nets.policy.moments(nets(batch.obs)[0])  # type: ignore[operator, union-attr]
            old = torch.cat((mean, log_std.exp()), 1)
            candidates = mean.unsqueeze(1) + log_std.exp().unsqueeze(1) * torch.randn(5, 3, 2, generator=generator)
        alike = batch._replace(candidates=candidates, outputs=old, before=old, visits=torch.ones(5, 3))
        optimiser.zero_grad()
        distil_losses(nets, alike, bounds, cfg).loss.backward()
        optimiser.step()
    mean = nets.policy.moments(nets(batch.obs)[0])[0].detach()  # type: ignore[operator, union-attr]
    assert least < float(mean.mean()) < most


def test_one_candidate_by_its_advantage_is_ppo() -> None:
    from headway.agents.ppo import Minibatch, PPOConfig, ppo_losses

    nets = ActorValue(VectorFeatures(3), (policy := StateGaussian(2)), net_arch=(4,))
    obs, actions, advantages = torch.randn(6, 3), torch.randn(6, 2), torch.randn(6)
    old = torch.randn(6) - 3
    batch = Minibatch(obs, actions, old, torch.zeros(6), advantages, torch.zeros(6))
    cfg = PPOConfig(normalize_advantage=False)
    expected = ppo_losses(nets, batch, 0.2, cfg).policy_gradient_loss
    log_p = policy.evaluate(nets(obs)[0], actions)[0]
    found = advantage_loss(log_p[:, None], old[:, None], advantages[:, None], torch.ones(6, 1), 0.2, whiten=False)
    torch.testing.assert_close(found, expected)


def test_searching_with_it_is_no_different_from_others() -> None:
    env = vec(2)
    agent = tpo(env).learn(96)
    policy = SearchPolicy(agent, env, simulations=4, candidates=2)
    assert policy.predict(env.reset())[0].shape == (2, 1)
