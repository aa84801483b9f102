"""A maze in which a point finds one goal from one start, for learning from data: gymnasium-robotics's PointMaze."""

from typing import Any

import gymnasium as gym
import numpy as np

MAZE_ID = "headway/PointMaze-v0"

MAP: list[list[int | str]] = [
    [1, 1, 1, 1, 1],
    [1, "r", 0, 0, 1],
    [1, 1, 1, 0, 1],
    [1, "g", 0, 0, 1],
    [1, 1, 1, 1, 1],
]
"""1 is a wall, r the start, g the goal: there and back around one corner of a U."""

CORNERS = np.array([(1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)])
"""Where the way turns, and the goal: x, y in metres."""

_GAIN, _DAMPING = 6.0, 0.5


def point_maze(render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Make PointMaze with a start and a goal that stay (but for 0.25 m), observed as x, y and their velocities.

    The reward is 1 on reaching the goal, where the episode ends, and 0 before.

    :param render_mode: as in ``gymnasium.make``
    :return: the environment
    :raises ModuleNotFoundError: gymnasium-robotics is not installed
    """
    try:
        from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv
    except ModuleNotFoundError as cause:
        raise ModuleNotFoundError(f"{MAZE_ID} needs gymnasium-robotics: pip install 'headway-rl[robotics]'") from cause
    maze: Any = PointMazeEnv(MAP, render_mode=render_mode, continuing_task=False)
    seen = gym.wrappers.FilterObservation(maze, ["observation"])
    return gym.wrappers.FlattenObservation(seen)


def register_all() -> None:
    """Register the maze; importing ``headway.envs`` has done it."""
    gym.register(MAZE_ID, entry_point=f"{__name__}:point_maze", max_episode_steps=300)


class _Player:
    """Steers each row of a batch towards a place, with noise.

    :param noise: standard deviation of its actions, in the action's unit
    """

    def __init__(self, noise: float) -> None:
        self.noise, self.draw = noise, np.random.default_rng(0)

    def targets(self, obs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """:return: where each row goes next, (N, 2)"""
        raise NotImplementedError

    def __call__(self, obs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """:return: actions (N, 2) for observations (N, 4)"""
        pull = _GAIN * (self.targets(obs) - obs[:, :2]) - _DAMPING * obs[:, 2:]
        noise = self.noise * self.draw.standard_normal(pull.shape)
        actions: np.ndarray[Any, Any] = np.clip(pull + noise, -1, 1).astype(np.float32)
        return actions


class _ToGoal(_Player):
    def targets(self, obs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        x, y = obs[:, 0], obs[:, 1]
        return CORNERS[np.where(y > 0.5, np.where(x < 0.7, 0, 1), np.where((x > 0.5) & (y > -0.7), 1, 2))]


class _Wander(_Player):
    """Goes to corners as they come to its mind, whether there is a wall between or not, and rarely along the way."""

    def __init__(self, noise: float) -> None:
        super().__init__(noise)
        self.minds = np.zeros((0, 2))

    def targets(self, obs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        places = np.concatenate([CORNERS, [(-1.0, 1.0), (0.0, 1.0), (0.0, -1.0)]])
        if len(self.minds) != len(obs):
            self.minds = places[self.draw.integers(len(places), size=len(obs))]
        change = self.draw.random(len(obs)) < 0.03
        self.minds = np.where(change[:, None], places[self.draw.integers(len(places), size=len(obs))], self.minds)
        return self.minds


to_goal = _ToGoal(0.3)
"""A player for ``headway collect --policy headway.envs.mazes:to_goal``."""

wander = _Wander(0.5)
"""Another, which finds the goal by chance."""
