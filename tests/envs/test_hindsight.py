"""Recorded play of Frostbite, and the tasks that its stretches show."""

import numpy as np
import pytest

pytest.importorskip("ale_py")

from headway.envs.frostbite import FrostbiteEnv, FrostbiteMonitor
from headway.envs.frostbite import ram as m
from headway.envs.frostbite.hindsight import (
    LENGTHS,
    Stretch,
    Trace,
    cuts,
    monitored,
    play,
    share_of,
    stretches,
    usual_shares,
)
from headway.envs.frostbite.players import DOWN, NOOP, UP, Cycle, Random, player_for
from headway.envs.frostbite.tasks import KEPT_UP
from headway.envs.missions import find_task, tasks_of

NOTHING_USUAL = {name: np.zeros(len(LENGTHS)) for name in KEPT_UP}
ALL_USUAL = {name: np.full(len(LENGTHS), 2.0) for name in KEPT_UP}


def by_chance(seed: int, each: int = 1) -> Trace:
    env = FrostbiteEnv()
    env.reset(seed=seed)
    return play(env, Random(np.random.default_rng(seed), each), 400)


@pytest.fixture(scope="module")
def random_play() -> list[Trace]:
    return [by_chance(seed, (1, 4, 8)[seed % 3]) for seed in range(9)]


def test_a_trace_is_what_happened() -> None:
    env = FrostbiteEnv(noop_max=0)
    env.reset()
    trace = play(env, Random(np.random.default_rng(3), 4), 300)
    assert trace.rams.shape == (len(trace.rewards) + 1, 128)
    assert trace.rams[-1].tobytes() == env.ram()
    assert int(trace.rewards.sum()) == m.score_of(env.ram())
    assert env.watch is None
    again = FrostbiteEnv(noop_max=0)
    again.reset()
    for step, action in enumerate(trace.actions):
        assert again.ram() == trace.rams[trace.frames(step)].tobytes()
        again.step(int(action))
    *_, counted = monitored(trace, 0, len(trace))
    names = ("frames", "landings", "alternations", "deaths", "score", "fish", "resting", "active", "most_blocks")
    assert [getattr(counted, name) for name in names] == [getattr(env.monitor, name) for name in names]


def test_play_for_a_task_ends_with_it() -> None:
    env, task = FrostbiteEnv(noop_max=0), find_task("frostbite", "land_row-1")
    env.reset()
    trace = play(env, player_for(env, task, np.random.default_rng(0)), 3_000, task)
    assert task.success(env.monitor)
    assert len(trace) < 40
    env.reset()
    assert len(play(env, Cycle((NOOP,)), 3_000, task)) == task.horizon // 4


def test_tasks_of_a_known_game() -> None:
    """Down to the first row and the second, and up again."""
    env = FrostbiteEnv(noop_max=0)
    env.reset()
    moves = [NOOP] * 22 + [DOWN] * 8 + [NOOP] * 3 + [DOWN] * 8 + [NOOP] * 3 + [UP] * 8 + [NOOP] * 4
    trace = play(env, Cycle(moves), len(moves))
    found = {one.task: one for one in stretches(trace, 0, len(trace), ALL_USUAL)}
    expected = {f"land_row-{row}" for row in (1, 2, 3, 4) if env.monitor.landings[row]}
    expected |= {"lose_life"} if env.monitor.deaths else set()
    assert set(found) == expected
    assert "land_row-1" in found
    for name, one in found.items():
        assert one.start == 0
        task = find_task("frostbite", name)
        *_, before = monitored(trace, 0, one.stop - 1)
        assert not task.success(before)
        *_, after = monitored(trace, 0, one.stop)
        assert task.success(after)


def test_what_was_done_before_is_not_shown(random_play: list[Trace]) -> None:
    """A stretch that begins with eight blocks does not build eight; a death before it is none of its."""
    trace = max(random_play, key=lambda one: m.blocks_of(one.rams[-1].tobytes()))
    blocks = [m.blocks_of(trace.rams[trace.frames(step)].tobytes()) for step in range(len(trace))]
    start = next(step for step, count in enumerate(blocks) if count >= 4)
    assert "build-4" in {one.task for one in stretches(trace, 0, len(trace), ALL_USUAL)}
    assert "build-4" not in {one.task for one in stretches(trace, start, len(trace), ALL_USUAL)}
    begun = FrostbiteMonitor.beginning(trace.rams[trace.frames(start)].tobytes())
    assert (begun.blocks, begun.frames, begun.deaths, begun.landings) == (blocks[start], 0, [], [0] * 5)


def test_random_play_shows_nothing_unusual(random_play: list[Trace]) -> None:
    usual = usual_shares(random_play, np.random.default_rng(0))
    assert all(0 <= value <= 1 for values in usual.values() for value in values if np.isfinite(value))
    assert usual["stay_left"][1] > 0.5  # so that nobody is told to stay on the left who only happened to be there
    rng, shown, looked = np.random.default_rng(1), 0, 0
    for trace in random_play:
        for _ in range(20):
            start = int(rng.integers(len(trace) - 100))
            labels = {one.task for one in stretches(trace, start, start + 100, usual)}
            shown, looked = shown + len(labels & {"stay_left", "stay_right"}), looked + 2
    assert shown / looked < 0.12  # 5 % by construction, of the same few games


def test_unusual_play_is_shown(random_play: list[Trace]) -> None:
    usual = usual_shares(random_play, np.random.default_rng(0))
    env = FrostbiteEnv(noop_max=0)
    env.reset()
    trace = play(env, Cycle((NOOP,)), 400)
    labels = {one.task: one for one in stretches(trace, 0, 400, usual)}
    assert labels["dont_move"] == Stretch(0, 400, "dont_move")
    assert "stay_right" not in labels
    *_, monitor = monitored(trace, 0, 400)
    assert share_of(find_task("frostbite", "dont_move"), monitor) > 0.9
    longer = play(env, Cycle((NOOP,)), 900)
    ends = {one.task: one.stop for one in stretches(longer, 0, len(longer), NOTHING_USUAL)}
    assert ends["dont_move"] == 700  # where its horizon of 2,800 frames ends


def test_held_out_tasks_label_nothing(random_play: list[Trace]) -> None:
    held_out = {task.id for task in tasks_of("frostbite").values() if task.held_out}
    assert not held_out & {*KEPT_UP}
    for trace in random_play[:3]:
        assert not held_out & {one.task for one in stretches(trace, 0, len(trace), NOTHING_USUAL)}


def test_cuts_are_drawn(random_play: list[Trace]) -> None:
    trace = random_play[0]
    drawn = list(cuts(trace, np.random.default_rng(0), 6, least=40, most=90))
    assert drawn == list(cuts(trace, np.random.default_rng(0), 6, least=40, most=90))
    assert drawn[0] == (0, len(trace))
    for start, stop in drawn[1:]:
        assert 20 <= stop - start <= 90
        assert m.row_of(trace.rams[trace.frames(start)].tobytes()) is not None
