"""Small environments that tests share."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from headway.wrappers.random_delay import RandomDelay
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv


class Stop(BaseCallback):
    """Stop at a step."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        return self.num_timesteps < self.at


class Point(gym.Env[Any, Any]):
    """A point on a line that wants to the origin: it moves by the action, and pays its squared distance.

    From any start in [-1, 1], moving by ``-x`` at once costs nothing more: the best return is 0. Episodes are truncated
    after ``length`` steps; leaving [-2, 2] terminates.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's own spelling)

    def __init__(self, length: int = 7, form: str = "box", render_mode: str | None = None) -> None:
        self.length, self.form, self.render_mode = length, form, render_mode
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        box = spaces.Box(-3.0, 3.0, (1,), np.float32)
        self.observation_space: spaces.Space[Any] = box
        if form == "dict":
            self.observation_space = spaces.Dict({"place": box, "clock": spaces.Box(0.0, 1.0, (2,), np.float64)})
        if form == "image":
            self.observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)

    def _observe(self) -> Any:
        place = np.array([self.x], np.float32)
        if self.form == "dict":
            return {"place": place, "clock": np.array([self.t / self.length, 0.5])}
        if self.form == "image":
            image = np.zeros((36, 36, 1), np.uint8)
            image[:, int(np.clip((self.x + 2) / 4 * 35, 0, 35))] = 255
            return image
        return place

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.uniform(-1, 1)), 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.x = float(np.clip(self.x + float(action[0]), -3, 3))
        self.t += 1
        return self._observe(), -self.x * self.x, abs(self.x) > 2, self.t >= self.length, {}

    def render(self) -> Any:
        return np.full((16, 16, 3), int(40 * (self.x + 3)), np.uint8)


class DelayedPoint(RandomDelay):
    """The same, seen at once, but with actions that act one to three ticks after they were chosen.

    :param delays: of observations and of actions
    :param kwargs: the point's
    """

    def __init__(self, delays: tuple[str, str] = ("constant:0", "uniform:0-2"), **kwargs: Any) -> None:
        super().__init__(Point(**kwargs), *delays)


def delayed_vec(n: int = 1, **kwargs: Any) -> DummyVecEnv:
    """Monitored delayed points for Stable-Baselines3."""
    return DummyVecEnv([lambda: Monitor(DelayedPoint(**kwargs)) for _ in range(n)])


def vec(n: int = 1, **kwargs: Any) -> DummyVecEnv:
    """Monitored points for Stable-Baselines3."""
    return DummyVecEnv([lambda: Monitor(Point(**kwargs)) for _ in range(n)])
