"""``headway evaluate``: how good a saved policy is."""

import csv
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import imageio
import numpy as np
import torch
import tyro
from gymnasium import Env
from mujoco import MjModel, mj_name2id, mjtObj
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch import Tensor

from .. import agents
from ..agents import ActorCriticAgent
from ..agents.core.config import Range
from ..agents.core.data.episodes import Turn, run_episodes
from ..agents.core.files import list_checkpoints, read_archive, unpack
from ..agents.core.files.errors import reading
from ..agents.core.files.replacing import replacing
from ..agents.core.normalization import checked_state, load_normalizer_state
from ..envs import is_batched, make
from ..envs.batched import Obs
from ..wrappers import BatchedVecEnv, as_batched
from ..wrappers.sb3 import to_numpy
from ..wrappers.specs import spec_of
from .options import Flags, check_device, refuse_unasked
from .peers import Peer, is_sb3_file, load_peer, name_of, trainable
from .references import find_reference, reference_of_run, selected_among
from .runs import check_outputs, read_run
from .statistics import Summary, summarise
from .worlds import World

log = logging.getLogger("headway")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Flags):
    """Evaluate a saved policy: mean, standard deviation, IQM with its 95 % bootstrap interval, episode length."""

    path: tyro.conf.Positional[Path]
    """A saved policy, or a run folder (its best policy, or else its final one)."""

    agent: str | None = None
    """Class of the policy, for one that is not Headway's own: module:Class, which is imported; or sb3:PPO,
    sb3_contrib:TQC, … for a file of Stable-Baselines3's, whose loading runs whatever code it holds. Name a class only
    for a file that you trust."""

    episodes: Annotated[int, Range(1)] = 20
    """Episodes to run."""

    env: str | None = None
    """Environment, Id-v0 or module:Id-v0; by default the one the policy was trained in, if it is known here."""

    trust_env: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Make the environment that the policy's file names, even if that imports a module, or has wrappers that write
    files."""

    delay: str | None = None
    """Delays of observations and of actions to evaluate behind, as for headway train; by default those of training."""

    delays: tuple[str, ...] = ()
    """Several of them, to be compared; none longer than those the policy was trained for."""

    plot: Path | None = None
    """Draw the comparison of --delays to this file."""

    max_episode_steps: Annotated[int, Range(1, unit="environment steps")] | None = None
    """Where episodes are cut, of an environment that does not end by itself; by default where they were in training."""

    seed: Annotated[int, Range(0)] = 10_000
    """Seed of the episodes; episode i starts from seed + i, however many are stepped together."""

    stochastic: bool = False
    """Sample actions instead of taking the policy's mode."""

    n_envs: Annotated[int, Range(1)] = 8
    """Environments stepped together."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:0, …"""

    video: Path | None = None
    """Record the first episode to this file (.mp4 or .gif)."""

    csv: Path | None = None
    """Write one line per episode to this file."""

    reference: str | None = None
    """Whose returns count as 0 and as 100 in the normalised score: v5 or d4rl (tables of MuJoCo's robots), or a data
    set with references of its own; by default those of the data that the policy learnt from."""

    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace files that exist."""

    def check(self) -> None:
        """Refuse what cannot be done before anything is.

        :raises ValueError: a device that is not there, a video format that is not known
        :raises FileExistsError: a file would be overwritten
        :raises OSError: a file cannot be written
        """
        check_device(self.device)
        check_outputs(self.video, self.csv, plot=self.plot, overwrite=self.overwrite)
        if self.delays and self.video is not None:
            raise ValueError("--video shows one law of delays: choose it with --delay instead of --delays")
        if self.delays and self.reference is not None:
            raise ValueError("--reference goes with one law of delays: choose it with --delay instead of --delays")
        if self.plot is not None and not self.delays:
            raise ValueError("--plot draws the comparison of --delays, and there are none")
        if self.video is not None and self.video.suffix not in (".mp4", ".gif"):
            raise ValueError(f"--video must end in .mp4 or .gif, got {self.video.name}")


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


def evaluate_agent(
    agent: BaseAlgorithm,
    env: VecEnv,
    episodes: int,
    seed: int,
    deterministic: bool = True,
    done: Callable[[int, float, int], object] = lambda *told: None,
) -> tuple[list[float], list[int]]:
    """Run episodes from seeded starts.

    :param agent: ours, or any algorithm of Stable-Baselines3; one with a memory keeps it through an episode
    :param env: environments, monitored if wrappers in them change rewards or ends; what their normaliser makes of
        observations is acted on, returns are as they were before it
    :param episodes: how many; episode ``i`` is that of an environment seeded ``seed + i``
    :param seed: of the first episode
    :param deterministic: the mode of the policy instead of samples
    :param done: told the number, return and length of each episode, in their order, as soon as those before it are over
    :return: returns and lengths, in the order of the seeds
    """
    batch, memory, taken = as_batched(env), None, 0
    spec = spec_of(env)
    due = math.inf if spec is not None and spec.max_episode_steps else time.monotonic() + PATIENCE

    def act(obs: Obs, turn: Turn) -> Tensor:
        nonlocal memory, taken, due
        taken = taken * (not turn.starts.any()) + 1
        if time.monotonic() > due and taken > LONG:
            due = math.inf
            log.warning(
                "waiting for an episode of the evaluation to end, now at step %s: one that never does is cut by "
                "--max-episode-steps, or by max_episode_steps where its environment is registered",
                f"{taken:,}",
            )
        starts = turn.starts.cpu().numpy()
        actions, memory = agent.predict(to_numpy(obs), memory, starts, deterministic)
        return torch.as_tensor(actions, device=batch.device)

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


def record_video(agent: BaseAlgorithm, env: VecEnv, path: Path, seed: int, deterministic: bool = True) -> int:
    """Record one episode.

    :param agent: the agent
    :param env: one environment that renders to arrays
    :param path: .mp4 or .gif
    :param seed: of the episode
    :param deterministic: the mode of the policy instead of samples
    :return: number of frames
    """
    env.seed(seed)
    fps = env.get_attr("metadata")[0].get("render_fps", 30)
    # H.264 wants even sides; a GIF wants milliseconds per frame, and to be told to repeat.
    how = {"duration": 1000 / fps, "loop": 0} if path.suffix == ".gif" else {"fps": fps, "macro_block_size": 2}
    count, done, obs = 0, False, env.reset()
    # frame by frame: a long episode would not fit into memory
    with replacing(path, suffix=path.suffix) as temporary, imageio.get_writer(temporary, **how) as video:
        while not done:
            video.append_data(np.asarray(env.get_images()[0]))  # type: ignore[attr-defined]
            count += 1
            actions, _ = agent.predict(obs, deterministic=deterministic)  # type: ignore[arg-type]
            obs, _, dones, _ = env.step(actions)
            done = bool(dones[0])
    return count


def policy_file(path: Path) -> Path:
    """The policy meant by a file or a run folder.

    :param path: file, with or without ".zip", or run folder
    :return: the file
    :raises FileNotFoundError: there is none
    """
    if path.is_dir():
        candidates = [path / "best.zip", path / "final.zip", *list_checkpoints(path / "checkpoints")]
        for candidate in candidates:
            if candidate.exists():
                return candidate
        raise FileNotFoundError(f"{path} holds no best.zip, final.zip or checkpoint yet")
    if not path.exists() and not (path := path.with_name(f"{path.name}.zip")).exists():
        raise FileNotFoundError(f"there is no policy at {path.with_suffix('')} or {path}")
    return path


def normalised(env: VecEnv, path: Path) -> VecEnv:
    """Put the observation statistics that a policy was trained with around an environment, if it was with any.

    :param env: the environment
    :param path: the policy's file
    :return: the environment, wrapped and frozen where needed
    """
    archive = read_archive(path)
    state = archive.manifest.get("normalizer")
    if state is None:
        return env
    with reading(path):
        state = unpack(state, archive.members["normalizer"])
        settings = checked_state(state)
        keys = settings["norm_obs_keys"]
        wrapped = VecNormalize(env, training=False, norm_obs=settings["norm_obs"], norm_obs_keys=keys and list(keys))
        load_normalizer_state(wrapped, state)
    wrapped.norm_reward = False
    return wrapped


@dataclass(frozen=True)
class Policy:
    """What is evaluated.

    :param path: its file
    :param name: of its class
    :param agent: it
    :param world: where it was trained, if that is known
    """

    path: Path
    name: str
    agent: BaseAlgorithm
    world: World | None

    def in_(self, env: VecEnv) -> VecEnv:
        """:return: an environment with the statistics that the policy was trained with around it.

        :raises ValueError: its spaces are not the policy's
        """
        if not isinstance(self.agent, ActorCriticAgent):
            check_for_correct_spaces(env, self.agent.observation_space, self.agent.action_space)
            return env
        env = normalised(env, self.path)
        self.agent.attach_env(env)
        return env


def read_policy(path: Path, name: str | None, device: str) -> Policy:
    """Load a policy.

    :param path: its file
    :param name: of its class, as for ``headway train``, for somebody who trusts it; None: the file says, and nothing is
        imported
    :param device: where to load it
    :return: it
    :raises ValueError: it is broken, or of another class
    """
    cls = None if name is None else trainable(name)
    if cls is not None and issubclass(cls, Peer):
        return Policy(path, name_of(cls), load_peer(cls, path, device), _world_of_run(path.parent))
    if cls is None and is_sb3_file(path):
        raise ValueError(
            f"{path} is a file of Stable-Baselines3's: name its class, as --agent sb3:PPO, if you trust it; "
            "loading it runs whatever code it holds"
        )
    agent = agents.load(path, device=device) if cls is None else cls.load(path, device=device)
    return Policy(path, name_of(type(agent)), agent, None if agent.env_spec is None else World.of_spec(agent.env_spec))


def _world_of_run(folder: Path) -> World | None:
    """:return: the environment of a run folder; None where it is none."""
    options = read_run(folder)["options"] if (folder / "config.json").exists() else {}
    if "env" not in options:
        return None
    limit = options.get("max_episode_steps")
    return World(options["env"], options.get("delay"), options.get("delay_form", "dict"), max_episode_steps=limit)


def world_of(policy: Policy, env: str | None, trust_env: bool) -> World:
    """Choose what a policy acts in.

    :param policy: it
    :param env: what is asked for; None: what the policy was trained in
    :param trust_env: make what the policy's file names, whatever that imports
    :return: what is asked for; as the policy's file describes it, if that is of the same id
    :raises ValueError: neither says anything, or the file is not to be trusted so far
    """
    own, asked = policy.world, None if env is None else World.of(env)
    if own is None and asked is None:
        raise ValueError(f"{policy.path} does not say which environment it was trained in: pass --env")
    if asked is not None and (own is None or asked.env_id != own.env_id or asked.delay is not None):
        return asked
    assert own is not None
    if asked is not None:
        is_batched(asked.env_id)  # imports its module, as was asked for
    if not trust_env:
        refuse_unasked(own, policy.path)
    return own


def evaluate(options: EvaluateOptions) -> Summary:
    """Run ``headway evaluate``.

    :param options: its arguments
    :return: what was printed
    """
    options.check()
    policy = read_policy(policy_file(options.path), options.agent, options.device)
    agent, path = policy.agent, policy.path
    world = world_of(policy, options.env, options.trust_env)
    if options.delay is not None:
        world = replace(world, delay=options.delay) if world.delay is None else world.under(options.delay)
    if options.max_episode_steps is not None:
        world = replace(world, max_episode_steps=options.max_episode_steps)
    if options.video is not None:
        check_drawing(world.env_id)
    deterministic = not options.stochastic
    said = f"{path}: {policy.name} after {agent.num_timesteps:,} steps, in {world}"
    if options.delays:
        return _evaluate_delays(options, policy, world, said)
    reference = reference_of_run(path.parent)
    if options.reference is not None:
        reference = find_reference(options.reference, world.env_id)
    env = policy.in_(evaluation_env(world, min(options.n_envs, options.episodes)))
    print(said)
    if (count := selected_among(path)) > 1:
        print(f"chosen as the best of {count} evaluations here, which flatters it; final.zip is not chosen")
    with table(options.csv, ["episode", "return", "length"]) as write:
        returns, lengths = evaluate_agent(agent, env, options.episodes, options.seed, deterministic, write)
    env.close()
    summary = summarise(returns, lengths)
    print(summary)
    if reference is not None:
        print(reference.line(summary.mean, summary.iqm))
    if options.csv is not None:
        print(f"episodes written to {options.csv}")
    if options.video is not None:
        filmed = policy.in_(evaluation_env(world, 1, render=True))
        frames = record_video(agent, filmed, options.video, options.seed, deterministic)
        filmed.close()
        print(f"{frames} frames written to {options.video}")
    return summary


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


def _evaluate_delays(options: EvaluateOptions, policy: Policy, world: World, said: str) -> Summary:
    """Evaluate one policy under several laws of delays; :return: the summary under the last."""
    worlds = [world.under(delay) for delay in options.delays]  # all of them first: a mistake in the last is told now
    print(said)
    width = max(map(len, options.delays))
    summaries = []
    with table(options.csv, ["delays", *(field.name for field in fields(Summary))]) as write:
        for delay, changed in zip(options.delays, worlds, strict=True):
            env = policy.in_(evaluation_env(changed, min(options.n_envs, options.episodes)))
            returns, lengths = evaluate_agent(policy.agent, env, options.episodes, options.seed, not options.stochastic)
            env.close()
            summaries.append(summarise(returns, lengths))
            write(delay, *astuple(summaries[-1]))
            print(f"{delay:<{width}}  {summaries[-1]}", flush=True)
    if options.csv is not None:
        print(f"returns written to {options.csv}")
    if options.plot is not None:
        from .plot import returns_by_delay  # takes a second to import

        title = f"{policy.name} trained behind {world.delay}, in {world.env_id}"
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        returns_by_delay(options.plot, title, options.delays, summaries)
        print(f"plot: {options.plot}")
    return summaries[-1]
