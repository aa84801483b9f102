"""What a batch of MuJoCo rows promises: rows that know nothing of each other, results that stay, clear refusals."""

import dataclasses
import re
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from headway.envs.mujoco import MujocoBatch, Sim, scale, shift
from headway.envs.mujoco.tasks import TASKS, Ant, HalfCheetah, Hopper, InvertedPendulum, Reacher, Walker2d
from hypothesis import given, settings
from hypothesis import strategies as st
from mujoco.batch import SimulationError
from torch import Tensor


@pytest.fixture(autouse=True, scope="module")
def elsewhere(tmp_path_factory):
    """MuJoCo appends its warnings to MUJOCO_LOG.TXT in the working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield


def batch(task, num_envs=3, **options):
    return MujocoBatch(task, num_envs, **{"dtype": torch.float64, "num_threads": 1, **options})


def actions(env, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(steps, *env.action_space.shape, generator=generator) - 1


def flat(step):
    """:return: every tensor of what ``step`` or ``reset`` returned, by name."""
    *outcome, info = step
    told = {str(place): value for place, value in enumerate(outcome)} | info
    episode = told.pop("episode", {})
    return told | {f"episode.{name}": value for name, value in episode.items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def copied(tensors):
    return {name: value.clone() for name, value in tensors.items()}


def picked(tensors, rows):
    return {name: value[rows] for name, value in tensors.items()}


# -- rows and their random streams -----------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(["Reacher", "Hopper", "Pusher"]), num_envs=st.integers(1, 5), seed=st.integers(0, 2**40))
def test_a_row_is_alone_in_the_world(name, num_envs, seed):
    many = batch(TASKS[name](), num_envs, max_episode_steps=3)
    started, moves = flat(many.reset(seed=seed)), actions(many, 7)
    told = [flat(many.step(move)) for move in moves]
    for row in range(num_envs):
        one = batch(TASKS[name](), 1, max_episode_steps=3)
        assert equal(flat(one.reset(seed=seed + row)), picked(started, [row]))
        for move, expected in zip(moves, told, strict=True):
            assert equal(flat(one.step(move[row : row + 1])), picked(expected, [row]))


def test_seeds_may_be_listed_and_none_goes_on():
    env, twin = batch(Hopper()), batch(Hopper())
    env.reset(seed=0)
    twin.reset(seed=0)
    obs, _ = env.reset(seed=[7, None, 5])
    further, _ = twin.reset()
    assert torch.equal(obs[1], further[1])
    assert torch.equal(obs[0], batch(Hopper(), 1).reset(seed=7)[0][0])
    assert torch.equal(obs[2], batch(Hopper(), 1).reset(seed=5)[0][0])


def test_batches_without_a_seed_differ():
    assert not torch.equal(batch(Hopper()).reset()[0], batch(Hopper()).reset()[0])


def test_a_mask_resets_its_rows_only():
    env = batch(Ant(), 5, randomise={"body_mass": scale(0.8, 1.2)})
    env.reset(seed=0)
    for move in actions(env, 5):
        env.step(move)
    before = env.state()
    mask = torch.tensor([False, True, False, False, True])
    obs, _ = env.reset(seed=30, options={"reset_mask": mask})
    after = env.state()
    assert equal(picked(after, ~mask), picked(before, ~mask))
    for row in (1, 4):
        alone = batch(Ant(), 1, randomise={"body_mass": scale(0.8, 1.2)})
        assert torch.equal(obs[row], alone.reset(seed=30 + row)[0][0])
        assert equal(picked(after, [row]), alone.state())
    env.reset(options={"reset_mask": np.zeros(5, bool)})
    assert equal(env.state(), after)


def test_rows_that_ended_wait_where_autoreset_is_disabled():
    env = batch(InvertedPendulum(), 4, autoreset_mode=AutoresetMode.DISABLED)
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    env.reset(seed=0)
    moves = 3 * actions(env, 40)
    over = torch.zeros(4, dtype=torch.bool)
    steps = torch.zeros(4, dtype=torch.int64)
    for move in moves:
        obs, _, terminated, truncated, info = env.step(move)
        steps += 1
        assert torch.equal(obs, info["final_obs"])
        assert torch.equal(terminated, obs[:, 1].abs() > 0.2)
        assert torch.equal(info["episode"]["l"], steps)
        assert not truncated.any()
        over |= terminated
        if terminated.any():
            started, _ = env.reset(options={"reset_mask": terminated})
            assert torch.equal(started[~terminated], obs[~terminated])
            assert (started[terminated, 1].abs() < 0.01).all()
            steps[terminated] = 0
    assert over.all()


def test_returns_and_lengths_of_episodes():
    env = batch(Hopper(), 4, max_episode_steps=20)
    env.reset(seed=0)
    returns, lengths, ends = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.int64), 0
    kinds = set()
    for move in actions(env, 70):
        obs, rewards, terminated, truncated, info = env.step(move)
        returns += rewards
        lengths += 1
        assert torch.equal(info["episode"]["r"], returns)
        assert torch.equal(info["episode"]["l"], lengths)
        assert torch.equal(truncated, lengths >= 20)
        ended = terminated | truncated
        assert torch.equal((obs != info["final_obs"]).any(1), ended)
        kinds |= set(zip(terminated.tolist(), truncated.tolist(), strict=True))
        returns[ended], lengths[ended], ends = 0, 0, ends + int(ended.sum())
    assert ends > 8
    assert {(True, False), (False, True), (False, False)} <= kinds


def test_returns_do_not_round_though_rewards_do():
    exact, rounded = batch(Walker2d()), batch(Walker2d(), dtype=torch.float32)
    for env in (exact, rounded):
        env.reset(seed=0)
    for move in actions(exact, 10):
        _, rewards, *_, info = exact.step(move)
        _, rewards32, *_, info32 = rounded.step(move)
        assert torch.equal(rewards.float(), rewards32)
        assert torch.equal(info["episode"]["r"], info32["episode"]["r"])


@pytest.mark.parametrize(("limit", "expected"), [(None, 1000), (0, None), (7, 7)])
def test_time_limits(limit, expected):
    env = batch(HalfCheetah(), 2, max_episode_steps=limit)
    assert env.max_episode_steps == expected
    env.reset(seed=0)
    ends = [env.step(move)[3].all().item() for move in actions(env, 8)]
    assert ends == [limit == 7 and step == 6 for step in range(8)]


@pytest.mark.parametrize("name", TASKS)
def test_what_a_step_returned_stays_as_it_is(name):
    env = batch(TASKS[name](), max_episode_steps=4)
    moves = actions(env, 9)
    given, kept = [], []
    for told in (env.reset(seed=0), *(env.step(move) for move in moves)):
        given.append(flat(told))
        kept.append(copied(given[-1]))
    saved = env.state()
    env.reset(seed=1)
    env.load_state(saved)
    env.copy_rows(torch.tensor([0]), torch.tensor([1]))
    assert all(equal(a, b) for a, b in zip(given, kept, strict=True))
    assert torch.equal(moves, actions(env, 9))  # and actions are not written to


# -- randomised physics ----------------------------------------------------------------------------------------------

EVERY = {
    "body_mass": scale(0.8, 1.2),
    "geom_friction": scale(0.5, 1.5, shared=True),
    "dof_damping": shift(0.1, 0.4),
}


def test_physics_are_drawn_between_bounds_for_each_row_and_episode():
    env = batch(Hopper(), 50, max_episode_steps=5, randomise=EVERY)
    env.reset(seed=0)
    model, physics = env.engine.model, env.physics
    mass = physics["body_mass"][:, 1:] / torch.from_numpy(model.body_mass)[1:]
    assert 0.8 <= mass.min() < 0.82 < 1.18 < mass.max() <= 1.2
    assert mass.flatten().unique().numel() == mass.numel()
    friction = physics["geom_friction"] / torch.from_numpy(model.geom_friction)
    torch.testing.assert_close(friction, friction[:, :1, :1].expand_as(friction))  # one factor a row, but for rounding
    assert 0.5 <= friction.min() < 0.55 < 1.45 < friction.max() <= 1.5
    damping = physics["dof_damping"] - torch.from_numpy(model.dof_damping)
    assert 0.1 <= damping.min() < 0.11 < 0.39 < damping.max() <= 0.4 + 1e-12
    for count, move in enumerate(actions(env, 5), 1):
        env.step(move)
        anew = {name: (env.physics[name] != field).flatten(1).any(1) for name, field in physics.items()}
        assert all(rows.tolist() == [count == 5] * 50 for rows in anew.values())
    state = env.state()
    assert equal({name: state[f"engine.model.{name}"] for name in EVERY}, env.physics)
    assert (model.body_mass == batch(Hopper()).engine.model.body_mass).all()  # the model itself stays as it was


def test_only_rows_that_start_anew_get_other_physics():
    env = batch(InvertedPendulum(), 8, randomise=EVERY)
    env.reset(seed=0)
    before, ends = env.physics, 0
    for move in 3 * actions(env, 20):
        *_, terminated, _, _ = env.step(move)
        after = env.physics
        for name, field in after.items():
            assert torch.equal((field != before[name]).flatten(1).any(1), terminated)
        before, ends = after, ends + int(terminated.sum())
    assert ends > 3


def test_a_seed_starts_alike_whether_physics_vary_or_not():
    plain, varied = batch(Reacher(), max_episode_steps=3), batch(Reacher(), max_episode_steps=3, randomise=EVERY)
    for env in (plain, varied):
        env.reset(seed=0)
    for _ in range(3):
        assert torch.equal(plain.sim.qpos, varied.sim.qpos)
        assert torch.equal(plain.sim.qvel, varied.sim.qvel)
        for move in actions(plain, 3):
            plain.step(move)
            varied.step(move)
    again = batch(Reacher(), randomise=EVERY)
    again.reset(seed=0)
    first = again.physics
    again.reset()
    assert not torch.equal(first["body_mass"], again.physics["body_mass"])
    again.reset(seed=0)
    assert equal(first, again.physics)


def test_varied_physics_are_those_of_a_model_with_these_values():
    env = batch(Ant(terminate_when_unhealthy=False), randomise=EVERY)
    obs, _ = env.reset(seed=3)
    peer = gym.make("Ant-v5", terminate_when_unhealthy=False, disable_env_checker=True)
    model, data = peer.unwrapped.model, peer.unwrapped.data
    for name, field in env.physics.items():
        getattr(model, name)[:] = field[2]
    mujoco.mj_setConst(model, data)
    assert np.array_equal(obs[2], peer.reset(seed=3 + 2)[0])
    for move in actions(env, 30):
        obs, rewards, *_, info = env.step(move)
        theirs, reward, *_ = peer.step(move[2].numpy())
        assert np.array_equal(info["final_obs"][2], theirs)
        assert rewards[2] == reward
    peer.close()


# -- physics that break down -----------------------------------------------------------------------------------------


ABSURD = {
    "a huge speed": lambda env, row: env.sim.qvel[row].fill_(1e15),
    "a speed that is no number": lambda env, row: env.sim.qvel[row, 2].fill_(torch.nan),
    "a place that is no number": lambda env, row: env.sim.qpos[row, 0].fill_(torch.nan),
    "an infinite place": lambda env, row: env.sim.qpos[row].fill_(torch.inf),
}


@pytest.mark.parametrize("how", ABSURD)
@pytest.mark.parametrize("task", [Hopper(), Ant(), Ant(frame_skip=1), Reacher()], ids=["hopper", "ant", "ant1", "arm"])
def test_a_row_that_breaks_down_ends_and_the_others_do_not_notice(task, how):
    broken, whole = batch(task, 4), batch(task, 4)
    moves = actions(whole, 12)
    for env in (broken, whole):
        env.reset(seed=0)
        for move in moves[:5]:
            env.step(move)
    ABSURD[how](broken, 2)
    with pytest.warns(RuntimeWarning, match="physics of row 2 broke down .*mjWARN_BAD.* the episode ended"):
        told = flat(broken.step(moves[5]))
    expected = flat(whole.step(moves[5]))
    assert told.pop("failed").tolist() == [False, False, True, False]
    assert (told["2"][2], told["1"][2], told["episode.l"][2]) == (True, 0, 6)
    for name in ("0", "1", "final_obs", "episode.r"):
        assert told[name][2].isfinite().all()
    others = [0, 1, 3]
    assert equal(picked(told, others), picked(expected, others))
    for move in moves[6:]:  # and no warning comes again
        told, expected = flat(broken.step(move)), flat(whole.step(move))
        assert equal(picked(told, others), picked(expected, others))
        assert all(value[2].isfinite().all() for value in told.values())
        assert told["episode.l"][2] <= 6


@pytest.mark.parametrize("task", [Hopper(), Ant()], ids=["hopper", "ant"])
def test_actions_that_are_no_numbers_break_down_their_row(task):
    broken, whole = batch(task, 4), batch(task, 4)
    for env in (broken, whole):
        env.reset(seed=0)
    move = actions(whole, 1)[0]
    bad = move.clone()
    bad[0], bad[3, 1] = torch.nan, torch.nan
    with pytest.warns(RuntimeWarning, match="physics of row 0, 3 broke down .*CTRL.*actions that are not finite"):
        told = flat(broken.step(bad))
    expected = flat(whole.step(move))
    assert told.pop("failed").tolist() == [True, False, False, True]
    assert told["1"][[0, 3]].tolist() == [0, 0]
    assert told["2"][[0, 3]].all()
    assert told["0"].isfinite().all()
    assert equal(picked(told, [1, 2]), picked(expected, [1, 2]))


def test_an_error_that_mujoco_raises_in_a_row_is_told(monkeypatch):
    broken, whole = batch(Hopper(), 4), batch(Hopper(), 4)
    for env in (broken, whole):
        env.reset(seed=0)
    step = broken.engine.batch.step

    def fail(*args, **kwargs):
        step(*args, **kwargs)
        raise SimulationError(np.array([1]), "the stack is full")

    monkeypatch.setattr(broken.engine.batch, "step", fail)
    move = actions(whole, 1)[0]
    with pytest.warns(RuntimeWarning, match="physics of row 1 broke down .*the stack is full"):
        told = flat(broken.step(move))
    assert told.pop("failed").tolist() == [False, True, False, False]
    assert (told["2"][1], told["1"][1]) == (True, 0)
    assert equal(picked(told, [0, 2, 3]), picked(flat(whole.step(move)), [0, 2, 3]))


def test_an_error_between_the_stages_of_a_substep_leaves_no_row_behind(monkeypatch):
    odd, whole = batch(Ant(), 4), batch(Ant(), 4)
    moves = actions(whole, 2)
    for env in (odd, whole):
        env.reset(seed=0)
        env.step(moves[0])
    forward, calls = odd.engine.batch.forward, []

    def fail(*args, **kwargs):
        forward(*args, **kwargs)
        calls.append(args)
        if len(calls) == 3:
            raise SimulationError(np.array([1]), "the stack is full")

    monkeypatch.setattr(odd.engine.batch, "forward", fail)
    told, expected = odd.step(moves[1]), whole.step(moves[1])
    assert len(calls) == 3
    assert torch.equal(odd.sim.qpos, whole.sim.qpos)
    assert torch.equal(odd.state()["engine.integration"], whole.state()["engine.integration"])
    assert torch.equal(told[4]["x_velocity"], expected[4]["x_velocity"])


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, -3])
def test_a_batch_has_rows(count):
    with pytest.raises(ValueError, match=f"num_envs is {count}: a batch needs at least one row"):
        batch(Hopper(), count)


def test_a_batch_that_does_not_fit_is_refused_before_it_is_made():
    with pytest.raises(ValueError, match=r"num_envs is 100000000000: .* GiB are free; [\d,]+ would fit"):
        batch(Hopper(), 10**11)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="device is cuda"):
        batch(Hopper(), device="cuda")


def test_rows_reset_within_the_step_or_by_hand():
    with pytest.raises(ValueError, match="NEXT_STEP: take SAME_STEP, or DISABLED"):
        batch(Hopper(), autoreset_mode=AutoresetMode.NEXT_STEP)


def test_only_model_fields_are_randomised():
    with pytest.raises(ValueError, match=r"'body_mas' is no field of MjModel .* did you mean body_mass"):
        batch(Hopper(), randomise={"body_mas": scale(0.8, 1.2)})
    with pytest.raises(ValueError, match="'qpos' is no field of MjModel"):
        batch(Hopper(), randomise={"qpos": scale(0.8, 1.2)})
    with pytest.raises(ValueError, match=r"scale\(1.2, 0.8\): the lower bound must not exceed the upper one"):
        scale(1.2, 0.8)


def test_a_model_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match=r"Hopper: there is no model file 'hoper\.xml'"):
        batch(Hopper(model="hoper.xml"))


def test_a_body_that_is_not_there():
    with pytest.raises(KeyError, match="'head'"):
        batch(Ant(main_body="head"))


@pytest.mark.parametrize(
    "wrong", [torch.zeros(3, 2), torch.zeros(2, 3), torch.zeros(3), np.zeros((3, 3), np.float32), None]
)
def test_actions_of_another_shape(wrong):
    env = batch(Hopper())
    env.reset(seed=0)
    before = env.state()
    with pytest.raises(ValueError, match=r"step takes a tensor of shape \(3, 3\)"):
        env.step(wrong)
    assert equal(env.state(), before)


def test_a_reset_comes_before_the_first_step():
    env = batch(Hopper())
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(torch.zeros(3, 3))
    env.reset(options={"reset_mask": [True, True, False]})
    with pytest.raises(ResetNeeded):
        env.step(torch.zeros(3, 3))


def test_a_mask_of_another_length():
    env = batch(Hopper())
    with pytest.raises(ValueError, match=r"reset_mask has shape \(2,\), for 3 rows"):
        env.reset(options={"reset_mask": [True, False]})


def altered(**functions):
    """:return: a hopper with other functions."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(type("Odd", (Hopper,), functions))()


