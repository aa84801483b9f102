"""What ``headway benchmark rollout`` times: one robot, many rows, stepped by Headway, MuJoCo alone, and peers."""

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from torch import Tensor

from ..agents.core.nets import SquashedGaussianActor
from ..agents.core.spaces import BoxActions, VectorFeatures
from ..envs import make_batched
from ..envs.mujoco import MujocoBatch
from ..envs.mujoco.cpu import HostEngine
from .timing import Absent, need_cuda
from .worlds import World

WARM_UP = 50
"""Steps before anything is timed: a robot that has just been set down touches less, and is simulated faster."""

Act = Callable[[Any], Any]
"""From observations (N, D) to actions (N, A)."""


@dataclass(frozen=True)
class Scene:
    """What is alike for all sides.

    :param robot: "HalfCheetah", …
    :param threads: that may step, and that torch may use
    :param policy: whether a 256x256 actor chooses the actions; else they are drawn beforehand
    :param delay: laws of delays, for the side that is behind some
    """

    robot: str
    threads: int
    policy: bool
    delay: str | None = None

    @property
    def env_id(self) -> str:
        """Gymnasium's id."""
        return f"{self.robot}-v5"

    def act(self, obs_space: Any, action_space: Any, num_envs: int, device: str | None) -> Act:
        """Decide how actions are chosen.

        :param obs_space: of one row
        :param action_space: of one row
        :param num_envs: N
        :param device: where the environment's tensors are; None: it takes and gives arrays
        """
        if not self.policy:
            return drawn_actions(action_space, num_envs, device)
        actor = SquashedGaussianActor(VectorFeatures(obs_space.shape[0]), action_space.shape[0], (256, 256))
        return _actor_on_arrays(actor, action_space) if device is None else _actor_on(device, actor, action_space)


