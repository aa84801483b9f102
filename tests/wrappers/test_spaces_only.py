"""An agent's environment that has spaces and nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from headway.agents import SAC
from headway.wrappers import SpacesOnlyVecEnv, as_batched
from stable_baselines3.common.callbacks import CallbackList, EvalCallback, ProgressBarCallback
from stable_baselines3.common.logger import configure
from toys import Point, vec

BOX = spaces.Box(1, 3, (2,), np.float32)
KINDS: dict[str, tuple[spaces.Space[Any], Any]] = {
    "Box": (spaces.Box(-1, 3, (2,), np.float64), [0, 0]),
    "Box without zero": (BOX, [1, 1]),
    "image": (spaces.Box(0, 255, (2, 2, 1), np.uint8), [[[0], [0]], [[0], [0]]]),
    "Discrete": (spaces.Discrete(3, start=2), 2),
    "MultiDiscrete": (spaces.MultiDiscrete([3, 4], start=[1, 0]), [1, 0]),
    "MultiBinary": (spaces.MultiBinary(2), [0, 0]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_reset_shows_what_is_nearest_to_zero(kind: str) -> None:
    space, zero = KINDS[kind]
    obs = SpacesOnlyVecEnv(space, BOX, 3).reset()
    assert obs.dtype == space.dtype
    assert obs.tolist() == [zero] * 3
    assert space.contains(obs[0])
    both = SpacesOnlyVecEnv(spaces.Dict({"a": space, "b": spaces.Tuple([BOX])}), BOX).reset()
    assert both["a"].tolist() == [zero]
    assert both["b"][0].tolist() == [[1, 1]]


def test_steps_are_refused_in_words() -> None:
    env = SpacesOnlyVecEnv(BOX, BOX)
    with pytest.raises(RuntimeError, match=r"no simulator to step: give set_env\(\) or load\(\)"):
        env.step(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="num_envs is 0"):
        SpacesOnlyVecEnv(BOX, BOX, 0)
    for call in (lambda: env.get_attr("spec"), lambda: env.set_attr("x", 1), lambda: env.env_method("close")):
        with pytest.raises(AttributeError, match="has no environments"):
            call()


def test_a_batch_of_it_has_a_state() -> None:
    batch = as_batched(SpacesOnlyVecEnv(BOX, BOX, 2))
    obs, _ = batch.reset(seed=3)
    assert isinstance(obs, torch.Tensor)
    assert obs.tolist() == [[1, 1], [1, 1]]
    batch.load_state(batch.state())
    with pytest.raises(RuntimeError, match="no simulator"):
        batch.step(torch.ones(2, 2))


@pytest.mark.filterwarnings("ignore:rich is experimental")
@pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type")
def test_what_stable_baselines3_asks_for_works(tmp_path: Path) -> None:
    env = SpacesOnlyVecEnv(Point().observation_space, Point().action_space)
    agent = SAC("MlpPolicy", env, net_arch=(8,), buffer_size=9, seed=0)
    agent.set_env(SpacesOnlyVecEnv(env.observation_space, env.action_space))
    agent.set_logger(configure(None, []))
    evaluations = EvalCallback(vec(), n_eval_episodes=2, eval_freq=1, log_path=str(tmp_path), verbose=0)
    # what an agent that learns from data does with callbacks; the environment is never stepped
    callbacks = CallbackList([evaluations, ProgressBarCallback()])
    callbacks.init_callback(agent)
    callbacks.on_training_start({"total_timesteps": 2}, {})
    assert callbacks.on_step()
    callbacks.on_training_end()
    assert np.shape(evaluations.evaluations_results) == (1, 2)
    agent.save(tmp_path / "agent.zip")
    loaded = SAC.load(tmp_path / "agent.zip", env=env)
    loaded.set_env(vec())  # and then the environment itself
    loaded.learn(20)
    assert loaded.num_timesteps == 20