ODD: dict[str, tuple[dict[str, Any], str]] = {
    "observation of another shape": (
        {"observation": lambda self, sim: sim.qpos[0]},
        r"observation has shape \(6,\), expected \(2, D\): the leading axis is the rows",
    ),
    "observation of another type": (
        {"observation": lambda self, sim: sim.qpos.numpy()},
        "observation is a ndarray, expected a tensor",
    ),
    "observation of whole numbers": (
        {"observation": lambda self, sim: sim.qpos.long()},
        "observation is of torch.int64, expected a floating-point type",
    ),
    "reward of another shape": (
        {"reward": lambda self, sim, action, before: sim.qpos},
        r"reward has shape \(2, 6\), expected \(2,\)",
    ),
    "reward of one number": (
        {"reward": lambda self, sim, action, before: 1.0},
        "reward is a float, expected a tensor",
    ),
    "a part of the reward": (
        {"reward": lambda self, sim, action, before: (sim.qpos[:, 0].clone(), {"speed": sim.qvel.sum()})},
        r"reward's part 'speed' has shape \(\), expected \(2, …\)",
    ),
    "terminated of another dtype": (
        {"terminated": lambda self, sim: sim.qpos[:, 0]},
        "terminated is of torch.float64, expected torch.bool",
    ),
    "terminated of another shape": (
        {"terminated": lambda self, sim: sim.qpos > 0},
        r"terminated has shape \(2, 6\), expected \(2,\)",
    ),
    "reset of another shape": (
        {"reset": lambda self, sim, random: {"qpos": sim.init_qpos}},
        r"reset's 'qpos' has shape \(6,\), expected \(2, 6\)",
    ),
    "what reset tells": (
        {"reset_info": lambda self, sim: {"x": 3}},
        "reset_info's 'x' is a int, expected a tensor",
    ),
    "another device": (
        {"observation": lambda self, sim: torch.zeros(sim.num_envs, 3, device="meta")},
        "observation is on meta, expected cpu",
    ),
}


