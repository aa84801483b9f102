"""``headway train``: train an agent into a run folder, watch it, stop it, go on with it."""

import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from gymnasium import Env, spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from tqdm import tqdm

from ..agents import ActorCriticAgent
from ..agents.core.files import versions
from ..agents.core.logging import CSVFile, run_logger
from ..envs import make
from ..wrappers import Snapshot
from .evaluate import evaluation_env, record_video, run_episodes
from .options import Run
from .plot import learning_curve
from .statistics import Summary, summarise

EVALUATION_SEED = 1_000_000
"""Distance between the seeds of training and evaluation episodes, so that they are never the same."""


def training_env(env_id: str, n_envs: int, vec: str) -> VecEnv:
    """Build monitored environments whose state can be saved, in whichever process they run.

    :param env_id: ``Id-v0`` or ``module:Id-v0``
    :param n_envs: how many
    :param vec: "dummy" or "subproc"
    :return: the vector environment
    """

    def build() -> Env[Any, Any]:
        env: Env[Any, Any] = Snapshot(Monitor(make(env_id)))
        return env

    builders: list[Callable[[], Env[Any, Any]]] = [build for _ in range(n_envs)]
    return SubprocVecEnv(builders) if vec == "subproc" else DummyVecEnv(builders)


def policy_for(space: spaces.Space[Any]) -> str:
    """:return: Stable-Baselines3's policy name for an observation space."""
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) else "MlpPolicy"


class TrainingCallback(BaseCallback):
    """Everything that happens beside learning: bar, log lines, evaluations, best policy, checkpoints.

    What is due depends on the step alone, so a resumed run does what an uninterrupted one does.

    :param run: the resolved command
    :param folder: the run's folder
    :param evaluator: runs evaluation episodes
    :param best: best mean return so far
    """

    def __init__(self, run: Run, folder: Path, evaluator: "Evaluator", best: float) -> None:
        super().__init__()
        self.run, self.folder, self.evaluator, self.best = run, folder, evaluator, best
        self.bar: tqdm[Any] | None = None

    def _on_training_start(self) -> None:
        if self.run.options.progress:
            agent = self.model
            self.bar = tqdm(
                total=agent._total_timesteps,
                initial=agent.num_timesteps,
                unit=" steps",
                dynamic_ncols=True,
                mininterval=0.2 if sys.stderr.isatty() else 10.0,
            )

    def _due(self, every: int) -> bool:
        before = self.num_timesteps - self.training_env.num_envs
        return every > 0 and self.num_timesteps // every > before // every

    def _on_step(self) -> bool:
        options = self.run.options
        if self.bar is not None:
            self.bar.update(self.training_env.num_envs)
        if self._due(options.log_every):
            self.model.dump_logs()
            returns = [info["r"] for info in self.model.ep_info_buffer or ()]
            if self.bar is not None and returns:
                self.bar.set_postfix_str(f"return {np.mean(returns):.1f}")
        if self._due(options.eval_every):
            self.evaluate(options.eval_episodes)
        if self._due(options.checkpoint_every):
            self.checkpoint()
        return True

    def evaluate(self, episodes: int) -> Summary:
        """Evaluate the policy, log it, and keep it if it is the best so far.

        :param episodes: how many
        :return: their summary
        """
        agent = self.model
        assert isinstance(agent, ActorCriticAgent)
        summary = self.evaluator.evaluate(agent, episodes)
        agent.logger.record("eval/mean_reward", summary.mean)
        agent.logger.record("eval/mean_ep_length", summary.length)
        agent.logger.record("time/total_timesteps", agent.num_timesteps, exclude="tensorboard")
        agent.logger.dump(agent.num_timesteps)
        if summary.mean > self.best:
            self.best = summary.mean
            agent.save(self.folder / "best.zip")
        return summary

    def checkpoint(self) -> Path:
        """:return: the checkpoint written."""
        agent = self.model
        assert isinstance(agent, ActorCriticAgent)
        return agent.save_checkpoint(
            self.folder / "checkpoints", extra={"best": self.best}, keep=self.run.options.keep_checkpoints
        )

    def _on_training_end(self) -> None:
        if self.bar is not None:
            self.bar.close()


class Evaluator:
    """Runs the same seeded episodes at every evaluation and writes ``evaluations.csv``.

    :param run: the resolved command
    :param folder: the run's folder
    :param keep_until: last step whose rows stay in the file
    """

    def __init__(self, run: Run, folder: Path, keep_until: int) -> None:
        options = run.options
        self.seed = options.seed + EVALUATION_SEED
        self.env = evaluation_env(options.env, min(options.eval_episodes, 8))
        self.file = CSVFile(folder / "evaluations.csv", key="step", keep_until=keep_until)

    def evaluate(self, agent: ActorCriticAgent[Any], episodes: int) -> Summary:
        """Evaluate a policy, deterministically.

        :param agent: whose policy
        :param episodes: how many
        :return: their summary, also written to the file
        """
        returns, lengths = run_episodes(agent, self.env, episodes, self.seed)
        summary = summarise(returns, lengths)
        row = {name: getattr(summary, name) for name in ("mean", "std", "iqm", "low", "high", "length", "episodes")}
        if not any(int(old["step"]) == agent.num_timesteps for old in self.file.rows):
            self.file.append({"step": agent.num_timesteps, **row})
        return summary


