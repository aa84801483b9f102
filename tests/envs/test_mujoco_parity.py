"""The eleven tasks against Gymnasium's own environments: every number of every step, without tolerance."""

import dataclasses
import inspect
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from headway.envs.mujoco import MujocoBatch, centre_of_mass, cos, row_norm, row_sum, sin
from headway.envs.mujoco.numerics import squared
from headway.envs.mujoco.tasks import TASKS

ROW = 5
SEED = 100

HUMANOID = {"exclude_current_positions_from_observation": False, "reset_noise_scale": 0.03, "ctrl_cost_weight": 0.3}

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "Ant": [
        {
            "exclude_current_positions_from_observation": False,
            "include_cfrc_ext_in_observation": False,
            "terminate_when_unhealthy": False,
            "healthy_z_range": (0.5, 0.75),
            "healthy_reward": 0.3,
            "ctrl_cost_weight": 0.7,
        },
        {
            "main_body": "front_left_leg",
            "frame_skip": 2,
            "healthy_z_range": (0.5, 0.9),
            "contact_force_range": (-0.3, 2.0),
            "contact_cost_weight": 0.1,
            "reset_noise_scale": 0.2,
            "forward_reward_weight": 1.7,
        },
    ],
    "HalfCheetah": [
        {
            "exclude_current_positions_from_observation": False,
            "frame_skip": 3,
            "ctrl_cost_weight": 0.3,
            "forward_reward_weight": 0.7,
            "reset_noise_scale": 0.3,
        }
    ],
    "Hopper": [
        {
            "exclude_current_positions_from_observation": False,
            "healthy_state_range": (-3.0, 2.5),
            "healthy_reward": 0.3,
            "reset_noise_scale": 0.02,
        },
        {
            "terminate_when_unhealthy": False,
            "healthy_z_range": (1.1, 1.3),
            "healthy_angle_range": (-0.05, 0.1),
            "frame_skip": 3,
            "forward_reward_weight": 0.7,
            "ctrl_cost_weight": 0.3,
        },
    ],
    "Humanoid": [
        {
            **HUMANOID,
            "include_cinert_in_observation": False,
            "include_qfrc_actuator_in_observation": False,
            "terminate_when_unhealthy": False,
            "healthy_z_range": (1.2, 1.45),
            "healthy_reward": 0.3,
            "forward_reward_weight": 0.7,
        },
        {
            "include_cvel_in_observation": False,
            "include_cfrc_ext_in_observation": False,
            "frame_skip": 1,
            "healthy_z_range": (1.36, 1.45),
            "contact_cost_weight": 1e-4,
            "contact_cost_range": (0.01, 0.3),
        },
    ],
    "HumanoidStandup": [
        {
            **HUMANOID,
            "include_cvel_in_observation": False,
            "include_cfrc_ext_in_observation": False,
            "impact_cost_weight": 1e-4,
            "impact_cost_range": (0.01, 0.3),
        },
        {
            "include_cinert_in_observation": False,
            "include_qfrc_actuator_in_observation": False,
            "uph_cost_weight": 3.0,
            "frame_skip": 2,
        },
    ],
    "InvertedDoublePendulum": [{"healthy_reward": 0.3, "reset_noise_scale": 0.05, "frame_skip": 3}],
    "InvertedPendulum": [{"reset_noise_scale": 0.1, "frame_skip": 1}],
    "Pusher": [
        {"reward_near_weight": 0.3, "reward_dist_weight": 1.7, "reward_control_weight": 0.7, "frame_skip": 3},
    ],
    "Reacher": [{"reward_dist_weight": 1.7, "reward_control_weight": 0.3, "frame_skip": 3}],
    "Swimmer": [
        {
            "exclude_current_positions_from_observation": False,
            "frame_skip": 2,
            "ctrl_cost_weight": 0.3,
            "forward_reward_weight": 0.7,
            "reset_noise_scale": 0.3,
        }
    ],
    "Walker2d": [
        {
            "exclude_current_positions_from_observation": False,
            "healthy_angle_range": (-0.3, 0.2),
            "healthy_reward": 0.3,
            "reset_noise_scale": 0.02,
        },
        {
            "terminate_when_unhealthy": False,
            "healthy_z_range": (1.1, 1.3),
            "frame_skip": 3,
            "forward_reward_weight": 0.7,
            "ctrl_cost_weight": 0.3,
        },
    ],
}
ENDLESS = {"HalfCheetah", "HumanoidStandup", "Pusher", "Reacher", "Swimmer"}
LIMIT = 35  # steps; a multiple of neither 3 nor the usual lengths of a fall
STEPS = 3 * LIMIT + 5
CASES = [(name, options) for name in TASKS for options in [{}, *OPTIONS[name]]]


class Step(NamedTuple):
    action: np.ndarray
    obs: np.ndarray
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    next_obs: np.ndarray
    """What to act on next: of the new episode where one ended."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """MuJoCo appends HalfCheetah's deprecation warning to MUJOCO_LOG.TXT in the working directory."""
    monkeypatch.chdir(tmp_path)


def peer(name, **options):
    return gym.make(f"{name}-v5", max_episode_steps=LIMIT, disable_env_checker=True, **options)


def recorded(name, options, seed):
    """What Gymnasium's environment does: the first observation and info, then every step."""
    env, rng = peer(name, **options), np.random.default_rng(seed)
    obs, info = env.reset(seed=seed)
    start, steps = (obs, info), []
    for _ in range(STEPS):
        # a little outside the bounds: neither side clips what the reward sees
        action = (1.3 * rng.uniform(env.action_space.low, env.action_space.high)).astype(np.float32)
        *outcome, info = env.step(action)
        ended = outcome[2] or outcome[3]
        steps.append(Step(action, *outcome, info, env.reset()[0] if ended else outcome[0]))
    env.close()
    return start, steps


