"""``headway train AGENT --dataset … --seeds 0-7``: several seeds as one stack of networks, a run folder for each."""

import contextlib
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from ..agents.core.data import check_losses
from ..agents.core.logging import run_logger
from ..agents.core.offline import OfflineAgent
from ..wrappers.spaces_only import SpacesOnlyVecEnv
from .options import Run, check_device
from .peers import dump_logs
from .runs import alone, progress_bar
from .suites import parse_seeds
from .train import (
    Evaluator,
    Signals,
    TrainingCallback,
    data_for,
    finish,
    make_folder,
    policy_for,
    run_folder,
    set_threads,
)


class StackCallback(BaseCallback):
    """What is due of each member at a step, as its own run would do it.

    :param agent: the stack
    :param parts: of each member what happens beside its learning
    :param run: the resolved command
    """

    def __init__(self, agent: OfflineAgent[Any], parts: list[TrainingCallback], run: Run) -> None:
        super().__init__()
        self.agent, self.parts, self.run = agent, parts, run
        self.bar: Any = progress_bar(run.options.total_timesteps, 0) if run.options.progress else None

    def _on_step(self) -> bool:
        options, step = self.run.options, self.num_timesteps
        if self.bar is not None:
            self.bar.update(1)
        if step < options.total_timesteps:  # what the last step is due is left to the end of the runs
            if options.eval_every and step % options.eval_every == 0:
                self.each(lambda part: part.evaluate(options.eval_episodes))
            if step % options.log_every == 0:
                check_losses(self.agent, self.agent.metrics.flush())  # sums over seeds, of which none has a log
                self.each(lambda part: dump_logs(part._agent))
            if options.checkpoint_every and step % options.checkpoint_every == 0:
                self.each(TrainingCallback.checkpoint)
        return not self.agent.stop_requested

    def each(self, work: Any) -> None:
        """Bring each member up to date, and do something with it.

        :param work: takes its :class:`TrainingCallback`
        """
        for index, part in enumerate(self.parts):
            part.num_timesteps = self.agent.member(index).num_timesteps
            work(part)


def train_seeds(run: Run) -> int:
    """Train several seeds at once.

    :param run: the resolved command
    :return: exit code: 0 when the runs are complete, 128 + signal when they were interrupted
    :raises ValueError: the runs are resumed; each is, by itself
    """
    options, signals = run.options, Signals()
    assert options.seeds is not None
    if options.resume is not None:
        raise ValueError("several seeds are resumed one by one: headway train --resume RUN_DIR/s0, …, without --seeds")
    check_device(options.device)
    logging.basicConfig(format="headway: %(message)s", level=logging.WARNING)
    seeds = parse_seeds(options.seeds)
    parent = options.run_dir
    if parent is None:
        alone_at = run_folder(run)
        parent = alone_at.with_name(f"{alone_at.name.rpartition('-s')[0]}-seeds")
    for seed in seeds:
        if (folder := parent / f"s{seed}").exists():
            raise FileExistsError(f"{folder} exists: choose another --run-dir, or go on with it by --resume {folder}")
    with signals.installed(), contextlib.ExitStack() as stack:
        data = data_for(run, parent)
        env = SpacesOnlyVecEnv(data.observation_space, data.action_space)
        set_threads(run, parent, env.observation_space)
        policy = policy_for(env.observation_space)
        agent = run.agent_class(policy, env, config=run.config, device=options.device, dataset=data, seeds=seeds)
        parts = []
        for index, seed in enumerate(seeds):
            folder = parent / f"s{seed}"
            own = replace(run, options=replace(options, seed=seed, seeds=None, run_dir=folder, progress=False))
            folder.parent.mkdir(parents=True, exist_ok=True)
            make_folder(own, folder, data)
            stack.enter_context(alone(folder, "training"))
            evaluator = Evaluator(own, folder, -1)
            stack.callback(evaluator.env.close)
            part = TrainingCallback(own, folder, evaluator, signals)
            member = agent.member(index)
            member.set_logger(run_logger(folder, keep_until=-1))
            stack.callback(member.logger.close)
            part.init_callback(member)
            parts.append(part)
        print(
            f"{run.name} from {options.dataset}, evaluated in {options.env} · {options.total_timesteps:,} gradient "
            f"steps of seeds {', '.join(map(str, seeds))} at once · {agent.device}"
        )
        print(f"run folders: {parent}/s…   (tensorboard --logdir {parent})")
        return _learn(agent, parts, run, parent, signals)


def _learn(agent: Any, parts: list[TrainingCallback], run: Run, parent: Path, signals: Signals) -> int:
    options, started = run.options, time.time()
    callback = StackCallback(agent, parts, run)
    for part in parts:
        part.evaluator.evaluate(part._agent, 2 * options.eval_episodes)
    with signals.asking(agent, lambda: "what came after the newest checkpoints is lost"):
        agent.learn(options.total_timesteps, callback, log_interval=None)
    if callback.bar is not None:
        callback.bar.close()
    if not signals.received:
        callback.each(lambda part: finish(part._agent, part.run, part, time.time() - started))
        return 0
    callback.each(TrainingCallback.checkpoint)
    print(f"interrupted at step {agent.num_timesteps:,}; each goes on by itself: headway train --resume {parent}/s…")
    return signals.exit_code
