"""What ``headway check`` finds out: each rule by a world that breaks it, and none by one that keeps them."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from headway.scripts import findings
from headway.scripts.check import CheckOptions, Report, check_env, table
from headway.scripts.cli import main
from headway.scripts.findings import Finding, Seen, differs, drawn, explore, outside
from toys import FORMS, MOVES, Odd, Point

gym.register("Odd-v0", Odd)
for fault in ("reuses", "text", "nan", "crash", "endless", "hidden", "lock", "global"):
    gym.register(f"Odd-{fault}-v0", Odd, kwargs={"fault": fault})

ACTIONS = list(islice(drawn(MOVES["box"], 0), 60))


def look(fault: str, steps: int = 100, **kwargs: Any) -> Seen:
    seen = Seen()
    explore(Odd(fault, **kwargs), steps, 60, 0, seen)
    return seen


def test_nothing_is_found_in_a_sound_world() -> None:
    report = check_env("Odd-v0", CheckOptions(envs=("Odd-v0",), steps=300))
    assert [f.name for f in report.findings] == [
        *("made", "spaces", "values", "arrays", "ends", "speed", "seeds", "snapshot", "delays", "trains", "resumes"),
    ]
    assert {f.verdict for f in report.findings} == {"good"}
    assert report.is_good


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("moves", MOVES)
def test_spaces_of_every_kind_are_good(form: str, moves: str) -> None:
    env = Point(form=form, moves=moves)
    seen = Seen()
    explore(env, 50, 60, 0, seen)
    assert findings.check_values(seen).verdict == findings.check_spaces(env).verdict == "good"
    assert "PPO" in findings.check_spaces(env).figures["agents"]


@pytest.mark.parametrize(
    ("fault", "verdict", "text"),
    [
        ("nan", "fault", "reset: observation holds nan"),
        ("shape", "fault", "reset: observation has shape (2,), its space (1,)"),
        ("word", "fault", "reset: observation is of <U1, its space of float32"),
        ("reward nan", "fault", "step 1: the reward is nan"),
        ("reward pair", "fault", "step 1: the reward is array([0., 0.]), not a number"),
        ("four", "fault", "step 1: step returns no tuple of five"),
        ("no info", "fault", "step 1: info is a NoneType, no dict"),
        ("reward array", "fault", "step 1: the reward is array([1.]), not a number"),
        ("double", "note", "reset: observation is an array of float64, its space an array of float32"),
        ("list", "note", "reset: observation is a list, its space an array of float32"),
        ("outside", "note", "outside of [-3, 3]"),
        ("writes", "note", "step writes into the action"),
        ("", "good", "finite and in their spaces in 100 steps"),
    ],
)
def test_values(fault: str, verdict: str, text: str) -> None:
    finding = findings.check_values(look(fault))
    assert finding.verdict == verdict
    assert text in finding.text


def test_what_is_wrong_inside_a_dict_is_named() -> None:
    space = spaces.Dict({"a": spaces.Box(0, 1, (2,), np.float32), "b": spaces.Dict({"c": spaces.Discrete(3)})})
    good = {"a": np.zeros(2, np.float32), "b": {"c": 1}}
    assert outside(space, good) is None
    assert outside(space, {"a": good["a"]}) == ("fault", "observation has the keys ['a'], its space ['a', 'b']")
    found = outside(space, {"a": np.full(2, 2, np.float32), "b": {"c": 7}})  # of two, the fault
    assert found == ("fault", "observation['b']['c'] is 7, which is not in Discrete(3)")


def test_arrays_that_are_used_again() -> None:
    assert findings.check_arrays(look("reuses")).verdict == "note"
    assert findings.check_arrays(look("reuses", steps=1, length=1)).verdict == "note"  # only the reset writes into it
    assert findings.check_arrays(look("")).verdict == "good"


def test_ends() -> None:
    finding = findings.check_ends(look("", length=7), None)
    assert finding.figures["longest"] <= 7
    assert finding.figures["terminated"] + finding.figures["truncated"] >= finding.figures["episodes"] > 10
    endless = findings.check_ends(look("endless"), None)
    assert (endless.verdict, endless.figures["episodes"]) == ("note", 0)
    assert "max_episode_steps" in endless.text
    assert findings.check_ends(look("endless"), 1000).verdict == "good"


def test_looking_is_limited_by_time() -> None:
    seen = Seen()
    explore(Odd("endless"), 10**9, 0.05, 0, seen)
    assert 0 < seen.steps < 10**7


@pytest.mark.parametrize("fault", ["global", "own", "hidden"])
def test_seeds_that_do_not_count(fault: str) -> None:
    finding = findings.check_seeds(lambda: Odd(fault), ACTIONS, 0)
    assert finding.verdict == "fault"
    where = "in a second one" if fault == "own" else "in the same environment"
    assert where in finding.text
    assert "from the reset on" in finding.text


def test_seeds_that_count() -> None:
    finding = findings.check_seeds(Odd, ACTIONS, 0)
    assert (finding.verdict, finding.figures) == ("good", {"equal": True, "varied": True})


@pytest.mark.parametrize(
    ("fault", "verdict", "text"),
    [
        ("", "good", "a copy goes on bit for bit"),
        ("reuses", "good", "a copy goes on bit for bit"),
        ("hidden", "fault", "step 1 of a copy differs in observations"),
        ("lock", "note", "env.lock is a _thread.lock"),
    ],
)
def test_snapshot(fault: str, verdict: str, text: str) -> None:
    finding = findings.check_snapshot(lambda: Odd(fault), len(ACTIONS) // 2, 0)
    assert finding.verdict == verdict
    assert text in finding.text


def test_delays() -> None:
    good = findings.check_delays(Point, ACTIONS, 0)
    assert good.verdict == "good"
    assert {"DCAC", "PPO", "SAC", "TD3"} <= set(good.figures["agents"])  # beside those that other tests register
    several = findings.check_delays(lambda: Point(moves="multidiscrete"), [], 0)
    assert several.verdict == "note"
    assert "MultiDiscrete" in several.text


@pytest.mark.parametrize(
    ("fault", "last", "text"),
    [
        ("text", "spaces", "no agent takes them"),
        ("nan", "values", "holds nan"),
        ("crash", "values", "KeyError: 'the fifth step' (toys.py:"),
        ("lock", "resumes", "lock is a _thread.lock"),
        ("hidden", "resumes", "differs"),
    ],
)
def test_what_is_wrong_is_in_the_report(fault: str, last: str, text: str) -> None:
    report = check_env(f"Odd-{fault}-v0", CheckOptions(envs=("x",), steps=300))
    finding = report.finding(last)
    assert finding is not None
    assert finding.verdict == ("note" if fault == "lock" else "fault")
    assert text in finding.text
    assert report.is_good == (fault == "lock")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (np.array([np.nan, 0]), np.array([np.nan, 0]), False),
        (np.zeros(2), np.zeros(2, np.float32), True),
        (np.float32(1), 1.0, True),
        ({"a": (1, "x")}, {"a": (1, "x")}, False),
        ({"a": (1, "x")}, {"a": (1, "y")}, True),
        ({"a": 1}, {"b": 1}, True),
        ([1], [1, 2], True),
        (torch.ones(2), torch.ones(2), False),
        (torch.ones(2), torch.ones(2).double(), True),
    ],
)
def test_differences(one: Any, other: Any, expected: bool) -> None:
    assert differs(one, other) is expected


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    assert main(["check", "Odd-v0", "--steps", "60", "--delay", "constant:1,constant:1", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "Odd-v0 behind constant:1,constant:1" in printed
    assert "0 faults" in printed
    (content,) = json.loads(file.read_text())["reports"]
    assert Report.from_dict(content).is_good
    assert main(["check", "Odd-crash-v0", "--json", str(file)]) == 1  # it exists
    assert "--overwrite" in capsys.readouterr().err
    assert main(["check", "Odd-crash-v0"]) == 1
    assert "✗ values" in capsys.readouterr().out
    assert main(["check", "Odd-v9"]) == 1
    assert "✗ made" in capsys.readouterr().out
    assert main(["check"]) == 1


def test_table_of_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Each in a process of its own: one may take its process with it."""
    (tmp_path / "mine.py").write_text(
        "import os, gymnasium as gym\nfrom toys import Point\n"
        "class Dies(Point):\n    def step(self, action):\n        os.kill(os.getpid(), 9)\n"
        "gym.register('Dies-v0', Dies)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parent.parent}", prepend=":")
    assert main(["check", "mine:Dies-v0", "nothing:Else-v0", "--markdown", str(tmp_path / "t.md")]) == 1
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert lines[2:] == [
        "| `mine:Dies-v0` |  | - | - | - | **ended by signal 9** |",
        f"| `nothing:Else-v0` |  | - | - | - | {lines[3].split('|')[6].strip()} |",
    ]
    assert "there is no module 'nothing'" in lines[3]


def test_table() -> None:
    found = [
        Finding("spaces", "good", "", "SAC", {"what": "Box(1,)"}),
        Finding("arrays", "note", "long", "reuses its arrays"),
        Finding("delays", "note", "long", "no"),
        Finding("trains", "fault", "long", "a | b"),
    ]
    last = table([Report("A-v0", found, "mine 1.0")]).splitlines()[-1]
    assert last == "| `A-v0`, mine 1.0 | Box(1,) | **a \\| b** | - | no | reuses its arrays |"
