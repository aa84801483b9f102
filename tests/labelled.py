"""An environment whose observations say where they come from, and what an adapter must make of it."""

from collections.abc import Iterable, Iterator
from itertools import cycle
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

LOW, HIGH = np.array([-1.0, -2.0], np.float32), np.array([3.0, 0.5], np.float32)

# Per row: length, terminated and truncated of its episodes, again and again. Rows 0 and 1 sometimes end together, row 2
# has episodes of a single step, and 0 and 2 have ends that are terminations and truncations at once.
ENDS = (
    ((3, True, False), (2, False, True), (4, True, True)),
    ((2, False, True), (3, True, False)),
    ((5, True, True), (1, False, True), (1, True, False)),
)


class Labelled(gym.Env[Any, Any]):
    """An observation is row, episode, step, the action that led to it, and a number drawn at the reset.

    :param row: which of ``ENDS``
    :param form: "box", "dict" (keys of different shapes and dtypes) or "image" (channels last)
    :param render_mode: a frame is filled with the row's number
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's own spelling)

    def __init__(self, row: int = 0, form: str = "box", render_mode: str | None = None) -> None:
        self.row, self.form, self.render_mode = row, form, render_mode
        self.episode = -1
        self.action_space = spaces.Box(LOW, HIGH)
        self.observation_space: spaces.Space[Any] = spaces.Box(-10, 250, (5,), np.float32)
        if form == "dict":
            place, deed = spaces.Box(0, 250, (3,), np.float64), spaces.Box(-10, 250, (2, 1), np.float32)
            self.observation_space = spaces.Dict({"place": place, "deed": deed})  # sorted: deed, place
        if form == "image":
            self.observation_space = spaces.Box(0, 255, (36, 40, 3), np.uint8)

    def _observe(self, action: float) -> Any:
        labels = np.array([self.row, self.episode, self.t, action, self.draw], np.float32)
        if self.form == "dict":
            return {"place": labels[:3].astype(np.float64), "deed": labels[3:].reshape(2, 1)}
        if self.form == "image":
            image = np.zeros((36, 40, 3), np.uint8)
            image[:5, 0, 1] = (labels + 2) * [1, 1, 1, 50, 1]
            return image
        return labels

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.t, self.draw = self.episode + 1, 0, int(self.np_random.integers(200))
        self.options = options
        return self._observe(0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        length, terminated, truncated = ENDS[self.row][self.episode % len(ENDS[self.row])]
        end = self.t == length
        return self._observe(action[0]), self._reward(), end and terminated, end and truncated, {"t": self.t}

    def _reward(self) -> float:
        return 10.0 * self.episode + self.t + 0.25 * self.row  # exact in float32

    def render(self) -> Any:
        return np.full((4, 6, 3), self.row + 1, np.uint8)


class Transition(NamedTuple):
    """One step of one row, as it must be stored."""

    obs: list[float]
    action: list[float]
    reward: float
    terminated: bool
    truncated: bool
    next_obs: list[float]


def flat(obs: Any) -> list[float]:
    """One observation as agents read it: keys in the space's order, images channels first."""
    if isinstance(obs, dict):
        return [number for key in sorted(obs) for number in np.asarray(obs[key], np.float32).ravel().tolist()]
    obs = np.asarray(obs)
    return (obs.transpose(2, 0, 1) if obs.ndim == 3 else obs).ravel().tolist()


def truth(row: int, form: str, seed: int | None, actions: Iterable[Any]) -> Iterator[Transition]:
    """What happens to the row when it takes these actions, reset by hand after every end."""
    env = Labelled(row, form)
    obs, _ = env.reset(seed=seed)
    for action in actions:
        next_obs, reward, terminated, truncated, _ = env.step(action)
        yield Transition(
            flat(obs), list(map(float, action)), reward, terminated, truncated and not terminated, flat(next_obs)
        )
        obs = env.reset()[0] if terminated or truncated else next_obs


def episodes(row: int) -> Iterator[tuple[float, int]]:
    """Return and length of the row's episodes, for ever."""
    for episode, (length, _, _) in enumerate(cycle(ENDS[row])):
        yield sum(10.0 * episode + t + 0.25 * row for t in range(1, length + 1)), length


def real_steps(row: int, steps: int, delayed: bool) -> int:
    """How many of so many steps are transitions of the row, where a delayed reset takes a step of its own."""
    count = passed = 0
    for _, length in episodes(row):
        count += min(length, steps - passed)
        passed += length + delayed
        if passed >= steps:
            return count
    raise AssertionError