@pytest.mark.parametrize("what", ODD)
def test_what_a_function_returns_is_checked_when_the_batch_is_made(what):
    functions, message = ODD[what]
    with pytest.raises(TypeError, match=f"Odd: {message}"):
        batch(altered(**functions))


def one_branch(self, sim, action, before):
    if sim.qpos[0, 0] > 0:
        return torch.zeros(sim.num_envs, dtype=torch.float64)
    return sim.qvel[:, 0].clone()


BRANCHES: dict[str, dict[str, Any]] = {
    "if sim.qpos[0, 0] > 0": {"reward": one_branch},
    "1 if (sim.qvel > 9).any() else 0": {
        "observation": lambda self, sim: sim.qvel * (1 if (sim.qvel > 9).any() else 0)
    },
    "float(sim.qpos[0, 1])": {"observation": lambda self, sim: sim.qvel * float(sim.qpos[0, 1])},
    "int(sim.xpos[1, 1, 2])": {"terminated": lambda self, sim: sim.qvel[:, int(sim.xpos[1, 1, 2])] > 0},
    "sim.qvel.sum().item()": {"observation": lambda self, sim: sim.qpos * sim.qvel.sum().item()},
    "sim.qpos.cos().tolist()": {"before": lambda self, sim: sim.qpos.cos().tolist()},
    "not action.abs().max()": {"reward": lambda self, sim, action, before: sim.qvel[:, 0] * (not action.abs().max())},
    "bool(random.uniform(0, 1, 1)[0] > 0.5)": {
        "reset": lambda self, sim, random: {"qpos": sim.qpos * bool(random.uniform(0, 1, 1)[0] > 0.5)}
    },
    "max(random.normal(2)[0])": {"reset": lambda self, sim, random: {"qpos": sim.qpos * max(random.normal(2)[0])}},
}


