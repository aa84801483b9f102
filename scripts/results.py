"""Results of a suite, read from the folders of its runs: scores and comparisons."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .analysis import Analysis, analyse
from .figures import read_columns
from .options import EXECUTION, flag_of
from .runs import read_run
from .statistics import Estimate, estimate_improvement, estimate_iqm
from .suites import Arm, Environment, Suite, folder_name

Score = Literal["final", "area"]
SCORES: dict[Score, str] = {"final": "Final score", "area": "Area under the learning curve"}
TOGETHER = "all, normalised"
"""Stands for the environments together, where the suite gives references to normalise by."""

EXIT = "exit code"
"""Begins the last line of a run's log."""

INTERRUPTED = (129, 130, 143, -1, -2, -15)
"""Exit codes of a run that was asked to stop: it can go on."""


@dataclass(frozen=True)
class Trial:
    """One run of a suite, done or to be done.

    :param environment: its label
    :param arm: its label
    :param seed: of the run
    :param steps: its length
    :param folder: where it is kept
    :param command: what follows ``headway`` to start it
    :param settings: what the suite says of it, by the names of ``config.json``, the agent's among them
    """

    environment: str
    arm: str
    seed: int
    steps: int
    folder: Path
    command: tuple[str, ...]
    settings: Mapping[str, Any] = field(compare=False)

    def __str__(self) -> str:
        return f"{self.environment} · {self.arm} · seed {self.seed}"

    @property
    def log(self) -> Path:
        """What its processes have printed."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def finished(self) -> bool:
        """Whether it is complete."""
        return (self.folder / "config.json").exists() and read_run(self.folder).get("finished", -1) >= self.steps

    @property
    def step(self) -> int:
        """How far it has been logged."""
        logged = int(max(self._column("time/total_timesteps", "progress.csv"), default=0))
        return self.steps if self.finished else min(self.steps, logged)

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """:return: steps and mean returns of its evaluations."""
        return self._column("step", "evaluations.csv"), self._column("mean", "evaluations.csv")

    @property
    def about(self) -> dict[str, Any]:
        """What its ``config.json`` says; nothing if it has not begun."""
        return read_run(self.folder) if (self.folder / "config.json").exists() else {}

    def contradictions(self) -> list[str]:
        """:return: where what is in its folder is another run than the suite's: of another agent or seed, with other
        settings, trained further afterwards."""
        about = self.about
        if not about:
            return []
        values = {"agent": about["agent"], **about["options"], **about["config"]}
        return [
            f"{flag_of(name)} is {values[name]}, in the suite {expected}"
            for name, expected in self.settings.items()
            if name in values and values[name] != expected  # an earlier version may not have had it
        ]

    def _column(self, name: str, file: str) -> np.ndarray:
        path = self.folder / file
        return read_columns(path, name)[0] if path.exists() else np.empty(0)


def list_trials(suite: Suite, out: Path) -> list[Trial]:
    """List the runs of a suite, so that the first seeds of all come first.

    :param suite: the suite
    :param out: folder of all its runs
    :return: the runs
    """
    every = [(environment, arm, _settings(suite, environment, arm)) for environment, arm in pairs(suite)]
    return [_trial(suite, out, *pair, seed) for seed in suite.seeds for pair in every]


def pairs(suite: Suite) -> list[tuple[Environment, Arm]]:
    """:return: each environment with each arm."""
    return [(environment, arm) for environment in suite.environments for arm in suite.arms]


def _settings(suite: Suite, environment: Environment, arm: Arm) -> dict[str, Any]:
    """What the suite and its flags say of a run; not what presets and defaults add, which may change with versions."""
    run = suite.run(environment, arm).to_dict()
    values = {**run["options"], **run["config"]}
    named = {"env", "eval_every", "eval_episodes", *suite.flags, *environment.flags, *arm.flags} - {*EXECUTION, "seed"}
    settings = {name: values[name] for name in (*sorted(named), "total_timesteps")}
    return {"agent": run["agent"], **json.loads(json.dumps(settings))}


def _trial(
    suite: Suite, out: Path, environment: Environment, arm: Arm, settings: Mapping[str, Any], seed: int
) -> Trial:
    folder = out / folder_name(environment.label) / folder_name(arm.label) / f"s{seed}"
    command = [*suite.command(environment, arm), "--seed", str(seed), "--run-dir", str(folder)]
    steps = suite.steps(environment, arm)
    return Trial(environment.label, arm.label, seed, steps, folder, tuple(command), {**settings, "seed": seed})


# ---- one run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """How a run went.

    :param trial: which
    :param status: "finished", "failed", "unfinished", "not started", or "foreign": in its folder is another run
    :param step: how far it has come
    :param final: mean return of its last evaluations; NaN if there are not enough
    :param area: mean of the evaluation curve over its steps; NaN if it has no length
    :param problem: end of the log of a run that failed, or what is foreign
    """

    trial: Trial
    status: str
    step: int
    final: float
    area: float
    problem: str

    @property
    def counts(self) -> bool:
        """Whether it enters the comparison."""
        return self.status == "finished" and math.isfinite(self.final) and math.isfinite(self.area)


def final_score(steps: np.ndarray, returns: np.ndarray, count: int) -> float:
    """Score a run by its end.

    :param steps: (T) at which it was evaluated
    :param returns: (T) mean return of each evaluation
    :param count: how many of the last evaluations enter; the one before training never does
    :return: the unweighted mean of these; NaN if there are fewer
    """
    learnt = returns[steps > 0]
    return float(learnt[-count:].mean()) if len(learnt) >= count else math.nan


def area_under_curve(steps: np.ndarray, returns: np.ndarray) -> float:
    """Score a run by all of its course.

    :param steps: (T) at which it was evaluated, ascending, the first before training
    :param returns: (T) mean return of each evaluation
    :return: mean over the steps of the line through them, in units of return; NaN if there are not two
    """
    return float(np.trapezoid(returns, steps) / (steps[-1] - steps[0])) if len(steps) > 1 else math.nan


def read_result(trial: Trial, final_evaluations: int) -> Result:
    """Read from its folder and log how a run went.

    :param trial: the run
    :param final_evaluations: how many of the last evaluations make up the final score
    :return: its scores and its state
    """
    steps, returns = trial.curve()
    status, problem = _status(trial)
    scores = final_score(steps, returns, final_evaluations), area_under_curve(steps, returns)
    return Result(trial, status, trial.step, *scores, problem)


def _status(trial: Trial) -> tuple[str, str]:
    if contradictions := trial.contradictions():
        return "foreign", "\n".join(contradictions)
    if trial.finished:
        return "finished", ""
    lines = trial.log.read_bytes().decode(errors="replace").rstrip().split("\n") if trial.log.exists() else [""]
    end = re.fullmatch(rf"{EXIT} (-?\d+)", lines[-1])
    if end and int(end[1]) not in INTERRUPTED:
        # Of progress bars only the last state; the rest would be one endless line.
        return "failed", "\n".join(line.rpartition("\r")[2] for line in lines[-12:])
    return "unfinished" if trial.folder.exists() else "not started", ""


UNRELATED = {"seed", "run_dir", "resume", "config", "progress", "video", "keep_checkpoints", "env_device"}
"""Options that may differ between the runs of an arm, and say nothing of what was learnt."""


def differences(results: Sequence[Result]) -> list[tuple[str, str, str, dict[str, list[int]]]]:
    """Find what is not the same in all runs of an arm that enter: settings that presets and defaults gave, too.

    :param results: of a suite
    :return: environment, arm, what differs, and the seeds of each of its values
    """
    found: dict[tuple[str, str, str], dict[str, list[int]]] = {}
    for result in results:
        if not result.counts:
            continue
        about, trial = result.trial.about, result.trial
        options = {name: value for name, value in about["options"].items() if name not in UNRELATED}
        versions = {f"version of {name}": value for name, value in about.get("versions", {}).items()}
        for name, value in {**options, **about["config"], **versions, "commit": about.get("commit")}.items():
            seeds = found.setdefault((trial.environment, trial.arm, name), {})
            seeds.setdefault(str(value), []).append(trial.seed)
    return [(*where, values) for where, values in found.items() if len(values) > 1]


# ---- all of them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """An arm in an environment, by one score.

    :param score: "final" or "area"
    :param environment: its label, or ``TOGETHER``
    :param arm: its label
    :param runs: how many enter
    :param planned: how many there should be
    :param broken: how many of the others are finished, but hold no finite score
    :param iqm: their interquartile mean; None without runs
    :param improvement: probability that a run of it scores higher than one of the baseline; None for that itself
    """

    score: Score
    environment: str
    arm: str
    runs: int
    planned: int
    broken: int
    iqm: Estimate | None
    improvement: Estimate | None


def compare(suite: Suite, results: Sequence[Result]) -> list[Comparison]:
    """Compare the arms of a suite.

    :param suite: the suite
    :param results: of its runs; those that failed or are not complete do not enter
    :return: per score, environment and arm
    """
    return [
        _comparison(suite, results, score, group, arm.label)
        for score in SCORES
        for group in _groups(suite)
        for arm in suite.arms
    ]


def _groups(suite: Suite) -> list[list[Environment]]:
    """:return: each environment, and all of them where their scores can be made comparable."""
    every = [[environment] for environment in suite.environments]
    together = len(every) > 1 and all(environment.reference for environment in suite.environments)
    return [*every, *([list(suite.environments)] if together else [])]


def analyses(suite: Suite, results: Sequence[Result]) -> list[tuple[Score, str, Analysis]]:
    """Analyse the variance of scores, in each environment and in all together.

    :param suite: the suite
    :param results: of its runs; those that failed or are not complete do not enter
    :return: per score and environment, or ``TOGETHER``
    """
    found = []
    for score in SCORES:
        for group in _groups(suite):
            counting = [r for r in results if r.counts and r.trial.environment in [e.label for e in group]]
            by_label = {environment.label: environment for environment in group}
            values = [_normalised(getattr(r, score), by_label[r.trial.environment], len(group) > 1) for r in counting]
            trials = [r.trial for r in counting]
            environments, arms, seeds = ([getattr(t, name) for t in trials] for name in ("environment", "arm", "seed"))
            label = TOGETHER if len(group) > 1 else group[0].label
            found.append((score, label, analyse(values, environments, arms, seeds, suite.baseline)))
    return found


def _comparison(
    suite: Suite, results: Sequence[Result], score: Score, group: Sequence[Environment], arm: str
) -> Comparison:
    def scores(label: str) -> list[np.ndarray]:
        return [_scores(results, score, environment, label, len(group) > 1) for environment in group]

    ours, theirs = scores(arm), scores(suite.baseline)
    complete = all(map(len, ours))
    labels = [environment.label for environment in group]
    of_arm = [r for r in results if r.trial.arm == arm and r.trial.environment in labels]
    compared = complete and all(map(len, theirs)) and arm != suite.baseline
    return Comparison(
        score,
        TOGETHER if len(group) > 1 else group[0].label,
        arm,
        sum(map(len, ours)),
        len(suite.seeds) * len(group),
        sum(r.status == "finished" and not r.counts for r in of_arm),
        estimate_iqm(ours) if complete else None,
        estimate_improvement(ours, theirs) if compared else None,
    )


def _scores(results: Iterable[Result], score: Score, environment: Environment, arm: str, normalise: bool) -> np.ndarray:
    wanted = (environment.label, arm)
    values = np.array([getattr(r, score) for r in results if r.counts and (r.trial.environment, r.trial.arm) == wanted])
    return np.asarray(_normalised(values, environment, normalise))


def _normalised(values: Any, environment: Environment, normalise: bool) -> Any:
    if normalise and environment.reference is not None:
        low, high = environment.reference
        return (values - low) / (high - low)
    return values
