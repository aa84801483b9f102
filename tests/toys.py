"""The small worlds of the tests: some with a known optimum, one whose observations say where they come from."""

import collections
import math
import os
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from headway.agents.core.data import Dataset
from headway.agents.mbpo import Dynamics
from headway.envs.terminations import register_termination
from headway.wrappers.random_delay import RandomDelay
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

# -- a point on a line -----------------------------------------------------------------------------------------------

PLACE = spaces.Box(-3.0, 3.0, (1,), np.float32)
IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
WORDS = spaces.Box(0, 12, (2,), np.int64)
FAR = 2**24
"""The least integer whose successor is no float32: whoever reads far tokens as floats takes one for another."""

FORMS: dict[str, spaces.Space[Any]] = {
    "box": PLACE,
    "dict": spaces.Dict({"place": PLACE, "clock": spaces.Box(0.0, 1.0, (2,), np.float64)}),
    "image": IMAGE,
    "image in a dict": spaces.Dict({"camera": IMAGE, "place": PLACE, "words": WORDS, "cell": spaces.Discrete(13)}),
    "tokens": WORDS,
    "far tokens": spaces.Box(FAR, FAR + 12, (2,), np.int64),
    "discrete": spaces.Discrete(13),
    "multidiscrete": spaces.MultiDiscrete([13, 13]),
}
"""What a point can be seen as. Integers are the cell of its place, in halves from 0 to 12."""

MOVES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1.0, 1.0, (1,), np.float32),
    "discrete": spaces.Discrete(5),
    "multidiscrete": spaces.MultiDiscrete([3, 2]),
}
"""How a point can be moved: by the number itself, by one of five halves, or by whole steps and half ones together."""