@pytest.mark.parametrize("line", BRANCHES)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_branch_on_the_values_of_rows_is_found_when_the_batch_is_made(line, rows):
    """With one row it would be right, which is how it is written and tried out."""
    with pytest.raises(TypeError, match=rf"Odd asks for single values in `.*{re.escape(line)}.*torch\.where"):
        batch(altered(**BRANCHES[line]), rows)


def centred(self, sim):
    return sim.qvel - sim.qvel.mean()


MIXED: dict[str, tuple[dict[str, Any], str]] = {
    "a mean over all": ({"observation": centred}, "observation"),
    "a mean over rows": ({"observation": lambda self, sim: sim.qvel - sim.qvel.mean(0)}, "observation"),
    "a norm": ({"reward": lambda self, sim, a, before: sim.qpos[:, 0] - sim.qvel.norm()}, "reward"),
    "a part": (
        {"reward": lambda self, sim, a, before: (sim.qpos[:, 0].clone(), {"x": sim.qvel.flip(0)})},
        "'x'",
    ),
    "the other's action": ({"reward": lambda self, sim, action, before: action.flip(0).sum(1).double()}, "reward"),
    "what was before": (
        {
            "before": lambda self, sim: sim.qvel.sum(),
            "reward": lambda self, sim, action, before: sim.qpos[:, 0] + before,
        },
        "reward",
    ),
    "a branch by way of NumPy": (
        {"terminated": lambda self, sim: torch.full((len(sim.qvel),), bool(sim.qvel.numpy().max() > 0.5))},
        "terminated",
    ),
    "draws": (
        {"reset": lambda self, sim, random: {"qpos": random.uniform(0, 1, 6).sum() + sim.qpos}},
        "reset's 'qpos'",
    ),
}


