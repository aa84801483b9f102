"""``headway train``: train an agent into a run folder, watch it, stop it, go on with it."""

import contextlib
import itertools
import logging
import multiprocessing
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from multiprocessing.process import BaseProcess
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

from ..agents import ActorCriticAgent, Dataset, DivergedError
from ..agents.core.data.dataset_files import load_dataset
from ..agents.core.files import list_checkpoints
from ..agents.core.files.contents import versions
from ..agents.core.files.replacing import replacing
from ..agents.core.logging import CSVFile, run_logger
from ..agents.core.seeds import spawn_seed
from ..agents.tpo import Search
from ..wrappers import BatchedVecEnv, Snapshot, WholeEpisodes, verify_snapshot
from ..wrappers.spaces_only import SpacesOnlyVecEnv
from ..wrappers.specs import OURS
from .episodes import check_drawing, evaluate_agent, evaluation_env, record_video
from .machine import busy, commit, cores
from .options import EXECUTION, Run, TrainOptions, check_device, simulated_on
from .peers import Peer, dump_logs
from .policies import policy_file
from .runs import alone, progress_bar, read_run, write_json
from .statistics import Summary, summarise


def training_env(options: TrainOptions) -> VecEnv:
    """Build monitored environments whose state can be saved, in whichever process they run.

    :param options: of the run
    :return: the vector environment
    :raises ValueError: the environment cannot be made, or not on the device asked for
    """
    world, vec = options.world, options.vec
    device = simulated_on(options)
    if device is not None:
        return BatchedVecEnv(world.batch(options.rows, device, options.threads))
    world.single().close()  # here rather than in a worker, so that an unknown id is answered in one line

    def build() -> Env[Any, Any]:
        if vec == "subproc":
            # A terminal's Ctrl-C reaches the workers too; they have to live on until their state is saved.
            for number in HANDLED:
                signal.signal(number, signal.SIG_IGN)
        env: Env[Any, Any] = Snapshot(Monitor(world.single()))
        return env

    builders: list[Callable[[], Env[Any, Any]]] = [build for _ in range(options.rows)]
    if vec != "subproc":
        return DummyVecEnv(builders)
    others = set(multiprocessing.active_children())
    try:
        return SubprocVecEnv(builders)
    except BaseException as error:
        _kill(set(multiprocessing.active_children()) - others)
        if isinstance(error, (EOFError, ConnectionError)):
            raise ValueError(WORKER_ENDED) from error
        raise


Trainee = ActorCriticAgent[Any] | Peer
"""What is trained: an agent of Headway's kind, or a rival."""

WORKER_ENDED = "an environment's process ended; its own error output says why"


def _kill(workers: Iterable[BaseProcess]) -> None:
    """End processes that would not listen to a polite signal."""
    for worker in workers:
        worker.kill()
        worker.join()


