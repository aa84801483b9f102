"""``headway benchmark population``, on tiny networks."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from headway.agents.core.nets import StackedMLP
from headway.scripts.benchmark_population import (
    Evaluation,
    Measurement,
    PopulationOptions,
    Screening,
    ratios,
    sequential,
)
from headway.scripts.timing import Stopwatch

TINY = ("--rounds", 2, "--seconds", 0.001, "--net-arch", 8, "--steps", 3, "--population-size", 2, 3)
TINY += ("--candidates", 20, "--states", 4, "--generations", 1, "--horizon", 5)


def test_benchmark_writes_what_it_measured(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *args: None if n == "evotorch" else find(n, *args))
    code, out, err = headway("benchmark", "population", *TINY, "--json", "b.json")
    assert code == 0, err
    read: dict[str, Any] = json.loads(Path("b.json").read_text())
    evaluation, screening = ("headway", "loop", "physics alone"), ("headway", "headway, shared noise")
    screening += ("loop", "loop, float64")
    cases = [("evaluation", 2, evaluation), ("evaluation", 3, evaluation), ("screening", 20, screening)]
    named = [(part, members, side) for part, members, sides in cases for side in sides]
    assert [(m["part"], m["members"], m["side"]) for m in read["measurements"]] == named
    assert all(len(m["values"]) == 2 and min(m["values"]) > 0 for m in read["measurements"])
    compared = {m["side"]: m["difference"] for m in read["measurements"]}
    assert compared.pop("physics alone") is None
    assert max(compared.values()) < 1e-4
    assert [(r["part"], r["members"], r["side"]) for r in read["ratios"]] == [n for n in named if n[2] != "headway"]
    assert [(row["members"], row["reason"]) for row in read["absent"]] == [
        (members, "EvoTorch is not installed: pip install evotorch") for members in (2, 3)
    ]
    assert out.count("absent: EvoTorch is not installed") == 2
    generation = read["generation"]
    assert (generation["generations"], generation["steps"], generation["updates"]) == (1, 50, 100)
    assert all(seconds > 0 for seconds in generation["seconds"].values())
    assert "a generation of 10 members, 50 steps" in out
    code, _, err = headway("benchmark", "population", "--json", "b.json")
    assert (code, "b.json exists: choose another name" in err) == (1, True)


def test_a_peer_that_cannot_be_imported_is_absent(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("evotorch.py").write_text("raise ImportError('a symbol')")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(sys.modules, "evotorch", raising=False)
    code, out, err = headway("benchmark", "population", *TINY, "--parts", "evaluation")
    assert code == 0, err
    assert "absent: EvoTorch cannot be imported: a symbol" in out
    assert "screening" not in out
    assert "a generation" not in out


def test_members_are_those_of_the_loop() -> None:
    scene = Evaluation(3, PopulationOptions(net_arch=(8, 6), steps=5))
    ours, loop = scene.ours(), scene.loop()
    assert ours.outcome is not None
    assert loop.outcome is not None
    assert len(loop.outcome().unique()) == 3
    torch.testing.assert_close(ours.outcome(), loop.outcome(), atol=1e-5, rtol=0)  # magnified for five steps


def test_the_loop_chooses_the_best() -> None:
    screening = Screening(PopulationOptions(net_arch=(8, 6), candidates=12, states=5))
    for turn in (screening.loop(), screening.loop_in_float64()):
        chosen = torch.as_tensor(turn.work())
        assert chosen.shape == (4, len(screening.middle))
        assert (screening.judge(chosen).diff() < 0).all()
    assert screening.ours(True).work().shape == chosen.shape


def test_torch_layers_compute_the_same() -> None:
    mlp, x = StackedMLP((3,), 4, 2, (8, 6), "elu"), torch.randn(5, 4)
    for squash in (False, True):
        expected = mlp(x)[0].tanh() if squash else mlp(x)[0]
        torch.testing.assert_close(sequential(mlp, squash=squash)(x), expected)


def test_a_stopwatch_counts_each_moment_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Clock:
        def outer(self) -> str:
            nonlocal now
            now += 1
            self.inner()
            self.inner()
            now += 2
            return "done"

        def inner(self) -> None:
            nonlocal now
            now += 10

    monkeypatch.setattr("time.perf_counter", lambda: now)
    clock, watch = Clock(), Stopwatch()
    watch.watch(clock, "inner", "within")
    watch.watch(clock, "outer", "around")
    assert clock.outer() == "done"
    assert watch.seconds == {"within": 20.0, "around": 3.0}


def test_ratios_are_of_medians() -> None:
    measured = [
        Measurement("evaluation", "headway", 10, [1.0, 2.0, 9.0], [2.0, 3.0], 0.0),
        Measurement("evaluation", "loop", 10, [8.0, 1.0, 9.0], [5.0], None),
        Measurement("evaluation", "headway", 64, [8.0], [8.0], 0.0),
    ]
    assert ratios(measured) == [{"part": "evaluation", "members": 10, "side": "loop", "times": 4.0, "processors": 2.0}]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--parts",), "--parts: name some of evaluation, screening, generation, each once"),
        (("--parts", "evaluation", "evaluation"), "each once"),
        (("--population-size",), "--population-size: name a number of members"),
        (("--candidates", 1), "--candidates must lie in"),
    ],
)
def test_mistakes_of_the_benchmark(headway: Command, flags: tuple[Any, ...], message: str) -> None:
    code, out, err = headway("benchmark", "population", *flags)
    assert code == 1
    assert message in err
    assert not out