class Point(gym.Env[Any, Any]):
    """A point on a line that wants to the origin: it moves by the action, and pays its squared distance.

    From any start in [-1, 1], moving by ``-x`` at once costs nothing more: the best return is 0 with every kind of
    moves, because those that go in halves start at a half. Episodes are truncated after ``length`` steps; leaving
    [-2, 2] terminates.

    :param length: of an episode, in steps
    :param form: one of ``FORMS``
    :param moves: one of ``MOVES``
    :param render_mode: a frame's brightness is the place
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's own spelling)

    def __init__(self, length: int = 7, form: str = "box", moves: str = "box", render_mode: str | None = None) -> None:
        self.length, self.form, self.moves, self.render_mode = length, form, moves, render_mode
        self.action_space = deepcopy(MOVES[moves])  # each point draws its own samples
        self.observation_space = deepcopy(FORMS[form])

    def _observe(self) -> Any:
        place = np.array([self.x], np.float32)
        cell = round(2 * (self.x + 3))  # 0 to 12
        image = np.zeros(IMAGE.shape, np.uint8)
        image[:, int(np.clip((self.x + 2) / 4 * 35, 0, 35))] = 255
        two = np.array([cell, cell])
        return {
            "box": place,
            "dict": {"place": place, "clock": np.array([self.t / self.length, 0.5])},
            "image": image,
            "image in a dict": {"camera": image, "place": place, "words": two, "cell": cell},
            "tokens": two,
            "far tokens": FAR + two,
            "discrete": cell,
            "multidiscrete": two,
        }[self.form]

    def _moved(self, action: Any) -> float:
        if self.moves == "discrete":
            return (int(action) - 2) / 2
        if self.moves == "multidiscrete":
            return int(action[0]) - 1 + int(action[1]) / 2
        return float(action[0])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.uniform(-1, 1)), 0
        if self.moves != "box":
            self.x = round(2 * self.x) / 2
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.x = float(np.clip(self.x + self._moved(action), -3, 3))
        self.t += 1
        return self._observe(), -self.x * self.x, abs(self.x) > 2, self.t >= self.length, {}

    def render(self) -> Any:
        return np.full((16, 16, 3), int(40 * (self.x + 3)), np.uint8)


register_termination("Point", lambda obs: obs[..., 0].abs() > 2)


def recorded(
    form: str = "box", moves: str = "box", lengths: Iterable[int] = (3, 2), seed: int = 0, **changes: Any
) -> Dataset:
    """Any elements of the point's spaces, as if they had been recorded.

    :param form: one of ``FORMS``
    :param moves: one of ``MOVES``
    :param lengths: of the episodes
    :param seed: of the elements
    :param changes: fields that shall be others
    :return: the data set; every other episode is terminated
    """
    observation_space, action_space = deepcopy(FORMS[form]), deepcopy(MOVES[moves])
    lengths = torch.tensor(list(lengths))
    episodes, rows = len(lengths), int(lengths.sum())
    observation_space.seed(seed)
    action_space.seed(seed)

    def drawn(space: spaces.Space[Any], count: int) -> Any:
        if isinstance(space, spaces.Dict):
            return {key: drawn(part, count) for key, part in space.items()}
        return torch.from_numpy(np.stack([np.asarray(space.sample()) for _ in range(count)]))

    generator = torch.Generator().manual_seed(seed)
    content = {
        "observation_space": observation_space,
        "action_space": action_space,
        "obs": drawn(observation_space, rows),
        "final_obs": drawn(observation_space, episodes),
        "actions": drawn(action_space, rows),
        "rewards": torch.randn(rows, generator=generator).double(),
        "lengths": lengths,
        "terminated": torch.arange(episodes) % 2 == 0,
        "extras": {"behavior_logp": torch.randn(rows, generator=generator), "policy_id": torch.arange(rows) % 3},
        "name": "toys/recorded-v0",
    }
    return Dataset(**{**content, **changes})


ERRANDS = {"stay": [1, 3, 2, 0, 0], "go right": [1, 4, 5, 2, 0]}
"""Missions of the errands below as tokens: START, words, END, PAD."""


class Errand(gym.Env[Any, Any]):
    """A place on a line, and a mission in words: to stay (action 0), or to go right (action 1), by a half each step.

    Each step pays 1 if it does what is asked. Episodes have three to nine steps.

    :param keys: of the observation, in this order: "place" or "image", "mission_tokens", "mission_task" (a Discrete),
        and "mission_number" for the task as an integer under the key "mission_task"
    """

    def __init__(self, keys: Iterable[str] = ("place", "mission_tokens", "mission_task")) -> None:
        known: dict[str, spaces.Space[Any]] = {
            "place": spaces.Box(-10.0, 10.0, (1,), np.float32),
            "image": IMAGE,
            "mission_tokens": spaces.Box(0, 2**24 + 4095, (5,), np.int64),
            "mission_task": spaces.Discrete(2),
            "mission_number": spaces.Box(0, 1, (), np.int64),
        }
        self.keys = list(keys)
        self.observation_space = spaces.Dict({self._shown(key): deepcopy(known[key]) for key in self.keys})
        self.action_space = spaces.Discrete(3)

    @staticmethod
    def _shown(key: str) -> str:
        return key.replace("number", "task")

    def _observe(self) -> Any:
        image = np.zeros(IMAGE.shape, np.uint8)
        image[:, int(np.clip(2 * self.x + 18, 0, 35))] = 255
        parts = {
            "place": np.array([self.x], np.float32),
            "image": image,
            "mission_tokens": np.array(list(ERRANDS.values())[self.task]),
            "mission_task": np.int64(self.task),
            "mission_number": np.array(self.task),
        }
        return {self._shown(key): parts[key] for key in self.keys}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.integers(-4, 5)) / 2, 0
        self.task, self.length = int(self.np_random.integers(2)), int(self.np_random.integers(3, 10))
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.x += {0: 0.0, 1: 0.5, 2: -0.5}[int(action)]
        self.t += 1
        return self._observe(), float(int(action) == self.task), False, self.t >= self.length, {}

    def asked(self, obs: Any, rng: np.random.Generator) -> Any:
        """Do what is asked."""
        return np.int64(self.task)

    def seldom_asked(self, obs: Any, rng: np.random.Generator) -> Any:
        """Do what is asked in half of the steps."""
        return np.int64(self.task if rng.random() < 0.5 else rng.integers(3))


class DelayedPoint(RandomDelay):
    """The same, seen at once, but with actions that act one to three ticks after they were chosen.

    :param delays: of observations and of actions
    :param kwargs: the point's
    """

    def __init__(self, delays: tuple[str, str] = ("constant:0", "uniform:0-2"), **kwargs: Any) -> None:
        super().__init__(Point(**kwargs), *delays)


class Odd(Point):
    """A point that breaks one of the rules that worlds should keep.

    :param fault: which one; "" none
    :param kwargs: the point's
    """

    made = ticks = 0  # in the class, where no copy reaches

    def __init__(self, fault: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fault, self.shown, self.age = fault, np.zeros(1, np.float32), 0
        Odd.made += 1
        self.number = Odd.made
        self.lock = threading.Lock() if fault == "lock" else None
        if fault == "text":
            self.observation_space = spaces.Text(5)
        if fault == "unbounded":
            self.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def _tick(self) -> int:
        Odd.ticks += 1
        return Odd.ticks

    def _observe(self) -> Any:
        obs = super()._observe()
        if self.fault == "reuses":
            self.shown[:] = obs
            return self.shown
        changed = {
            "text": lambda: "hello",
            "nan": lambda: obs * np.nan,
            "double": lambda: obs.astype(np.float64),
            "outside": lambda: obs + 10,
            "shape": lambda: np.zeros(2, np.float32),
            "list": obs.tolist,
            "word": lambda: np.array(["a"]),
            "global": lambda: obs * 0 + np.float32(np.random.random()),  # noqa: NPY002
            "own": lambda: obs * 0 + np.float32(self.number % 1009 / 1009),
            "hidden": lambda: obs * 0 + np.float32(self._tick() % 1009 / 1009),
        }
        return changed.get(self.fault, lambda: obs)()

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        return obs if self.fault == "no pair" else (obs, info)

    def step(self, action: Any) -> Any:
        self.age += 1
        if self.fault == "crash" and self.age == 5:
            raise KeyError("the fifth step")
        obs, reward, terminated, truncated, info = super().step(action)
        if self.fault == "writes":
            action[:] = 0
        if self.fault == "four":
            return obs, reward, terminated or truncated, info
        if self.fault == "endless":
            self.x, terminated, truncated = 0.0, False, False
        odd: dict[str, Any] = {"reward nan": np.nan, "reward array": np.array([1.0]), "reward pair": np.zeros(2)}
        return obs, odd.get(self.fault, reward), terminated, truncated, None if self.fault == "no info" else info


def vec(n: int = 1, **kwargs: Any) -> DummyVecEnv:
    """Monitored points for Stable-Baselines3.

    :param n: how many
    :param kwargs: the point's
    """
    return DummyVecEnv([lambda: Monitor(Point(**kwargs)) for _ in range(n)])


# -- what was recorded -------------------------------------------------------------------------------------------------

Player = Callable[[Any, np.random.Generator], Any]
"""Chooses an action by what it sees."""


def homewards(obs: Any, rng: np.random.Generator) -> Any:
    """Move to the origin, but inexactly; in a point that is moved by a number."""
    return np.clip(-obs + 0.2 * rng.normal(size=1), -1, 1).astype(np.float32)


def homewards_in_halves(obs: Any, rng: np.random.Generator) -> Any:
    """Move to the origin, mostly; in a point that is moved by one of five halves."""
    return np.int64(rng.integers(5) if rng.random() < 0.3 else np.clip(2 - np.rint(2 * obs[0]), 0, 4))


def played(env: gym.Env[Any, Any], episodes: int = 20, player: Player | None = None) -> Dataset:
    """Record whole episodes.

    :param env: where
    :param episodes: how many
    :param player: who acts; None: samples of the action space
    """
    rng, ends = np.random.default_rng(0), []
    env.action_space.seed(0)
    obs, final, actions, rewards, lengths = [], [], [], [], []
    for episode in range(episodes):
        seen, over, steps = env.reset(seed=None if episode else 0)[0], False, 0
        while not over:
            obs.append(seen)
            actions.append(env.action_space.sample() if player is None else player(seen, rng))
            seen, reward, terminated, truncated, _ = env.step(actions[-1])
            rewards.append(float(reward))
            over, steps = terminated or truncated, steps + 1
        final.append(seen)
        lengths.append(steps)
        ends.append(terminated)

    def stacked(rows: list[Any]) -> Any:
        if isinstance(rows[0], dict):
            return {key: stacked([row[key] for row in rows]) for key in rows[0]}
        return torch.as_tensor(np.stack([np.asarray(row) for row in rows]))

    return Dataset(
        observation_space=env.observation_space,
        action_space=env.action_space,
        obs=stacked(obs),
        final_obs=stacked(final),
        actions=stacked(actions),
        rewards=torch.tensor(rewards, dtype=torch.float64),
        lengths=torch.tensor(lengths),
        terminated=torch.tensor(ends),
    )


# -- points that keep their state in odd places; each shows it in its rewards ------------------------------------------


@dataclass
class Ball:
    """Where something is."""

    x: float

    def moved(self) -> float:
        self.x *= 0.9
        return self.x


class HeavyBall(Ball):
    """The same, slower."""

    def moved(self) -> float:
        self.x *= 0.99
        return self.x


class Link:
    """Knows the one before it, and the one after it."""

    def __init__(self, before: "Link | None") -> None:
        self.before, self.after, self.value = before, None, 0.0
        if before is not None:
            before.after = self  # type: ignore[assignment]


class Hiding(Point):
    """A point with something besides; ``_begin`` makes it in a reset, ``_extra`` is added to a step's reward."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        shown = super().reset(seed=seed, options=options)
        self._begin()
        return shown

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward + self._extra(), terminated, truncated, info

    def _begin(self) -> None:
        """Make what is there from a reset on."""

    def _extra(self) -> float:
        return 0.0


