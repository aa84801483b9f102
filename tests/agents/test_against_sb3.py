"""One agent's mathematics against Stable-Baselines3's: same weights, same batches, same noise, ten updates."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from headway.agents import SAC, TD3
from headway.agents.core.data import Transitions
from peers import TOLERANCE, copy_into, gap, linears
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor, nn

UPDATES, BATCH = 10, 64


class Batches:
    """The same random batches in both libraries' forms."""

    def __init__(self, obs_dim: int, action_dim: int) -> None:
        rng = np.random.default_rng(0)

        def draw(*shape: int) -> Tensor:
            return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

        self.batches = []
        for _ in range(UPDATES):
            ended = torch.from_numpy(rng.random(BATCH) < 0.2)
            truncated = torch.from_numpy(rng.random(BATCH) < 0.5) & ended
            self.batches.append(
                Transitions(
                    obs=draw(BATCH, obs_dim),
                    actions=draw(BATCH, action_dim).tanh(),
                    rewards=draw(BATCH),
                    terminated=ended & ~truncated,
                    truncated=truncated,
                    next_obs=draw(BATCH, obs_dim),
                )
            )
        self.noise = [draw(2, BATCH, action_dim) for _ in range(UPDATES)]

    def sb3(self, index: int) -> ReplayBufferSamples:
        batch = self.batches[index]
        dones = batch.terminated.float().unsqueeze(1)
        return ReplayBufferSamples(batch.obs, batch.actions, batch.next_obs, dones, batch.rewards.unsqueeze(1))


def copy_critics(ours: Any, peer: Any) -> None:
    """Copy both critics and both targets of the peer."""
    for member in range(2):
        copy_into(ours.critics.module.mlp, member, linears(peer.critic.q_networks[member]))
        copy_into(ours.critics.target.mlp, member, linears(peer.critic_target.q_networks[member]))


def gaussian_layers(actor: Any) -> list[nn.Linear]:
    """Stable-Baselines3's actor has two heads where ours has one of twice the width."""
    joint = nn.Linear(actor.mu.in_features, 2 * actor.mu.out_features)
    with torch.no_grad():
        joint.weight.copy_(torch.cat([actor.mu.weight, actor.log_std.weight]))
        joint.bias.copy_(torch.cat([actor.mu.bias, actor.log_std.bias]))
    return [*linears(actor.latent_pi), joint]


COMPILING = pytest.mark.filterwarnings("ignore")  # what torch's own compiler warns of is not ours


@pytest.mark.parametrize(
    ("compile_mode", "ent_coef"), [("off", "auto"), ("off", 0.2), pytest.param("default", "auto", marks=COMPILING)]
)
def test_sac_updates_equal(monkeypatch: pytest.MonkeyPatch, compile_mode: str, ent_coef: Any) -> None:
    env = gym.make("Pendulum-v1")
    ours = SAC("MlpPolicy", env, seed=0, device="cpu", compile=compile_mode, batch_size=BATCH, ent_coef=ent_coef)
    peer = sb3.SAC("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", ent_coef=ent_coef, learning_starts=0)
    peer.set_logger(Logger(None, []))
    copy_into(ours.actor.module.mlp, 0, gaussian_layers(peer.actor))
    assert ours.critics.target is not None
    copy_critics(ours, peer)
    data = Batches(3, 1)

    for index in range(UPDATES):
        monkeypatch.setattr(ours, "sample", lambda index=index: data.batches[index])
        monkeypatch.setattr(ours, "noise", lambda *shape, index=index: data.noise[index])
        ours._update("update")
        ours._n_updates += 1
        # Stable-Baselines3 draws inside Normal.rsample: first for obs, then for next_obs.
        draws = iter(data.noise[index])
        monkeypatch.setattr(
            "torch.distributions.Normal.rsample", lambda self, *shape, d=draws: self.loc + self.scale * next(d)
        )
        monkeypatch.setattr(peer.replay_buffer, "sample", lambda *a, index=index, **k: data.sb3(index))
        peer.train(1, BATCH)

    assert gap(ours.actor.module.mlp, 0, gaussian_layers(peer.actor)) < TOLERANCE
    for member in range(2):
        assert gap(ours.critics.module.mlp, member, linears(peer.critic.q_networks[member])) < TOLERANCE
        assert gap(ours.critics.target.mlp, member, linears(peer.critic_target.q_networks[member])) < TOLERANCE
    if ent_coef == "auto":
        assert peer.log_ent_coef is not None
        assert abs(ours.temperature.module.log_alpha.item() - peer.log_ent_coef.item()) < TOLERANCE
        assert abs(peer.log_ent_coef.item()) > 1e-3  # it moved


