"""Frostbite: its memory against its pixels, the true end of a game, landings, rules, states, players."""

import itertools
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("ale_py")

from headway.envs.atari import NOOP, AtariEnv
from headway.envs.frostbite import FrostbiteEnv, FrostbiteMonitor, starts
from headway.envs.frostbite import ram as m
from headway.envs.frostbite.players import (
    DOWN,
    LEFT,
    RIGHT,
    UP,
    Cycle,
    LookAhead,
    Random,
    goal_of,
    player_for,
    way_to_next_level,
)
from headway.envs.frostbite.published import FORMULAS, Published
from headway.envs.missions import find_task, tasks_of

PLAYER = [(162, 98, 33), (198, 108, 58), (162, 162, 42)]
WHITE, BLUE, WATER = (214, 214, 214), (84, 138, 210), (0, 28, 136)


def game(**options: Any) -> FrostbiteEnv:
    return FrostbiteEnv(**{"noop_max": 0, **options})


@dataclass
class Recording:
    """An episode of the look-ahead player on its way to level 2, frame by frame."""

    actions: list[int] = field(default_factory=list)
    rams: list[bytes] = field(default_factory=list)
    screens: dict[int, np.ndarray] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)
    monitor: FrostbiteMonitor = field(default_factory=FrostbiteMonitor)


@pytest.fixture(scope="module")
def played() -> Recording:
    env, watching, record = game(), game(frame_skip=1), Recording()
    task = find_task("frostbite", "reach_level-2")
    for one in (env, watching):
        one.reset(options={"noops": 19})
    player = player_for(env, task, np.random.default_rng(0))
    while not task.success(env.monitor):
        action = player.act()
        env.step(action)
        for _ in range(4):
            _, reward, _, _, _ = watching.step(action)
            record.actions.append(action)
            record.rams.append(watching.ram())
            record.rewards.append(reward)
            if len(record.rams) % 7 == 0:
                record.screens[len(record.rams) - 1] = watching.ale.getScreenRGB()
        assert len(record.rams) < 3_000
    record.monitor = watching.monitor
    assert watching.monitor.state() | {"published": 0} == env.monitor.state() | {"published": 0}
    return record


# -- memory and pixels -------------------------------------------------------------------------------------------------


def mask(screen: np.ndarray, *colours: tuple[int, int, int]) -> np.ndarray:
    return np.any([(screen == np.array(colour)).all(-1) for colour in colours], 0)


def test_the_player_is_where_the_memory_says(played: Recording) -> None:
    apart = []
    for frame, screen in played.screens.items():
        ram = played.rams[frame]
        if frame > 80 and ram[m.PHASE] == m.PLAY and ram[m.Y] > 0:
            ys, xs = np.nonzero(mask(screen[25:187], *PLAYER))
            apart.append((abs(int(xs.min()) - ram[m.X]), abs(int(ys.min()) + 25 - ram[m.Y] - 29)))
    assert len(apart) > 100
    assert np.mean([max(pair) <= 2 for pair in apart]) > 0.98  # a goose may hide a head


def test_rows_have_the_colour_that_the_memory_says(played: Recording) -> None:
    agree, seen = [], set()
    for frame, screen in played.screens.items():
        ram = played.rams[frame]
        if ram[m.PHASE] == m.PLAY and frame > 80:
            for row in range(1, 5):
                line, colour = screen[98 + m.SPACING * (row - 1)], ram[m.COLOURS[row - 1]]
                white, blue = (int(mask(line, c).sum()) for c in (WHITE, BLUE))
                agree.append(white > 15 > blue if colour == m.WHITE else blue > 15 > white)
                seen.add((row, colour))
    assert len(seen) == 8
    assert np.mean(agree) > 0.97  # the screen is a frame behind where a row changes


def test_the_memorys_score_is_the_sum_of_rewards(played: Recording) -> None:
    assert [m.score_of(ram) for ram in played.rams] == np.cumsum(played.rewards).tolist()
    assert m.score_of(played.rams[-1]) > 300