class MakesInReset(Hiding):
    """An object."""

    def _begin(self) -> None:
        self.ball = Ball(float(self.np_random.random()))

    def _extra(self) -> float:
        return self.ball.moved()


class Grows(Hiding):
    """A list of objects that is longer in each step, and empty after a reset."""

    def _begin(self) -> None:
        self.trail: list[Ball] = []

    def _extra(self) -> float:
        self.trail.append(Ball(self.x))
        return sum(ball.moved() for ball in self.trail)


class Shrinks(Hiding):
    """Objects in a dict, made in a reset, of which some go."""

    def _begin(self) -> None:
        self.targets = {i: Ball(i) for i in range(5)}

    def _extra(self) -> float:
        if len(self.targets) > 2:
            self.targets.pop(next(iter(self.targets)))
        return sum(ball.moved() for ball in self.targets.values())


class ChangesClass(Hiding):
    """An object of one class, later of another."""

    def _begin(self) -> None:
        self.ball = Ball(1.0)

    def _extra(self) -> float:
        if self.t % 3 == 2:
            self.ball = (HeavyBall if type(self.ball) is Ball else Ball)(self.ball.x)
        return self.ball.moved()


class ChangesMethod(Hiding):
    """A mode that is a bound method."""

    def _begin(self) -> None:
        self.mode = self._calm

    def _calm(self) -> float:
        self.mode = self._cross
        return 1.0

    def _cross(self) -> float:
        if self.t % 3 == 0:
            self.mode = self._calm
        return -1.0

    def _extra(self) -> float:
        return self.mode()


