"""DQN: against Stable-Baselines3's, with the same weights and batches; exploration; the target network."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from headway.agents import DQN
from headway.agents.core.data import Transitions
from headway.agents.core.nets import QValues
from headway.agents.core.spaces import VectorFeatures
from headway.agents.dqn import best_target, q_loss
from peers import TOLERANCE, copy_into, gap, linears
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor

BATCH = 48


def batches(count: int, n_actions: int = 2, obs_dim: int = 4) -> list[Transitions]:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

    found = []
    for _ in range(count):
        ended = torch.from_numpy(rng.random(BATCH) < 0.3)
        truncated = torch.from_numpy(rng.random(BATCH) < 0.5) & ended
        found.append(
            Transitions(
                obs=draw(BATCH, obs_dim),
                actions=torch.from_numpy(rng.integers(0, n_actions, BATCH)),
                rewards=3 * draw(BATCH),  # on both sides of where Huber's loss turns
                terminated=ended & ~truncated,
                truncated=truncated,
                next_obs=draw(BATCH, obs_dim),
            )
        )
    return found


def test_updates_equal_the_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = DQN("MlpPolicy", "CartPole-v1", seed=0, device="cpu", batch_size=BATCH, learning_rate=1e-3)
    peer = sb3.DQN("MlpPolicy", "CartPole-v1", seed=0, device="cpu", learning_rate=1e-3)
    peer.set_logger(Logger(None, []))
    assert ours.q.target is not None
    copy_into(ours.q.module.mlp, 0, linears(peer.q_net))
    copy_into(ours.q.target.mlp, 0, linears(peer.q_net_target))
    for batch in batches(10):
        monkeypatch.setattr(ours, "sample", lambda batch=batch: batch)
        ours.train(1)
        samples = ReplayBufferSamples(
            batch.obs,  # type: ignore[arg-type]
            batch.actions.unsqueeze(1),
            batch.next_obs,  # type: ignore[arg-type]
            batch.terminated.float().unsqueeze(1),
            batch.rewards.unsqueeze(1),
        )
        monkeypatch.setattr(peer.replay_buffer, "sample", lambda *a, samples=samples, **k: samples)
        peer.train(1, BATCH)
    assert gap(ours.q.module.mlp, 0, linears(peer.q_net)) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("double", [False, True])
def test_losses_row_by_row(double: bool) -> None:
    torch.manual_seed(0)
    q, target_q = (QValues(VectorFeatures(4), 3, (8,)) for _ in range(2))
    (batch,) = batches(1, n_actions=3)
    target = best_target(batch, q, target_q, 0.9, double)
    total = squares = 0.0
    for i in range(BATCH):
        values = target_q(batch.next_obs[i : i + 1])[0, 0]  # type: ignore[index]
        chooser = q(batch.next_obs[i : i + 1])[0, 0] if double else values  # type: ignore[index]
        y = batch.rewards[i] + 0.9 * values[int(chooser.argmax())] * (not batch.terminated[i])
        assert abs(target[i] - y) < 1e-5
        error = float(q(batch.obs[i : i + 1])[0, 0, batch.actions[i]] - y)  # type: ignore[index]
        total += 0.5 * error**2 if abs(error) < 1 else abs(error) - 0.5
        squares += error**2
    assert q_loss(q, batch, target).item() == pytest.approx(total / BATCH, rel=1e-5)
    assert q_loss(q, batch, target, "mse").item() == pytest.approx(squares / BATCH, rel=1e-5)


def test_the_double_switch_changes_targets() -> None:
    torch.manual_seed(0)
    q, target_q = (QValues(VectorFeatures(4), 3, (8,)) for _ in range(2))
    (batch,) = batches(1, n_actions=3)
    plain, double = (best_target(batch, q, target_q, 0.9, switch) for switch in (False, True))
    assert (double <= plain + 1e-6).all()  # the target network's own best is the most that it can say
    assert (double < plain - 1e-3).any()


def test_exploration_falls_as_the_peers() -> None:
    hyper: Any = {"exploration_fraction": 0.5, "exploration_initial_eps": 0.8, "exploration_final_eps": 0.1}
    hyper |= {"learning_starts": 10_000, "device": "cpu"}
    ours = DQN("MlpPolicy", "CartPole-v1", **hyper, seed=0)
    peer = sb3.DQN("MlpPolicy", "CartPole-v1", **hyper, seed=0)
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    for name, model in (("ours", ours), ("peer", peer)):

        def note(local: Any, _: Any, model: Any = model, found: list[float] = rates[name]) -> bool:
            found.append(model.exploration_rate)
            return True

        model.learn(100, callback=note)
    assert rates["ours"][:-1] == pytest.approx(rates["peer"][1:])  # which sets it after the callback
    assert rates["ours"][-1] == 0.1


def test_random_actions_are_as_many_as_said() -> None:
    env = gym.make_vec("CartPole-v1", num_envs=4)
    agent = DQN("MlpPolicy", env, seed=0, device="cpu", exploration_initial_eps=0.4)
    obs = torch.zeros(20_000, 4)
    best = agent._act(obs, True, agent.generators["predict"])
    assert (best == best[0]).all()
    other = agent._act(obs, False, agent.generators["predict"]) != best
    assert abs(other.float().mean() - 0.2) < 0.01  # half of the random ones are the best one; standard error 0.003


@pytest.mark.parametrize("n_envs", [1, 3])
def test_the_target_moves_when_it_is_time(n_envs: int) -> None:
    agent = DQN(
        "MlpPolicy",
        gym.make_vec("CartPole-v1", num_envs=n_envs),
        **{"seed": 0, "device": "cpu", "learning_starts": 0, "train_freq": 1, "target_update_interval": 10},
    )
    moved, follow = [], agent.q.follow
    agent.q.follow = lambda tau: moved.append(agent.num_timesteps + n_envs) or follow(tau)  # type: ignore[method-assign, func-returns-value]
    agent.learn(31)
    assert moved == [min(s for s in range(n_envs, 60, n_envs) if s >= due) for due in (10, 20, 30)]
    assert agent.config.tau == 1.0