def test_the_igloo_has_as_many_blocks_as_the_memory_says(played: Recording) -> None:
    counts = set()
    for frame, screen in played.screens.items():
        ram = played.rams[frame]
        blocks = m.blocks_of(ram)
        steady = m.blocks_of(played.rams[frame - 2]) == blocks  # the screen is a frame late
        if ram[m.PHASE] == m.PLAY and frame > 80 and ram[m.Y] >= 79 and steady:  # the player is not in front of it
            place = screen[35:56, 100:156]
            if blocks <= 12:
                assert int(mask(place, (142, 142, 142)).sum()) == 32 * blocks
            assert bool(mask(place, (0, 0, 0)).any()) is (blocks == m.DOOR)
            counts.add(blocks)
    assert len(counts) > 8
    assert m.DOOR in counts


def test_what_agents_see_of_the_memory(played: Recording) -> None:
    for frame in range(0, len(played.rams), 13):
        numbers = dict(zip(m.NAMES, m.observe(played.rams[frame]).tolist(), strict=True))
        ram = played.rams[frame]
        assert all(0 <= number <= 1 for number in numbers.values())
        assert numbers["x"] == pytest.approx(ram[m.X] / 160)
        assert numbers["blocks"] == pytest.approx(m.blocks_of(ram) / 16)
        assert numbers["temperature"] == pytest.approx(m.DECIMAL[ram[m.TEMPERATURE]] / 45)
        assert [numbers[f"claimed of row {row}"] for row in (1, 2, 3, 4)] == [
            float(ram[address] == m.BLUE) for address in m.COLOURS
        ]
        assert sum(numbers[name] for name in ("play", "freezing", "drowning", "waiting", "entered", "changing")) == 1


# -- episodes ----------------------------------------------------------------------------------------------------------


def test_who_does_nothing_freezes_four_times_and_the_game_ends_then() -> None:
    env = game(frame_skip=1)
    env.reset(seed=0)
    terminated, steps = False, 0
    while not terminated:
        *_, terminated, _, info = env.step(NOOP)
        steps += 1
        assert steps < 13_000
    assert abs(steps - 12_544) <= 4
    assert not env.ale.game_over()  # who asks the emulator would go on into a demonstration on level 8
    counted = env.monitor
    assert (counted.level, counted.score, counted.landings) == (1, 0, [0] * 5)
    assert [kind for _, _, kind in counted.deaths] == ["cold"] * 4
    assert counted.resting[1:] == [0] * 4
    before = counted.state()
    counted.update(env.ram(), 10)
    assert counted.state() == before
    assert info["frostbite"]["deaths"] == counted.deaths


def test_a_jump_down_lands_on_the_first_row() -> None:
    env = game(frame_skip=1)
    env.reset()
    for frame in range(125):
        env.step(DOWN if frame >= 90 else NOOP)
        if env.monitor.landings[1]:
            break
    assert frame in range(117, 123)
    assert (env.monitor.y, env.monitor.blocks, env.monitor.score) == (53, 1, 10)
    assert env.ram()[m.COLOURS[0]] == m.BLUE


def test_a_jump_into_the_water_lands_nowhere() -> None:
    env = game(frame_skip=1)
    env.reset()
    for frame in range(400):
        env.step(LEFT if 62 < frame < 94 else DOWN if 94 <= frame < 122 else NOOP)
        if env.monitor.deaths:
            break
    assert [kind for _, _, kind in env.monitor.deaths] == ["water"]
    assert env.monitor.landings == [0] * 5
    for _ in range(150):
        env.step(NOOP)
    assert env.monitor.resting[1] == 0  # while it sinks, the height stays that of the row


@pytest.mark.parametrize("skip", [2, 4])
def test_counts_do_not_depend_on_the_frame_skip(played: Recording, skip: int) -> None:
    """What was executed frame by frame is the same; the published rules count by steps, and miss landings."""
    env = game(frame_skip=skip)
    env.reset(options={"noops": 19})
    for action in played.actions[::skip]:
        env.step(action)
    counted, expected = env.monitor.state(), played.monitor.state()
    assert counted | {"published": 0} == expected | {"published": 0}
    assert sum(counted["alternations"]) > 5
    assert counted["published"]["steps"] == len(played.actions) // skip


