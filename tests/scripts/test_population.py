"""Generations on the command line: their table, their log, their figure."""

import csv
import re
import shlex
from pathlib import Path

import pytest
from conftest import Command
from headway.agents.pgps.evolution import COLUMNS, HEAD, ORIGINS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SHORT = shlex.split(
    "--env headway/Trap-v0 --net-arch 8 --population-size 4 --eval-every 0 --eval-episodes 1 --threads 1"
)
SHORT += shlex.split("--initial-horizon 10 --horizon 10 --log-every 40 --run-dir run")
PGPS = shlex.split("--batch-size 8 --learning-starts 40 --surrogate-start 80 --surrogate-states 4 --probe-states 8")


@pytest.fixture(autouse=True)
def no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the learning curve, which takes longer than the tiny run itself."""
    monkeypatch.setattr("headway.scripts.figures.learning_curve", lambda run, *_: run / "learning_curve.png")


def rows() -> list[dict[str, str]]:
    with Path("run/progress.csv").open(newline="") as opened:
        return list(csv.DictReader(opened))


def table(out: str) -> list[str]:
    """The lines of the table of generations."""
    lines = out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.split()[:2] == ["gen", "steps"]) - 1
    return lines[first : next(number for number, line in enumerate(lines) if line.startswith("after training"))]


def test_a_run_of_pgps(headway: Command) -> None:
    code, out, err = headway("train", "pgps", *SHORT, *PGPS, "--total-timesteps", 160)
    assert code == 0, err
    head, titles, *generations = table(out)
    assert re.findall(r"- ([^-]+) -", head) == ["return", "learner", "parents, by origin", "search"]
    names = [title for columns in COLUMNS.values() for title, *_ in columns]
    assert titles.split() == names
    assert max(map(len, (head, titles, *generations))) <= 100  # as wide as the bar where no terminal says otherwise
    cells = [dict(zip(names, line.split(), strict=True)) for line in generations]
    assert [(row["gen"], row["steps"]) for row in cells] == [("1", "80"), ("2", "120"), ("3", "160")]
    logged = [row for row in rows() if row["population/generation"]]
    assert [float(row["population/timesteps"]) for row in logged] == [80, 140]  # the last line has two of them
    for row in logged:
        assert sum(float(row[f"population/parents_{origin}"]) for origin in ORIGINS) == pytest.approx(1)
    events = EventAccumulator("run")
    events.Reload()
    shown = set(events.Tags()["scalars"])
    assert {f"population/{name}" for columns in COLUMNS.values() for _, name, _, _ in columns} <= shown
    assert headway("plot", "--population", "run")[0] == 0
    assert Path("population.png").stat().st_size > 0


def test_a_run_of_cem_alone(headway: Command) -> None:
    """It has no columns of what it has not, and a head over each so many lines; several generations to a line."""
    code, out, _ = headway("train", "cem", *SHORT, "--total-timesteps", 40 * (HEAD + 1), "--log-every", 80)
    assert code == 0
    head, titles, *rest = table(out)
    assert titles.split() == ["gen", "steps", "best", "mean", "elite", "random", "width"]
    assert rest[HEAD : HEAD + 2] == [head, titles]
    assert len(rest) == HEAD + 3
    assert rest[1].split()[4:6] in (["50%", "50%"], ["0%", "100%"])
    assert "learning_rate" not in out
    lines = [row["population/generation"] for row in rows()]
    assert [float(mean) for mean in lines if mean][:3] == [1, 2.5, 4.5]
    assert headway("plot", "--population", "run")[0] == 0


def test_what_cem_has_no_use_for_is_no_flag(headway: Command) -> None:
    for flag in ("--learning-rate", "--gamma", "--batch-size", "--compile"):
        code, _, err = headway("train", "cem", "--env", "headway/Trap-v0", flag, 1)
        assert code == 1
        assert f"takes no {flag}" in err
