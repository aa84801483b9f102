"""Episodes of a policy: environments to evaluate it in, its returns there, a film of one."""

import csv
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imageio
import numpy as np
import torch
from gymnasium import Env
from mujoco import MjModel, mj_name2id, mjtObj
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor

from ..agents.core.data.episodes import Turn, run_episodes
from ..agents.core.files.replacing import replacing
from ..envs import make
from ..envs.batched import Obs
from ..wrappers import BatchedVecEnv, as_batched
from ..wrappers.sb3 import to_numpy
from ..wrappers.specs import spec_of
from .worlds import World

log = logging.getLogger("headway")


def evaluation_env(world: World, n_envs: int, render: bool = False, threads: int = 0) -> VecEnv:
    """Build environments for evaluation, on the CPU; as one batch where there is that form, to the same returns.

    :param world: the environment
    :param n_envs: how many
    :param render: to frames
    :param threads: that step a batch; 0: one per core
    :return: monitored environments
    """
    if world.is_batched and not render:
        return BatchedVecEnv(world.batch(n_envs, threads=threads))

    options = {"render_mode": "rgb_array", **following_camera(world)} if render else {}

    def build() -> Env[Any, Any]:
        return Monitor(world.single(**options))

    return DummyVecEnv([build for _ in range(n_envs)])


def following_camera(world: World) -> dict[str, str]:
    """Ask for the camera that moves with a robot; left alone, some robots walk out of Gymnasium's picture.

    :param world: what is to be filmed
    :return: keywords for ``gymnasium.make``, none where there is no such camera
    """
    env = world.single()
    model = getattr(env.unwrapped, "model", None)
    env.close()
    has_one = isinstance(model, MjModel) and mj_name2id(model, mjtObj.mjOBJ_CAMERA, "track") >= 0
    return {"camera_name": "track"} if has_one else {}


PATIENCE = 5.0
"""Seconds after which an evaluation in an environment without a time limit says what it waits for. Our choice."""

LONG = 2_000
"""Steps of an episode before which it says nothing: a slow machine is no environment that never ends. Our choice."""


class Acting:
    """A policy that acts in a batch; one with a memory keeps it through an episode.

    :param agent: ours, or any algorithm of Stable-Baselines3
    :param device: of the batch
    :param deterministic: the mode of the policy instead of samples
    """

    def __init__(self, agent: BaseAlgorithm, device: torch.device, deterministic: bool) -> None:
        self.agent, self.device, self.deterministic = agent, device, deterministic
        self.memory: Any = None
        """What the policy remembers of the episodes under way."""

    def __call__(self, obs: Obs, turn: Turn) -> Tensor:
        """:return: actions, (N, *A)"""
        starts = turn.starts.cpu().numpy()
        actions, self.memory = self.agent.predict(to_numpy(obs), self.memory, starts, self.deterministic)
        return torch.as_tensor(actions, device=self.device)


def evaluate_agent(
    agent: BaseAlgorithm,
    env: VecEnv,
    episodes: int,
    seed: int,
    deterministic: bool = True,
    done: Callable[[int, float, int], object] = lambda *told: None,
) -> tuple[list[float], list[int]]:
    """Run episodes from seeded starts.

    :param agent: as of :class:`Acting`
    :param env: environments, monitored if wrappers in them change rewards or ends; what their normaliser makes of
        observations is acted on, returns are as they were before it
    :param episodes: how many; episode ``i`` is that of an environment seeded ``seed + i``
    :param seed: of the first episode
    :param deterministic: the mode of the policy instead of samples
    :param done: told the number, return and length of each episode, in their order, as soon as those before it are over
    :return: returns and lengths, in the order of the seeds
    """
    batch, taken = as_batched(env), 0
    acting = Acting(agent, batch.device, deterministic)
    spec = spec_of(env)
    due = math.inf if spec is not None and spec.max_episode_steps else time.monotonic() + PATIENCE

    def act(obs: Obs, turn: Turn) -> Tensor:
        nonlocal taken, due
        taken = taken * (not turn.starts.any()) + 1
        if time.monotonic() > due and taken > LONG:
            due = math.inf
            log.warning(
                "waiting for an episode of the evaluation to end, now at step %s: one that never does is cut by "
                "--max-episode-steps, or by max_episode_steps where its environment is registered",
                f"{taken:,}",
            )
        return acting(obs, turn)

    returns: list[float] = []
    lengths: list[int] = []
    for first in range(0, episodes, batch.num_envs):  # rounds as run_episodes makes them, told one by one
        round_ = run_episodes(batch, act, episodes=min(batch.num_envs, episodes - first), seed=seed + first)
        for number, (reached, length) in enumerate(zip(round_.returns.tolist(), round_.lengths.tolist(), strict=True)):
            done(first + number, reached, length)
        returns += round_.returns.tolist()
        lengths += round_.lengths.tolist()
    return returns, lengths