def test_levels_blocks_and_degrees(played: Recording) -> None:
    counted = played.monitor
    assert (counted.level, counted.most_blocks, counted.deaths) == (2, 16, [])
    assert counted.progress == 16
    assert 0 < counted.warmest_entry < 45
    blocks = [m.blocks_of(ram) for ram in played.rams if ram[m.PHASE] == m.ENTERED]
    assert min(blocks) < 16  # they count down while the bonus is counted, and no rule sees it
    assert counted.active < len(played.rams) - 200


def test_sticky_actions_are_the_environments_own() -> None:
    def executed(seed: int, p: float = 0.5) -> tuple[list[int], bytes]:
        env = game(repeat_action_probability=p)
        env.reset(seed=seed)
        taken = [int(a) for k in range(60) for a in env.step(k % 18)[4]["executed"]]
        return taken, env.ram()

    assert executed(3) == executed(3)
    assert executed(3) != executed(4)
    assert executed(3, 0.0)[0] == [k % 18 for k in range(60) for _ in range(4)]
    taken, ram = executed(5)
    assert any(a != b for a, b in zip(taken, [k % 18 for k in range(60) for _ in range(4)], strict=True))
    env = game(frame_skip=1)
    env.reset()
    for action in taken:
        env.step(action)
    assert env.ram() == ram  # what was executed is what happened


def test_noops_and_start_states(played: Recording) -> None:
    env = game(noop_max=30)
    begins = {env.reset(seed=seed)[0].tobytes() for seed in range(12)}
    assert len(begins) > 4
    assert env.reset(seed=7)[0].tobytes() == env.reset(seed=7)[0].tobytes()
    assert env.reset(options={"noops": 5})[0].tobytes() == env.reset(seed=9, options={"noops": 5})[0].tobytes()
    original = game()
    original.reset(options={"noops": 19})
    for action in played.actions[::4]:
        original.step(action)
    start = original.start_state()
    other = game()
    other.reset(options={"start_state": start, "noops": 0})
    assert other.ram()[m.LEVEL] == 1
    assert other.monitor.frames == 0
    for action in (NOOP, RIGHT, UP, DOWN, LEFT) * 20:
        original.step(action)
        other.step(action)
        assert original.ram() == other.ram()


@pytest.mark.parametrize("obs", ["ram", "pixels"])
def test_states_are_exact(obs: Any) -> None:
    options = {"obs": obs, "repeat_action_probability": 0.25, "stack": 3 if obs == "pixels" else 1}
    env, other = game(noop_max=30, **options), game(noop_max=30, **options)
    env.reset(seed=2)
    other.reset(seed=5)
    rng = np.random.default_rng(0)
    for _ in range(150):
        env.step(int(rng.integers(18)))
    other.load_state(env.state())
    for _ in range(120):
        action = int(rng.integers(18))
        one, two = env.step(action), other.step(action)
        assert np.array_equal(one[0], two[0])
        assert one[1:4] == two[1:4]
        if one[2]:
            assert np.array_equal(env.reset()[0], other.reset()[0])
    assert env.monitor.state() == other.monitor.state()


def test_states_that_do_not_fit_are_refused() -> None:
    env = game()
    env.reset(seed=0)
    state = env.state()
    for change, message in (
        ({"emulator": np.zeros(40, np.uint8)}, "this is no state of the emulator"),
        ({"executed": 18}, "executed"),
        ({"monitor": state["monitor"] | {"frames": -1}}, "frames"),
        ({"monitor": state["monitor"] | {"deaths": [(1, 1, "boredom")]}}, "deaths"),
        ({"random": {}}, "generator"),
    ):
        with pytest.raises(ValueError, match=message):
            env.load_state(state | change)
    env.load_state(state)


