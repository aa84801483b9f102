"""The faces of a MuJoCo task: a single Gymnasium environment, Stable-Baselines3, pictures, a user's own file."""

import copy
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import gymnasium.envs.mujoco
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import StickyAction
from headway.envs import make_batched
from headway.envs.mujoco import MujocoTask, scale
from headway.envs.mujoco.single import MujocoTaskEnv
from headway.envs.mujoco.tasks import TASKS
from headway.scripts.cli import main
from headway.wrappers import BatchedVecEnv, capture, restore
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize

ASSETS = Path(gymnasium.envs.mujoco.__file__).parent / "assets"


def ours(name: str, **options: Any) -> gym.Env[Any, Any]:
    return gym.make(f"headway/{name}-v5", **options)


def theirs(name: str, **options: Any) -> gym.Env[Any, Any]:
    return gym.make(f"{name}-v5", **options)


def actions(env: Any, steps: int, seed: int = 0) -> Any:
    low, high = env.action_space.low, env.action_space.high
    return np.random.default_rng(seed).uniform(low, high, (steps, *low.shape)).astype(np.float32)


def check_info(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same keys and bits; NumPy's scalars where Gymnasium has them or Python's numbers."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if type(value) in (int, float):
            assert isinstance(found[key], float)
        else:
            assert (type(found[key]), found[key].dtype) == (type(value), value.dtype)
        assert np.array_equal(found[key], value)


def check_steps(env: Any, reference: Any, steps: int, seed: int = 0) -> int:
    """Step both through ends and resets; :return: how many ends there were."""
    ends = 0
    for action in actions(reference, steps, seed):
        obs, reward, terminated, truncated, info = env.step(action)
        expected = reference.step(action)
        assert (obs.dtype, obs.shape) == (expected[0].dtype, expected[0].shape)
        assert (obs == expected[0]).all()
        assert type(reward) is np.float64
        assert reward == expected[1]
        assert (terminated, truncated) == (expected[2], expected[3])
        assert (type(terminated), type(truncated)) == (bool, bool)
        check_info(info, expected[4])
        if terminated or truncated:
            ends += 1
            obs, info = env.reset()
            expected_obs, expected_info = reference.reset()
            assert (obs == expected_obs).all()
            check_info(info, expected_info)
    return ends


def run(code: str, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own."""
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


# ---- the single environment ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_its_spec_is_gymnasiums(name: str) -> None:
    spec, expected = gym.spec(f"headway/{name}-v5"), gym.spec(f"{name}-v5")
    assert spec.max_episode_steps == expected.max_episode_steps
    assert spec.reward_threshold == expected.reward_threshold
    env = ours(name, reset_noise_scale=0.0) if name not in ("Pusher", "Reacher") else ours(name)
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert (env.reset(seed=0)[0] == again.reset(seed=0)[0]).all()
    reference: Any = theirs(name)
    assert env.observation_space == reference.observation_space
    assert env.action_space == reference.action_space
    assert env.unwrapped.metadata == reference.unwrapped.metadata
    assert env.unwrapped.dt == reference.unwrapped.dt  # type: ignore[attr-defined]


# What Gymnasium's own environments are warned of too: spaces without bounds, and actuators that reach beyond 1.
@pytest.mark.filterwarnings("ignore:.*A Box observation space m(in|ax)imum value is -?infinity:UserWarning")
@pytest.mark.filterwarnings("ignore:.*[Ww]e recommend (you to use|using) a symmetric and normalized:UserWarning")
@pytest.mark.parametrize("name", TASKS)
def test_checkers(name: str) -> None:
    env = ours(name)
    assert isinstance(env.unwrapped, MujocoTaskEnv)
    check_env(env.unwrapped, skip_render_check=True)
    sb3_check_env(env)


@pytest.mark.parametrize("name", TASKS)
def test_it_is_gymnasiums_bit_for_bit(name: str) -> None:
    env, reference = ours(name, max_episode_steps=60), theirs(name, max_episode_steps=60)
    obs, info = env.reset(seed=11)
    expected_obs, expected_info = reference.reset(seed=11)
    assert (obs == expected_obs).all()
    check_info(info, expected_info)
    assert env.unwrapped.np_random_seed == 11
    assert check_steps(env, reference, 130) >= 2


def test_the_time_limit_is_the_tasks() -> None:
    env = ours("Reacher")
    env.reset(seed=0)
    ends = [env.step(action)[3] for action in actions(env, 50)]
    assert ends == [False] * 49 + [True]
    env = ours("Reacher", max_episode_steps=-1)  # Gymnasium's word for never
    env.reset(seed=0)
    assert not any(env.step(action)[3] for action in actions(env, 120))


@pytest.mark.parametrize("name", TASKS)
def test_every_option_of_gymnasiums_constructor(name: str) -> None:
    cls = type(theirs(name).unwrapped)
    parameters = [*inspect.signature(cls).parameters.values()]
    options = {p.name: p.default for p in parameters if p.default is not p.empty}
    assert {"xml_file", "frame_skip", "default_camera_config"} <= options.keys()
    drawing = {"width", "height", "camera_id", "camera_name", "max_geom", "visual_options"}
    options |= {p.name: p.default for p in inspect.signature(MujocoEnv).parameters.values() if p.name in drawing}
    assert drawing <= options.keys()
    env, reference = ours(name, **options), theirs(name)
    assert env.observation_space == reference.observation_space
    assert (env.reset(seed=0)[0] == reference.reset(seed=0)[0]).all()
    check_steps(env, reference, 10)


@pytest.mark.filterwarnings("ignore:compiler attribute 'settotalmass' is deprecated:UserWarning")
@pytest.mark.parametrize("name", ["Ant", "HalfCheetah", "InvertedPendulum"])
def test_a_model_of_ones_own(name: str, tmp_path: Path) -> None:
    file = {"Ant": "ant.xml", "HalfCheetah": "half_cheetah.xml", "InvertedPendulum": "inverted_pendulum.xml"}[name]
    spec = mujoco.MjSpec.from_file(str(ASSETS / file))
    spec.option.timestep *= 0.5
    spec.geoms[-1].size[0] *= 1.2
    (tmp_path / "mine.xml").write_text(spec.to_xml())
    options = {"xml_file": str(tmp_path / "mine.xml"), "frame_skip": 3}
    env, reference = ours(name, **options), theirs(name, **options)
    assert env.unwrapped.metadata["render_fps"] == reference.unwrapped.metadata["render_fps"]
    assert (env.reset(seed=0)[0] == reference.reset(seed=0)[0]).all()
    check_steps(env, reference, 30)
    usual = ours(name)
    usual.reset(seed=0)
    env.reset(seed=0)
    assert (env.step(actions(env, 1)[0])[0] != usual.step(actions(env, 1)[0])[0]).any()
    assert (ours(name, xml_file=file).reset(seed=0)[0] == usual.reset(seed=0)[0]).all()


def test_wrong_options_name_the_right_ones() -> None:
    with pytest.raises(TypeError, match=r"HalfCheetah has no option 'forward_weight': did you mean .*forward_reward_w"):
        ours("HalfCheetah", forward_weight=1.0)
    with pytest.raises(TypeError, match=r"HalfCheetah has no option 'xyzzy': its options are .*ctrl_cost_weight"):
        ours("HalfCheetah", xyzzy=1.0)
    with pytest.raises(ValueError, match=r"render_mode is 'film': it can be one of human, rgb_array"):
        MujocoTaskEnv(TASKS["Hopper"], render_mode="film")
    env = ours("Hopper")
    with pytest.raises(gym.error.ResetNeeded):
        env.unwrapped.step(actions(env, 1)[0])
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"of shape \(1, 2\), step takes a tensor of shape \(1, 3\)"):
        env.unwrapped.step(np.zeros(2))


def test_wrappers_draw_from_its_stream() -> None:
    """A wrapper that draws from ``np_random`` moves the stream that starts episodes, as in Gymnasium."""
    env, reference = StickyAction(ours("Hopper"), 0.4), StickyAction(theirs("Hopper"), 0.4)
    assert (env.reset(seed=3)[0] == reference.reset(seed=3)[0]).all()
    assert check_steps(env, reference, 100) >= 2
    assert env.np_random.integers(0, 9, 3).tolist() == reference.np_random.integers(0, 9, 3).tolist()
    state = capture(env)  # half a number of 64 bits is left over
    expected = env.np_random.integers(0, 9, 3).tolist()
    assert expected == reference.np_random.integers(0, 9, 3).tolist()
    other = StickyAction(ours("Hopper"), 0.4)
    other.reset()
    restore(other, state)
    assert other.np_random.integers(0, 9, 3).tolist() == expected
    assert check_steps(other, reference, 60) >= 1
    env.unwrapped.np_random = np.random.Generator(np.random.MT19937(0))
    with pytest.raises(TypeError, match="draws from MT19937"):
        env.reset()
    env.unwrapped.np_random = np.random.default_rng(5)
    other.unwrapped.np_random = np.random.default_rng(5)
    assert (env.reset()[0] == other.reset()[0]).all()


@pytest.mark.parametrize("name", TASKS)
def test_snapshots(name: str) -> None:
    def future(env: gym.Env[Any, Any]) -> list[Any]:
        made: list[Any] = []
        for action in actions(env, 45, seed=1):
            made.append(env.step(action))
            if made[-1][2] or made[-1][3]:
                made.append(env.reset())
        return made

    env = ours(name, max_episode_steps=40)
    env.reset(seed=2)
    check_steps(env, copy_of(env, 2), 25)
    state, inner = capture(env), env.unwrapped.state()  # type: ignore[attr-defined]
    first = future(env)
    assert any(len(result) == 2 for result in first)
    new = ours(name, max_episode_steps=40)
    restore(new, state)
    restore(env, state)
    for again in (future(new), future(env)):
        for found, expected in zip(again, first, strict=True):
            assert (found[0] == expected[0]).all()
            assert found[1:-1] == expected[1:-1]
            check_info(found[-1], expected[-1])
    new.unwrapped.load_state(inner)  # type: ignore[attr-defined]
    assert (new.unwrapped.step(actions(env, 1, seed=1)[0])[0] == first[0][0]).all()


def copy_of(env: gym.Env[Any, Any], seed: int) -> gym.Env[Any, Any]:
    """The same environment again, seeded."""
    assert env.spec is not None
    again = gym.make(env.spec)
    again.reset(seed=seed)
    return again


def test_a_row_of_a_batch_goes_on_by_itself() -> None:
    batch = make_batched("headway/Swimmer-v5", 5, dtype=torch.float64)
    batch.reset(seed=0)
    rows = torch.from_numpy(np.stack([actions(batch, 12, seed) for seed in range(2)]))
    for row in rows[0]:
        batch.step(row)
    env: Any = ours("Swimmer").unwrapped
    env.load_state(batch.state(torch.tensor([3])))  # type: ignore[call-arg]
    for row in rows[1]:
        assert (env.step(row[3].numpy())[0] == batch.step(row)[4]["final_obs"][3].numpy()).all()


def test_model_and_data() -> None:
    env: Any = ours("Humanoid").unwrapped
    reference: Any = theirs("Humanoid").unwrapped
    env.reset(seed=0)
    reference.reset(seed=0)
    assert env.model.nq == reference.model.nq
    for field in ("qpos", "qvel", "xpos", "geom_xpos", "subtree_com"):
        assert (getattr(env.data, field) == getattr(reference.data, field)).all()
    for action in actions(env, 5):
        env.step(action)
        reference.step(action)
    data = env.data
    assert (data.qpos == reference.data.qpos).all()
    assert data.body("torso").xpos[2] == data.xpos[1, 2]
    data.qpos[:] = 0
    assert (env.data.qpos == reference.data.qpos).all()
    check_steps(env, reference, 3)


def test_randomised_physics_show_in_its_data() -> None:
    env: Any = ours("Hopper", randomise={"body_mass": scale(0.5, 1.5)}).unwrapped
    before = env.model.body_mass.copy()
    env.reset(seed=0)
    masses = env.data.model.body_mass.copy()
    assert (masses[1:] != before[1:]).all()
    assert torch.equal(env.batch.physics["body_mass"][0], torch.from_numpy(masses))
    env.reset()
    assert (env.data.model.body_mass[1:] != masses[1:]).all()
    assert (env.model.body_mass == before).all()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_it_runs_in_other_processes() -> None:
    env_id = "headway.envs:headway/InvertedPendulum-v5"
    options: Any = {"vectorization_mode": "async", "vector_kwargs": {"context": "spawn"}}
    vector = gym.make_vec(env_id, 1, **options)
    sub = SubprocVecEnv([partial(gym.make, env_id)], start_method="forkserver")
    env = theirs("InvertedPendulum")
    try:
        sub.seed(4)
        expected, _ = env.reset(seed=4)
        assert (vector.reset(seed=4)[0][0] == expected).all()
        assert (sub.reset()[0] == expected).all()
        for action in actions(env, 3):
            expected = env.step(action)[0]
            assert (vector.step(action[None])[0][0] == expected).all()
            assert (sub.step(action[None])[0][0] == expected).all()  # type: ignore[index]
    finally:
        vector.close()
        sub.close()


# ---- Stable-Baselines3 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_sb3_face_is_that_of_gymnasiums_environments(name: str) -> None:
    env = BatchedVecEnv(make_batched(f"headway/{name}-v5", 3, max_episode_steps=25))
    make = partial(theirs, name, max_episode_steps=25)
    reference = DummyVecEnv([lambda: Monitor(make())] * 3)
    env.seed(5)
    reference.seed(5)
    found, expected = env.reset(), reference.reset()
    assert (found == expected.astype(np.float32)).all()
    ends = 0
    for action in np.stack([actions(env, 60, seed) for seed in range(3)], axis=1):
        obs, rewards, dones, infos = env.step(action)
        expected_obs, expected_rewards, expected_dones, expected_infos = reference.step(action)
        assert (obs == expected_obs.astype(np.float32)).all()  # type: ignore[union-attr]
        assert (rewards == expected_rewards.astype(np.float32)).all()
        assert (dones == expected_dones).all()
        for row in np.flatnonzero(dones):
            ends += 1
            last, expected_last = infos[row], expected_infos[row]
            assert (last["terminal_observation"] == expected_last["terminal_observation"].astype(np.float32)).all()
            assert last["TimeLimit.truncated"] == expected_last["TimeLimit.truncated"]
            assert last["episode"]["l"] == expected_last["episode"]["l"]
            assert last["episode"]["r"] == pytest.approx(expected_last["episode"]["r"], abs=2e-6)  # Monitor rounds
    assert ends >= 6


@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`:UserWarning")
def test_sb3s_wrappers_and_evaluation() -> None:
    env = VecNormalize(VecMonitor(BatchedVecEnv(make_batched("headway/Hopper-v5", 4))))
    env.seed(0)
    env.reset()
    lengths: list[int] = []
    for action in np.stack([actions(env, 80, seed) for seed in range(4)], axis=1):
        obs, _, dones, infos = env.step(action)
        lengths += [infos[row]["episode"]["l"] for row in np.flatnonzero(dones)]
    assert len(lengths) > 4
    assert env.obs_rms.mean[0] == pytest.approx(1.2, abs=0.1)  # type: ignore[union-attr]  # Hopper's height
    assert isinstance(obs, np.ndarray)
    assert 0.3 < obs.std() < 3

    policy = PPO("MlpPolicy", BatchedVecEnv(make_batched("headway/Hopper-v5", 4)), seed=0, device="cpu")
    assert policy.env is not None
    policy.env.seed(3)
    returns, steps = evaluate_policy(policy, policy.env, n_eval_episodes=4, return_episode_rewards=True)
    reference = theirs("Hopper")
    for row in range(4):
        last, _ = reference.reset(seed=3 + row)
        total, count, ended = 0.0, 0, False
        while not ended:
            action, _ = policy.predict(last.astype(np.float32)[None], deterministic=True)
            last, reward, terminated, truncated, _ = reference.step(action[0])
            total, count, ended = total + float(reward), count + 1, terminated or truncated
        assert count in steps  # type: ignore[operator]
        assert total == pytest.approx(returns[steps.index(count)], rel=1e-4)  # type: ignore[index,union-attr]


def learned(agent: PPO | SAC, steps: int) -> tuple[float, float]:
    """:return: mean return of InvertedPendulum before and after; 1000, where episodes are cut, is the best there is."""

    def score() -> float:
        env = BatchedVecEnv(make_batched("headway/InvertedPendulum-v5", 8))
        env.seed(100)
        return float(evaluate_policy(agent, env, n_eval_episodes=16)[0])  # type: ignore[arg-type]

    before = score()
    agent.learn(steps)
    return before, score()


def pendulum_ppo() -> PPO:
    """Stable-Baselines3's PPO on eight pendulums, with a small spread of actions: the pole falls at 0.2 rad."""
    env = BatchedVecEnv(make_batched("headway/InvertedPendulum-v5", 8))
    policy = {"log_std_init": -2.0}
    how: Any = {"n_steps": 64, "batch_size": 64, "learning_rate": 1e-3, "gamma": 0.98, "gae_lambda": 0.9}
    return PPO("MlpPolicy", env, policy_kwargs=policy, seed=0, device="cpu", **how)


def test_sb3s_agents_learn() -> None:
    before, after = learned(pendulum_ppo(), 7_000)
    assert after > 2 * before
    env = BatchedVecEnv(make_batched("headway/InvertedPendulum-v5", 8))
    how: Any = {"batch_size": 64, "gradient_steps": 4, "learning_starts": 400, "policy_kwargs": {"net_arch": [32, 32]}}
    before, after = learned(SAC("MlpPolicy", env, learning_rate=1e-3, seed=0, device="cpu", **how), 1_200)
    assert after > 2 * before


@pytest.mark.slow
def test_sb3s_ppo_solves() -> None:
    """Seeds 0, 1 and 2 all hold the pole to the end after 20,000 steps."""
    assert learned(pendulum_ppo(), 25_000)[1] >= 950


# ---- models from elsewhere -------------------------------------------------------------------------------------------

POLE = """
<mujoco>
  <worldbody>
    <body name="pole" pos="0 0 1">
      <joint name="hinge" axis="0 1 0" damping="0.1"/>
      <geom name="rod" type="capsule" fromto="0 0 0 0 0 -0.6" size="0.04"/>
    </body>
  </worldbody>
  <actuator><motor joint="hinge" ctrlrange="-1 1"/></actuator>
</mujoco>
"""


@dataclass(frozen=True, kw_only=True)
class Pole(MujocoTask):
    """A pendulum to be swung up, without noise."""

    model: Any = POLE
    frame_skip: int = 4

    def observation(self, sim: Any) -> torch.Tensor:
        return torch.cat((sim.qpos, sim.qvel), 1)

    def reward(self, sim: Any, action: Any, before: Any) -> torch.Tensor:
        return -sim.xpos[:, 1, 2] - sim.qpos[:, 0].cos()


def longer() -> mujoco.MjSpec:
    """A pole that is changed where it is made."""
    spec = mujoco.MjSpec.from_string(POLE)
    spec.body("pole").add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[0.1, 0, 0], pos=[0, 0, -0.7])
    return spec


def test_models_from_text_files_and_functions(tmp_path: Path) -> None:
    def path(**options: Any) -> list[float]:
        env = MujocoTaskEnv(Pole, **options)
        env.reset(seed=0)
        return [float(env.step(np.ones(1, np.float32))[0][0]) for _ in range(5)]

    usual = path()
    assert len(set(usual)) == 5
    (tmp_path / "pole.xml").write_text(POLE)
    assert path(model=str(tmp_path / "pole.xml")) == path(model=tmp_path / "pole.xml") == usual
    assert path(xml_file=str(tmp_path / "pole.xml")) == usual
    assert path(model=longer) != usual
    assert path(model=lambda: mujoco.MjSpec.from_string(POLE)) == usual


def test_models_that_cannot_be_had(tmp_path: Path) -> None:
    for wrong in ("nowhere.xml", str(tmp_path / "nowhere.xml"), tmp_path / "nowhere.xml"):
        with pytest.raises(FileNotFoundError, match=r"Pole: there is no model file '.*nowhere.xml' \(nor /.*nowhere"):
            MujocoTaskEnv(Pole, model=wrong)
    (tmp_path / "torn.xml").write_text(POLE[: len(POLE) // 2])
    for wrong in (str(tmp_path / "torn.xml"), POLE[: len(POLE) // 2]):
        with pytest.raises(ValueError, match="XML"):
            MujocoTaskEnv(Pole, model=wrong)
    with pytest.raises(ValueError, match="environment 'headway/Hopper-v5' cannot be made: FileNotFoundError: Hopper"):
        make_batched("headway/Hopper-v5", 2, xml_file="nowhere.xml")


def test_a_task_that_is_no_dataclass() -> None:
    class Plain(Pole):
        model = POLE

    with pytest.raises(TypeError, match=r"Plain needs @dataclass\(frozen=True, kw_only=True\) above it"):
        MujocoTaskEnv(Plain)


# ---- pictures --------------------------------------------------------------------------------------------------------

# In a process of its own, since MuJoCo chooses how to draw when it is imported.
DRAW = """
import sys, warnings
from pathlib import Path
import gymnasium as gym, numpy as np, torch, mujoco
from gymnasium.wrappers import RecordVideo
from stable_baselines3.common.vec_env import VecVideoRecorder
from headway.envs import make_batched, make
from headway.envs.mujoco import scale
from headway.wrappers import BatchedVecEnv

drawn = {}
size = {"width": 96, "height": 64}
for name in ("Hopper", "InvertedDoublePendulum", "Pusher"):
    batch = make_batched(f"headway/{name}-v5", 4, render_mode="rgb_array", render_rows=[3, 0, 3], **size)
    batch.reset(seed=0)
    drawn[f"{name} rows"] = np.stack(batch.render())
    other = make_batched("headway/Reacher-v5", 1, render_mode="depth_array", **size)
    other.reset(seed=0)
    other.render()
    drawn[f"{name} after another"] = np.stack(batch.render())
    other.close()
    for _ in range(10):
        batch.step(torch.from_numpy(batch.action_space.sample()))
    drawn[f"{name} later"] = np.stack(batch.render())
    batch.close()
    reference = gym.make(f"{name}-v5", render_mode="rgb_array", **size)
    reference.reset(seed=3)
    drawn[f"{name} reference"] = reference.render()
    reference.close()

vector = gym.make_vec("headway/InvertedPendulum-v5", 2, render_mode="depth_array", **size)
vector.reset(seed=0)
drawn["depth"] = np.stack(vector.render())
vector.close()
vector = gym.make_vec("headway/InvertedPendulum-v5", 2)
vector.reset(seed=0)
assert vector.render() is None
drawn["by hand"] = vector.batched.render_row(1)
vector.close()
single = gym.make("headway/InvertedPendulum-v5", render_mode="rgbd_tuple", **size)
single.reset(seed=0)
drawn["colours"], drawn["depths"] = single.render()
single.close()

fat = make_batched("headway/Hopper-v5", 2, render_mode="rgb_array", randomise={"geom_size": scale(2, 3)}, **size)
fat.reset(seed=0)
drawn["fat"] = np.stack(fat.render())
fat.close()

views = {
    "track": {"camera_name": "track"},
    "far": {"camera_id": -1, "default_camera_config": {"distance": 30.0}},
    "joints": {"visual_options": {int(mujoco.mjtVisFlag.mjVIS_JOINT): True}},
}
for view, options in views.items():
    for kind, env_id in (("ours", "headway/HalfCheetah-v5"), ("theirs", "HalfCheetah-v5")):
        env = gym.make(env_id, render_mode="rgb_array", **size, **options)
        env.reset(seed=0)
        drawn[f"{view} {kind}"] = env.render()
        env.close()

try:
    import moviepy
except ImportError:
    pass
else:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        film = RecordVideo(make("headway/Reacher-v5", render_mode="rgb_array", **size), "films", lambda episode: True)
        film.reset(seed=0)
        while not film.step(film.action_space.sample())[3]:
            pass
        film.close()
        batch = make_batched("headway/Reacher-v5", 2, render_mode="rgb_array", **size)
        film = VecVideoRecorder(BatchedVecEnv(batch), "vec", lambda step: step == 0, video_length=20)
        film.reset()
        for _ in range(25):
            film.step(np.stack([film.action_space.sample()] * 2))
        film.close()
np.savez(sys.argv[1], **drawn)
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Frames, drawn by whatever OpenGL there is without a screen."""
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "try.py").write_text("import mujoco; mujoco.GLContext(8, 8).make_current()")
    for library in ("osmesa", "egl"):
        if run((folder / "try.py").read_text(), folder, MUJOCO_GL=library).returncode == 0:
            done = run(DRAW, folder, str(folder / "drawn.npz"), MUJOCO_GL=library)
            assert done.returncode == 0, done.stderr
            with np.load(folder / "drawn.npz") as file:
                return {**file, "folder": folder}
    pytest.skip("there is neither OSMesa nor EGL here")


DRAW_ANYWHERE = """
import os, sys
os.environ.pop("DISPLAY", None)
os.environ.pop("MUJOCO_GL", None)
os.environ.update(line.split("=") for line in sys.argv[1:])
import mujoco, gymnasium
from headway.envs import make
how = {"render_mode": "rgb_array"}
for env in gymnasium.make("headway/Hopper-v5", **how), make("Hopper-v5", **how):
    env.reset(seed=0)
    print(env.render().std() > 3)
    env.close()
"""


def test_neither_a_screen_nor_a_word_about_it_is_needed(tmp_path: Path) -> None:
    if run(DRAW_ANYWHERE, tmp_path, "MUJOCO_GL=egl").returncode != 0:
        pytest.skip("there is no EGL here")
    done = run(DRAW_ANYWHERE, tmp_path)
    assert (done.returncode, done.stdout) == (0, "True\nTrue\n"), done.stderr


@pytest.mark.parametrize("name", ["Hopper", "InvertedDoublePendulum", "Pusher"])
def test_frames_of_rows_are_those_of_gymnasium(drawn: dict[str, Any], name: str) -> None:
    rows, later = drawn[f"{name} rows"], drawn[f"{name} later"]
    assert (rows.shape, rows.dtype) == ((3, 64, 96, 3), np.uint8)
    assert (rows[0] == drawn[f"{name} reference"]).all()
    assert (rows[1] != rows[0]).any()
    assert (rows[2] == rows[0]).all()
    assert (rows == drawn[f"{name} after another"]).all()
    assert (later[0] != rows[0]).any()
    assert (later[0] != later[1]).any()
    assert rows.std() > 3  # not all of one colour


def test_depths_and_single_rows(drawn: dict[str, Any]) -> None:
    depth = drawn["depth"]
    assert (depth.shape, depth.dtype) == ((2, 64, 96), np.float32)
    assert 0 <= depth.min() < depth.max() <= 1
    assert (drawn["depths"] == depth[0]).all()
    assert drawn["colours"].shape == (64, 96, 3)
    assert drawn["by hand"].shape == (480, 480, 3)


def test_a_row_is_drawn_with_its_own_shapes(drawn: dict[str, Any]) -> None:
    usual, fat = drawn["Hopper rows"][1].astype(int), drawn["fat"].astype(int)
    changed = [(abs(frame - usual).max(2) > 20).mean() for frame in fat]
    assert min(changed) > 0.01
    assert (abs(fat[0] - fat[1]).max(2) > 20).mean() > 0.003


def test_cameras(drawn: dict[str, Any]) -> None:
    for view in ("track", "far", "joints"):
        assert (drawn[f"{view} ours"] == drawn[f"{view} theirs"]).all()
    frames = [drawn[f"{view} ours"] for view in ("track", "far", "joints")]
    assert all((a != b).any() for i, a in enumerate(frames) for b in frames[:i])


def test_films(drawn: dict[str, Any]) -> None:
    pytest.importorskip("moviepy", reason="gymnasium's RecordVideo needs it")
    from imageio_ffmpeg import count_frames_and_secs

    frames, seconds = count_frames_and_secs(drawn["folder"] / "films" / "rl-video-episode-0.mp4")
    assert frames == 51
    assert seconds == pytest.approx(51 / 50, abs=0.1)
    (film,) = (drawn["folder"] / "vec").glob("*.mp4")
    assert count_frames_and_secs(film)[0] in (20, 21)  # with the first observation, or without


# ---- a user's own task -----------------------------------------------------------------------------------------------

SWING = f'''
from dataclasses import dataclass

import torch
from headway.envs import register_mujoco_task
from headway.envs.mujoco import MujocoTask

XML = """{POLE}"""


@dataclass(frozen=True, kw_only=True)
class Swing(MujocoTask):
    model: str = XML
    frame_skip: int = 4
    effort: float = 0.01
    max_episode_steps = 50

    def observation(self, sim):
        return torch.cat((sim.qpos.sin(), sim.qpos.cos(), sim.qvel), 1)

    def reward(self, sim, action, before):
        height = -sim.qpos[:, 0].cos()
        return height - self.effort * action.square().sum(1), {{"height": height}}

    def terminated(self, sim):
        return sim.qvel[:, 0].abs() > 6

    def reset(self, sim, random):
        return {{"qpos": random.uniform(-1, 1, 1)}}


register_mujoco_task("own/Swing-v0", Swing)
'''

FACES = """
import gymnasium, numpy as np, torch
from gymnasium.utils.env_checker import check_env
from headway.envs import make_batched, make, is_batched, supports_rgb
from headway.wrappers import BatchedVecEnv, as_batched, capture, restore
from stable_baselines3 import PPO

ID = "own_swing:own/Swing-v0"
assert is_batched(ID) and supports_rgb(ID)
check_env(gymnasium.make(ID).unwrapped, skip_render_check=True)
env = gymnasium.make(ID, effort=0.5)
arrays = gymnasium.make_vec(ID, num_envs=4, effort=0.5)
batch = make_batched(ID, num_envs=4, effort=0.5, dtype=torch.float64)
vec = BatchedVecEnv(make_batched(ID, num_envs=4, effort=0.5))
vec.seed(0)
obs, _ = env.reset(seed=2)
many, _ = arrays.reset(seed=0)
assert (obs == many[2]).all()
assert (batch.reset(seed=0)[0].numpy() == many).all()
assert (vec.reset() == many.astype(np.float32)).all()
ends = 0
for _ in range(110):
    action = arrays.action_space.sample()
    many, rewards, terminated, truncated, info = arrays.step(action)
    tensors = [part.numpy() for part in batch.step(torch.from_numpy(action))[:4]]
    assert all((a == b).all() for a, b in zip(tensors, (many, rewards, terminated, truncated)))
    narrow = vec.step(action)[:3]
    assert (narrow[0] == many.astype(np.float32)).all() and (narrow[1] == rewards.astype(np.float32)).all()
    assert (narrow[2] == terminated | truncated).all()
    obs, reward, *ended, single_info = env.step(action[2])
    assert reward == rewards[2] and ended == [terminated[2], truncated[2]]
    if any(ended):
        assert (obs == info["final_obs"][2]).all() and single_info["height"] == info["final_info"]["height"][2]
        obs, _ = env.reset()
        ends += 1
    assert (obs == many[2]).all()
assert ends >= 2
state = capture(env.unwrapped)
other = gymnasium.make(ID, effort=0.5).unwrapped
restore(other, state)
assert (other.step(action[2])[0] == env.unwrapped.step(action[2])[0]).all()
PPO("MlpPolicy", vec, n_steps=16, batch_size=32, device="cpu").learn(64)
print("every face works")
"""


@pytest.mark.filterwarnings("ignore::UserWarning")  # Gymnasium's checker on bounds that are infinite
def test_a_task_from_a_file_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_swing.py").write_text(SWING)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    flags = (
        "train sac --env own_swing:own/Swing-v0 --total-timesteps 300 --learning-starts 100 --batch-size 16"
        " --net-arch 16 --eval-episodes 1 --eval-every 150 --checkpoint-every 200 --no-progress --n-envs 2"
    )
    try:
        exec(FACES, {})
        assert capsys.readouterr().out == "every face works\n"
        assert main(flags.split()) == 0, capsys.readouterr().err
    finally:
        gym.registry.pop("own/Swing-v0", None)
    (final,) = tmp_path.glob("runs/**/final.zip")
    assert "Swing-v0" in str(final)


EDITS: dict[str, Callable[[Any], Any]] = {
    "gravity": lambda model: model.opt.gravity.__setitem__(2, -1.0),
    "time step": lambda model: setattr(model.opt, "timestep", model.opt.timestep / 2),
    "mass": lambda model: np.multiply(model.body_mass, 1.5, out=model.body_mass),
    "friction": lambda model: np.multiply(model.geom_friction, 0.5, out=model.geom_friction),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("name", ["Hopper-v5", "Ant-v5"])
def test_edits_of_the_model_count_as_in_gymnasium(name: str, edit: str) -> None:
    ours, peer = gym.make(f"headway/{name}"), gym.make(name)
    for env in (ours, peer):
        env.reset(seed=0)
    ours.action_space.seed(0)
    for step in range(6):
        if step == 2:
            for env in (ours, peer):
                EDITS[edit](env.unwrapped.model)  # type: ignore[attr-defined]
        action = ours.action_space.sample()
        found, expected = ours.step(action), peer.step(action)
        assert np.array_equal(found[0], expected[0])
        assert found[1] == expected[1]
    state = ours.unwrapped.state()  # type: ignore[attr-defined]
    again = gym.make(f"headway/{name}")
    again.reset(seed=1)
    again.unwrapped.load_state(state)  # type: ignore[attr-defined]
    twin = copy.deepcopy(ours)
    shown = [env.step(action)[0] for env in (ours, again, twin)]
    assert np.array_equal(shown[0], shown[1])
    assert np.array_equal(shown[0], shown[2])


def test_edits_that_cannot_count_raise() -> None:
    env = gym.make("headway/Ant-v5", randomise={"body_mass": scale(0.9, 1.1)})
    env.reset(seed=0)
    env.unwrapped.model.body_mass[:] *= 2  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="body_mass cannot be changed"):
        env.step(np.zeros(8, np.float32))