@contextmanager
def stopping_on_signals(agent: ActorCriticAgent[Any]) -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM ask the agent to stop where it can be continued; a second Ctrl-C ends at once.

    :param agent: the agent that is learning
    :return: the signals received so far
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        agent.request_stop()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def new_folder(run: Run) -> Path:
    """Make the folder of a new run.

    :param run: the resolved command
    :return: the folder
    :raises FileExistsError: it exists
    """
    options, name = run.options, run.agent_class.__name__.lower()
    env_name = options.env.rpartition(":")[2].replace("/", "-")
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}-s{options.seed}"
    folder = options.run_dir or Path("runs") / env_name / name / stamp
    try:
        folder.mkdir(parents=True)
    except FileExistsError as cause:
        raise FileExistsError(
            f"run folder {folder} exists: go on with it by --resume {folder}, or choose another --run-dir"
        ) from cause
    content = run.to_dict() | {"command": sys.argv, "started": datetime.now().isoformat(), "versions": versions()}
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    return folder


def _make_agent(run: Run, folder: Path) -> tuple[ActorCriticAgent[Any], bool]:
    """Build the agent, from the newest checkpoint where the run is resumed and has one."""
    options = run.options
    env = training_env(options.env, options.n_envs, options.vec)
    if options.resume is not None and any((folder / "checkpoints").glob("checkpoint-*.zip")):
        return run.agent_class.resume(folder / "checkpoints", env, device=options.device), True
    policy = policy_for(env.observation_space)
    agent = run.agent_class(policy, env, config=run.config, seed=options.seed, device=options.device)
    return agent, False


def train(run: Run) -> int:
    """Run ``headway train``.

    :param run: the resolved command
    :return: exit code: 0 when the run is complete, 128 + signal when it was interrupted
    """
    options = run.options
    if options.threads:
        torch.set_num_threads(options.threads)
    make(options.env).close()  # an unknown id shall not leave a run folder behind
    folder = options.resume or new_folder(run)
    logging.basicConfig(format="headway: %(message)s", level=logging.WARNING)
    agent, resumed = _make_agent(run, folder)
    done = agent.num_timesteps
    if resumed and options.total_timesteps <= done and not agent.remaining_timesteps:
        print(f"{folder} is complete: {done:,} steps. Pass a larger --total-timesteps to train on.")
        return 0
    agent.set_logger(run_logger(folder, keep_until=done))
    evaluator = Evaluator(run, folder, done if resumed else -1)
    callback = TrainingCallback(run, folder, evaluator, agent.resumed_extra["best"] if resumed else -np.inf)
    _introduce(run, folder, agent, resumed)
    if not resumed:
        print(f"before training: {evaluator.evaluate(agent, 2 * options.eval_episodes)}")
    return _learn(agent, run, folder, callback, resumed)


def _introduce(run: Run, folder: Path, agent: ActorCriticAgent[Any], resumed: bool) -> None:
    options = run.options
    threads = f", {torch.get_num_threads()} threads" if agent.device.type == "cpu" else ""
    print(
        f"{run.agent_class.__name__} in {options.env} · {options.total_timesteps:,} steps · seed {options.seed} · "
        f"{options.n_envs} environment{'s' if options.n_envs > 1 else ''} · {agent.device}{threads}"
    )
    changes = ", ".join(f"{name}={value}" for name, value in run.config.changes().items())
    print(f"hyper-parameters: {changes or 'the defaults'}")
    print(f"run folder: {folder}   (tensorboard --logdir {folder})")
    if resumed:
        print(f"resumed at step {agent.num_timesteps:,}")


def _learn(agent: ActorCriticAgent[Any], run: Run, folder: Path, callback: TrainingCallback, resumed: bool) -> int:
    total, started = run.options.total_timesteps, time.time()
    with stopping_on_signals(agent) as signals:
        try:
            agent.learn(
                total - agent.num_timesteps if resumed else total, callback, None, reset_num_timesteps=not resumed
            )
        except BaseException:
            # Whatever it was, the steps up to here are worth keeping.
            if callback.bar is not None:
                callback.bar.close()
            if agent.num_timesteps:
                print(f"saved {callback.checkpoint()}; go on with: {_resume_command(run, folder)}", file=sys.stderr)
            raise
        if agent.stop_requested:
            print(f"interrupted at step {agent.num_timesteps:,}: saved {callback.checkpoint()}")
            print(f"go on with: {_resume_command(run, folder)}")
            return 128 + signals[0]
        return _finish(agent, run, folder, callback, time.time() - started)


def _resume_command(run: Run, folder: Path) -> str:
    return f"headway train {run.agent_class.__name__.lower()} --resume {folder}"


def _finish(agent: ActorCriticAgent[Any], run: Run, folder: Path, callback: TrainingCallback, seconds: float) -> int:
    options = run.options
    agent.dump_logs()
    agent.save(folder / "final.zip")
    callback.checkpoint()
    after = callback.evaluate(2 * options.eval_episodes)
    curve = learning_curve(folder, f"{run.agent_class.__name__} in {options.env}, seed {options.seed}")
    if options.video:
        filmed = evaluation_env(options.env, 1, render=True)
        record_video(agent, filmed, folder / "final.mp4", callback.evaluator.seed)
        filmed.close()
    agent.logger.close()
    print(f"after training:  {after}")
    print(f"{agent.num_timesteps:,} steps in {seconds:.0f} s, {agent._n_updates:,} gradient steps")
    names = ["final.zip", "best.zip", curve.name, "evaluations.csv", "progress.csv"] + ["final.mp4"] * options.video
    print(f"in {folder}: {', '.join(names)}")
    print(f"evaluate it: headway evaluate {folder / 'final.zip'}")
    return 0