class ChangesFunction(Hiding):
    """A function of the module's, and a class."""

    def _begin(self) -> None:
        self.rule, self.maker = math.sin, Ball

    def _extra(self) -> float:
        if self.t == 2:
            self.rule, self.maker = twice, HeavyBall
        return self.rule(self.maker(self.x).moved())


def twice(x: float) -> float:
    return 2 * x


class Partial(Hiding):
    """State in the arguments of a ``functools.partial``."""

    def _begin(self) -> None:
        self.step_by = partial(self._by, Ball(1.0), scale=1.0)

    def _by(self, ball: Ball, scale: float) -> float:
        self.step_by = partial(self._by, ball, scale=scale * 0.9)
        return ball.moved() * scale

    def _extra(self) -> float:
        return self.step_by()


class Remembers(Hiding):
    """State in what a function remembers from where it was made."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        count, seen = 0, []

        def counting(x: float) -> float:
            nonlocal count
            count += 1
            seen.append(x)
            return count + sum(seen)

        self.counting = counting

    def _extra(self) -> float:
        return self.counting(self.x)


class Draws(Hiding):
    """State in the methods of generators that nothing else leads to."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.normal, self.uniform = np.random.default_rng(3).normal, random.Random(4).uniform

    def _extra(self) -> float:
        return self.normal() + self.uniform(0, 1)


class SamplesSpaces(Hiding):
    """Draws from its own spaces, and from one that it made in a reset."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.observation_space.seed(seed)
        return super().reset(seed=seed, options=options)

    def _begin(self) -> None:
        self.goals = spaces.Dict({"a": spaces.Discrete(9, seed=1), "b": spaces.Tuple([spaces.Box(0, 1, seed=2)])})

    def _extra(self) -> float:
        goal = self.goals.sample()
        return float(self.observation_space.sample().sum() + goal["a"] + goal["b"][0].sum())


class Fortran(Hiding):
    """Sums that are rounded as their arrays lie in memory."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        cube = np.random.default_rng(0).normal(size=(17, 19, 23))
        self.arrays = [np.asfortranarray(cube[0]), cube.transpose(2, 0, 1).copy(order="K")]
        self.tensor = torch.from_numpy(cube).float().permute(1, 2, 0).clone()

    def _extra(self) -> float:
        sums = [float(np.square(array.sum(axis=0)).sum()) for array in self.arrays]
        return sum(sums) + self.tensor.sum((0, 1)).square().sum().item()


class Linked(Hiding):
    """Objects that lead from one to the next, in both directions, far beyond Python's limit of recursion."""

    def _begin(self) -> None:
        last = None
        for _ in range(1500):
            last = Link(last)
        self.last = last

    def _extra(self) -> float:
        link, far = self.last, 0
        while link is not None and link.before is not None:
            link, far = link.before, far + 1
        assert link is not None
        assert link.after is not None
        assert link.after.before is link
        link.value += self.x
        return link.value + far