def equal(ours, theirs):
    theirs = np.asarray(theirs)
    return ours.shape == theirs.shape and np.array_equal(ours.numpy(), theirs)


def compare(batch, row, start, steps, seed):
    """Replay a recording in one row, among rows that do other things."""
    cast = torch.empty(0, dtype=batch.dtype).numpy().dtype.type
    rng = np.random.default_rng(0)
    obs, info = batch.reset(seed=seed - row)
    assert equal(obs[row], cast(start[0]))
    assert info.keys() == start[1].keys()
    assert all(equal(info[name][row], value) for name, value in start[1].items())
    for step in steps:
        actions = rng.uniform(batch.action_space.low, batch.action_space.high).astype(np.float32)
        actions[row] = step.action
        obs, rewards, terminated, truncated, info = batch.step(torch.from_numpy(actions))
        assert rewards.dtype == obs.dtype == info["final_obs"].dtype == batch.dtype
        assert equal(info["final_obs"][row], cast(step.obs))
        assert equal(obs[row], cast(step.next_obs))
        assert equal(rewards[row], cast(step.reward))
        assert (terminated[row].item(), truncated[row].item()) == (step.terminated, step.truncated)
        assert info.keys() == {*step.info, "final_obs", "episode"}
        for name, value in step.info.items():
            assert equal(info[name][row], value), name


@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{name}-{len(options)}" for name, options in CASES])
def test_every_row_is_gymnasiums_environment(name, options):
    start, steps = recorded(name, options, SEED)
    assert sum(step.terminated or step.truncated for step in steps) >= 3
    if not options.get("terminate_when_unhealthy", True):
        assert any(step.info["reward_survive"] == 0 for step in steps)
    elif name not in ENDLESS and (name, options) != ("Ant", {}):  # which takes longer to fall
        assert any(step.terminated for step in steps)
    task = TASKS[name](**options)
    for num_envs, row, threads, dtype in (
        (1, 0, 1, torch.float64),
        (8, ROW, 1, torch.float64),
        (8, ROW, 2, torch.float64),
        (8, ROW, 2, torch.float32),
    ):
        batch = MujocoBatch(task, num_envs, dtype=dtype, num_threads=threads, max_episode_steps=LIMIT)
        compare(batch, row, start, steps, SEED)


@pytest.mark.parametrize("name", TASKS)
def test_options_spaces_limits_and_views_are_gymnasiums(name):
    spec = gym.spec(f"{name}-v5")
    task, env = TASKS[name], gym.make(spec)
    theirs = {key: value.default for key, value in inspect.signature(type(env.unwrapped)).parameters.items()}
    del theirs["kwargs"]
    np.testing.assert_equal(task.camera, theirs.pop("default_camera_config"))
    theirs["model"] = theirs.pop("xml_file")
    assert {field.name: field.default for field in dataclasses.fields(task)} == theirs
    assert (task.max_episode_steps, task.reward_threshold) == (spec.max_episode_steps, spec.reward_threshold)
    batch = MujocoBatch(task(), 2, dtype=torch.float64)
    assert batch.single_observation_space == env.observation_space
    assert batch.single_action_space == env.action_space
    assert batch.sim.dt == env.unwrapped.dt
    env.close()


@pytest.mark.parametrize("name", TASKS)
def test_the_first_state_is_gymnasiums_for_many_seeds(name):
    batch, env = MujocoBatch(TASKS[name](), 40, dtype=torch.float64), peer(name)
    obs, info = batch.reset(seed=0)
    for seed in range(40):
        theirs, told = env.reset(seed=seed)
        assert equal(obs[seed], theirs)
        assert all(equal(info[key][seed], value) for key, value in told.items())
    env.close()


def test_reductions_are_numpys_bit_by_bit():
    rng = np.random.default_rng(0)
    for width in (1, 2, 3, 6, 8, 17, 84, 200):
        for dtype in (np.float32, np.float64):
            rows = rng.normal(size=(50, width)).astype(dtype)
            assert equal(row_sum(torch.from_numpy(rows)), [row.copy().sum() for row in rows])
    rows = rng.normal(size=(20, 14, 6))
    assert equal(row_sum(torch.from_numpy(rows)), [row.copy().sum() for row in rows])
    wide = rng.normal(size=(500, 5))
    for columns in (slice(0, 2), slice(1, 4)):  # strided, as parts of qpos are
        assert equal(row_norm(torch.from_numpy(wide)[:, columns]), [np.linalg.norm(row[columns]) for row in wide])


def test_functions_are_numpys_bit_by_bit():
    numbers = np.random.default_rng(0).normal(size=(3000, 2))
    tensor = torch.from_numpy(numbers)
    assert equal(sin(tensor), [np.sin(row) for row in numbers])
    assert equal(cos(tensor), [np.cos(row) for row in numbers])
    powers = np.array([[number**2 for number in row] for row in numbers])
    assert (powers != numbers * numbers).any()  # else this test shows nothing
    assert equal(squared(tensor), powers)
    assert equal(squared(tensor[:, 1]), powers[:, 1])


def test_the_centre_of_mass_is_gymnasiums_bit_by_bit():
    rng = np.random.default_rng(0)
    masses, places = rng.uniform(size=14), rng.normal(size=(200, 14, 3))
    expected = [np.einsum("b,bj->j", masses, place) / masses.sum() for place in places]
    tensor = torch.from_numpy(masses)
    assert equal(centre_of_mass(tensor.expand(200, 14), torch.from_numpy(places)), expected)
    assert equal(centre_of_mass(tensor.repeat(200, 1), torch.from_numpy(places)), expected)
