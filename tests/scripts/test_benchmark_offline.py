"""``headway benchmark offline``, on tiny networks."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from headway.scripts.benchmark_offline import Eager, Measurement, OfflineOptions, ratios, some_data

TINY = ("--rounds", 2, "--seconds", 0.001, "--net-arch", 8, "--batch-size", 4, "--rows", 1000, "--seeds", 2)


def test_benchmark_writes_what_it_measured(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *args: None if n == "d3rlpy" else find(n, *args))
    code, out, err = headway("benchmark", "offline", *TINY, "--json", "b.json")
    assert code == 0, err
    read: dict[str, Any] = json.loads(Path("b.json").read_text())
    sides = ("headway", "eager", "headway, several seeds", "headway, one seed")
    steps = ("iql", "hdcr value", "hdcr actor")
    assert [(m["step"], m["side"]) for m in read["measurements"]] == [(step, side) for step in steps for side in sides]
    assert all(len(m["rates"]) == 2 and min(m["rates"]) > 0 for m in read["measurements"])
    assert [(row["step"], row["of"]) for row in read["ratios"]] == [
        (step, of) for step in steps for of in ("headway", "headway, one seed")
    ]
    assert read["absent"][0]["reason"].startswith("d3rlpy is not installed")
    assert "absent: d3rlpy is not installed" in out
    assert out.count("x as long as one") == out.count("x as fast") == 3
    code, _, err = headway("benchmark", "offline", "--json", "b.json")
    assert (code, "b.json exists: choose another name" in err) == (1, True)


def test_a_peer_that_cannot_be_imported_is_absent(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("d3rlpy.py").write_text("raise ImportError('a symbol')")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(sys.modules, "d3rlpy", raising=False)
    code, out, err = headway("benchmark", "offline", *TINY, "--steps", "iql", "--seeds", 0)
    assert code == 0, err
    assert "absent: d3rlpy cannot be imported: a symbol" in out
    assert "several seeds" not in out


def test_ratios_are_of_medians() -> None:
    measured = [
        Measurement("iql", side, rates)
        for side, rates in {
            "headway": [1.0, 10.0, 12.0],
            "eager": [5.0, 4.0, 90.0],
            "headway, one seed": [9.0],
            "headway, several seeds": [3.0],
        }.items()
    ]
    assert [(row["of"], row["to"], row["times"]) for row in ratios(measured)] == [
        ("headway", "eager", 2.0),
        ("headway, one seed", "headway, several seeds", 3.0),
    ]


def test_eager_code_learns() -> None:
    """Its losses fall, so that what is timed is no empty work."""
    torch.manual_seed(0)
    peer = Eager(some_data(1000), OfflineOptions(net_arch=(16,), batch_size=256))
    losses: dict[str, list[float]] = {}
    descend = peer.descend

    def noted(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> float:
        name = next(name for name in ("of_value", "of_critics", "of_policy") if optimizer is getattr(peer, name))
        losses.setdefault(name, []).append(descend(optimizer, loss))
        return losses[name][-1]

    peer.descend = noted  # type: ignore[method-assign]
    for step in (peer.hdcr_value, peer.hdcr_actor):
        for _ in range(150):
            step()
    assert all(sum(values[-20:]) < sum(values[:20]) for values in losses.values())
    peer.iql()
    assert {name: len(values) for name, values in losses.items()} == {
        "of_value": 151,
        "of_policy": 151,
        "of_critics": 1,
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--steps",), "--steps: name some of iql, hdcr value, hdcr actor, each once"),
        (("--steps", "iql", "iql"), "each once"),
        (("--seeds", 1), "--seeds 1: one seed is what several are compared with"),
        (("--rows", 10), "--rows must lie in"),
        (("--device", "tpu"), "--device tpu: there is no such device here"),
    ],
)
def test_mistakes_of_the_benchmark(headway: Command, flags: tuple[Any, ...], message: str) -> None:
    code, out, err = headway("benchmark", "offline", *flags)
    assert code == 1
    assert message in err
    assert not out