class Standards(Hiding):
    """Containers and values of the standard library's, in one another."""

    def _begin(self) -> None:
        self.visits: dict[str, Any] = defaultdict(collections.Counter)
        self.tries = defaultdict(int)
        self.when = datetime(2026, 1, 31, 23, 59, 58, 999_999, UTC)
        self.price = Decimal("0.10")

    def _extra(self) -> float:
        self.visits[f"{self.t % 2}"][round(self.x)] += 1
        self.tries[self.t % 3] += 1
        self.when += timedelta(days=1, microseconds=self.t)
        self.price *= Decimal("1.01")
        most = self.visits[f"{self.t % 2}"].most_common(1)[0][1]
        return float(self.price) + self.when.day + most + self.tries[7 * self.t % 3]


HIDING = (
    *(MakesInReset, Grows, Shrinks, ChangesClass, ChangesMethod, ChangesFunction, Partial, Remembers, Draws),
    *(SamplesSpaces, Fortran, Linked, Standards),
)
"""All of these."""


# -- a world that says where each observation comes from -------------------------------------------------------------

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


# -- a world that counts, and can do what careless environments do -----------------------------------------------------


class Counter(gym.Env[Any, Any]):
    """Observes how many steps its episode has had, and ends it after five.

    :param form: "box", "dict" or "image"
    :param reuses: it writes every observation into the same array
    :param dtype: of observations
    :param offset: added to them
    :param length: of an episode
    :param actions: bounds and dtype of actions
    :param reward: of every step
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own spelling)

    def __init__(
        self,
        form: str = "box",
        *,
        reuses: bool = False,
        dtype: Any = np.float32,
        offset: int = 0,
        length: int = 5,
        actions: tuple[float, float, Any] = (-1, 1, np.float32),
        reward: Any = 1.0,
    ) -> None:
        self.form, self.reuses, self.offset, self.length, self.reward = form, reuses, offset, length, reward
        box = spaces.Box(0, 2**31 - 1, (2,), dtype)
        self.observation_space: spaces.Space[Any] = box
        if form == "dict":
            self.observation_space = spaces.Dict({"count": box, "other": box})
        if form == "image":
            self.observation_space = spaces.Box(0, 255, (3, 36, 36), np.uint8)
        self.action_space = spaces.Box(*actions[:2], (1,), actions[2])
        self.taken: list[Any] = []
        self.buffer = self._blank()

    def _blank(self) -> Any:
        if isinstance(self.observation_space, spaces.Dict):
            return {key: np.zeros(part.shape, part.dtype) for key, part in self.observation_space.items()}
        return np.zeros(self.observation_space.shape or (), self.observation_space.dtype)

    def _observe(self) -> Any:
        out = self.buffer if self.reuses else self._blank()
        for part in out.values() if isinstance(out, dict) else [out]:
            part[...] = self.offset + self.t
        return out

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.t += 1
        self.taken.append(np.array(action))
        cut = self.t >= self.length
        return self._observe(), self.reward, False, cut, {"is_success": True} if cut else {}


class Mortal(Point):
    """A point whose step ends the process, or fails, when a file orders it; once, or whenever.

    :param orders: the file; it holds "die", "fail" or "always die"
    """

    def __init__(self, orders: str, length: int = 7) -> None:
        super().__init__(length)
        self.orders = orders

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        order = Path(self.orders).read_text() if os.path.exists(self.orders) else ""
        if order in ("die", "fail"):
            try:
                os.unlink(self.orders)
            except FileNotFoundError:  # another process has obeyed
                order = ""
        if order.endswith("die"):
            os._exit(3)
        if order == "fail":
            raise ArithmeticError("the point has no place")
        return super().step(action)


# -- a model whose weights are known -----------------------------------------------------------------------------------


def planted(*moves: float, target: Any = "delta") -> Dynamics:
    """A model whose member n adds moves[n] and half of the action to a place, and earns ten times the place before."""
    model = Dynamics(1, 1, members=len(moves), net_arch=(), target=target)
    with torch.no_grad():
        weight, bias = model.mlp.weights[0], model.mlp.biases[0]
        weight.zero_()
        bias.zero_()
        weight[:, 0, 0] = 10
        weight[:, 1, 1] = 0.5
        if target == "absolute":
            weight[:, 0, 1] = 1
        bias[:, 0, 1] = torch.tensor(moves)
        bias[:, 0, 2:] = -100  # no spread to speak of
        model.min_log_var.fill_(-40)
    return model