@pytest.mark.parametrize("compile_mode", ["off", pytest.param("default", marks=COMPILING)])
def test_td3_updates_equal(monkeypatch: pytest.MonkeyPatch, compile_mode: str) -> None:
    # Captured as a graph and differentiated as one, but not compiled to C++, which SAC's test does and takes long.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    ours = TD3("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", compile=compile_mode, batch_size=BATCH)
    peer = sb3.TD3("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", policy_kwargs={"net_arch": [256, 256]})
    peer.set_logger(Logger(None, []))
    assert ours.actor.target is not None
    assert ours.critics.target is not None
    copy_into(ours.actor.module.mlp, 0, linears(peer.actor.mu))
    copy_into(ours.actor.target.mlp, 0, linears(peer.actor_target.mu))
    copy_critics(ours, peer)
    data = Batches(3, 1)
    monkeypatch.undo()

    for index in range(UPDATES):
        monkeypatch.setattr(ours, "sample", lambda index=index: data.batches[index])
        monkeypatch.setattr(ours, "noise", lambda *shape, index=index: data.noise[index][0])
        ours._update("update")
        ours._n_updates += 1
        monkeypatch.setattr(
            torch.Tensor, "normal_", lambda self, mean, std, index=index: self.copy_(data.noise[index][0] * std)
        )
        monkeypatch.setattr(peer.replay_buffer, "sample", lambda *a, index=index, **k: data.sb3(index))
        peer.train(1, BATCH)
        monkeypatch.undo()

    assert gap(ours.actor.module.mlp, 0, linears(peer.actor.mu)) < TOLERANCE
    assert gap(ours.actor.target.mlp, 0, linears(peer.actor_target.mu)) < TOLERANCE
    for member in range(2):
        assert gap(ours.critics.module.mlp, member, linears(peer.critic.q_networks[member])) < TOLERANCE
        assert gap(ours.critics.target.mlp, member, linears(peer.critic_target.q_networks[member])) < TOLERANCE


def test_a_whole_run_of_sac_is_the_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the same weights and the same draws, both libraries act, store, sample and learn alike from reset to end.

    Episodes of 50 steps are cut by a time limit, so bootstrapping at the limit is in it.
    """
    warm, total = 20, 120

    def env() -> gym.Env[Any, Any]:
        return gym.make("Pendulum-v1", max_episode_steps=50)

    ours = SAC("MlpPolicy", env(), seed=0, device="cpu", batch_size=BATCH, learning_starts=warm)
    peer = sb3.SAC("MlpPolicy", env(), seed=0, device="cpu", batch_size=BATCH, learning_starts=warm)
    assert peer.replay_buffer is not None
    copy_into(ours.actor.module.mlp, 0, gaussian_layers(peer.actor))
    assert ours.critics.target is not None
    copy_critics(ours, peer)

    rng = np.random.default_rng(0)
    random_actions = rng.uniform(-1, 1, (warm, 1, 1)).astype(np.float32)
    acting = torch.from_numpy(rng.standard_normal((total, 1, 1)).astype(np.float32))
    updating = torch.from_numpy(rng.standard_normal((total, 2, BATCH, 1)).astype(np.float32))
    rows = [rng.integers(0, stored + 1, BATCH) for stored in range(total)]

    def our_actions() -> Tensor:
        step = ours.num_timesteps
        if step < warm:
            return torch.from_numpy(random_actions[step])
        with torch.no_grad():
            return ours.actor.module.sample(ours.last_obs, acting[step])[0]

    monkeypatch.setattr(ours, "choose", lambda: {"actions": our_actions()})
    monkeypatch.setattr(ours, "noise", lambda *shape: updating[ours.num_timesteps - 1])
    monkeypatch.setattr(ours.store, "_draw", lambda *a: torch.from_numpy(rows[ours.num_timesteps - 1]))
    ours.learn(total)

    def draws() -> Any:
        for step in range(warm, total):
            yield acting[step]
            yield from updating[step]

    stream = draws()
    warming = iter(random_actions[:, 0] * 2)  # Pendulum's actions reach from -2 to 2
    monkeypatch.setattr(peer.action_space, "sample", lambda: next(warming))
    monkeypatch.setattr("torch.distributions.Normal.rsample", lambda self, *shape: self.loc + self.scale * next(stream))
    buffer = peer.replay_buffer
    monkeypatch.setattr(buffer, "sample", lambda *a, **k: buffer._get_samples(rows[peer.num_timesteps - 1]))
    peer.learn(total)

    state = ours.store.state()
    stored = {"obs": buffer.observations, "actions": buffer.actions, "rewards": buffer.rewards}
    stored["next_obs"] = buffer.next_observations
    for name, array in stored.items():
        expected = torch.from_numpy(array[:total]).reshape(state[f"data.{name}"].shape).float()
        # Rounding grows with the updates and, through the actions, with the physics.
        assert (state[f"data.{name}"] - expected).abs().max() < 1e-3, name
    assert state["data.truncated"].nonzero().flatten().tolist() == [49, 99]
    assert ours._n_updates == peer._n_updates == total - warm
    assert gap(ours.actor.module.mlp, 0, gaussian_layers(peer.actor)) < 1e-3