def check_drawing(env_id: str) -> None:
    """Draw one frame, so that a film that cannot be made is refused before anything long begins.

    :param env_id: ``Id-v0`` or ``module:Id-v0``
    :raises ValueError: it cannot be drawn here
    """
    reason = "it draws no frames (render_mode rgb_array)"
    frame = None
    try:
        env = make(env_id, render_mode="rgb_array")
        env.reset(seed=0)
        frame = env.render()
        env.close()
    except Exception as cause:  # whatever a graphics library raises, on a machine without a screen for one
        reason = f"{cause}; MUJOCO_GL=egl or MUJOCO_GL=osmesa may help where there is no screen"
    if not isinstance(frame, np.ndarray):
        raise ValueError(f"--video: no film can be made of {env_id} here: {reason}")


def steps_of_episode(
    agent: BaseAlgorithm, env: VecEnv, seed: int, deterministic: bool = True, options: Mapping[str, Any] | None = None
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Run one episode step by step.

    :param agent: the agent
    :param env: one environment
    :param seed: of the episode
    :param deterministic: the mode of the policy instead of samples
    :param options: of its reset
    :return: ``info`` and whether the episode is over, once before the first step and then after each; when it is over,
        the environment shows the next one already
    """
    env.seed(seed)
    env.set_options(dict(options or {}))
    obs, memory, starts, done = env.reset(), None, np.ones(1, bool), False
    yield env.reset_infos[0], False
    while not done:
        actions, memory = agent.predict(obs, memory, starts, deterministic)  # type: ignore[arg-type]
        obs, _, starts, infos = env.step(actions)
        done = bool(starts[0])
        yield infos[0], done


def record_video(
    agent: BaseAlgorithm,
    env: VecEnv,
    path: Path,
    seed: int,
    deterministic: bool = True,
    options: Mapping[str, Any] | None = None,
) -> int:
    """Record one episode.

    :param agent: the agent
    :param env: one environment that renders to arrays
    :param path: .mp4 or .gif
    :param seed: of the episode
    :param deterministic: the mode of the policy instead of samples
    :param options: of its reset
    :return: number of frames
    """
    fps = env.get_attr("metadata")[0].get("render_fps", 30)
    # H.264 wants even sides; a GIF wants milliseconds per frame, and to be told to repeat.
    how = {"duration": 1000 / fps, "loop": 0} if path.suffix == ".gif" else {"fps": fps, "macro_block_size": 2}
    count = 0
    # frame by frame: a long episode would not fit into memory
    with replacing(path, suffix=path.suffix) as temporary, imageio.get_writer(temporary, **how) as video:
        for _, done in steps_of_episode(agent, env, seed, deterministic, options):
            if not done:
                video.append_data(np.asarray(env.get_images()[0]))  # type: ignore[attr-defined]
                count += 1
    return count


@contextmanager
def table(path: Path | None, columns: Sequence[str]) -> Iterator[Callable[..., object]]:
    """Write a CSV file row by row, each at once on disk, so that what is done is there if the rest is not.

    :param path: the file; None: none
    :param columns: their names
    :return: writes a row
    """
    if path is None:
        yield lambda *row: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", buffering=1) as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        yield lambda *row: writer.writerow(row)