def close_env(env: VecEnv) -> None:
    """Close environments, also in the middle of a step and if some of their processes are gone.

    :param env: from :func:`training_env`
    """
    try:
        if isinstance(env, SubprocVecEnv) and env.waiting:  # close() would wait with it, perhaps for one that is gone
            raise EOFError
        env.close()
    except (OSError, EOFError):
        _kill(getattr(env, "processes", ()))


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
    :param signals: that ask to stop
    """

    def __init__(self, run: Run, folder: Path, evaluator: "Evaluator", signals: "Signals") -> None:
        super().__init__()
        self.run, self.folder, self.evaluator, self.signals = run, folder, evaluator, signals
        self.bar: tqdm[Any] | None = None
        self.verified = False
        self._before = 0
        """Steps until the last one; rows that rest do not count."""
        self.busy = False  # with something other than learning, so that an error is not the environment's

    def _on_training_start(self) -> None:
        self._before = self._agent.num_timesteps
        if self.signals.received:  # before the agent could be asked
            self._agent.request_stop()
        if self.run.options.progress:
            total = self._agent._total_timesteps
            self.bar = progress_bar(total, min(self._agent.num_timesteps, total))
            self._show_return()

    def _show_return(self) -> None:
        episodes = self._agent.ep_info_buffer
        if self.bar is not None and episodes:
            mean = np.mean([info["r"] for info in episodes])
            self.bar.set_description_str(f"return {mean:,.1f} · ", refresh=False)

    @property
    def _agent(self) -> Trainee:
        assert isinstance(self.model, (ActorCriticAgent, Peer))
        return self.model

    def _due(self, every: int) -> bool:
        # What the last step is due is left to the end of the run, when its gradient steps are done too.
        return every > 0 and self.num_timesteps // every > self._before // every and self._agent.remaining_timesteps > 0

    def _on_step(self) -> bool:
        options = self.run.options
        self.busy = True
        if self.locals["dones"].any():
            self._show_return()
        if self.bar is not None:  # a last round may overstep the total, which tqdm would then forget
            self.bar.update(min(self.num_timesteps, self._agent._total_timesteps) - self.bar.n)
        if self._due(options.log_every):
            dump_logs(self._agent)
        if self._due(options.eval_every):
            self.evaluate(options.eval_episodes)
        if self._due(options.checkpoint_every):
            self.checkpoint()
        self._before = self.num_timesteps
        self.busy = False
        return not self._agent.stop_requested

    def _on_rollout_end(self) -> None:
        agent = self._agent
        if self.run.options.progress and not isinstance(agent, Peer) and (line := agent.describe_round()):
            tqdm.write(line)

    def evaluate(self, episodes: int) -> Summary:
        """Evaluate the policy, log it, and keep it if it is the best so far.

        :param episodes: how many
        :return: their summary
        """
        agent, best = self._agent, self.evaluator.best
        summary = self.evaluator.evaluate(agent, episodes)
        agent.logger.record("eval/mean_reward", summary.mean)
        agent.logger.record("eval/mean_ep_length", summary.length)
        agent.logger.record("time/total_timesteps", agent.num_timesteps, exclude="tensorboard")
        agent.logger.dump(agent.num_timesteps)
        if summary.mean > best:
            agent.save(self.folder / "best.zip")
        return summary

    def checkpoint(self) -> Path | None:
        """:return: the checkpoint written; None: a rival's run cannot go on from one."""
        agent = self._agent
        if isinstance(agent, Peer):
            return None
        # What a resumed run does not do again has to outlive a power cut as the checkpoint does.
        for table in (self.evaluator.file, *agent.logger.output_formats):
            if isinstance(table, CSVFile):
                table.sync()
        options = self.run.options
        path = agent.save_checkpoint(self.folder / "checkpoints", keep=options.keep_checkpoints)
        if options.verify_resume and not self.verified:
            self.verified = True
            tqdm.write(f"--verify-resume: {self._verify(agent)}")
        return path

    def _verify(self, agent: ActorCriticAgent[Any]) -> str:
        """Find out, with environments of its own, whether a resumed run goes on exactly."""
        state = None
        with contextlib.suppress(Exception):  # what cannot be saved here cannot be in a new environment either
            batch = agent.batched_env
            state = (batch.env if isinstance(batch, WholeEpisodes) else batch).state()
        try:
            return str(verify_snapshot(lambda: training_env(self.run.options), state=state))
        except Exception as cause:  # of the environment's own code: it must not end the run
            return f"the environment cannot be stepped beside a copy of it ({type(cause).__name__}: {cause})"

    def lost(self) -> str:
        """:return: what is, if the run ends now."""
        agent = self._agent
        if isinstance(agent, Peer):
            return STARTS_AGAIN
        since = "all of it" if agent.last_checkpoint is None else f"what came after {agent.last_checkpoint}"
        return f"{since} is lost, up to step {agent.num_timesteps:,}"

    def close_bar(self) -> None:
        """Leave the progress bar as it stands, and the cursor below it."""
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
        self.seed, self._unchecked = spawn_seed(options.seed, "evaluation"), True
        self.search = None if options.eval_search is None else Search.of(options.eval_search)
        self.env = evaluation_env(options.world, min(options.eval_episodes, 8), threads=options.threads)
        self.file = CSVFile(folder / "evaluations.csv", key="step", keep_until=keep_until)

    @property
    def best(self) -> float:
        """Best mean return of a policy that has learnt."""
        means = [float(row["mean"]) for row in self.file.rows if int(row["step"]) > 0]
        return float(np.fmax.reduce([-np.inf, *means]))  # of numbers: NaN is not the best

    def evaluate(self, agent: Trainee, episodes: int) -> Summary:
        """Evaluate a policy, deterministically.

        :param agent: whose policy
        :param episodes: how many
        :return: their summary, also written to the file
        """
        actor: Any = agent
        if self.search is not None:  # anew: statistics and units may have changed
            actor = self.search.around(agent, self.env, seed=self.seed, check=self._unchecked)
            self._unchecked = False
        returns, lengths = evaluate_agent(actor, self.env, episodes, self.seed)
        summary = summarise(returns, lengths)
        row = {name: getattr(summary, name) for name in ("mean", "std", "iqm", "low", "high", "length", "episodes")}
        self.file.append({"step": agent.num_timesteps, **row})
        return summary


HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a run to stop: Ctrl-C, a supervisor, a terminal that is closed."""

TOGETHER = 1.0
"""Seconds within which signals of a supervisor or a terminal are one request: both like to send several. Our choice."""

PATIENCE = 10.0
"""Seconds that a run may take to end after a second request, before it is ended from outside. Our choice."""


class Signals:
    """Lets Ctrl-C, SIGTERM and SIGHUP stop a run where it can be continued exactly.

    While an agent learns it is asked to stop after its step; a second request ends at once, and says what is lost.
    Where not even that is heard, since a step of the environment hangs in a library, a thread ends the process. Outside
    of learning every signal ends at once, as a KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._first = 0.0
        self._agent: Trainee | None = None
        self._lost: Callable[[], str] = str
        self._over = threading.Event()
        self._terminals = [number for number in (1, 2) if os.isatty(number)]

    def _insists(self, number: int, received: int, first: float) -> bool:
        """Whether a signal is a second request; a person's Ctrl-C always is."""
        return received > 0 and (number == signal.SIGINT or time.monotonic() - first > TOGETHER)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if number == signal.SIGHUP:  # what is written to a terminal that has gone would fail, before anything is saved
            for terminal in self._terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), terminal)
        insists = self._insists(number, len(self.received), self._first)
        self._first = self._first or time.monotonic()
        self.received.append(number)
        if self._agent is None or insists:
            raise KeyboardInterrupt
        self._agent.request_stop()

    def _watch(self, source: int) -> None:
        """End the process if a second request is not obeyed; this thread hears what Python cannot handle yet."""
        received, first = 0, 0.0
        while numbers := os.read(source, 64):
            for number in numbers:
                insists = self._insists(number, received, first)
                received, first = received + 1, first or time.monotonic()
                if insists and not self._over.wait(PATIENCE):
                    os.write(2, f"headway: ended in the midst of a step that hangs: {self._lost()}\n".encode())
                    for worker in multiprocessing.active_children():
                        worker.kill()
                    os._exit(128 + number)
        os.close(source)

    @property
    def exit_code(self) -> int:
        """That of a process which the first signal ended."""
        return 128 + (self.received or [signal.SIGINT])[0]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle them, until the context is left; SIGHUP not if it is ignored, as by nohup."""
        handled = [n for n in HANDLED if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        source, sink = os.pipe()
        os.set_blocking(sink, False)
        before = signal.set_wakeup_fd(sink, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(source,), daemon=True).start()
        previous = {number: signal.signal(number, self) for number in handled}
        try:
            yield
        finally:
            self._over.set()
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            os.close(sink)

    @contextmanager
    def asking(self, agent: Trainee, lost: Callable[[], str]) -> Iterator[None]:
        """Hand them to an agent that learns, until the context is left.

        :param agent: the agent
        :param lost: says what is, if it is ended at once
        """
        self._agent, self._lost = agent, lost
        try:
            yield
        finally:
            self._agent = None


def run_folder(run: Run) -> Path:
    """Where a run is, or shall be, kept.

    :param run: the resolved command
    :return: the folder
    :raises FileExistsError: the run is a new one, and the folder that was asked for exists
    """
    options, name = run.options, run.agent_class.__name__.lower()
    if issubclass(run.agent_class, Peer):
        name = re.sub(r"\W+", "-", run.name).lower()  # not beside Headway's own of the same name
    if options.resume is not None:
        return options.resume
    if options.run_dir is not None and options.run_dir.exists():
        raise _exists(options.run_dir)
    env_name = options.env.rpartition(":")[2].replace("/", "-")
    if options.delay is not None:
        env_name += "-" + re.sub(r"[^\w.]+", "-", f"{options.delay_form} {options.delay}")
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}-s{options.seed}"
    return options.run_dir or Path("runs") / env_name / name / stamp


def _exists(folder: Path) -> FileExistsError:
    return FileExistsError(
        f"run folder {folder} exists: go on with it by --resume {folder}, or choose another --run-dir"
    )


def make_folder(run: Run, folder: Path, data: Dataset | None = None) -> Path:
    """Make the folder of a new run, with its ``config.json`` in it from the first moment on.

    :param run: the resolved command
    :param folder: where; of runs that started in the same second all but one have a number behind it
    :param data: what it learns from
    :return: the folder
    :raises FileExistsError: it was asked for, and exists
    """
    seeds = {purpose: spawn_seed(run.options.seed, purpose) for purpose in ("environments", "evaluation")}
    about = {"command": sys.argv, "started": datetime.now().isoformat(), "versions": versions(), "commit": commit()}
    content = run.to_dict() | about | {"seeds": seeds, "torch_threads": torch.get_num_threads()}
    if data is not None:
        content["data"] = {"steps": len(data), "episodes": data.episodes, "sha256": data.digest()}
        if data.ref_min_score is not None and data.ref_max_score is not None:
            content["data"]["references"] = [data.ref_min_score, data.ref_max_score]
    wanted = folder
    for number in itertools.count(2):
        try:
            with replacing(folder) as temporary:
                temporary.mkdir()
                write_json(temporary / "config.json", content)
                if folder.exists():  # a rename would put up with an empty one
                    raise FileExistsError
            return folder
        except OSError as cause:
            if not folder.exists():
                remedy = "choose another --run-dir"
                raise OSError(f"cannot make the run folder {folder}: {cause.strerror}; {remedy}") from cause
            if run.options.run_dir is not None:
                raise _exists(folder) from cause
        folder = wanted.with_name(f"{wanted.name}-{number}")
    raise AssertionError


def train(run: Run) -> int:
    """Run ``headway train``.

    :param run: the resolved command
    :return: exit code: 0 when the run is complete, 128 + signal when it was interrupted
    """
    options, signals = run.options, Signals()
    check_device(options.device)
    logging.basicConfig(format="headway: %(message)s", level=logging.WARNING)
    logger = logging.getLogger("headway")
    with signals.installed(), contextlib.ExitStack() as stack:
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.INFO)
        try:
            folder = run_folder(run)
            if options.resume is not None:
                stack.enter_context(alone(folder, "training"))
            data = None if options.dataset is None else data_for(run, folder)
            env = training_env(options) if data is None else SpacesOnlyVecEnv(data.observation_space, data.action_space)
            stack.callback(close_env, env)
            set_threads(run, folder, env.observation_space)
            if options.video:
                check_drawing(options.env)
            if isinstance(env, BatchedVecEnv):  # what auto has chosen, so that a resumed run stays there
                run = replace(run, options=replace(options, env_device=str(env.batched.device)))
            agent, resumed = _make_agent(run, folder, env, data)
            if not resumed:  # an agent's own seed would make row i of run s row 0 of run s + i
                env.seed(spawn_seed(options.seed, "environments"))
            if options.resume is None:
                folder = make_folder(run, folder, data)
                stack.enter_context(alone(folder, "training"))
            return _train(agent, run, folder, signals, resumed)
        except KeyboardInterrupt:
            print("headway: interrupted", file=sys.stderr)
            return signals.exit_code


SMALL = 128
"""Width up to which a second thread costs more than it computes. Our choice."""


def set_threads(run: Run, folder: Path, space: spaces.Space[Any]) -> None:
    """Set torch's threads: those asked for, or of the run that is resumed, since sums round by them.

    Without either, one where networks are small or others use the processors: two threads that have to wait for
    each other's turn were forty times slower than one. Else as many as torch has chosen, one per core.

    :param run: the resolved command
    :param folder: of the run
    :param space: of observations
    """
    threads = run.options.threads
    if not threads and run.options.resume is not None:
        threads = int(read_run(folder).get("torch_threads", torch.get_num_threads()))
    if not threads:
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else (space,)
        small = max(getattr(run.config, "net_arch", (256,)), default=0) <= SMALL and not any(map(is_image_space, parts))
        threads = 1 if small or busy() > cores() / 2 else torch.get_num_threads()
    torch.set_num_threads(threads)


def data_for(run: Run, folder: Path) -> Dataset:
    """Load what a run learns from.

    :param run: the resolved command, with a data set
    :param folder: of the run
    :return: the data
    :raises ValueError: they are broken, not those that the run has begun with, or not of the environment that evaluates
    """
    options = run.options
    assert options.dataset is not None
    data = load_dataset(options.dataset)
    saved = read_run(folder).get("data", {}) if options.resume is not None else {}
    if saved and saved.get("sha256") != data.digest():
        raise ValueError(f"{options.dataset} is not what {folder} has begun with: start a new run, or restore the data")
    env = options.world.single()
    spaces_of = {"observation": env.observation_space, "action": env.action_space}
    env.close()
    for name, space in spaces_of.items():
        recorded = getattr(data, f"{name}_space")
        if type(recorded) is not type(space) or recorded.shape != space.shape:
            raise ValueError(
                f"{options.dataset} has {name}s of {recorded}, {options.env} has {space}: pass the --env in which "
                "it was recorded"
            )
    return data


def _make_agent(run: Run, folder: Path, env: VecEnv, data: Dataset | None = None) -> tuple[Trainee, bool]:
    """Build the agent, from the newest checkpoint where the run is resumed and has one; a rival's starts again."""
    options = run.options
    if issubclass(run.agent_class, Peer):
        policy = policy_for(env.observation_space)
        return run.agent_class.build(policy, env, run.config, seed=options.seed, device=options.device), False
    resumed = options.resume is not None and bool(list_checkpoints(folder / "checkpoints"))
    given: dict[str, Any] = {} if data is None else {"dataset": data}
    given |= {name: getattr(options, name) for name in run.agent_class.execution}
    if resumed:
        agent = run.agent_class.resume(folder / "checkpoints", env, device=options.device, **given)
    else:
        policy = policy_for(env.observation_space)
        if options.start_from is not None:
            given["start_from"] = policy_file(options.start_from)
        agent = run.agent_class(policy, env, config=run.config, seed=options.seed, device=options.device, **given)
    return agent, resumed


