"""Numbers that are none: whose they are is said, nothing of them is stored or saved, and the way back is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from headway.agents import DCAC, DQN, PPO, SAC, TD3, DivergedError, NonFiniteError
from headway.envs import make_batched
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toys import DelayedPoint, Point, vec

SMALL: dict[str, Any] = {"seed": 0, "learning_starts": 10, "buffer_size": 200, "batch_size": 4, "net_arch": (4,)}
ROUND: dict[str, Any] = {"seed": 0, "n_steps": 8, "batch_size": 8, "n_epochs": 1, "net_arch": (4,)}

AGENTS: dict[str, Callable[[], Any]] = {
    "sac": lambda: SAC("MlpPolicy", vec(), **SMALL),
    "sac in several": lambda: SAC("MlpPolicy", vec(3), **SMALL),
    "sac in a vector": lambda: SAC(
        "MlpPolicy", SyncVectorEnv([Point, Point], autoreset_mode=AutoresetMode.NEXT_STEP), **SMALL
    ),
    "sac in a batch": lambda: SAC("MlpPolicy", make_batched("headway/InvertedPendulum-v5", 2), **SMALL),
    "sac normalised": lambda: SAC("MlpPolicy", VecNormalize(vec()), **SMALL),
    "td3": lambda: TD3("MlpPolicy", vec(), **SMALL),
    "dcac": lambda: DCAC("MultiInputPolicy", DummyVecEnv([DelayedPoint]), **SMALL),
    "ppo": lambda: PPO("MlpPolicy", vec(), **ROUND),
    "ppo, discrete": lambda: PPO("MlpPolicy", vec(moves="discrete"), **ROUND),
    "ppo, multidiscrete": lambda: PPO("MlpPolicy", vec(moves="multidiscrete"), **ROUND),
    "dqn": lambda: DQN("MlpPolicy", vec(moves="discrete"), **SMALL, train_freq=1),
}


def poison(agent: Any, value: float = float("nan")) -> None:
    """Make the last biases of all that acts no numbers."""
    with torch.no_grad():
        for name, network in agent.modules.networks().items():
            for part, tensor in network.named_parameters():
                if "critics" not in name and "bias" in part:
                    tensor.fill_(value)


def experience(agent: Any) -> Any:
    store = agent.parts.get("store") or agent.rollout
    return store.state()


def numbers(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, dict):
        return [tensor for value in tree.values() for tensor in numbers(value)]
    return [tree] if isinstance(tree, torch.Tensor) and tree.is_floating_point() else []


@pytest.mark.parametrize("kind", AGENTS)
def test_a_policy_of_nan_is_named_and_nothing_of_it_is_kept(kind: str, tmp_path: Path) -> None:
    agent = AGENTS[kind]()
    agent.learn(24)
    path = agent.save_checkpoint(tmp_path)
    steps = agent.num_timesteps
    poison(agent)
    with pytest.raises(DivergedError) as caught:
        agent.learn(24, reset_num_timesteps=False)
    said = str(caught.value)
    assert f"{type(agent).__name__} has diverged after {steps} steps: its " in said
    assert "for environment 0 is nan, its weights " in said
    assert f"the last checkpoint, {path}, is still finite" in said
    assert "smaller learning_rate" in said
    assert "mend the environment" not in said
    assert "\n" not in said
    assert agent.num_timesteps == steps
    assert all(bool(tensor.isfinite().all()) for tensor in numbers(experience(agent)))

    for write in (lambda: agent.save_checkpoint(tmp_path), lambda: agent.save(tmp_path / "best")):
        with pytest.raises(DivergedError, match=r"its weights .* are not finite"):
            write()
    assert list(tmp_path.iterdir()) == [path]  # nor did pruning take it
    again = type(agent).resume(tmp_path, AGENTS[kind]().env)
    again.learn(8, reset_num_timesteps=False)
    assert again.num_timesteps > steps


def test_infinite_weights_without_a_checkpoint() -> None:
    agent = AGENTS["td3"]()
    agent.learn(12)
    poison(agent, float("inf"))
    with pytest.raises(DivergedError, match="no checkpoint was saved before"):
        agent.learn(20, reset_num_timesteps=False)


class Unmoved(Point):
    """Whoever steps it with no number has gone wrong."""

    def step(self, action: Any) -> Any:
        assert np.isfinite(action).all()
        return super().step(action)


def test_an_environment_never_sees_an_action_that_is_none() -> None:
    agent = SAC("MlpPolicy", DummyVecEnv([Unmoved]), **SMALL)
    agent.learn(12)
    poison(agent)
    with pytest.raises(DivergedError, match="its action for environment 0 is nan"):
        agent.learn(8, reset_num_timesteps=False)


def test_an_update_that_diverges_is_told_where_losses_are_logged() -> None:
    """Also by agents that act at random or not at all meanwhile."""
    agent = SAC("MlpPolicy", vec(), **SMALL | {"learning_starts": 20})
    agent.learn(20)
    with torch.no_grad():
        agent.critics.module.mlp.biases[-1].fill_(float("nan"))
    agent.train(1)
    with pytest.raises(DivergedError, match=r"its (critic|actor)_loss is nan, its weights .* are not finite"):
        agent.dump_logs()


class Rich(Point):
    """Pays so much that squares of it are infinite, or sums."""

    def __init__(self, reward: float) -> None:
        super().__init__()
        self.reward = reward

    def step(self, action: Any) -> Any:
        obs, _, *rest = super().step(action)
        return obs, self.reward, *rest


class Saves(BaseCallback):
    """Saves after every step, as some users do."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def _on_step(self) -> bool:
        self.model.save_checkpoint(self.folder)  # type: ignore[attr-defined]
        return True