def period(num_envs: int) -> int:
    """:return: after how many steps drawn actions, and the recording that MuJoCo alone replays, start over."""
    return max(64, min(512, 65_536 // num_envs))


def drawn_actions(space: spaces.Box, num_envs: int, device: str | None) -> Act:
    """:return: uniform float32 actions, drawn now, the same for every side with N rows; observations are ignored."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(space.low, space.high, (period(num_envs), num_envs, *space.shape)).astype(np.float32)
    steps: Sequence[Any] = list(actions) if device is None else torch.from_numpy(actions).to(device).unbind(0)
    following = itertools.cycle(steps).__next__
    return lambda obs: following()


def _actor_on(device: str, actor: SquashedGaussianActor, space: spaces.Box) -> Act:
    actor.to(device)
    scaler = BoxActions(space, torch.device(device))

    @torch.no_grad()
    def act(obs: Tensor) -> Tensor:
        return scaler.to_env(actor.sample(obs, torch.randn(len(obs), scaler.size, device=device))[0])

    return act


def _actor_on_arrays(actor: SquashedGaussianActor, space: spaces.Box) -> Act:
    """The way through NumPy that ``stable_baselines3``'s ``predict`` takes: to a tensor, back, and scaled there."""
    low, high = space.low.astype(np.float32), space.high.astype(np.float32)

    @torch.no_grad()
    def act(obs: Any) -> Any:
        noise = torch.randn(len(obs), *space.shape)
        actions = actor.sample(torch.as_tensor(obs).float(), noise)[0].cpu().numpy()
        return low + 0.5 * (actions + 1) * (high - low)

    return act


class Side:
    """One implementation, with rows that were reset and can be stepped.

    :param env: with ``step`` and ``close``
    :param act: chooses actions
    :param obs: the first observations
    :param workers: who steps, for people: "2 threads"
    """

    def __init__(self, env: Any, num_envs: int, act: Act, obs: Any, workers: str) -> None:
        self.env, self.num_envs, self.act, self.obs, self.workers = env, num_envs, act, obs, workers

    def step(self, actions: Any) -> Any:
        """:return: the next observations."""
        return self.env.step(actions)[0]

    def run(self, steps: int) -> int:
        """Step all rows.

        :param steps: how often
        :return: transitions made, N to the step
        """
        step, act, obs = self.step, self.act, self.obs
        for _ in range(steps):
            obs = step(act(obs))
        self.obs = obs
        return steps * self.num_envs

    def close(self) -> None:
        """End processes and threads."""
        self.env.close()


# -- Headway, and what it stands on ----------------------------------------------------------------------------------


class _OnGPU(Side):
    def run(self, steps: int) -> int:
        transitions = super().run(steps)
        torch.cuda.synchronize()
        return transitions


def headway(scene: Scene, num_envs: int) -> Side:
    """:return: ours on the CPU."""
    threads = min(scene.threads, num_envs)
    env = make_batched(f"headway/{scene.env_id}", num_envs, num_threads=threads)
    act = scene.act(env.single_observation_space, env.single_action_space, num_envs, "cpu")
    return Side(env, num_envs, act, env.reset(seed=0)[0], _threads(threads))


def headway_delayed(scene: Scene, num_envs: int) -> Side:
    """:return: ours on the CPU behind random delays; an actor sees the newest observation that has arrived."""
    threads = min(scene.threads, num_envs)
    env = World(f"headway/{scene.env_id}", scene.delay).batch(num_envs, threads=threads)
    shown = env.single_observation_space
    assert isinstance(shown, spaces.Dict)
    act = scene.act(shown["observation"], env.single_action_space, num_envs, "cpu")
    workers = f"{_threads(threads)}, behind {scene.delay}"
    return Side(env, num_envs, lambda obs: act(obs["observation"]), env.reset(seed=0)[0], workers)


def headway_gpu(scene: Scene, num_envs: int) -> Side:
    """:return: ours on a GPU, with everything there; one synchronisation per run."""
    need_cuda()
    if importlib.util.find_spec("mujoco_warp") is None:
        raise Absent("mujoco_warp is not installed: pip install 'headway-rl[gpu]'")
    try:
        env = make_batched(f"headway/{scene.env_id}", num_envs, device="cuda")
    except ValueError as cause:  # too many rows for the memory of this one
        raise Absent(str(cause)) from cause
    act = scene.act(env.single_observation_space, env.single_action_space, num_envs, str(env.device))
    return _OnGPU(env, num_envs, act, env.reset(seed=0)[0], "GPU")


class _Restart(NamedTuple):
    rows: Any
    states: Any


class Replay(Side):
    """``mujoco.batch`` with no task around it: the most that rows of this robot can be stepped.

    A robot that is never picked up lies on the ground, and what touches the ground is simulated slowly. So ours is
    recorded for a while, and this replays it: the same actions from the same state, and where an episode ended there,
    the new one's state is written here. The physics is then the same, bit for bit.

    :param env: ours, just made: its batch, with the fields that its task binds, is what steps
    :param act: chooses the recorded actions
    :param length: steps of the recording
    """

    def __init__(self, env: MujocoBatch, act: Act, length: int) -> None:
        assert isinstance(env.engine, HostEngine)
        obs = env.reset(seed=0)[0]
        super().__init__(env, env.num_envs, act, obs, _threads(env.engine.batch.nthread))
        super().run(WARM_UP)
        self.batch, self._substeps = env.engine.batch, env.engine.frame_skip
        self._controls = torch.from_numpy(self.batch.bind("ctrl"))
        self._start = self.batch.state.copy()
        self.recording = [self._record() for _ in range(length)]
        self._rewind()

    def _record(self) -> tuple[Tensor, _Restart | None]:
        actions = self.act(self.obs)
        self.obs, _, terminated, truncated, _ = self.env.step(actions)
        rows = (terminated | truncated).numpy().nonzero()[0]
        return actions, _Restart(rows, self.batch.state[rows]) if len(rows) else None

    def _rewind(self) -> None:
        self.batch.state[:] = self._start
        self._following = iter(self.recording)

    def run(self, steps: int) -> int:
        """See :meth:`Side.run`."""
        batch, substeps, controls = self.batch, self._substeps, self._controls
        for _ in range(steps):
            recorded = next(self._following, None)
            if recorded is None:
                self._rewind()
                recorded = next(self._following)
            actions, restart = recorded
            controls.copy_(actions)
            batch.step(nstep=substeps)
            if restart is not None:
                batch.state[restart.rows] = restart.states
        return steps * self.num_envs


def mujoco_batch(scene: Scene, num_envs: int) -> Side:
    """:return: ``mujoco.batch`` alone, replaying what ours does."""
    env = make_batched(f"headway/{scene.env_id}", num_envs, num_threads=min(scene.threads, num_envs))
    assert isinstance(env, MujocoBatch)
    act = scene.act(env.single_observation_space, env.single_action_space, num_envs, "cpu")
    return Replay(env, act, period(num_envs))


# -- peers -----------------------------------------------------------------------------------------------------------


class _Single(Side):
    def step(self, actions: Any) -> Any:
        obs, _, terminated, truncated, _ = self.env.step(actions[0])
        return (self.env.reset()[0] if terminated or truncated else obs)[None]


def gymnasium_single(scene: Scene, num_envs: int) -> Side:
    """:return: one environment of Gymnasium's, reset by hand."""
    env = gym.make(scene.env_id)
    act = scene.act(env.observation_space, env.action_space, 1, None)
    return _Single(env, 1, act, env.reset(seed=0)[0][None], _threads(1))


def _gymnasium(scene: Scene, num_envs: int, *, processes: bool) -> Side:
    how: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}
    env: VectorEnv[Any, Any, Any]
    if processes:
        # A fork of a process in which the other sides' threads run could inherit a lock that nobody will open.
        env = AsyncVectorEnv([_maker(scene.env_id)] * num_envs, context="forkserver", **how)
    else:
        env = SyncVectorEnv([partial(gym.make, scene.env_id)] * num_envs, **how)
    act = scene.act(env.single_observation_space, env.single_action_space, num_envs, None)
    return Side(env, num_envs, act, env.reset(seed=0)[0], _processes(num_envs) if processes else _threads(1))


def _sb3(scene: Scene, num_envs: int, *, processes: bool) -> Side:
    maker: Any = _maker(scene.env_id) if processes else partial(gym.make, scene.env_id)
    env = SubprocVecEnv([maker] * num_envs) if processes else DummyVecEnv([maker] * num_envs)
    env.seed(0)
    act = scene.act(env.observation_space, env.action_space, num_envs, None)
    return Side(env, num_envs, act, env.reset(), _processes(num_envs) if processes else _threads(1))


def _maker(env_id: str) -> Callable[[], gym.Env[Any, Any]]:
    """:return: what makes an environment in a process of its own, without importing Headway there."""

    def make() -> gym.Env[Any, Any]:
        import multiprocessing
        import signal

        import mujoco

        if multiprocessing.parent_process() is not None:  # Gymnasium also makes one here, to see its spaces
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for who closes this one
            mujoco.set_mju_user_warning(lambda message: None)  # each would print it, and write MUJOCO_LOG.TXT
        return gym.make(env_id)

    return make


class _EnvPool(Side):
    """Where an episode ended, its next step only resets, and is not counted."""

    def step(self, actions: Any) -> Any:
        obs, _, _, _, info = self.env.step(actions)
        self._resets += int(np.count_nonzero(info["elapsed_step"] == 0))
        return obs

    def run(self, steps: int) -> int:
        self._resets = 0
        return super().run(steps) - self._resets


def envpool(scene: Scene, num_envs: int) -> Side:
    """:return: EnvPool's batch of the same robot, of the newest version that it has.

    :raises Absent: it is not installed, or has no such robot
    """
    if importlib.util.find_spec("envpool") is None:
        raise Absent("it is not installed: pip install envpool")
    import envpool as pool

    known = set(pool.list_all_envs())
    env_id = next((name for version in (5, 4, 3) if (name := f"{scene.robot}-v{version}") in known), None)
    if env_id is None:
        raise Absent(f"it has no {scene.robot}")
    threads = min(scene.threads, num_envs)
    env = pool.make(env_id, env_type="gymnasium", num_envs=num_envs, num_threads=threads, seed=0)
    act = scene.act(env.observation_space, env.action_space, num_envs, None)
    return _EnvPool(env, num_envs, act, env.reset()[0], f"{_threads(threads)}, {env_id}")


MAKERS: dict[str, Callable[[Scene, int], Side]] = {
    "headway": headway,
    "headway-delayed": headway_delayed,
    "mujoco.batch": mujoco_batch,
    "headway-gpu": headway_gpu,
    "gymnasium": gymnasium_single,
    "gymnasium-sync": partial(_gymnasium, processes=False),
    "gymnasium-async": partial(_gymnasium, processes=True),
    "sb3-dummy": partial(_sb3, processes=False),
    "sb3-subproc": partial(_sb3, processes=True),
    "envpool": envpool,
}
"""How each side is made from a scene and a number of rows."""


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _processes(count: int) -> str:
    return f"{count} process{'es' * (count > 1)}"
