"""``headway benchmark learn``: train every arm of a suite in every environment with every seed, and compare them."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import tyro
import yaml
from tqdm import tqdm

from ..agents.core.config import Range
from ..agents.core.files.replacing import replacing
from ..envs import make
from .machine import cores, origin
from .options import Flags, early_flags, flag_of
from .report import Report
from .results import EXIT, Trial, list_trials, pairs, read_result
from .runs import alone, locked, progress_bar
from .suites import Suite, parse_seeds, read_suite


@dataclass(frozen=True, kw_only=True)
class LearnOptions(Flags):
    """Train every arm of a suite in every environment with every seed, in parallel, and compare them with intervals."""

    suite: tyro.conf.Positional[str]
    """A suite that Headway brings along, a YAML file, or the output folder of an earlier command to go on with."""

    out: Path | None = None
    """Output folder, for runs and report; by default runs/suites/<name>. What is finished in it is not done again, what
    was interrupted goes on."""

    workers: Annotated[int, Range(0)] = 0
    """Runs that train at the same time, each in a process of its own with one thread; 0: as many as there are CPUs."""

    seeds: str | None = None
    """Other seeds than the suite's: a count (5: 0 to 4), a range (3-7), or a list (2,5,9). A folder takes
    further seeds."""

    total_timesteps: Annotated[int, Range(1, unit="environment steps")] | None = None
    """Another length of the runs than the suite's, in every environment."""

    at_once: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Train all seeds of an arm that learns from data at once, as one stack of networks, where none of them has begun:
    several times as fast for small networks, and equal up to the rounding of float32."""

    analyse: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Add to the report how much of the scores' variance is arms, environments and seeds, by linear mixed models with a
    likelihood-ratio test of the arms."""

    report_only: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Train nothing; write the report anew from what is in the output folder."""


SUITE, COMMANDS = "suite.yaml", "commands.jsonl"

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
"""Of the process of a run."""

# A run whose benchmark was killed is asked to save and stop, so that it cannot be in the way of the next one.
PROGRAM = """
import ctypes, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
from headway.scripts.cli import main
sys.argv[0] = "headway"
sys.exit(main())
"""


def learn(options: LearnOptions) -> int:
    """Run ``headway benchmark learn``.

    :param options: its arguments
    :return: exit code: 0 when all its runs are finished, 1 when one failed, 128 + signal when it was interrupted
    """
    suite, out = _resolve(options)
    recorded = _recorded(suite, out)
    if options.report_only:
        if not (out / SUITE).exists():
            raise FileNotFoundError(f"--report-only: {out} holds no runs of a suite; choose another --out")
        return 0 if _report(recorded, out, options.analyse) else 1
    _check_folders(recorded, out)
    for environment in suite.environments:
        make(environment.id).close()  # so that an id that is wrong is answered now rather than in every log
    out.mkdir(parents=True, exist_ok=True)
    with alone(out, "training a suite", leftovers=".*.tmp*"):  # not those of runs that are just saving
        _record(recorded, out, options)
        fleet = Fleet(list_trials(suite, out), options.workers or cores(), suite.final_evaluations, options.at_once)
        _introduce(suite, out, fleet)
        interrupted = fleet.run()
    if interrupted:
        workers = f" --workers {options.workers}" * bool(options.workers) + " --analyse" * options.analyse
        workers += " --at-once" * options.at_once
        print(f"interrupted: {fleet.done} of {len(fleet.trials)} runs are finished, what had begun is saved")
        print(f"go on with: headway benchmark learn {shlex.quote(str(out))}{workers}")
        return 128 + interrupted
    _report(recorded, out, options.analyse)
    return 0 if fleet.done == len(fleet.trials) else 1


def _resolve(options: LearnOptions) -> tuple[Suite, Path]:
    """What to run, and where."""
    folder = Path(options.suite)
    is_output = folder.is_dir() and (folder / SUITE).exists()
    suite = read_suite(folder / SUITE if is_output else options.suite)
    out = options.out or (folder if is_output else Path("runs") / "suites" / suite.name)
    seeds = None if options.seeds is None else parse_seeds(options.seeds)
    return suite.changed(seeds=seeds, total_timesteps=options.total_timesteps), out


def _recorded(suite: Suite, out: Path) -> Suite:
    """The suite with the seeds that the output folder has already.

    :raises ValueError: the folder holds something else
    """
    if not (out / SUITE).exists():
        if out.exists() and any(out.iterdir()):
            raise FileExistsError(f"{out} exists and holds no runs of a suite: choose another --out")
        return suite
    earlier = read_suite(out / SUITE)
    before, now = ({(e.label, a.label): shlex.join(s.command(e, a)) for e, a in pairs(s)} for s in (earlier, suite))
    for (environment, arm), command in before.items():
        if (environment, arm) not in now:
            raise ValueError(f"{out} holds runs of {arm} in {environment}, not in this suite: choose another --out")
        if now[environment, arm] != command:
            raise ValueError(
                f"{out} holds other runs of {arm} in {environment}: headway {command}, "
                f"now headway {now[environment, arm]}; choose another --out"
            )
    return suite.changed(seeds=tuple(dict.fromkeys((*earlier.seeds, *suite.seeds))))


def _check_folders(suite: Suite, out: Path) -> None:
    """Refuse runs that are not the suite's, and to go on with arms that would be made of unlike runs.

    :raises ValueError: there are such
    """
    trials = list_trials(suite, out)
    for trial in trials:
        if contradictions := trial.contradictions():
            raise ValueError(
                f"{trial.folder} is not the suite's run of {trial}: {'; '.join(contradictions)}; "
                "move it away, or choose another --out"
            )
    waiting = {(trial.environment, trial.arm) for trial in trials if not trial.about}
    now = {(e.label, a.label): suite.run(e, a).config.to_dict() for e, a in pairs(suite)}
    for trial in trials:
        if (arm := (trial.environment, trial.arm)) in waiting:
            before = trial.about.get("config", {})
            changed = [f"{flag_of(k)} {before[k]}, now {v}" for k, v in now[arm].items() if before.get(k, v) != v]
            if changed:
                raise ValueError(
                    f"{trial.folder} was trained with {'; '.join(changed)}: a preset or a default has changed, and "
                    "runs that are still to be started would differ from it; choose another --out"
                )


def _record(suite: Suite, out: Path, options: LearnOptions) -> None:
    """Write down what is going to be run, and on what."""
    with replacing(out / SUITE) as temporary:
        temporary.write_text(yaml.safe_dump(suite.to_dict(), sort_keys=False, allow_unicode=True))
    about = {"started": datetime.now().isoformat(timespec="seconds"), "workers": options.workers or cores()}
    with (out / COMMANDS).open("a") as file:
        file.write(json.dumps({**origin(), **about}) + "\n")


def _introduce(suite: Suite, out: Path, fleet: "Fleet") -> None:
    counts = [(len(suite.arms), "arm"), (len(suite.environments), "environment"), (len(suite.seeds), "seed")]
    product = " x ".join(f"{count} {noun}{'s' * (count > 1)}" for count, noun in counts)
    steps = sum(trial.steps for trial in fleet.trials)
    print(f"{suite.name}: {product} = {len(fleet.trials)} runs, {steps:,} steps, {fleet.workers} at a time")
    print(f"output folder: {out}" + f"   ({fleet.done} runs are finished already)" * bool(fleet.done))


def _report(suite: Suite, out: Path, analyse: bool) -> bool:
    """Write and print the report; whether all runs are finished."""
    lines = (out / COMMANDS).read_text().splitlines() if (out / COMMANDS).exists() else []
    replaced = (out / "results.md").exists()
    report = Report.read(suite, out, [json.loads(line) for line in lines], analyse)
    files = report.write()
    print("\n" + "\n\n".join([*report.scores(), *report.analysis()]) + "\n")
    finished = sum(result.status == "finished" for result in report.results)
    print(f"{finished} of {len(report.results)} runs are finished")
    print(f"{'replaced' if replaced else 'written'} in {out}: {', '.join(file.name for file in files)}")
    for result in report.results:
        if result.status == "failed":
            print(f"failed: {result.trial}, see {result.trial.log}", file=sys.stderr)
        if result.status == "foreign":
            what = result.problem.replace("\n", "; ")
            print(f"left out: {result.trial}, {result.trial.folder} holds another run: {what}", file=sys.stderr)
    for environment, arm, what, seeds in report.unlike:
        values = "; ".join(f"{value} (seeds {', '.join(map(str, of))})" for value, of in seeds.items())
        print(f"runs of {arm} in {environment} differ: {what} {values}", file=sys.stderr)
    return finished == len(report.results)


Job = tuple[Trial, ...]
"""What one process trains: a run, or the seeds of an arm as one stack."""


class Fleet:
    """Runs that train at the same time, each, or each arm's seeds, in a process of its own.

    :param trials: the runs, in the order in which to start them; those that are finished are left alone
    :param workers: how many train at a time
    :param final_evaluations: how many make up the score that is shown
    :param at_once: train the seeds of an arm that learns from data as one stack
    """

    def __init__(self, trials: Sequence[Trial], workers: int, final_evaluations: int, at_once: bool = False) -> None:
        self.trials, self.workers, self.final_evaluations = trials, workers, final_evaluations
        self.steps = {trial: trial.step for trial in trials}
        self.done = sum(trial.finished for trial in trials)
        self.waiting = deque(_jobs(trials, at_once))
        self.processes: dict[Job, subprocess.Popen[bytes]] = {}
        self.received: list[int] = []
        self.passed_on = 0
        self.next_look = 0.0

    def run(self) -> int:
        """Train them all; a run that fails does not keep the others from going on.

        :return: the signal that has ended it before its time, or 0
        """
        total = sum(trial.steps for trial in self.trials)
        previous = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with contextlib.closing(progress_bar(total, sum(self.steps.values()))) as bar:
                while self.processes or (self.waiting and not self.received):
                    self._start()
                    self._pass_on_signals()
                    self._reap()
                    self._show(bar)
                    time.sleep(0.1)
        finally:
            for process in self.processes.values():
                process.terminate()  # which saves
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self.received[0] if self.received else 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)

    def _start(self) -> None:
        for job in list(self.waiting):
            if len(self.processes) >= self.workers or self.received:
                return
            if not any(_in_use(trial.folder) for trial in job):  # by what a killed benchmark has left: it is saving
                self.waiting.remove(job)
                self.processes[job] = _begin(job)

    def _pass_on_signals(self) -> None:
        for number in self.received[self.passed_on :]:
            if not self.passed_on:
                tqdm.write("stopping: every run saves; Ctrl-C again does not wait for that", file=sys.stderr)
            self.passed_on += 1
            for process in self.processes.values():
                process.send_signal(number)

    def _reap(self) -> None:
        for job, process in list(self.processes.items()):
            if process.poll() is None:
                continue
            del self.processes[job]
            for trial in job:
                with trial.log.open("a") as log:
                    log.write(f"see {job[0].log}\n" * (trial is not job[0]) + f"{EXIT} {process.returncode}\n")
                self._tell(trial)

    def _tell(self, trial: Trial) -> None:
        """Say how a run went whose process has ended."""
        self.steps[trial] = trial.step
        result = read_result(trial, self.final_evaluations)
        self.done += result.status == "finished"
        if result.status == "finished":
            tqdm.write(f"[{self.done}/{len(self.trials)}] {trial}: final score {result.final:.1f}")
        elif not self.received:
            tqdm.write(f"{trial} {result.status}; the end of {trial.log}:\n{result.problem}", file=sys.stderr)

    def _show(self, bar: "tqdm[Any]") -> None:
        if self.processes and time.monotonic() < self.next_look:  # it reads files
            return
        self.next_look = time.monotonic() + 1
        for trial in (trial for job in self.processes for trial in job):
            self.steps[trial] = trial.step
        bar.set_description_str(f"{self.done}/{len(self.trials)} runs · ", refresh=False)
        bar.update(sum(self.steps.values()) - bar.n)


def _in_use(folder: Path) -> bool:
    if not folder.exists():
        return False
    with locked(folder) as free:
        return not free


def _jobs(trials: Sequence[Trial], at_once: bool) -> list[Job]:
    """Group the runs that are to be done; an arm of which one has begun is gone on with run by run."""
    begun = {(trial.environment, trial.arm) for trial in trials if trial.folder.exists()}
    jobs: dict[tuple[str, ...], Job] = {}
    for trial in trials:
        arm = (trial.environment, trial.arm)
        together = at_once and "--dataset" in trial.command and arm not in begun
        key = arm if together else (*arm, str(trial.seed))
        if not trial.finished:
            jobs[key] = (*jobs.get(key, ()), trial)
    return list(jobs.values())


def _begin(job: Job) -> "subprocess.Popen[bytes]":
    """Start runs, or go on with one."""
    trial = job[0]
    known = (trial.folder / "config.json").exists()
    command = list(trial.command)
    if len(job) > 1:
        place = command.index("--seed")  # which the folder follows
        seeds = ",".join(str(one.seed) for one in job)
        command[place:] = ["--seeds", seeds, "--run-dir", str(trial.folder.parent)]
    if known:  # with what a folder alone does not decide on
        env = early_flags(command, "env").get("env", "")
        command = ["train", command[1], "--resume", str(trial.folder), "--env", env]
    command += ["--threads", "1", "--no-progress"]
    trial.folder.parent.mkdir(parents=True, exist_ok=True)
    with trial.log.open("a") as log:
        log.write(f"$ {shlex.join(['headway', *command])}\n")
        log.flush()
        # In a process group of its own, a terminal's Ctrl-C comes to it through us alone: a second one would end it.
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | ENVIRONMENT,
            process_group=0,
        )