def _train(agent: Trainee, run: Run, folder: Path, signals: Signals, resumed: bool) -> int:
    """Everything from the first line printed to the last."""
    options, done, saved = run.options, agent.num_timesteps, read_run(folder)
    if isinstance(agent, Peer) and saved.get("finished", 0) >= options.total_timesteps:
        done, resumed = saved["finished"], True
    finished = resumed and saved.get("finished") == done
    if finished and options.total_timesteps <= done:
        print(f"{folder} is complete: {done:,} steps. Pass a larger --total-timesteps to train on.")
        return 0
    saved["options"] |= {name: getattr(options, name) for name in EXECUTION}
    write_json(folder / "config.json", saved)
    # Rows of the last step are written after it was saved: a run that was stopped in between writes them again.
    keep = done if finished else min(done, agent._total_timesteps - 1)
    agent.set_logger(run_logger(folder, keep_until=keep))
    evaluator = Evaluator(run, folder, keep if resumed else -1)
    callback = TrainingCallback(run, folder, evaluator, signals)
    _introduce(run, folder, agent, resumed)
    try:
        return _learn(agent, run, callback, resumed)
    finally:
        agent.logger.close()
        evaluator.env.close()


def _introduce(run: Run, folder: Path, agent: Trainee, resumed: bool) -> None:
    options = run.options
    threads = f", {_count(torch.get_num_threads(), 'thread')}" if agent.device.type == "cpu" else ""
    where = options.env + ("" if options.delay is None else f" behind delays {options.delay} ({options.delay_form})")
    batch = f" in one batch on {agent.env.batched.device}" if isinstance(agent.env, BatchedVecEnv) else ""
    if (data := getattr(agent, "dataset", None)) is not None:
        print(
            f"{run.name} from {options.dataset} ({_count(len(data), 'step')}, {_count(data.episodes, 'episode')}), "
            f"evaluated in {where} · {options.total_timesteps:,} gradient steps · seed {options.seed} · "
            f"{agent.device}{threads}"
        )
    else:
        print(
            f"{run.name} in {where} · {options.total_timesteps:,} steps · seed {options.seed} · "
            f"{_count(options.rows, 'environment')}{batch} · {agent.device}{threads}"
            + (f" · {_count(options.workers, 'worker')}" if options.workers else "")
        )
    changes = ", ".join(f"{name}={value}" for name, value in run.config.changes().items())
    print(f"hyper-parameters: {changes or 'the defaults'}")
    print(f"run folder: {folder}   (tensorboard --logdir {shlex.quote(str(folder))})")
    if isinstance(agent, Peer) and options.resume is not None:
        print(STARTS_AGAIN)
    if resumed:
        print(f"resumed at step {agent.num_timesteps:,}")


