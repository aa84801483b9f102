"""The maze with one goal: what it shows and ends by, its players, and what is said where its package is missing."""

import sys

import gymnasium as gym
import numpy as np
import pytest
from headway.envs import make
from headway.envs.mazes import CORNERS, MAZE_ID, to_goal, wander


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium_robotics.envs.maze.point_maze", None)
    with pytest.raises(ValueError, match=r"pip install 'headway-rl\[robotics\]'"):
        make(MAZE_ID)


def test_the_player_steers_round_the_corner() -> None:
    places = np.array([(-1.0, 1.0, 0, 0), (1.0, 0.0, 0, 0), (0.0, -1.0, 0, 0)])
    assert to_goal.targets(places).tolist() == CORNERS.tolist()
    assert wander(places).shape == (3, 2)
    assert (np.abs(wander(places)) <= 1).all()


def test_the_goal_ends_the_episode_with_a_reward_of_one() -> None:
    pytest.importorskip("gymnasium_robotics")
    env: gym.Env = make(MAZE_ID)
    obs, _ = env.reset(seed=0)
    assert obs.shape == (4,)
    rewards, terminated, truncated = [], False, False
    while not (terminated or truncated):
        obs, reward, terminated, truncated, _ = env.step(to_goal(obs[None])[0])
        rewards.append(float(reward))
    assert terminated
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
    assert np.linalg.norm(obs[:2] - CORNERS[-1]) < 0.45 + 0.36  # of a goal that lies up to 0.25 m off in x and y
