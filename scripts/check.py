"""``headway check``: whether agents can be trained in an environment, and what should be known before."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import tyro
from gymnasium import Env

from ..agents.core.config import Range
from ..agents.core.files.replacing import replacing
from . import findings as f
from .findings import Finding
from .machine import origin
from .options import Flags, run_flags
from .worlds import World

SIGNS = {"good": ("✓", "32"), "note": ("!", "33"), "fault": ("✗", "31")}
"""What stands before a finding, and its colour on a terminal."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions(Flags):
    """Try environments: which agents take them, whether equal seeds give equal futures, whether runs resume exactly,
    whether and how episodes end, whether delays fit, how fast they are. Several are checked in a process each.

    Exit code 0: nothing is wrong, though there may be things to know; 1: a fault."""

    envs: tyro.conf.Positional[tuple[str, ...]]
    """Environments: Id-v0, or module:Id-v0 to import the module that registers it."""

    delay: str | None = None
    """Check them behind these delays of observations and of actions, as for headway train."""

    steps: Annotated[int, Range(10, unit="environment steps")] = 2_000
    """Random actions to take at most."""

    seconds: Annotated[float, Range(0.1, unit="s")] = 10.0
    """How long to take random actions at most."""

    seed: Annotated[int, Range(0, 4_000_000_000)] = 0
    """Seed of environments and actions."""

    json: Path | None = None
    """Write findings and figures to this file."""

    markdown: Path | None = None
    """Write a table, one line per environment, to this file."""

    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace files that exist."""

    def check(self) -> None:
        """Refuse what cannot be done before anything is.

        :raises ValueError: no environment
        :raises FileExistsError: a file would be overwritten
        """
        if not self.envs:
            raise ValueError("which environment? headway check Id-v0 (`headway envs` lists them)")
        for file in (self.json, self.markdown):
            if file is not None and os.path.lexists(file) and not self.overwrite:
                raise FileExistsError(f"{file} exists: choose another name or pass --overwrite")


@dataclass(frozen=True)
class Report:
    """All that was found out about one environment.

    :param env: its name, delays included
    :param findings: in the order in which they were found
    :param package: distribution that it comes from, and its version
    """

    env: str
    findings: list[Finding] = field(default_factory=list)
    package: str = ""

    @property
    def is_good(self) -> bool:
        """Whether there is no fault."""
        return all(finding.verdict != "fault" for finding in self.findings)

    def finding(self, name: str) -> Finding | None:
        """:return: the finding of a name; None: it was not come to"""
        return next((finding for finding in self.findings if finding.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """:return: it in JSON's terms"""
        return {"env": self.env, "package": self.package, "findings": [asdict(finding) for finding in self.findings]}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Report":
        """:return: what :meth:`to_dict` described"""
        return cls(content["env"], [Finding(**finding) for finding in content["findings"]], content["package"])


def check_env(env_id: str, options: CheckOptions) -> Report:
    """Try one environment.

    :param env_id: ``Id-v0`` or ``module:Id-v0``
    :param options: how thoroughly
    :return: what was found out; nothing after a fault without which the rest makes no sense
    """
    world = World(env_id, options.delay)
    name = env_id if options.delay is None else f"{env_id} behind {options.delay}"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        made: list[Env[Any, Any]] = []
        findings = [f.tried("made", partial(_made, world, made))]
        if not made:
            return Report(name, findings)
        try:
            findings += _findings(world, made[0], options)
        finally:
            made[0].close()
    said = list(dict.fromkeys(f.plain(w.message) for w in warned if not issubclass(w.category, DeprecationWarning)))
    if said:
        more = f" (and {len(said) - 1} more, in --json)" if len(said) > 1 else ""
        findings.append(Finding("warnings", "note", f"{said[0]}{more}", "", {"warnings": said}))
    return Report(name, findings, _package(made[0]))


def _made(world: World, made: list[Env[Any, Any]]) -> Finding:
    made.append(world.single())
    limit = f.limit_of(made[0])
    text = f"{_package(made[0]) or 'a module of its own'}, " + (
        f"time limit {limit:,} steps" if limit else "no time limit"
    )
    return Finding("made", "good", text, "", {"limit": limit})