def test_a_run_that_really_diverges_keeps_its_last_finite_checkpoint(tmp_path: Path) -> None:
    agent = SAC("MlpPolicy", DummyVecEnv([lambda: Rich(1e30)]), **SMALL)
    with pytest.raises(DivergedError) as caught:
        agent.learn(200, Saves(tmp_path))
    (newest, *_) = sorted(tmp_path.iterdir(), reverse=True)
    assert str(newest) in str(caught.value)
    again = SAC.resume(tmp_path, DummyVecEnv([lambda: Rich(1e30)]))
    assert again.last_checkpoint == newest
    assert again.broken_weights() is None


# -- environments ------------------------------------------------------------------------------------------------------


class Sick(Point):
    """Returns no number from its first reset, or at a step."""

    def __init__(self, at: int, bad: float = np.nan, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.at, self.bad, self.age = at, bad, 0

    def _observe(self) -> Any:
        obs = super()._observe()
        (obs["clock"] if self.form == "dict" else obs)[-1:] = self.bad if self.age == self.at else 0.5
        self.age += 1
        return obs


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", [SAC, PPO])
def test_the_very_first_reset(kind: Any, bad: float) -> None:
    how = SMALL if kind is SAC else ROUND
    with pytest.raises(NonFiniteError, match=rf"environment 0 \(no id\) returned observation\[0\] = {bad} from reset"):
        kind("MlpPolicy", DummyVecEnv([lambda: Sick(0, bad)]), **how).learn(9)
    with pytest.raises(NonFiniteError, match=r"environment 1 .* returned observation\['clock'\]\[1\]"):
        kind(
            "MultiInputPolicy", DummyVecEnv([lambda: Sick(99, form="dict"), lambda: Sick(0, form="dict")]), **how
        ).learn(9)


@pytest.mark.parametrize("at", [0, 5])
def test_statistics_of_a_normaliser_are_not_spoilt(at: int, tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([lambda: Sick(at)]))
    agent = SAC("MlpPolicy", env, **SMALL)
    with pytest.raises(NonFiniteError, match="observation") as caught:
        agent.learn(30)
    assert not isinstance(caught.value, DivergedError)
    assert all(np.isfinite(moment).all() for rms in (env.obs_rms, env.ret_rms) for moment in vars(rms).values())
    agent.learn(30)  # the environment is well again
    assert agent.num_timesteps == 30


def test_a_sum_that_is_too_large_is_no_fault() -> None:
    agent = SAC("MlpPolicy", DummyVecEnv([lambda: Rich(3e38), lambda: Rich(3e38)]), **SMALL)
    agent.learn(8)
    assert agent.num_timesteps == 8
    assert not agent.env_is_broken
