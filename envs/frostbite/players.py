"""Players that no learning made: a look-ahead player, with a goal for every task, and simpler ones.

The look-ahead player tries a few moves in the emulator itself whenever the player stands, and makes the one after
which its goal is highest, as long as nobody dies of it within a moment. It needs no training, and shows every task.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..missions import Task
from . import ram as m
from .env import FrostbiteEnv
from .monitor import FrostbiteMonitor

NOOP, UP, RIGHT, LEFT, DOWN, UP_RIGHT, UP_LEFT, DOWN_RIGHT, DOWN_LEFT = 0, 2, 3, 4, 5, 6, 7, 8, 9
"""Actions of the emulator."""

JUMPS = (UP, DOWN, UP_RIGHT, UP_LEFT, DOWN_RIGHT, DOWN_LEFT)
WALKS = (NOOP, LEFT, RIGHT)
JUMP_FRAMES = 28
"""That a jump's direction is held: a jump takes 29 or 30, and with the direction held another one follows."""

TAIL = 40
"""Frames without an action after a move, in which a death would show (our choice)."""

SOON = 1e6
"""Over the frames until a death that is wanted, what it is worth."""

DOOR_X = 124
"""Where the igloo's door is."""

STANDS = {"stay_left": 40, "stay_right": 110, "dont_move": 64, "survive": 64}
"""Where on the shore some tasks are done."""

Goal = Callable[[FrostbiteMonitor], float]


def standing(ram: bytes) -> bool:
    """:return: whether the player stands on the shore or a floe, and can move"""
    return ram[m.SINKING] == 0 and ram[m.PHASE] == m.PLAY and ram[m.COUNTDOWN] == 0 and m.row_of(ram) is not None


def _dead(ram: bytes) -> bool:
    return ram[m.SINKING] > 0 or ram[m.PHASE] & 0xB0 != 0 or ram[m.COUNTDOWN] != 0