STARTS_AGAIN = "a rival's run cannot go on where it was interrupted: it starts again"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _learn(agent: Trainee, run: Run, callback: TrainingCallback, resumed: bool) -> int:
    options, signals, started = run.options, callback.signals, time.time()
    name = run.name if ":" in run.name else run.name.lower()
    command = f"headway train {name} --resume {shlex.quote(str(callback.folder))}{_env_flag(options)}"
    steps = options.total_timesteps - agent.num_timesteps * resumed
    try:
        if not resumed:
            print(f"before training: {callback.evaluator.evaluate(agent, 2 * options.eval_episodes)}")
        with signals.asking(agent, callback.lost):
            agent.learn(steps, callback, log_interval=None, reset_num_timesteps=not resumed)  # type: ignore[arg-type]
        callback.close_bar()
        callback.busy = True
        if not signals.received:
            finish(agent, run, callback, time.time() - started)
            return 0
        checkpoint = callback.checkpoint()
        print(f"interrupted at step {agent.num_timesteps:,}: {f'saved {checkpoint}' if checkpoint else STARTS_AGAIN}")
        print(f"go on with: {command}")
        return signals.exit_code
    except BaseException as error:
        callback.close_bar()
        if isinstance(error, DivergedError):  # whose message names the last checkpoint: from there it would do so again
            raise
        if isinstance(error, KeyboardInterrupt) and len(signals.received) > 1:
            print(f"ended at once: {callback.lost()}", file=sys.stderr)
        _save_what_is_whole(agent, callback, error)
        print(f"go on with: {command}", file=sys.stderr)
        if options.vec == "subproc" and isinstance(error, (EOFError, ConnectionError)):
            raise ValueError(WORKER_ENDED) from error
        raise


