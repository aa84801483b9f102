"""``headway benchmark relabel``, on tiny episodes."""

import importlib.util
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from conftest import Command
from headway.scripts.benchmark_relabel import Measurement, Side, ratios, states_of

TINY = ("--env", "CartPole-v1", "--states", 12, "--rounds", 2, "--seconds", 0.001)


@pytest.mark.filterwarnings("ignore")  # of libraries that are no part of Headway
def test_benchmark_writes_what_it_measured(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    find, libraries = importlib.util.find_spec, ("ot", "ott", "jax")
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *args: None if n in libraries else find(n, *args))
    code, out, err = headway(
        "benchmark", "relabel", *TINY, "--sides", *get_args(Side), "--episodes", 3, "--json", "b.json"
    )
    assert code == 0, err
    read: dict[str, Any] = json.loads(Path("b.json").read_text())
    assert [m["side"] for m in read["measurements"]] == [
        "headway", "headway-float64", "headway-temporal", "headway-min-distance", "plain", "plain-float64",
    ]  # fmt: skip
    assert all(len(m["values"]) == 2 and min(m["values"]) > 0 for m in read["measurements"])
    off = {m["side"]: m["difference"] for m in read["measurements"]}
    assert off["plain-float64"] == 0
    assert off["headway-float64"] < 1e-12
    assert off["headway"] < 1e-5
    assert off["headway-min-distance"] > 1e-5  # another label
    assert {a["reason"].partition(" is not")[0] for a in read["absent"]} == {"POT", "jax"}
    assert "pot-exact              absent: POT is not installed" in out
    assert read["ratios"]["headway"] == 1
    assert read["data_set"]["steps"] == 36
    assert f"a million steps would take {read['data_set']['seconds_per_million_steps']:.0f} s" in out
    code, _, err = headway("benchmark", "relabel", "--json", "b.json")
    assert (code, "b.json exists: choose another name" in err) == (1, True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("side", "package"), [("pot-log", "ot"), ("pot-kernel", "ot"), ("ott-jax", "ott")])
def test_peers_do_the_same(headway: Command, side: str, package: str) -> None:
    pytest.importorskip(package)
    code, _, err = headway(
        "benchmark", "relabel", *TINY, "--sides", side, "--episodes", 0, "--json", "b.json", "--epsilon", 0.05
    )
    assert code == 0, err
    read = json.loads(Path("b.json").read_text())
    assert read["measurements"][0]["difference"] < 1e-5
    assert read["ratios"] == {}  # to ours, which was not timed
    assert read["data_set"] is None


def test_ratios() -> None:
    measured = [Measurement(side, 1, values, 0.0) for side, values in (("headway", [2.0, 4.0]), ("plain", [30.0]))]
    assert ratios(measured) == {"headway": 1, "plain": 10}


def test_states_of_several_episodes() -> None:
    """CartPole's are shorter than 100 steps under random actions."""
    states = states_of("CartPole-v1", 100, 0)
    assert states.shape == (100, 4)
    torch.testing.assert_close(states.norm(dim=1), torch.ones(100).double())
    torch.testing.assert_close(states, states_of("CartPole-v1", 100, 0), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--sides", "plain", "plain"), "--sides plain plain: one is named twice"),
        (("--device", "tpu"), "--device tpu: there is no such device"),
        (("--states", 1), "--states must lie in [2, inf)"),
    ],
)
def test_mistakes(headway: Command, flags: Any, reason: str) -> None:
    code, _, err = headway("benchmark", "relabel", *flags)
    assert (code, reason in err) == (1, True), err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_benchmark_on_a_gpu(headway: Command) -> None:
    flags = ("--device", "cuda", "--batch", 3, "--sides", "headway", "plain", "--episodes", 4, "--json", "b.json")
    code, _, err = headway("benchmark", "relabel", *TINY, *flags)
    assert code == 0, err
    measured = json.loads(Path("b.json").read_text())["measurements"]
    assert [(m["side"], m["rows"]) for m in measured] == [("headway", 3), ("plain", 1)]
    assert max(m["difference"] for m in measured) < 1e-5