class LookAhead:
    """Plays one episode after the other, each for a goal.

    :param env: without stickiness, which would make what is tried another thing than what is done
    :param goal: of a monitor: what is wanted more, is higher
    :param rng: of choices among equals
    :param reckless: of a monitor: whether a death is wanted, the sooner the better
    :raises ValueError: the environment repeats actions at random
    """

    def __init__(
        self,
        env: FrostbiteEnv,
        goal: Goal,
        rng: np.random.Generator,
        reckless: Callable[[FrostbiteMonitor], bool] = lambda s: False,
    ) -> None:
        if env.repeat_action_probability:
            raise ValueError(
                "a look-ahead player needs repeat_action_probability=0: it tries moves before it makes them"
            )
        self.env, self.goal, self.rng, self.reckless = env, goal, rng, reckless
        self.simulated = 0
        """Frames that were tried."""
        self._plan: list[int] = []

    def act(self) -> int:
        """:return: the next action, for the state in which the environment is"""
        if not self._plan:
            self._plan = self._best() if standing(self.env.ram()) else [NOOP]
        return self._plan.pop(0)

    def _best(self) -> list[int]:
        skip = self.env.frame_skip
        moves = [[walk] for walk in WALKS] + [[jump] * -(-JUMP_FRAMES // skip) for jump in JUMPS]
        values = [self._worth(move) for move in moves]
        best = max(values)
        ties = [move for move, value in zip(moves, values, strict=True) if value >= best - 1e-9]
        return ties[int(self.rng.integers(len(ties)))]

    def _worth(self, move: Sequence[int]) -> float:
        """:return: the goal after a move and a moment; nothing is worth a death that it brings, unless one is wanted"""
        ale, monitor = self.env.ale, deepcopy(self.env.monitor)
        before, deaths, level = ale.cloneState(include_rng=True), len(monitor.deaths), monitor.level
        frames = [action for action in move for _ in range(self.env.frame_skip)] + [NOOP] * TAIL
        wants_death, worth, after = self.reckless(monitor), -np.inf, float(self.goal(monitor))
        for count, action in enumerate(frames, 1):
            reward = ale.act(action)
            ram = ale.getRAM().tobytes()
            monitor.update(ram, reward)
            if count == len(move) * self.env.frame_skip:
                after = float(self.goal(monitor))
            if _dead(ram) or len(monitor.deaths) > deaths:
                worth = SOON / count if wants_death else worth
                break
            if monitor.level > level or ram[m.PHASE] == m.ENTERED:
                worth = float(self.goal(monitor)) + 1
                break
        else:
            worth = 0.5 * (after + float(self.goal(monitor)))
        self.simulated += count
        ale.restoreState(before)
        return worth


def way_to_next_level(env: FrostbiteEnv, rng: np.random.Generator) -> list[int]:
    """Play until the next level begins and its player can move.

    :param env: in which a game is under way
    :param rng: of choices among equals
    :return: what was done, step by step
    :raises RuntimeError: the game was over before
    """
    player, level = LookAhead(env, progress, rng), env.monitor.level
    done: list[int] = []
    while env.monitor.level == level or not standing(env.ram()) or env.ram()[m.BUSY] > 0:
        done.append(player.act())
        if env.step(done[-1])[2]:
            raise RuntimeError(f"the game was over on level {env.monitor.level}")
    return done


# -- goals -------------------------------------------------------------------------------------------------------------


def progress(s: FrostbiteMonitor) -> float:
    """:return: blocks, less the way to a row that can be claimed; with a complete igloo, less the way to its door"""
    if s.blocks >= m.DOOR:
        return s.progress + 2 - (s.y - m.SHORE) / 105 - (abs(s.x - DOOR_X) / 160 if s.y == m.SHORE else 1.0)
    rows = [row for row in range(1, 5) if s.white >> (row - 1) & 1]
    return s.progress - 0.1 * min((_apart(s, row) for row in rows), default=0.0)


def _apart(s: FrostbiteMonitor, row: int) -> float:
    """:return: rows between the player and another"""
    return abs(s.y - m.SHORE - m.SPACING * row) / m.SPACING


def _near(row: int, x: int | None = None) -> Goal:
    return lambda s: -_apart(s, row) - (0.0 if x is None else abs(s.x - x) / 160)


def goal_of(task: Task) -> Goal:
    """:return: a goal whose pursuit does a task, as far as that is known"""
    family, _, rest = task.id.partition("-")
    numbers = [int(number) for number in rest.split("-") if number.isdigit()]
    score: Goal = task.score
    if family in ("camp_row", "land_row"):
        return lambda s: 100 * score(s) + _near(numbers[0])(s)
    if family == "alternate":
        a, b = numbers
        return lambda s: (
            10.0 * s.alternated(a, b)
            + 5.0 * (s.last_of(a, b) > 0)  # else who stands before the first of them is nearer to it than to the other
            - _apart(s, b if s.last_of(a, b) == a else a)
        )
    if family == "below_first":
        return lambda s: 100 * score(s) + _near(3)(s)
    if family == "visit_all_rows":
        return lambda s: 100 * score(s) - min((_apart(s, row) for row in range(1, 5) if not s.landings[row]), default=0)
    if family in STANDS:
        return _near(0, STANDS[family])
    if family == "close_to":
        return lambda s: 100 * score(s) + progress(s) if s.score < 0.95 * numbers[0] else 200 + _near(0)(s)
    if family == "far_then_still":
        return lambda s: _near(0, STANDS["dont_move"])(s) if s.deaths else s.score / 100 + progress(s)
    return lambda s: 100 * score(s) + progress(s) + s.score / 1_000


class Player(Protocol):
    """Says what to do next, and then sees it done."""

    def act(self) -> int:
        """:return: the next action"""


@dataclass
class Cycle:
    """Does the same again and again.

    :param actions: one after the other
    :param each: steps that an action is held
    """

    actions: Sequence[int]
    each: int = 1
    taken: int = 0

    def act(self) -> int:
        """:return: the next action"""
        self.taken += 1
        return self.actions[(self.taken - 1) // self.each % len(self.actions)]


@dataclass
class Random:
    """Does anything, and sticks to it for a while.

    :param rng: its random numbers
    :param each: steps that an action is held
    """

    rng: np.random.Generator
    each: int = 1
    taken: int = 0
    action: int = NOOP

    def act(self) -> int:
        """:return: the next action"""
        if self.taken % self.each == 0:
            self.action = int(self.rng.integers(18))
        self.taken += 1
        return self.action


def player_for(env: FrostbiteEnv, task: Task, rng: np.random.Generator) -> Player:
    """Make the player that shows a task: the look-ahead player, who seeks a death where that is asked for.

    :param env: in which it will play
    :param task: what is to be shown
    :param rng: of choices among equals
    :return: it
    """
    family, _, number = task.id.partition("-")
    if family == "lose_life":
        return LookAhead(env, goal_of(task), rng, lambda s: True)
    if family == "die_on_level":
        return LookAhead(env, goal_of(task), rng, lambda s: s.level >= int(number))
    return LookAhead(env, goal_of(task), rng)
