"""Abilities of batches: rows that are copied, moved to other batches and reset have the future they should, exactly."""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from headway.envs import BatchedEnv, make_batched
from headway.envs.batched import Resettable, RowSnapshots, require
from headway.envs.mean_field.member import MeanFieldAgentBatch
from headway.envs.mean_field.population import MeanFieldPopulationBatch
from headway.envs.mujoco import MujocoBatch, scale
from headway.envs.mujoco.tasks import Hopper
from headway.wrappers import BatchedRandomDelay, RandomDelay, Snapshot, as_batched
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize, VecTransposeImage
from torch import Tensor
from toys import Labelled, Point


def mujoco(n: int, **options: Any) -> MujocoBatch:
    varied = {"body_mass": scale(0.8, 1.2)}
    return MujocoBatch(Hopper(), n, num_threads=1, max_episode_steps=9, randomise=varied, **options)


def dummy(n: int, make: Callable[[], gym.Env[Any, Any]]) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(make()) for _ in range(n)])


def sync(n: int, mode: AutoresetMode, form: str) -> BatchedEnv:
    return as_batched(SyncVectorEnv([partial(Counted, row % 3, form) for row in range(n)], autoreset_mode=mode))


class Counted(Labelled):
    """Counts its episodes from the one that was seeded, so that a seed says everything."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.episode = self.episode if seed is None else -1
        return super().reset(seed=seed, options=options)


def cartpole() -> gym.Env[Any, Any]:
    return gym.make("CartPole-v1", max_episode_steps=15)


BUILDERS: dict[str, Callable[[int], BatchedEnv]] = {
    "MujocoBatch": mujoco,
    "members": lambda n: MeanFieldAgentBatch(n, "crowd_modelling", size=6, population_aware=True),
    "crowds": lambda n: MeanFieldPopulationBatch(n, num_states=3, horizon=5),
    "DummyVecEnv": lambda n: as_batched(dummy(n, cartpole)),
    "DummyVecEnv of Dicts": lambda n: as_batched(dummy(n, partial(Counted, 2, "dict"))),
    "DummyVecEnv of images": lambda n: as_batched(VecTransposeImage(dummy(n, partial(Counted, 0, "image")))),
    "DummyVecEnv of robots": lambda n: as_batched(dummy(n, lambda: gym.make("Hopper-v5", max_episode_steps=9))),
    "DummyVecEnv of delays": lambda n: as_batched(
        dummy(n, lambda: Snapshot(RandomDelay(Point(), "wifi", "uniform:0-2")))
    ),
    **{f"SyncVectorEnv {mode.name}": partial(sync, mode=mode, form="dict") for mode in AutoresetMode},
    "delays": lambda n: BatchedRandomDelay(mujoco(n, autoreset_mode=AutoresetMode.DISABLED), "wifi", "uniform:0-3"),
    "delays, immediate ends": lambda n: BatchedRandomDelay(
        as_batched(dummy(n, Point)), "uniform:0-2", "uniform:0-2", form="flat", terminal_delivery="immediate"
    ),
    "delays, crowds": lambda n: BatchedRandomDelay(
        MeanFieldPopulationBatch(n, num_states=3, horizon=5, autoreset_mode=AutoresetMode.DISABLED), "wifi", "wifi"
    ),
}
STEPS = 25
# the action buffer is longer than the episodes of five steps
pytestmark = pytest.mark.filterwarnings("ignore:the action buffer holds")


def rows(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def drawn(env: BatchedEnv, steps: int, seed: int) -> Tensor:
    """Actions for one row, (T, *A)."""
    env.single_action_space.seed(seed)
    return torch.stack([torch.as_tensor(env.single_action_space.sample()) for _ in range(steps)])


def flat(value: Any) -> Any:
    """Everything that a step tells of rows, by path; clocks apart, which Monitor reads."""
    if isinstance(value, dict):
        return {f"{k}.{path}": part for k, v in value.items() if k != "sb3" for path, part in flat(v).items()}
    return {"": value} if isinstance(value, Tensor) else {}


def play(env: BatchedEnv, moves: Tensor) -> dict[str, Tensor]:
    """Give all rows the same actions; :return: what was told, (T, N, …) each."""
    told = []
    for move in moves:
        obs, rewards, terminated, truncated, info = env.step(move.expand(env.num_envs, *move.shape).clone())
        told.append(flat({"obs": obs, "rewards": rewards, "terminated": terminated, "truncated": truncated, **info}))
    return {name: torch.stack([step[name] for step in told]) for name in told[0]}


def assert_rows(found: dict[str, Tensor], place: int, expected: dict[str, Tensor], row: int) -> None:
    assert found.keys() == expected.keys()
    for name, part in found.items():
        torch.testing.assert_close(part[:, place], expected[name][:, row], rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.fixture(params=BUILDERS)
def build(request: pytest.FixtureRequest) -> Callable[[int], BatchedEnv]:
    """Makes batches of one kind."""
    return BUILDERS[request.param]


@pytest.fixture
def env(build: Callable[[int], BatchedEnv]) -> BatchedEnv:
    """A batch of three rows, seven steps after its reset; rows that end at different times, where they differ."""
    env = build(3)
    env.reset(seed=3)
    for move in drawn(env, 7, 1):
        env.step(torch.stack([move, move, move]))
    return env


def test_a_row_goes_on_in_other_rows_and_other_batches_as_it_would_have(env: BatchedEnv) -> None:
    able, moves = require(env, RowSnapshots), drawn(env, STEPS, 2)
    saved = able.state(rows(0, 1, 2))
    future = play(env, moves)
    assert (future["terminated."] | future["truncated."]).any(0).all()  # new episodes are drawn
    assert any(not torch.equal(part[:, 0], part[:, 2]) for part in future.values())

    env.reset(seed=50)
    able.load_state(saved, rows(2, 0, 1))  # after other steps, into other rows
    found = play(env, moves)
    for row, place in ((0, 2), (1, 0), (2, 1)):
        assert_rows(found, place, future, row)

    able.load_state(saved)
    able.copy_rows(rows(2, 0), rows(0, 2))  # at once: they change places
    found = play(env, moves)
    for row, place in ((2, 0), (1, 1), (0, 2)):
        assert_rows(found, place, future, row)

    able.load_state(saved)
    larger = able.like(5)
    assert (larger.num_envs, larger.single_observation_space) == (5, env.single_observation_space)
    require(larger, RowSnapshots).load_state(able.state(rows(1, 1, 2, 0, 2)), rows(4, 0, 1, 2, 3))
    found = play(larger, moves)
    for place, row in enumerate((1, 2, 0, 2, 1)):
        assert_rows(found, place, future, row)
    found = play(env, moves)  # untouched by all of that
    for row in range(3):
        assert_rows(found, row, future, row)


def test_some_rows_are_reset_and_seeded_while_the_others_go_on(
    env: BatchedEnv, build: Callable[[int], BatchedEnv]
) -> None:
    able, moves = require(env, RowSnapshots), drawn(env, STEPS, 2)
    saved = able.state(rows(0, 1, 2))
    future = play(env, moves)
    able.load_state(saved)
    obs, _ = require(env, Resettable).reset_rows(torch.tensor([True, False, True]), seed=40)
    found = play(env, moves)
    assert_rows(found, 1, future, 1)

    fresh = build(3)
    first, _ = fresh.reset(seed=40)
    for name, part in flat(obs).items():
        assert torch.equal(part[rows(0, 2)], flat(first)[name][rows(0, 2)])
    expected = play(fresh, moves)
    for row in (0, 2):
        assert_rows(found, row, expected, row)

    able.load_state(saved)
    nothing = torch.zeros(3, dtype=torch.bool)
    before = flat(require(env, Resettable).reset_rows(nothing)[0])
    able.copy_rows(rows(1, 1), rows(0, 2))
    after = flat(require(env, Resettable).reset_rows(nothing)[0])
    for name, part in after.items():  # what is shown is copied as well
        assert torch.equal(part, before[name][rows(1, 1, 1)])
    found = play(env, moves)
    for row in range(3):
        assert_rows(found, row, future, 1)


def test_rows_of_a_new_batch_draw_numbers_of_their_own() -> None:
    able = require(BUILDERS["DummyVecEnv"](1), RowSnapshots)
    obs, _ = able.like(3).reset()
    assert isinstance(obs, Tensor)
    assert len({tuple(row) for row in obs.tolist()}) == 3


def test_what_a_batch_cannot_do_is_refused_in_words() -> None:
    cases: list[tuple[Any, str]] = [
        (VecNormalize(dummy(2, Point)), "the rows of a VecNormalize cannot be reached"),
        (SubprocVecEnv([Point], start_method="fork"), "the rows of a SubprocVecEnv cannot be reached"),
        (gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="vector_entry_point"), "a CartPoleVectorEnv"),
    ]
    for venv, words in cases:
        batch = as_batched(venv)
        delayed = BatchedRandomDelay(batch, "wifi", "wifi", terminal_delivery="immediate") if "Vec" in words else batch
        for env, ability, cannot in ((batch, RowSnapshots, "copy rows"), (delayed, Resettable, "reset some of its")):
            with pytest.raises(TypeError, match=f"cannot {cannot} .*{words}.*DummyVecEnv or a SyncVectorEnv"):
                require(env, ability)
        batch.reset(seed=0)
        for call in (
            lambda b=batch: b.state(rows(0)),
            lambda b=batch: b.like(2),
            lambda b=batch: b.reset_rows(rows(1)),
        ):
            with pytest.raises(TypeError, match=words):
                call()
        batch.close()

    class Plain(BatchedEnv):
        reset = step = state = load_state = None  # type: ignore[assignment]

    with pytest.raises(TypeError, match=r"cannot copy rows \(RowSnapshots\): Plain would need copy_rows and like"):
        require(Plain(), RowSnapshots)


def test_states_that_do_not_fit_are_refused() -> None:
    batch: Any = BUILDERS["DummyVecEnv"](3)
    batch.reset(seed=0)
    with pytest.raises(ValueError, match=r"of a whole batch.*take state\(rows\)"):
        batch.load_state(batch.state(), rows(0, 1, 2))
    with pytest.raises(ValueError, match="of 2 rows, for 3"):
        batch.load_state(batch.state(rows(0, 1)))
    with pytest.raises(ValueError, match="num_envs is 0"):
        batch.like(0)
    members = MeanFieldAgentBatch(2, "left_right")
    others = MeanFieldAgentBatch(2, "left_right", mean_field=members.mean_field.flip(-1))
    before = members.state()
    with pytest.raises(ValueError, match=r"another flow.*set_mean_field"):
        members.load_state(others.state(rows(0)), rows(1))
    assert all(torch.equal(part, before[name]) for name, part in members.state().items())
    members.load_state(others.state())
    assert torch.equal(members.mean_field, others.mean_field)


def test_an_environment_that_cannot_be_copied_is_named() -> None:
    class Drawn(Point):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("a window")

    with pytest.raises(ValueError, match=r"Drawn.* cannot be copied \(TypeError: a window\): make the copies before"):
        require(as_batched(DummyVecEnv([Drawn])), RowSnapshots).like(2)


def test_mujoco_by_id_keeps_its_options() -> None:
    env = make_batched("headway/Hopper-v5", 2, max_episode_steps=4, terminate_when_unhealthy=False)
    env.reset(seed=0)
    other = require(env, RowSnapshots).like(3)
    other.reset(seed=0)
    for step in range(1, 9):
        *_, truncated, _ = other.step(torch.ones(3, 3))
        assert truncated.tolist() == [step % 4 == 0] * 3