@pytest.mark.parametrize("what", MIXED)
def test_rows_that_are_mixed_are_found_when_the_batch_is_made(what):
    functions, name = MIXED[what]
    with pytest.raises(TypeError, match=f"Odd: {name} of one row depends on what another row does"):
        batch(altered(**functions), 1)


def test_what_is_no_branch_on_values_is_left_alone(capsys):
    def observation(self, sim):
        print(sim.qpos, f"{sim.qvel}")
        mass = float(sim.body_mass[0, 1])  # which all rows have
        kept = sim.qvel if sim.qpos.shape[0] > 1 and float(sim.init_qpos[1]) > 0 else 2 * sim.qvel
        return torch.where(sim.qpos[:, :1] > 0, kept, -kept) * mass

    batch(altered(observation=observation))
    assert "tensor" in capsys.readouterr().out
    with pytest.raises(TypeError, match=r"single values in `mass = float"):  # unless they differ in it
        batch(altered(observation=observation), randomise={"body_mass": scale(0.5, 2)})


def test_a_width_that_is_not_the_observation_spaces():
    space = gym.spaces.Box(-1, 1, (4,))
    with pytest.raises(TypeError, match=r"observation returns 11 numbers, its observation_space is Box"):
        batch(altered(observation_space=space))


def test_a_field_that_mujoco_does_not_have():
    with pytest.raises(AttributeError, match="there is no field 'xpoz' in MjData or MjModel: did you mean xpos"):
        batch(altered(observation=lambda self, sim: sim.xpoz))


