"""Copies and pickles of agents go on learning, each by itself, as the agent would have."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from headway.agents import DCAC, DQN, PPO, SAC, TD3
from headway.envs import make_batched
from headway.wrappers import RandomDelay
from stable_baselines3.common.vec_env import VecNormalize
from toys import Counter, Point, vec

SMALL: dict[str, Any] = {"seed": 0, "device": "cpu", "net_arch": (4,), "batch_size": 4}
STORED: dict[str, Any] = SMALL | {"learning_starts": 8, "buffer_size": 40}

AGENTS: dict[str, Callable[[], Any]] = {
    "SAC": lambda: SAC("MlpPolicy", Point(), **STORED),
    "TD3, a schedule": lambda: TD3("MlpPolicy", Point(), **STORED, learning_rate_schedule="linear"),
    "DQN": lambda: DQN("MlpPolicy", gym.make("CartPole-v1"), **STORED),
    "PPO": lambda: PPO("MlpPolicy", Point(), **SMALL, n_steps=8, max_grad_norm=0.5),
    "DCAC": lambda: DCAC("MultiInputPolicy", RandomDelay(Point(), "uniform:0-2", "uniform:0-1"), **STORED),
    "normalised": lambda: SAC("MlpPolicy", VecNormalize(vec(2)), **STORED),
    "a vector": lambda: SAC("MlpPolicy", SyncVectorEnv([Counter, Counter]), **STORED),
    "SAME_STEP": lambda: SAC("MlpPolicy", SyncVectorEnv([Counter], autoreset_mode=AutoresetMode.SAME_STEP), **STORED),
    "a batch": lambda: SAC("MlpPolicy", make_batched("headway/InvertedPendulum-v5", 2), **STORED),
    "one of a batch": lambda: SAC("MlpPolicy", "headway/InvertedPendulum-v5", **STORED),
}
WAYS: dict[str, Callable[[Any], Any]] = {"copied": copy.deepcopy, "pickled": lambda x: pickle.loads(pickle.dumps(x))}
EVERY = [(way, name) for way in WAYS for name in AGENTS]


@pytest.mark.parametrize(("way", "name"), EVERY)
def test_a_copy_goes_on_learning(way: str, name: str) -> None:
    agent = AGENTS[name]()
    agent.learn(21)
    twin = WAYS[way](agent)
    for one in (agent, twin):
        one.learn(20, reset_num_timesteps=False)
    assert twin.num_timesteps == agent.num_timesteps
    state, other = agent.modules.state(), twin.modules.state()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)
    assert twin.batched_env is not agent.batched_env
    # What the twin's tools see is the twin's.
    parameters = {id(p) for p in twin.policy.parameters()}
    assert {id(p) for net in twin.modules.networks().values() for p in net.parameters()} == parameters


def test_a_copy_does_not_move_the_agent() -> None:
    agent = SAC("MlpPolicy", Point(), **STORED)
    agent.learn(21)
    before = {name: tensor.clone() for name, tensor in agent.modules.state().items()}
    stored = agent.store.state()
    copy.deepcopy(agent).learn(20, reset_num_timesteps=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in agent.modules.state().items())
    assert torch.equal(agent.store.state()["data.obs"], stored["data.obs"])  # type: ignore[arg-type]


def test_a_pickled_store_is_written_where_it_is_read() -> None:
    agent = SAC("MlpPolicy", Point(), **STORED)
    agent.learn(15)
    twin = pickle.loads(pickle.dumps(agent))
    twin.learn(5, reset_num_timesteps=False)
    sampled = twin.store.sample(200).actions
    stored = twin.store.state()["data.actions"]
    assert {float(a) for a in sampled[:, 0]} == {float(a) for a in stored[:, 0]}