def _findings(world: World, env: Env[Any, Any], options: CheckOptions) -> list[Finding]:
    seed, limit = options.seed, f.limit_of(env)
    findings, seen = [f.tried("spaces", partial(f.check_spaces, env))], f.Seen()

    def look() -> Finding:
        f.explore(env, options.steps, options.seconds, seed, seen)
        return f.check_values(seen)

    findings.append(f.tried("values", look))
    if findings[-1].verdict == "fault":
        return findings
    actions = list(islice(f.drawn(env.action_space, seed), min(200, seen.steps)))
    findings += [
        f.check_arrays(seen),
        f.check_ends(seen, limit),
        f.check_speed(seen),
        f.tried("seeds", partial(f.check_seeds, world.single, actions, seed)),
        f.tried("snapshot", partial(f.check_snapshot, world.single, max(1, len(actions) // 2), seed)),
    ]
    if options.delay is None:
        findings.append(f.tried("delays", partial(f.check_delays, world.single, actions, seed)))
    return findings + f.check_training(world.env_id, options.delay, seed, env)


def _package(env: Env[Any, Any]) -> str:
    """:return: the distribution that an environment comes from, with its version; empty: from none"""
    top = type(env.unwrapped).__module__.partition(".")[0]
    name = next(iter(importlib.metadata.packages_distributions().get(top, ())), None)
    return "" if name is None else f"{name} {importlib.metadata.version(name)}"


def check_apart(env_id: str, options: CheckOptions) -> Report:
    """Try one environment in a process of its own, which may crash or hang.

    :param env_id: the environment
    :param options: how thoroughly
    :return: what was found out
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        flags = {"--steps": options.steps, "--seconds": options.seconds, "--seed": options.seed, "--json": file}
        flags |= {} if options.delay is None else {"--delay": options.delay}
        command = [sys.executable, "-m", str(__package__), "check"]
        command += [*(str(part) for pair in flags.items() for part in pair), "--", env_id]
        patience = 600 + 20 * options.seconds  # a busy machine is slow
        try:
            code = subprocess.run(command, timeout=patience)
            ended = f"ended by signal {-code.returncode}" if code.returncode < 0 else f"ended with {code.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"had not ended after {patience:.0f} s"
        if file.exists():
            return Report.from_dict(json.loads(file.read_text())["reports"][0])
    report = Report(env_id, [Finding("process", "fault", f"the process that tried it {ended}", ended)])
    show(report)
    return report


def show(report: Report) -> None:
    """Print a report.

    :param report: what was found out
    """
    width = min(120, shutil.get_terminal_size((120, 24)).columns)
    print(f"\n{report.env}")
    for finding in report.findings:
        sign, colour = SIGNS[finding.verdict]
        sign = f"\033[{colour}m{sign}\033[0m" if sys.stdout.isatty() else sign
        lines = textwrap.wrap(finding.text, width - 14, break_on_hyphens=False) or [""]
        print(f"  {sign} {finding.name:<9} {lines[0]}")
        print("".join(f"{' ' * 14}{line}\n" for line in lines[1:]), end="")
    counts = {kind: sum(finding.verdict == kind for finding in report.findings) for kind in SIGNS}
    print(f"  {f.count(counts['fault'], 'fault')}, {f.count(counts['note'], 'note')}", flush=True)


def table(reports: Sequence[Report]) -> str:
    """Put reports into a table.

    :param reports: one per line
    :return: Markdown
    """
    lines = ["| environment | spaces | trains | resumes | delays | besides |", "|---|---|---|---|---|---|"]
    for report in reports:
        found = {finding.name: finding for finding in report.findings}
        spaces = found["spaces"].figures.get("what", "") if "spaces" in found else ""
        cells = [f"`{report.env}`" + (f", {report.package}" if report.package else ""), spaces]
        refused = found["spaces"] if "spaces" in found and found["spaces"].verdict == "fault" else None
        cells += [_cell(found.get("trains", refused)), _cell(found.get("resumes")), _cell(found.get("delays"))]
        besides = [_cell(finding) for name, finding in found.items() if name not in COLUMNS and finding.short]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in [*cells, "; ".join(besides)]) + " |")
    return "\n".join(lines) + "\n"


COLUMNS = ("spaces", "trains", "resumes", "delays")
"""Findings that have a column of their own."""


def _cell(finding: Finding | None) -> str:
    if finding is None:
        return "-"
    return f"**{finding.short or finding.text}**" if finding.verdict == "fault" else finding.short


def check(options: CheckOptions) -> int:
    """Run ``headway check``.

    :param options: its arguments
    :return: exit code, 1 if there is a fault
    """
    options.check()
    alone = len(options.envs) == 1
    reports = []
    for env_id in options.envs:
        reports.append(check_env(env_id, options) if alone else check_apart(env_id, options))
        if alone:
            show(reports[-1])
        _write(options, reports)  # after each: of many, one may take long
    return 0 if all(report.is_good for report in reports) else 1


def _write(options: CheckOptions, reports: Sequence[Report]) -> None:
    if options.json is not None:
        with replacing(options.json) as temporary:
            content = {**origin(), "reports": [report.to_dict() for report in reports]}
            temporary.write_text(json.dumps(content, indent=1) + "\n")
    if options.markdown is not None:
        with replacing(options.markdown) as temporary:
            temporary.write_text(table(reports))


def main(arguments: Sequence[str]) -> int:
    """Run ``headway check``.

    :param arguments: the command line after "check"
    :return: exit code
    """
    return run_flags(CheckOptions, arguments, "headway check", check)
