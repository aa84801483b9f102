"""States of batches of MuJoCo rows: what was saved has the same future, bit for bit, wherever it is loaded."""

from typing import Any

import pytest
import torch
from headway.envs.mujoco import MujocoBatch, scale
from headway.envs.mujoco.tasks import TASKS, Ant, Hopper, Swimmer

LIMIT = 23  # steps; all rows end and draw new episodes in a replay of 50
RANDOMISED: dict[str, dict[str, Any]] = {
    "mass": {"body_mass": scale(0.8, 1.2)},  # from which MuJoCo derives other constants
    "others": {"geom_friction": scale(0.5, 1.5), "actuator_gainprm": scale(0.7, 1.3, shared=True)},
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """MuJoCo appends HalfCheetah's deprecation warning to MUJOCO_LOG.TXT in the working directory."""
    monkeypatch.chdir(tmp_path)


def batch(task, num_envs=3, **options):
    return MujocoBatch(task, num_envs, dtype=torch.float64, num_threads=1, max_episode_steps=LIMIT, **options)


def rows(*numbers):
    return torch.tensor(numbers)


def actions(env, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(steps, *env.action_space.shape, generator=generator) - 1


def play(env, moves):
    """:return: everything that the steps tell, by name; a leading axis of steps, then rows."""
    told: list[dict[str, torch.Tensor]] = []
    for move in moves:
        obs, rewards, terminated, truncated, info = env.step(move)
        episode = info.pop("episode")
        step = {"obs": obs, "rewards": rewards, "terminated": terminated, "truncated": truncated, **info}
        told.append(step | {f"episode.{name}": value for name, value in episode.items()})
    return {name: torch.stack([step[name] for step in told]) for name in told[0]}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def pick(told, row):
    return {name: value[:, row] for name, value in told.items()}


def seen(env):
    return {"obs": env.task.observation(env.sim)} | env.task.reset_info(env.sim)


def check_the_future(env, another):
    """Run, save, run on; then disturb and load, into the same object, another one, and from row to row."""
    env.reset(seed=7)
    play(env, actions(env, 30, seed=0))
    saved, sight = env.state(), seen(env)
    moves = actions(env, 50, seed=1)
    future = play(env, moves)
    assert (future["terminated"] | future["truncated"]).any(0).all()
    assert not any(torch.equal(future["obs"][:, 0], future["obs"][:, row]) for row in (1, 2))

    play(env, actions(env, 11, seed=2))
    env.reset(seed=99)
    play(env, actions(env, 9, seed=3))
    env.load_state(saved)
    assert equal(env.state(), saved)
    assert equal(seen(env), sight)
    assert equal(play(env, moves), future)

    another.load_state(saved)  # no reset came before
    assert equal(seen(another), sight)
    assert equal(play(another, moves), future)

    # row 2 into rows 0 and 1, in one call each way; row 2 itself goes on from where it was
    same = moves.clone()
    same[:, :2] = moves[:, 2:]
    env.load_state(saved)
    other_half = env.state(rows(2))
    another.reset(seed=55)
    another.load_state({name: torch.cat((field, field)) for name, field in other_half.items()}, rows(1, 0))
    env.copy_rows(rows(2, 2), rows(0, 1))
    copied, loaded = play(env, same), play(another, same)
    for row in range(3):
        assert equal(pick(copied, row), pick(future, 2))
    for row in range(2):
        assert equal(pick(loaded, row), pick(future, 2))


@pytest.mark.parametrize("name", TASKS)
def test_a_state_is_the_whole_future(name):
    check_the_future(batch(TASKS[name]()), batch(TASKS[name]()))


@pytest.mark.parametrize("fields", RANDOMISED)
@pytest.mark.parametrize("name", ["Ant", "HalfCheetah", "Humanoid", "Walker2d"])
def test_a_state_holds_randomised_physics(name, fields):
    env, another = (batch(TASKS[name](), randomise=RANDOMISED[fields]) for _ in range(2))
    check_the_future(env, another)
    env.reset(seed=4)
    saved, physics = env.state(), env.physics
    assert physics.keys() == RANDOMISED[fields].keys()
    assert not any(torch.equal(field[0], field[2]) for field in physics.values())
    env.reset(seed=5)
    assert not any(torch.equal(field, env.physics[name]) for name, field in physics.items())
    env.load_state(saved)
    assert equal(env.physics, physics)


def test_masses_change_what_mujoco_derives_from_them_and_come_back():
    env = batch(Hopper(), randomise=RANDOMISED["mass"])
    env.reset(seed=0)
    saved = env.state()
    inertia = env.engine.batch.expand("dof_M0").copy()
    assert (inertia[0] != inertia[1]).any()
    env.reset(seed=1)
    assert (env.engine.batch.expand("dof_M0") != inertia).any()
    env.load_state(saved)
    assert (env.engine.batch.expand("dof_M0") == inertia).all()
    env.copy_rows(rows(0), rows(1))
    assert (env.engine.batch.expand("dof_M0")[1] == inertia[0]).all()
    assert (env.engine.batch.expand("dof_M0")[2] == inertia[2]).all()


def test_rows_that_are_not_named_keep_every_bit():
    env = batch(Ant(), num_envs=5)
    env.reset(seed=0)
    play(env, actions(env, 5, seed=0))
    before = env.state()
    saved = env.state(rows(3, 0))
    env.load_state(saved, rows(1, 4))
    kept, moved = env.state(rows(0, 2, 3)), env.state(rows(1, 4))
    assert equal(kept, {name: field[[0, 2, 3]] for name, field in before.items()})
    assert equal(moved, {name: field[[3, 0]] for name, field in before.items()})


def test_a_state_is_a_copy():
    env = batch(Hopper())
    env.reset(seed=0)
    saved = env.state()
    kept = {name: field.clone() for name, field in saved.items()}
    play(env, actions(env, 3, seed=0))
    assert equal(saved, kept)
    env.load_state(saved)
    play(env, actions(env, 3, seed=0))
    assert equal(saved, kept)


def test_the_state_of_an_ended_row_that_was_not_reset():
    env = batch(Hopper(healthy_z_range=(1.2, 1.3), terminate_when_unhealthy=False))
    env.reset(seed=0)
    play(env, actions(env, LIMIT - 1, seed=0))
    saved = env.state()
    told = play(env, actions(env, 2, seed=1))
    assert told["truncated"][0].all()
    assert (told["episode.l"] == torch.tensor([[LIMIT] * 3, [1] * 3])).all()
    env.load_state(saved)
    assert equal(play(env, actions(env, 2, seed=1)), told)


MISFITS: dict[str, Any] = {
    "another task": lambda: batch(Swimmer()).state(),
    "another number of rows": lambda: batch(Hopper(), num_envs=2).state(),
    "randomised": lambda: batch(Hopper(), randomise=RANDOMISED["mass"]).state(),
    "a field is missing": lambda: {k: v for k, v in batch(Hopper()).state().items() if k != "returns"},
    "a field too many": lambda: batch(Hopper()).state() | {"hat": torch.zeros(3)},
    "nothing": dict,
}


@pytest.mark.parametrize("what", MISFITS)
def test_a_state_that_does_not_fit_is_refused_and_nothing_written(what):
    env = batch(Hopper())
    env.reset(seed=0)
    before = env.state()
    with pytest.raises(ValueError, match=r"the state does not fit this batch: '.*' is .*, expected"):
        env.load_state(MISFITS[what]())
    assert equal(env.state(), before)


def test_a_state_without_its_randomised_fields_is_refused():
    env = batch(Hopper(), randomise=RANDOMISED["mass"])
    env.reset(seed=0)
    before = env.state()
    for state in (batch(Hopper()).state(), batch(Hopper(), randomise=RANDOMISED["others"]).state()):
        with pytest.raises(ValueError, match=r"'engine\.model\.\w+' is .*, expected"):
            env.load_state(state)
    assert equal(env.state(), before)


def test_as_many_rows_as_are_named():
    env = batch(Hopper())
    env.reset(seed=0)
    before = env.state()
    with pytest.raises(ValueError, match="expected"):
        env.load_state(env.state(rows(0, 1)), rows(2))
    assert equal(env.state(), before)
