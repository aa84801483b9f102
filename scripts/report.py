"""The report of a suite: tables as Markdown, CSV and JSON, and the learning curves."""

import csv
import io
import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..agents.core.files.replacing import replacing
from .analysis import Analysis
from .figures import learning_curves, read_columns
from .machine import portable, without_folders
from .peers import trainable
from .results import (
    SCORES,
    TOGETHER,
    UNRELATED,
    Comparison,
    Result,
    Score,
    Trial,
    analyses,
    compare,
    differences,
    list_trials,
    pairs,
    read_result,
)
from .statistics import COVERAGE, RESAMPLES, Estimate, coverage
from .suites import Suite

Row = Mapping[str, Any]

ANALYSIS = """\
Linear mixed models after Hagmann, Meier and Riezler, arXiv 2302.04054: score = arm + environment + arm within
environment + seed within environment + rest, as far as the runs can tell these apart. The likelihood ratio compares
models with and without arms; its p, by the chi-squared law, is too small where there are few runs: of two arms that are
alike, with five seeds each, 11 in 100 get a p below 0.05. Shares are of the variance of one run's score, arms counting
as random. Reliability is the share of arms in what differs within environments, for one run and for an arm's mean over
its runs: at 1 the same arms would come out ahead with other seeds, at 0 their order is chance."""

SPAWNED = """\
The seeds of a run's environments and evaluations are spawned from its own: arms of one seed meet the same starts, runs
of two seeds share none. """.replace("\n", " ")


