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
from .plot import learning_curves
from .results import SCORES, TOGETHER, Comparison, Result, Score, Trial, compare, list_trials, pairs, read_result
from .runs import read_run
from .statistics import RESAMPLES, Estimate
from .suites import Suite

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """Everything that a report says.

    :param suite: the suite
    :param out: folder of all its runs
    :param commands: what was started there, with machine and workers
    :param results: how the runs went, in the order of environments, arms and seeds
    :param comparisons: of the arms
    """

    suite: Suite
    out: Path
    commands: Sequence[Row]
    results: Sequence[Result]
    comparisons: Sequence[Comparison]

    @classmethod
    def read(cls, suite: Suite, out: Path, commands: Sequence[Row]) -> "Report":
        """Read it from the folders of the runs; nothing is trained.

        :param suite: the suite
        :param out: folder of all its runs
        :param commands: what was started there
        :return: the report
        """
        order = [(environment.label, arm.label) for environment, arm in pairs(suite)]
        trials = sorted(list_trials(suite, out), key=lambda t: (order.index((t.environment, t.arm)), t.seed))
        results = [read_result(trial, suite.final_evaluations) for trial in trials]
        return cls(suite, out, commands, results, compare(suite, results))

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
            writers["learning_curves.png"] = lambda path: learning_curves(panels, path)
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
        return shlex.join(["headway", *(folder if part == str(trial.folder) else part for part in trial.command)])

    def json(self) -> str:
        """:return: everything, for programs; null stands where there is no number."""
        runs = [self._row(r) | {"command": self._command(r.trial), "problem": r.problem} for r in self.results]
        content = {
            "suite": self.suite.to_dict(),
            "commands": list(self.commands),
            "versions": self._versions(),
            "comparisons": [_flat(comparison) for comparison in self.comparisons],
            "runs": runs,
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    def markdown(self) -> str:
        """:return: everything, for people."""
        parts = [f"# {self.suite.name}", self.suite.description, self._completeness(), *self.scores()]
        if any(result.counts for result in self.results):
            parts += ["## Learning curves", "![Learning curves](learning_curves.png)"]
        return "\n\n".join([part for part in parts if part] + self._conditions() + self._every_run()) + "\n"

    def _completeness(self) -> str:
        counted = sum(result.counts for result in self.results)
        text = f"{counted} of {len(self.results)} runs enter the comparison."
        if counted < len(self.results):
            text = (
                f"**Only {text[:-1]}**; the others failed, are not complete or have no finite score (see “Every run”). "
                "What an arm does when it does not fail may flatter it."
            )
        return text

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
            parts.append(_pivot("IQM over runs [95 % interval]", found, arms, lambda c: _quantity(c.iqm)))
            if others := [arm for arm in arms if arm != suite.baseline]:
                title = f"P(better than {suite.baseline}) [95 % interval]"
                parts.append(_pivot(title, found, others, lambda c: _chance(c.improvement)))
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
            f"{RESAMPLES:,} samples that draws runs with replacement within each environment; with few runs such "
            "intervals come out too narrow. P is the chance that a run scores higher than one of the baseline in the "
            f"same environment, a tie counting half{', averaged over environments' * has_together}; 0.5 is even. "
            f"{together * has_together}Definitions: Agarwal et al., arXiv 2108.13264."
        )
        environments = [
            [e.label, e.id, f"{suite.steps(e):,}", *((f"{r:g}" for r in e.reference) if e.reference else "--")]
            for e in suite.environments
        ]
        arms = [[arm.label, f"`{shlex.join(['headway', *suite.command(e, arm)])}`"] for e, arm in pairs(suite)]
        schedule = (
            f"Seeds: {seeds}. Every {suite.eval_every:,} steps, {suite.eval_episodes} deterministic episodes from "
            "seeded starts are run; before training and after it, twice as many."
        )
        return [
            "## How it was measured",
            text,
            _table(["environment", "id", "steps per run", "low reference", "high reference"], environments),
            schedule,
            _table(["arm", "command, without seed and folder"], arms),
            *self._origins(),
        ]

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
            if (result.trial.folder / "config.json").exists():
                versions = read_run(result.trial.folder).get("versions", {})
                if versions not in found:
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
                parts += [f"### {result.trial}: failed", f"The end of `{log}`:", f"```\n{result.problem}\n```"]
        return parts


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
        missing = f" ({c.runs} of {c.planned} runs)" if c.runs < c.planned else ""
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
