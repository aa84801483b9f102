"""What recorded play has done, found out afterwards: stretches of it, each with a task that it shows.

A task that can be finished labels a stretch that ends where it is first done. One that is kept up labels a stretch in
which that took a greater share of the frames than in 95 of a hundred stretches of random play that are as long: else
"stay on the left side" would label everything. Held-out tasks label nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..atari import Ram
from ..missions import Task, tasks_of
from .env import FrostbiteEnv
from .monitor import FrostbiteMonitor
from .players import Player
from .ram import row_of
from .tasks import GAME, KEPT_UP

LENGTHS = (50, 100, 200, 400, 800, 1_500)
"""Steps of stretches at which random play is looked at; between them is interpolated."""

QUANTILE = 0.95


@dataclass(frozen=True)
class Trace:
    """Recorded play: the memory before the first frame and after each, and what was done.

    :param rams: (F + 1, 128) uint8
    :param rewards: the points of each frame, (F,) int32
    :param actions: of the agent's steps, each of ``frame_skip`` frames, the last perhaps of fewer, (S,) uint8
    :param frame_skip: frames of a step
    """

    rams: NDArray[np.uint8]
    rewards: NDArray[np.int32]
    actions: NDArray[np.uint8]
    frame_skip: int

    def __len__(self) -> int:
        return len(self.actions)

    def frames(self, steps: int) -> int:
        """:return: frames of the first so many steps"""
        return min(steps * self.frame_skip, len(self.rewards))


@dataclass(frozen=True)
class Stretch:
    """Steps ``start`` to ``stop`` of a trace, which show a task."""

    start: int
    stop: int
    task: str


def play(env: FrostbiteEnv, player: Player, steps: int, task: Task | None = None) -> Trace:
    """Record play from where an environment is, until its game ends, or a task is over.

    :param env: reset
    :param player: who acts
    :param steps: at most so many
    :param task: what is played for; None: nothing
    :return: what happened
    """
    if task is not None:
        steps = min(steps, -(-task.horizon // env.frame_skip))
    rams, rewards = [env.ram()], list[int]()
    actions: list[int] = []

    def watch(ram: Ram, points: int) -> None:
        rams.append(ram)
        rewards.append(points)

    env.watch = watch
    try:
        over = False
        while not over and len(actions) < steps:
            actions.append(player.act())
            _, _, over, _, _ = env.step(actions[-1])
            over |= task is not None and task.ends and task.success(env.monitor)
    finally:
        env.watch = None
    memory = np.frombuffer(b"".join(rams), np.uint8).reshape(-1, 128)
    return Trace(memory, np.array(rewards, np.int32), np.array(actions, np.uint8), env.frame_skip)


def monitored(trace: Trace, start: int, stop: int) -> Iterator[FrostbiteMonitor]:
    """Count a stretch as an episode that begins there.

    :return: the counters after each of its steps, always the same object
    """
    first = trace.frames(start)
    monitor = FrostbiteMonitor.beginning(trace.rams[first].tobytes())
    for step in range(start, stop):
        for frame in range(trace.frames(step), trace.frames(step + 1)):
            monitor.update(trace.rams[frame + 1].tobytes(), int(trace.rewards[frame]))
        yield monitor


def share_of(task: Task, monitor: FrostbiteMonitor) -> float:
    """:return: of the frames that were counted, those that did a task which is kept up"""
    return task.score(monitor) * task.horizon / max(1, monitor.frames)


def usual_shares(
    traces: Sequence[Trace], rng: np.random.Generator, samples: int = 100
) -> dict[str, NDArray[np.float64]]:
    """See how large shares are in random play.

    :param traces: of it
    :param rng: of stretches
    :param samples: stretches of each length
    :return: by task that is kept up, the 95 % quantile for each of :data:`LENGTHS`; NaN where no trace is as long
    """
    found: dict[str, list[float]] = {name: [] for name in KEPT_UP}
    for length in LENGTHS:
        long = [trace for trace in traces if len(trace) >= length]
        shares: dict[str, list[float]] = {name: [] for name in KEPT_UP}
        for _ in range(samples if long else 0):
            trace = long[int(rng.integers(len(long)))]
            start = int(rng.integers(len(trace) - length + 1))
            *_, monitor = monitored(trace, start, start + length)
            for name in KEPT_UP:
                shares[name].append(share_of(tasks_of(GAME)[name], monitor))
        for name, values in shares.items():
            found[name].append(float(np.quantile(values, QUANTILE)) if values else np.nan)
    return {name: np.array(values) for name, values in found.items()}


def stretches(trace: Trace, start: int, stop: int, usual: Mapping[str, NDArray[np.float64]]) -> list[Stretch]:
    """Find the tasks that a stretch shows, within their horizons.

    :param trace: recorded play
    :param start: its first step
    :param stop: the step behind its last
    :param usual: of random play, see :func:`usual_shares`
    :return: of tasks that it finishes the part to where each is first done, of those that it keeps up the whole
    """
    tasks = tasks_of(GAME)
    last = {name: min(stop, start + tasks[name].horizon // trace.frame_skip) for name in tasks}
    before = FrostbiteMonitor.beginning(trace.rams[trace.frames(start)].tobytes())
    goals = {name for name, task in tasks.items() if task.ends and not task.held_out and not task.success(before)}
    found = []
    for step, monitor in enumerate(monitored(trace, start, stop), start + 1):
        done = [name for name in goals if tasks[name].success(monitor)]
        found += [Stretch(start, step, name) for name in done if step <= last[name]]
        goals.difference_update(done)
        for name in KEPT_UP:
            if step == last[name] and share_of(tasks[name], monitor) > _least(usual[name], step - start):
                found.append(Stretch(start, step, name))
    return sorted(found, key=lambda one: (one.stop, one.task))


def _least(usual: NDArray[np.float64], length: int) -> float:
    """:return: the share above which a stretch of so many steps is no chance"""
    known = np.isfinite(usual)
    return float(np.interp(length, np.array(LENGTHS)[known], usual[known])) if known.any() else np.inf


def cuts(
    trace: Trace, rng: np.random.Generator, count: int, least: int = 200, most: int = 1_500
) -> Iterator[tuple[int, int]]:
    """Choose stretches: the whole, and random ones that begin where the player stands.

    :param trace: recorded play
    :param rng: of the choice
    :param count: random ones
    :param least: steps of one
    :param most: steps of one
    """
    yield 0, len(trace)
    standing = [step for step in range(len(trace)) if row_of(trace.rams[trace.frames(step)].tobytes()) is not None]
    for _ in range(count if standing else 0):
        start = standing[int(rng.integers(len(standing)))]
        stop = min(len(trace), start + int(rng.integers(least, most + 1)))
        if stop - start >= min(least, len(trace)) // 2:
            yield start, stop