def test_a_field_that_is_first_read_in_a_branch():
    def terminated(self, sim):
        return sim.xpos[:, 1, 2] < 0.5 if self_awake else None

    self_awake = False
    env = batch(altered(terminated=terminated))
    env.reset(seed=0)
    env.step(torch.zeros(3, 3))
    self_awake = True
    with pytest.raises(AttributeError, match=r"sim\.xpos is read for the first time after the batch was made"):
        env.step(torch.zeros(3, 3))


def test_words_for_autoreset() -> None:
    same_step = MujocoBatch(HalfCheetah(), 1, autoreset_mode="SameStep")  # type: ignore[arg-type]
    assert same_step.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    with pytest.raises(ValueError, match="autoreset_mode is NEXT_STEP: take SAME_STEP"):
        MujocoBatch(HalfCheetah(), 1, autoreset_mode="NextStep")  # type: ignore[arg-type]


def test_no_limit() -> None:
    assert MujocoBatch(HalfCheetah(), 1, max_episode_steps=-1).max_episode_steps is None
    assert MujocoBatch(HalfCheetah(), 1, max_episode_steps=0).max_episode_steps is None
    assert MujocoBatch(HalfCheetah(), 1).max_episode_steps == 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "wrap"}, "engine is 'wrap': it can be auto, mujoco, warp"),
        ({"render_mode": "film"}, "render_mode is 'film': it can be rgb_array or depth_array"),
        ({"render_rows": [2]}, "render_rows names row 2, of 2 rows numbered from 0"),
        ({"randomise": {"opt.timestep": scale(0.9, 1.1)}}, "opt.timestep cannot differ between rows"),
    ],
)
def test_options_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MujocoBatch(HalfCheetah(), 2, **options)


@pytest.mark.parametrize("seed", [[1], [1, 2, 3]])
def test_seeds_for_other_rows(seed: list[int | None]) -> None:
    with pytest.raises(ValueError, match=rf"{len(seed)} seeds for 2 rows"):
        MujocoBatch(HalfCheetah(), 2).reset(seed=seed)


def test_a_view_of_the_simulation_is_refused() -> None:
    class Careless(HalfCheetah):
        def observation(self, sim: Sim) -> Tensor:
            return sim.qpos

    with pytest.raises(TypeError, match="observation is a view of the simulation"):
        MujocoBatch(Careless(), 2)