@dataclass(frozen=True)
class Report:
    """Everything that a report says.

    :param suite: the suite
    :param out: folder of all its runs
    :param commands: what was started there, with machine and workers
    :param results: how the runs went, in the order of environments, arms and seeds
    :param comparisons: of the arms
    :param analyses: of the scores' variance, if they were asked for
    """

    suite: Suite
    out: Path
    commands: Sequence[Row]
    results: Sequence[Result]
    comparisons: Sequence[Comparison]
    analyses: Sequence[tuple[Score, str, Analysis]] = ()

    @classmethod
    def read(cls, suite: Suite, out: Path, commands: Sequence[Row], analyse: bool = False) -> "Report":
        """Read it from the folders of the runs; nothing is trained.

        :param suite: the suite
        :param out: folder of all its runs
        :param commands: what was started there
        :param analyse: whether to analyse the scores' variance, which takes some seconds
        :return: the report
        """
        order = [(environment.label, arm.label) for environment, arm in pairs(suite)]
        trials = sorted(list_trials(suite, out), key=lambda t: (order.index((t.environment, t.arm)), t.seed))
        results = [read_result(trial, suite.final_evaluations) for trial in trials]
        return cls(suite, out, commands, results, compare(suite, results), analyses(suite, results) if analyse else ())

    def write(self) -> list[Path]:
        """Write the files, each whole or not at all.

        :return: the files
        """
        panels = {
            environment.label: {
                arm.label: [r.trial.curve() for r in self._of(environment.label, arm.label) if r.counts]
                for arm in self.suite.arms
            }
            for environment in self.suite.environments
        }
        writers: dict[str, Callable[[Path], object]] = {
            "results.md": lambda path: path.write_text(self.markdown()),
            "results.csv": lambda path: path.write_text(_csv([_flat(c) for c in self.comparisons])),
            "runs.csv": lambda path: path.write_text(_csv([self._row(result) for result in self.results])),
            "results.json": lambda path: path.write_text(self.json()),
        }
        if any(result.counts for result in self.results):
            from_data = all("--dataset" in self.suite.command(*pair) for pair in pairs(self.suite))
            steps_of = "gradient steps" if from_data else "environment steps"
            writers["learning_curves.png"] = lambda path: learning_curves(panels, path, steps_of)
        if curves := [row for result in self.results for row in _curve(result.trial)]:
            writers["curves.csv"] = lambda path: path.write_text(_csv(curves))
        for name, write in writers.items():
            with replacing(self.out / name, suffix=Path(name).suffix) as temporary:
                write(temporary)
        return [self.out / name for name in writers]

    def _of(self, environment: str, arm: str) -> list[Result]:
        return [r for r in self.results if (r.trial.environment, r.trial.arm) == (environment, arm)]

    def _row(self, result: Result) -> dict[str, Any]:
        trial = result.trial
        return {
            "environment": trial.environment,
            "arm": trial.arm,
            "seed": trial.seed,
            "status": result.status,
            "step": result.step,
            "final": _or_none(result.final),
            "area": _or_none(result.area),
            "folder": trial.folder.relative_to(self.out).as_posix(),
        }

    def _command(self, trial: Trial) -> str:
        """:return: a run's command, its folder relative to that of the suite."""
        folder = trial.folder.relative_to(self.out).as_posix()
        parts = (folder if part == str(trial.folder) else portable(part) for part in trial.command)
        return shlex.join(["headway", *parts])

    def json(self) -> str:
        """:return: everything, for programs; null stands where there is no number."""
        runs = [
            self._row(r)
            | {"command": self._command(r.trial), "problem": without_folders(r.problem), **_made_with(r.trial)}
            for r in self.results
        ]
        content = {
            "suite": self.suite.to_dict(),
            "commands": list(self.commands),
            "versions": self._versions(),
            "differences": [dict(zip(("environment", "arm", "what", "seeds"), d, strict=True)) for d in self.unlike],
            "comparisons": [_flat(comparison) for comparison in self.comparisons],
            "analyses": [{"score": s, "environment": e, **_finite(vars(a))} for s, e, a in self.analyses],
            "runs": runs,
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    def markdown(self) -> str:
        """:return: everything, for people."""
        parts = [f"# {self.suite.name}", self.suite.description.strip(), self._completeness(), *self.scores()]
        if any(result.counts for result in self.results):
            parts += ["## Learning curves", "![Learning curves](learning_curves.png)"]
        parts += [*self.analysis(), *self._differences(), *self._conditions(), *self._every_run()]
        return "\n\n".join(part for part in parts if part) + "\n"

    @property
    def unlike(self) -> list[tuple[str, str, str, dict[str, list[int]]]]:
        """What differs within arms, as :func:`.results.differences` finds it."""
        return differences(self.results)

    def _completeness(self) -> str:
        counted = sum(result.counts for result in self.results)
        text = f"{counted} of {len(self.results)} runs enter the comparison."
        if counted < len(self.results):
            text = (
                f"**Only {text[:-1]}**; the others failed, are not complete or have no finite score (see “Every run”). "
                "What an arm does when it does not fail may flatter it."
            )
        if self.unlike:
            text += " **Runs of one arm are not alike**: see “What differs within an arm”."
        ours = {result.trial.folder for result in self.results}
        if others := sorted(f.parent for f in self.out.glob("*/*/s*/config.json") if f.parent not in ours):
            names = ", ".join(f"`{folder.relative_to(self.out).as_posix()}`" for folder in others)
            text += f" Not the suite's, and left out: {names}."
        return text

    def _differences(self) -> list[str]:
        if not self.unlike:
            return []
        rows = [
            [*where, "; ".join(f"{value}: seeds {', '.join(map(str, of))}" for value, of in seeds.items())]
            for *where, seeds in self.unlike
        ]
        return ["## What differs within an arm", _table(["environment", "arm", "what", "values"], rows)]

    def scores(self) -> list[str]:
        """:return: the tables that compare the arms, with headings."""
        suite, parts = self.suite, list[str]()
        last = "last evaluation" if suite.final_evaluations == 1 else f"last {suite.final_evaluations} evaluations"
        meanings: dict[Score, str] = {
            "final": f"The score of a run is the mean return over its {last}.",
            "area": "The score of a run is the mean over its steps of the line through all its evaluations, in units "
            "of return: how good it was on the way.",
        }
        for score, title in SCORES.items():
            found = [comparison for comparison in self.comparisons if comparison.score == score]
            parts += [f"## {title}", meanings[score]]
            arms = [arm.label for arm in suite.arms]
            level = _level(len(suite.seeds))
            parts.append(_pivot(f"IQM over runs [{level}]", found, arms, lambda c: _quantity(c.iqm)))
            if others := [arm for arm in arms if arm != suite.baseline]:
                title = f"P(better than {suite.baseline}) [{level}]"
                parts.append(_pivot(title, found, others, lambda c: _chance(c.improvement)))
        return parts

    def analysis(self) -> list[str]:
        """:return: where the variance of scores comes from, with headings; nothing if that was not asked for."""
        if not self.analyses:
            return []
        parts = ["## Where the scores' variance comes from", ANALYSIS]
        for score, title in SCORES.items():
            found = [(environment, analysis) for s, environment, analysis in self.analyses if s == score]
            names = list(dict.fromkeys(name for _, analysis in found for name in analysis.shares))
            header = [
                "environment",
                "runs",
                "likelihood ratio",
                "p",
                *names,
                "reliability of a run",
                "of an arm's mean",
            ]
            rows = [
                [
                    environment, a.runs, f"{_number(a.statistic)} ({a.degrees} df)", _chance_of(a.p),
                    *(_percent(a.shares.get(name, math.nan)) for name in names),
                    *(_number(value) for value in (a.reliability, a.reliability_of_means)),
                ]
                for environment, a in found
            ]  # fmt: skip
            parts += [f"### {title}", _table(header, rows)]
            arms = [arm.label for arm in self.suite.arms if any(arm.label in a.effects for _, a in found)]
            if arms:
                effects = [
                    [arm, *(_quantity(Estimate(*a.effects[arm])) if arm in a.effects else "-" for _, a in found)]
                    for arm in arms
                ]
                header = [f"Above {self.suite.baseline} [95 % interval]", *(environment for environment, _ in found)]
                parts.append(_table(header, effects))
            parts += [f"{environment}: {'; '.join(a.remarks)}." for environment, a in found if a.remarks]
        return parts

    def _conditions(self) -> list[str]:
        suite = self.suite
        seeds = ", ".join(map(str, suite.seeds))
        together = (
            f"“{TOGETHER}” pools the runs of all environments, each score first mapped to 0 at the environment's low "
            "reference and 1 at its high one. "
        )
        has_together = any(comparison.environment == TOGETHER for comparison in self.comparisons)
        text = (
            "IQM is the mean of the middle half of the runs: a quarter of their number, rounded down, is put aside at "
            "either end (of 3 runs none, of 5 one). Intervals are 95 % percentile intervals of a bootstrap with "
            f"{RESAMPLES:,} samples that draws runs with replacement within each environment. "
            f"{_narrow(len(suite.seeds))}P is the chance that a run scores higher than one of the baseline in the "
            f"same environment, a tie counting half{', averaged over environments' * has_together}; 0.5 is even. "
            f"{together * has_together}Definitions: Agarwal et al., arXiv 2108.13264."
        )
        environments = [
            [e.label, e.id, f"{suite.steps(e):,}", *((f"{r:g}" for r in e.reference) if e.reference else "--")]
            for e in suite.environments
        ]
        arms = [[arm.label, f"`{shlex.join(['headway', *suite.command(e, arm)])}`"] for e, arm in pairs(suite)]
        # Runs of earlier versions gave environments and evaluations their own seed, and do not say so.
        spawned = all("seeds" in about for result in self.results if (about := result.trial.about))
        schedule = (
            f"Seeds: {seeds}. Every {suite.eval_every:,} steps, {suite.eval_episodes} deterministic episodes from "
            "seeded starts are run; before training and after it, twice as many. "
            f"{SPAWNED * spawned}All settings of every run are in `results.json`, all evaluations in `curves.csv`."
        )
        return [
            "## How it was measured",
            text,
            _table(["environment", "id", "steps per run", "low reference", "high reference"], environments),
            schedule,
            _table(["arm", "command, without seed and folder"], arms),
            *self._settings(),
            *self._origins(),
        ]

    def _settings(self) -> list[str]:
        """What presets, files and flags made of the defaults, of the first run of each arm."""
        rows = []
        for environment, arm in pairs(self.suite):
            about = next((r.trial.about for r in self._of(environment.label, arm.label) if r.trial.about), {})
            defaults = trainable(arm.agent).config_class().to_dict()
            changes = [f"{k}={v}" for k, v in about.get("config", {}).items() if k not in defaults or defaults[k] != v]
            if about:
                rows.append([environment.label, arm.label, ", ".join(changes) or "the defaults"])
        header = ["environment", "arm", "settings besides the defaults, presets' among them"]
        return [_table(header, rows)] if rows else []

    def _origins(self) -> list[str]:
        lines = [
            f"- `{c['command']}`, {c['started']}, {c['workers']} runs at a time with one thread each: {_machine(c)}"
            for c in self.commands
        ]
        packages = [f"- {', '.join(f'{k} {v}' for k, v in found.items())}" for found in self._versions()]
        several = ["The runs were made with different versions:"] if len(packages) > 1 else ["Versions:"]
        return ["Commands:", "\n".join(lines), *several, "\n".join(packages)] if packages else []

    def _versions(self) -> list[dict[str, str]]:
        found = []
        for result in self.results:
            if about := result.trial.about:
                commit = {"commit": about["commit"]} if about.get("commit") else {}
                if (versions := about.get("versions", {}) | commit) not in found:
                    found.append(versions)
        return found

    def _every_run(self) -> list[str]:
        rows = [
            [*list(row.values())[:4], f"{row['step']:,}", *map(_number, (r.final, r.area))]
            for r in self.results
            for row in [self._row(r)]
        ]
        header = ["environment", "arm", "seed", "status", "steps", *map(str.lower, SCORES.values())]
        parts = ["## Every run", _table(header, rows)]
        for result in self.results:
            if result.problem:
                log = result.trial.log.relative_to(self.out).as_posix()
                what = f"The end of `{log}`" if result.status == "failed" else "Its folder holds another run"
                text = without_folders(result.problem)
                parts += [f"### {result.trial}: {result.status}", f"{what}:", f"```\n{text}\n```"]
        return parts


def _curve(trial: Trial) -> list[Row]:
    """Every evaluation of a run, in the columns that all have."""
    path = trial.folder / "evaluations.csv"
    if not path.exists():
        return []
    names = ("step", "mean", "std", "length", "episodes")
    present = path.read_text().partition("\n")[0].split(",")
    columns = {name: read_columns(path, name)[0] for name in names if name in present}
    where = {"environment": trial.environment, "arm": trial.arm, "seed": trial.seed}
    counts = ("step", "episodes")
    return [
        where | {name: int(c[i]) if name in counts else _or_none(float(c[i])) for name, c in columns.items()}
        for i in range(len(columns.get("step", ())))  # none in a file whose header is still to be written
    ]


def _made_with(trial: Trial) -> Row:
    """The resolved settings of a run, presets included, versions and commit."""
    about = trial.about
    options = {name: value for name, value in about.get("options", {}).items() if name not in UNRELATED}
    names = ("agent", "config", "versions", "commit", "seeds")
    return {"settings": {"options": options} | {name: about[name] for name in names if name in about}}


def _level(runs: int) -> str:
    """What an interval of so many runs is called in the head of a table."""
    few = f", in truth {100 * coverage(runs):.0f} %" if 1 < runs < max(COVERAGE) else ""
    return f"95 % interval{few}"


def _narrow(runs: int) -> str:
    """What is to be said of intervals from so many runs."""
    if not 1 < runs < max(COVERAGE):
        return ""
    what = "are the least and the greatest of them and " if runs < 5 else ""
    chance = 2 / math.comb(2 * runs, runs)
    return (
        f"Such intervals from {runs} runs {what}hold the true value in about {100 * coverage(runs):.0f} % of cases, "
        "not in 95 % (of normal scores). An interval of P that is 0.00 or 1.00 at both ends says that the runs of two "
        f"arms did not mix, which {runs} against {runs} that are alike would do with probability {chance:.2g}. "
    )


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers that are none as None, at any depth."""
    return {
        name: _or_none(value) if isinstance(value, float) else _finite(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
    }


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if math.isfinite(share) else "-"


def _chance_of(p: float) -> str:
    return "-" if math.isnan(p) else f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def _flat(comparison: Comparison) -> dict[str, Any]:
    row: dict[str, Any] = {k: v for k, v in vars(comparison).items() if k not in ("iqm", "improvement")}
    for name, estimate in (("iqm", comparison.iqm), ("improvement", comparison.improvement)):
        values = (math.nan,) * 3 if estimate is None else (estimate.value, estimate.low, estimate.high)
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), map(_or_none, values), strict=True))
    return row


def _or_none(value: float) -> float | None:
    """A number for CSV and JSON; there is no NaN in these."""
    return value if math.isfinite(value) else None


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _pivot(title: str, found: Sequence[Comparison], arms: Sequence[str], cell: Callable[[Comparison], str]) -> str:
    """A row per arm, a column per environment."""
    columns = list(dict.fromkeys(comparison.environment for comparison in found))
    texts = {}
    for c in found:
        broken = f", {c.broken} without a finite score" if c.broken else ""
        missing = f" ({c.runs} of {c.planned} runs{broken})" if c.runs < c.planned else ""
        texts[c.arm, c.environment] = (cell(c) or "-") + missing
    return _table([title, *columns], [[arm, *(texts[arm, column] for column in columns)] for arm in arms])


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [[str(cell).replace("|", "/") for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def _number(value: float, scale: float | None = None) -> str:
    """With the digits that a number of that scale, by default its own, needs to show four."""
    size = abs(value if scale is None else scale)
    if not math.isfinite(value):
        return "-"
    return f"{value:,.{3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0}f}"


def _quantity(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    scale = max(abs(v) for v in (estimate.value, estimate.low, estimate.high) if math.isfinite(v))
    return _with_interval(estimate, lambda value: _number(value, scale))


def _chance(estimate: Estimate | None) -> str:
    return "" if estimate is None else _with_interval(estimate, lambda value: f"{value:.2f}")


def _with_interval(estimate: Estimate, text: Callable[[float], str]) -> str:
    if math.isnan(estimate.low):
        return f"{text(estimate.value)} (too few runs for an interval)"
    return f"{text(estimate.value)} [{text(estimate.low)}, {text(estimate.high)}]"


def _machine(command: Row) -> str:
    machine = command["machine"]
    parts = [machine["processor"], f"{machine['cores']} cores", machine["gpu"], machine["system"]]
    return ", ".join(part for part in parts if part)