def test_pixels_are_the_brightest_of_two_frames_made_small() -> None:
    env = game(obs="pixels", stack=2)
    obs, _ = env.reset()
    assert obs.shape == (2, 84, 84)
    assert np.array_equal(obs[0], obs[1])
    for _ in range(25):
        obs, *_ = env.step(DOWN)
    watching = game(frame_skip=1)
    watching.reset()
    frames = []
    for _ in range(100):
        watching.step(DOWN)
        frames.append(watching.ale.getScreenGrayscale())
    assert abs(float(obs[-1].mean()) - float(np.maximum(frames[-1], frames[-2]).mean())) < 1.0
    assert obs.dtype == np.uint8
    assert not np.array_equal(obs[0], obs[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"obs": "sound"}, "obs is 'sound': it can be 'ram' or 'pixels'"),
        ({"repeat_action_probability": 1.0}, r"repeat_action_probability is 1.0: it must lie in \[0, 1\)"),
        ({"frame_skip": 0}, "frame_skip is 0: at least 1"),
        ({"noop_max": -1}, "noop_max is -1"),
        ({"stack": 0}, "stack is 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        game(**options)


def test_actions_and_options_that_do_not_fit_are_refused() -> None:
    env = game()
    env.reset()
    with pytest.raises(ValueError, match="action is 18: it must be a whole number from 0 to 17"):
        env.step(18)
    with pytest.raises(ValueError, match="reset has no option 'level': it takes noops, start_state"):
        env.reset(options={"level": 3})
    with pytest.raises(ValueError, match="noops is -2"):
        env.reset(options={"noops": -2})
    with pytest.raises(ValueError, match="this is no state of the emulator"):
        env.reset(options={"start_state": b"nothing"})


# -- rules -------------------------------------------------------------------------------------------------------------


def wander(env: AtariEnv, frames: int, seed: int) -> Iterator[FrostbiteMonitor]:
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    for _ in range(frames // env.frame_skip):
        _, _, terminated, _, _ = env.step(int(rng.integers(18)))
        yield env.monitor  # type: ignore[misc]
        if terminated:
            return


def test_scores_lie_between_0_and_1_and_agree_with_success() -> None:
    tasks = tasks_of("frostbite")
    growing = ("land_row", "visit", "build", "fish", "max_points", "alternate", "reach_level", "finish", "warm_entry")
    env, ended = game(), 0
    fresh = FrostbiteMonitor()
    assert {task.score(fresh) for task in tasks.values()} == {0.0}
    assert not any(task.success(fresh) for task in tasks.values())
    for seed in range(6):
        before = dict.fromkeys(tasks, 0.0)
        for monitor in wander(env, 4_000, seed):
            for name, task in tasks.items():
                score = task.score(monitor)
                if monitor.frames > task.horizon:
                    continue
                assert 0 <= score <= 1, name
                if name.startswith(growing):
                    assert score >= before[name], name
                    assert task.success(monitor) is (score >= 1), name
                before[name] = score
        ended += monitor.over
        assert all(0 <= FORMULAS[name](monitor.published) <= 1 for name in FORMULAS)
    assert ended > 3


def test_rules_by_hand() -> None:
    s = FrostbiteMonitor(frames=2_800, home=2_700, left=2_700)
    assert find_task("frostbite", "dont_move").success(s)
    assert find_task("frostbite", "stay_left").success(s)
    s.deaths = [(1_400, 1, "water")]
    assert not find_task("frostbite", "stay_left").success(s)
    assert find_task("frostbite", "survive").score(s) == 0.5
    assert find_task("frostbite", "lose_life").score(FrostbiteMonitor(deaths=[(300, 1, "water")])) == 0.75
    assert find_task("frostbite", "lose_life").score(FrostbiteMonitor(deaths=[(300, 1, "cold")])) == 0
    assert find_task("frostbite", "close_to-500").score(FrostbiteMonitor(score=600)) == pytest.approx(0.8)
    climbing = FrostbiteMonitor(level=2, progress=16 + 8)
    assert find_task("frostbite", "reach_level-3").score(climbing) == pytest.approx(0.75)
    assert find_task("frostbite", "reach_level-2").success(climbing)
    assert find_task("frostbite", "no_loss_level-2").success(climbing)
    climbing.deaths = [(9, 1, "cold")]
    assert not find_task("frostbite", "no_loss_level-2").success(climbing)
    assert find_task("frostbite", "die_on_level-2").score(FrostbiteMonitor(over=True, level=2)) == 1
    still = FrostbiteMonitor(
        deaths=[(9, 1, "cold")], score_at_first_death=1_500, active_after_first_death=10, home_after_first_death=5
    )
    assert find_task("frostbite", "far_then_still").score(still) == 0.5


def test_points_beyond_four_digits_and_lives() -> None:
    ram = bytearray(128)
    ram[72:75] = bytes([0x01, 0x23, 0x45])
    assert m.score_of(bytes(ram)) == 12_345
    ram[m.SPARE_LIVES], ram[m.BLOCKS] = 0xF9, 255
    monitor = FrostbiteMonitor()
    monitor.update(bytes(ram), 0)
    assert (monitor.spare_lives, monitor.score, m.blocks_of(bytes(ram))) == (9, 12_345, 0)


def test_fish_are_points_that_no_row_explains() -> None:
    monitor, ram = FrostbiteMonitor(), bytearray(128)
    for address in m.COLOURS:
        ram[address] = m.WHITE
    monitor.update(bytes(ram), 0)
    ram[m.COLOURS[0]] = m.BLUE
    monitor.update(bytes(ram), 10)
    for _ in range(19):
        monitor.update(bytes(ram), 10)
    assert monitor.fish == 0
    monitor.update(bytes(ram), 10)
    assert monitor.fish == 1
    ram[m.COLOURS[1]] = m.BLUE
    monitor.update(bytes(ram), 0)  # the row's points come a frame later
    assert monitor.fish == 1


def test_the_published_formulas_count_steps() -> None:
    published, ram = Published(), bytearray(128)
    ram[m.X], ram[m.Y], ram[m.SPARE_LIVES] = 64, m.SHORE, 3
    for _ in range(100):
        published.update(bytes(ram))
    assert FORMULAS["stay_left"](published) == 1.0
    assert FORMULAS["dont_move"](published) == 100 / 4_000
    assert FORMULAS["die_on_level-1"](published) == 1.0  # of one that never died
    ram[m.Y], ram[m.PHASE] = 53, m.DROWNING
    for _ in range(100):
        published.update(bytes(ram))
    assert FORMULAS["camp_row-1"](published) == 0.5  # sinking counts
    for y in (79, 105, 105, 79, 53, 105):
        ram[m.Y] = y
        published.update(bytes(ram))
    assert published.alternations == 3
    for y in (0, 0, 27, 0):
        ram[m.Y] = y
        published.update(bytes(ram))
    assert FORMULAS["reach_level-3"](published) == 1.0
    other = Published()
    other.load_state(published.state())
    assert other == published


# -- players -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["land_row-4", "visit_all_rows", "build-4", "lose_life"])
def test_players_show_tasks(name: str) -> None:
    env, task = game(), find_task("frostbite", name)
    env.reset(seed=4)
    player = player_for(env, task, np.random.default_rng(1))
    while not task.success(env.monitor) and env.monitor.frames < task.horizon and not env.monitor.over:
        env.step(player.act())
    assert task.success(env.monitor)


def test_looking_ahead_changes_nothing() -> None:
    env = game()
    env.reset(seed=4)
    for _ in range(25):
        env.step(NOOP)
    before = env.state()
    player = LookAhead(env, goal_of(find_task("frostbite", "build-4")), np.random.default_rng(0))
    player.act()
    after = env.state()
    assert player.simulated > 300
    assert np.array_equal(before.pop("emulator"), after.pop("emulator"))
    assert before == after
    with pytest.raises(ValueError, match="a look-ahead player needs repeat_action_probability=0"):
        LookAhead(game(repeat_action_probability=0.25), lambda s: 0.0, np.random.default_rng(0))


def test_every_task_has_a_goal() -> None:
    monitor = FrostbiteMonitor(recent=[2, 0, 0, 2, 2, 0], white=0b1010)
    for task in tasks_of("frostbite").values():
        assert np.isfinite(goal_of(task)(monitor))
        assert np.isfinite(goal_of(replace(task, id="one-of-somebodys-own"))(monitor))


def test_simple_players() -> None:
    assert [Cycle((UP, DOWN), 2).act() for _ in range(1)] == [UP]
    cycle = Cycle((UP, DOWN), 2)
    assert [cycle.act() for _ in range(6)] == [UP, UP, DOWN, DOWN, UP, UP]
    player = Random(np.random.default_rng(0), 3)
    taken = [player.act() for _ in range(90)]
    assert all(len({*taken[k : k + 3]}) == 1 for k in range(0, 90, 3))
    assert len({*taken}) > 8


def _played_elsewhere(seed: int) -> bytes:
    env = game(repeat_action_probability=0.25, noop_max=30)
    env.reset(seed=seed)
    for k in range(40):
        env.step(k % 18)
    return env.ram()


def test_two_processes_agree() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_played_elsewhere, (8,)) == _played_elsewhere(8)


@pytest.mark.parametrize("level", [1, 2, 6])
def test_levels_to_start_from(level: int) -> None:
    env = game(noop_max=30)
    env.reset(seed=0, options={"start_level": level, "noops": 0})
    ram = env.ram()
    assert (m.row_of(ram), ram[m.PHASE]) == (0, m.PLAY)
    assert level == 1 or ram[m.BUSY] == 0  # a game begins with frames in which input is ignored
    env.step(NOOP)
    assert env.monitor.level == level
    assert not env.monitor.deaths  # of this episode
    copied = env.state()
    first = [env.step(action)[0] for action in (RIGHT, RIGHT, DOWN, NOOP)]
    env.load_state(copied)
    assert np.array_equal(first, [env.step(action)[0] for action in (RIGHT, RIGHT, DOWN, NOOP)])


def test_levels_that_nobody_reached_are_refused() -> None:
    env = game()
    with pytest.raises(ValueError, match="start_level is 9: it can be 1 to 6"):
        env.reset(options={"start_level": 9})
    with pytest.raises(ValueError, match="leave one out"):
        env.reset(options={"start_level": 2, "start_state": b""})


@pytest.mark.slow
def test_ways_to_levels_are_made_again() -> None:
    env, rng = game(), np.random.default_rng(3)
    env.reset(seed=0, options={"noops": 0})
    ways = yaml.safe_load((Path(starts.__file__).parent / "starts.yaml").read_text())
    assert {level: starts.encode(way_to_next_level(env, rng)) for level in range(2, 7)} == ways


def test_actions_are_kept_and_read() -> None:
    actions = [0, 0, 17, 17, 17, 1, 0]
    assert starts.encode(actions) == "a2r3b1a1"
    assert starts.decode("a2r3b1a1") == actions


def test_alternating_between_rows_that_do_not_touch() -> None:
    task = find_task("frostbite", "alternate-1-3")
    env, rng = game(), np.random.default_rng(0)
    env.reset(seed=0)
    player = player_for(env, task, rng)
    landed, lasts = [0] * 5, []
    while env.monitor.frames < 500:
        env.step(player.act())
        new = [row for row in range(1, 5) if env.monitor.landings[row] > landed[row]]
        landed = list(env.monitor.landings)
        lasts += new
    assert not env.monitor.deaths
    visited = [row for row in lasts if row in (1, 3)]
    assert env.monitor.alternated(1, 3) == sum(one != other for one, other in itertools.pairwise(visited)) >= 4
    assert env.monitor.alternated(3, 1) == env.monitor.alternations[1]
    assert env.monitor.last_of(1, 3) == visited[-1]