def _save_what_is_whole(agent: Trainee, callback: TrainingCallback, error: BaseException) -> None:
    """Save a checkpoint after an error in an environment; after one in an update there is only half a state to save.

    Nor is there one after an error of the callback's, a full disk say: what it had not yet done at its step would be
    missing for good. The run then goes on from the checkpoint before, and does it again.
    """
    if isinstance(agent, Peer):
        print(STARTS_AGAIN, file=sys.stderr)
    elif isinstance(error, Exception) and agent.num_timesteps and not agent.pending_updates and not callback.busy:
        agent.env_is_broken = True
        try:
            print(f"saved {callback.checkpoint()}", file=sys.stderr)
        except (OSError, DivergedError) as failed:
            print(f"headway: {failed}", file=sys.stderr)


def finish(agent: Trainee, run: Run, callback: TrainingCallback, seconds: float) -> None:
    """Save, evaluate and draw a run that is through, and say where all of it is.

    :param agent: that was trained
    :param run: the resolved command
    :param callback: of the run
    :param seconds: that it took
    """
    from .figures import learning_curve  # takes a second to import, which --help and a mistake need not wait for

    options, folder = run.options, callback.folder
    agent.save(folder / "final.zip")  # first of all: it is what the run was for
    callback.checkpoint()
    dump_logs(agent)
    after = callback.evaluate(2 * options.eval_episodes)
    steps_of = "gradient steps" if options.dataset else "environment steps"
    curve = learning_curve(folder, f"{run.name} in {options.env}, seed {options.seed}", steps_of)
    if options.video:
        filmed = evaluation_env(options.world, 1, render=True)
        record_video(agent, filmed, folder / "final.mp4", callback.evaluator.seed)
        filmed.close()
    write_json(folder / "config.json", read_run(folder) | {"finished": agent.num_timesteps})
    print(f"after training:  {after}")
    print(f"{agent.num_timesteps:,} steps in {seconds:.0f} s, {agent._n_updates:,} gradient steps")
    names = ["final.zip", "best.zip", curve.name, "evaluations.csv", "progress.csv"] + ["final.mp4"] * options.video
    print(f"in {folder}: {', '.join(names)}")
    named = f" --agent {run.name}" if ":" in run.name else ""
    print(f"evaluate it: headway evaluate {shlex.quote(str(folder / 'final.zip'))}{_env_flag(options)}{named}")


def _env_flag(options: TrainOptions) -> str:
    """:return: the flag that commands need for an environment whose module no file may import; none for all others"""
    module = options.env.rpartition(":")[0]
    return f" --env {shlex.quote(options.env)}" if module and module.partition(".")[0] not in OURS else ""
