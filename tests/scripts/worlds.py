"""Registers small environments, as a user's own module would: ``--env worlds:Point-v0``."""

import ctypes
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from headway.envs import register_mujoco_task
from headway.envs.mujoco.tasks import HalfCheetah
from toys import ChangesClass, Point


class Sick(Point):
    """A point that returns something that is no number, once in a life of many episodes, and only where seeded odd."""

    def __init__(self, what: str, value: float, at: int = 40, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.what, self.value, self.at = what, value, at
        self.age, self.odd = 0, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            self.odd = seed % 2 == 1
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        self.age += 1
        if self.odd and self.age == self.at:
            if self.what == "reward":
                reward = self.value
            elif self.what == "crash":
                raise RuntimeError("the world has ended")
            else:
                (obs[self.what] if self.what else obs)[-1] = self.value
        return obs, reward, terminated, truncated, info


class Witness(Point):
    """A point that remembers with which seeds it was reset."""

    seeds: ClassVar[list[int]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.seeds.extend([] if seed is None else [seed])
        return super().reset(seed=seed, options=options)


class Wide(Point):
    """A point with a second, useless dimension: another observation space."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.observation_space = spaces.Box(-3.0, 3.0, (2,), np.float32)

    def _observe(self) -> Any:
        return np.array([self.x, 0.0], np.float32)


class Still(Point):
    """A point that does not move, and so ends only where it is cut."""

    def _moved(self, action: Any) -> float:
        return -self.x


class Faulty(Point):
    """A point whose author has made a mistake.

    :param where: it shows: "made", "reset" or "step"
    :param error: what is raised; None: whatever NumPy raises there
    """

    def __init__(self, where: str, error: Exception | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.where, self.error = where, error
        self._check("made")

    def _check(self, where: str) -> None:
        if where == self.where and self.error is not None:
            raise self.error
        if where == self.where:
            np.concatenate([np.zeros((1, 1)), np.zeros(1)])

    def reset(self, **kwargs: Any) -> Any:
        self._check("reset")
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        self._check("step")
        return super().step(action)


class Hangs(Point):
    """A point whose second episode does not come to an end, in Python or in a library that hears no signal."""

    def __init__(self, within: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.within, self.age = within, 0

    def step(self, action: Any) -> Any:
        self.age += 1
        if self.age > 15:
            Path("hangs").touch()
            while self.within == "python":
                time.sleep(0.01)
            lock, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
            for _ in range(2):
                library.pthread_mutex_lock(lock)
        return super().step(action)


class Blind(Point):
    """A point that nobody sees."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()


class Unlit(Point):
    """A point that would be seen, were there light."""

    def render(self) -> Any:
        raise RuntimeError("no light")


class Locked(Point):
    """A point that nobody can copy."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Shared(Point):
    """A point that counts what all points together do."""

    steps = 0

    def step(self, action: Any) -> Any:
        Shared.steps += 1
        obs, reward, *rest = super().step(action)
        return obs, reward + Shared.steps, *rest


gym.register("Point-v0", Point)
gym.register("ChangesClass-v0", ChangesClass)
gym.register("Locked-v0", Locked)
gym.register("Shared-v0", Shared)
gym.register("Halves-v0", Point, kwargs={"moves": "discrete"})
gym.register("Blind-v0", Blind)
gym.register("Unlit-v0", Unlit)
gym.register("Wide-v0", Wide)
gym.register("Endless-v0", Still, kwargs={"length": 10**9})
gym.register("Long-v0", Still, kwargs={"length": 50})
for where in ("made", "reset", "step"):
    gym.register(f"Faulty-{where}-v0", Faulty, kwargs={"where": where, "error": ValueError("it is Tuesday")})
gym.register("Unlike-v0", Faulty, kwargs={"where": "step"})
gym.register("Denied-v0", Faulty, kwargs={"where": "step", "error": PermissionError(13, "not allowed", "a.dat")})
for within in ("python", "library"):
    gym.register(f"Hangs-{within}-v0", Hangs, kwargs={"within": within})
gym.register("Witness-v0", Witness)
gym.register("NaNObservation-v0", Sick, kwargs={"what": "", "value": np.nan})
gym.register("InfiniteReward-v0", Sick, kwargs={"what": "reward", "value": np.inf})
gym.register("NaNClock-v0", Sick, kwargs={"what": "clock", "value": np.nan, "form": "dict"})
gym.register("Crash-v0", Sick, kwargs={"what": "crash", "value": np.nan})
register_mujoco_task("ShortCheetah-v0", HalfCheetah, max_episode_steps=12)
