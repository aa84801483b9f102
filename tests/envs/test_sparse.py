"""The chain and the pendulum: what the best and the lazy earn, rows and single environments, snapshots."""

import math
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from headway.envs import make_batched
from headway.envs.batched import Resettable, RowSnapshots, require
from headway.envs.sparse import CHAIN_ID, PENDULUM_ID, ChainBatch, SparsePendulumBatch
from torch import Tensor

IDS = (CHAIN_ID, PENDULUM_ID)


@pytest.mark.parametrize("length", [2, 5, 10])
def test_what_a_chain_is_worth(length: int) -> None:
    env = ChainBatch(3, length=length)
    env.reset()
    pushes = torch.tensor([[1.0], [-1.0], [0.0]])
    for step in range(length + 1):
        obs, rewards, terminated, truncated, info = env.step(pushes)
        assert info["final_obs"][0].argmax() == min(step + 1, length - 1)
        assert bool(truncated.all()) is (step == length)
        assert not terminated.any()
        assert rewards[1:].tolist() == pytest.approx([0.01, 0.01])
    assert info["episode"]["r"].tolist() == pytest.approx([3, 0.01 * (length + 1), 0.01 * (length + 1)])
    assert info["is_success"].tolist() == [True, False, False]
    assert obs.argmax(1).tolist() == [0, 0, 0]  # of the next episode


def test_random_walkers_hardly_ever_arrive() -> None:
    env = ChainBatch(40_000, length=8)
    env.reset()
    generator = torch.Generator().manual_seed(0)
    for _ in range(9):
        *_, info = env.step(torch.rand(40_000, 1, generator=generator) * 2 - 1)
    assert float(info["is_success"].float().mean()) == pytest.approx(13 / 2**9, rel=0.1)  # (n + 5) / 2^(n + 1)


def energy(obs: Tensor) -> Tensor:
    return obs[:, 2] ** 2 / 6 + 5 * (obs[:, 0] - 1)  # of a rod of 1 kg and 1 m; 0 where it stands


def test_a_pendulum_is_swung_up_by_its_energy_and_not_by_chance() -> None:
    earned = []
    for clever in (True, False):
        env = SparsePendulumBatch(64)
        obs, _ = env.reset(seed=0)
        assert float(obs[:, 0].max()) < -0.99
        generator = torch.Generator().manual_seed(0)
        for _ in range(200):
            angle = torch.atan2(obs[:, 1], obs[:, 0])
            swing = torch.where(energy(obs) < 0, 1.0, -1.0) * obs[:, 2].sign()
            hold = (-8 * angle - 2 * obs[:, 2]).clamp(-1, 1)
            best = torch.where(angle.abs() < 0.5, hold, swing).unsqueeze(1)
            push = best if clever else torch.rand(64, 1, generator=generator) * 2 - 1
            obs, _, _, truncated, info = env.step(push)
        assert truncated.all()
        earned.append(info["episode"]["r"])
    assert float(earned[0].mean()) > 80
    assert float(earned[1].mean()) < 1


def test_the_pendulum_moves_as_gymnasiums() -> None:
    ours, theirs = SparsePendulumBatch(1, dtype=torch.float64), gym.make("Pendulum-v1").unwrapped
    ours.reset(seed=3)
    theirs.reset(seed=0)
    state: dict[str, Any] = ours.state()
    theirs.state = np.array([float(state["angle"]), float(state["speed"])])  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    for _ in range(60):
        push = rng.uniform(-1, 1, 1).astype(np.float32)
        expected = theirs.step(2 * push)[0]
        obs, reward, *_ = ours.step(torch.from_numpy(push).unsqueeze(0))
        np.testing.assert_allclose(obs[0].numpy(), expected, atol=1e-4)
        assert float(reward) == float(obs[0, 0] >= math.cos(math.radians(8)))


@pytest.mark.parametrize("env_id", IDS)
def test_a_single_one_is_a_row(env_id: str) -> None:
    batch = make_batched(env_id, num_envs=3, dtype=torch.float64)
    shown, _ = batch.reset(seed=7)
    singles = [gym.make(env_id) for _ in range(3)]
    for row, env in enumerate(singles):
        np.testing.assert_array_equal(env.reset(seed=7 + row)[0], shown[row].numpy())
    generator = torch.Generator().manual_seed(0)
    ended = False
    while not ended:
        push = torch.rand(3, 1, generator=generator) * 2 - 1
        _, rewards, _, truncated, info = batch.step(push)
        for row, env in enumerate(singles):
            obs, reward, terminated, cut, told = env.step(push[row].numpy())
            np.testing.assert_allclose(obs, info["final_obs"][row].numpy())
            assert (reward, terminated, cut) == (float(rewards[row]), False, bool(truncated[row]))
            assert bool(told["is_success"]) is bool(info["is_success"][row])
        ended = bool(truncated.all())


@pytest.mark.parametrize("env_id", IDS)
def test_faces_and_snapshots(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the checker, about renderers and bounds
        check_env(gym.make(env_id).unwrapped, skip_render_check=True)
    assert gym.make_vec(env_id, num_envs=2).reset(seed=0)[0].dtype == np.float64
    batch = make_batched(env_id, num_envs=4)
    require(batch, Resettable)
    rows = require(batch, RowSnapshots)
    batch.reset(seed=0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        batch.step(torch.rand(4, 1, generator=generator) * 2 - 1)
    other = rows.like(2)
    require(other, RowSnapshots).load_state(rows.state(torch.tensor([3, 1])))
    push = torch.rand(4, 1, generator=generator) * 2 - 1
    assert torch.equal(other.step(push[[3, 1]])[0], batch.step(push)[0][[3, 1]])  # type: ignore[index]


def test_what_makes_no_chain_is_refused() -> None:
    with pytest.raises(ValueError, match="length is 1: a chain has at least 2 states"):
        gym.make(CHAIN_ID, length=1)
    with gym.make(CHAIN_ID, length=20) as env:
        env.reset()
        ends = [env.step(np.ones(1, np.float32))[3] for _ in range(21)]
    assert ends == [False] * 20 + [True]
