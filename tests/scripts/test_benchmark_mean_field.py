"""``headway benchmark mfg``, on tiny games."""

import importlib.util
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from headway.envs.mean_field import GAMES, make_game
from headway.scripts import benchmark_mean_field
from headway.scripts.benchmark_mean_field import PEERS, MeanFieldOptions, Measurement, ratios

TINY = ("--rounds", 2, "--seconds", 0.001, "--batch", 7, "--batch-iterations", 2, "--num-envs", 1, 3)


WITHOUT_PEER = importlib.util.find_spec("pyspiel") is None


def test_benchmark_writes_what_it_measured(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *args: None if n == "pyspiel" else find(n, *args))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = ("--games", "crowd_modelling", "--env-games", "four_rooms", *TINY, "--json", "b.json")
    code, out, err = headway("benchmark", "mfg", *flags)
    assert code == 0, err
    read: dict[str, Any] = json.loads(Path("b.json").read_text())
    timed = {(m["quantity"], m["game"], m["side"], m["rows"]) for m in read["measurements"]}
    assert timed == {
        ("fictitious_play", "crowd_modelling", "headway", 1),
        ("online_mirror_descent", "crowd_modelling", "headway", 1),
        ("batch", "crowd_modelling", "headway", 7),
        ("env", "four_rooms", "headway-single", 1),
        ("env", "four_rooms", "headway", 1),
        ("env", "four_rooms", "headway", 3),
    }
    assert all(len(m["values"]) == 2 and min(m["values"]) > 0 for m in read["measurements"])
    assert all(m["median"] == statistics.median(m["values"]) for m in read["measurements"])
    assert {(a["side"], a["reason"].partition(":")[0]) for a in read["absent"]} == {
        ("headway-gpu", "torch finds no CUDA device"),
        ("openspiel-python", "OpenSpiel is not installed"),
        ("openspiel-c++", "OpenSpiel is not installed"),
    }
    assert "absent: OpenSpiel is not installed" in out
    assert {"command", "machine", "versions", "load_before", "load_after", "options", "units"} <= read.keys()
    assert read["ratios"] == []
    code, _, err = headway("benchmark", "mfg", "--json", "b.json")
    assert (code, "b.json exists: choose another name" in err) == (1, True)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("import ml_collectionz", "OpenSpiel needs ml_collectionz, which is not installed: pip install ml_collectionz"),
        ("raise ImportError('a symbol')", "OpenSpiel cannot be imported: a symbol"),
    ],
)
def test_openspiel_that_cannot_be_imported(
    headway: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str, reason: str
) -> None:
    """It does not ask for all that it needs."""
    package = tmp_path / "peers" / "open_spiel"
    (package / "python" / "mfg").mkdir(parents=True)
    for file in ("__init__.py", "python/__init__.py", "python/mfg/__init__.py", "../pyspiel.py"):
        (package / file).write_text("")
    (package / "python" / "mfg" / "games.py").write_text(broken)
    monkeypatch.syspath_prepend(str(tmp_path / "peers"))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("open_spiel", "pyspiel")]:
        monkeypatch.delitem(sys.modules, name)
    flags = ("--games", "crowd_modelling", "--env-games", "crowd_modelling", *TINY, "--no-gpu", "--json", "b.json")
    code, out, err = headway("benchmark", "mfg", *flags)
    assert code == 0, err
    assert f"absent: {reason}\n" in out
    for name in [name for name in sys.modules if name.partition(".")[0] in ("open_spiel", "pyspiel")]:
        del sys.modules[name]


@pytest.mark.skipif(WITHOUT_PEER, reason="OpenSpiel is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_benchmark_beside_openspiel(headway: Command) -> None:
    flags = ("--games", "crowd_modelling", "--env-games", "crowd_modelling", *TINY, "--no-gpu", "--json", "b.json")
    code, out, err = headway("benchmark", "mfg", *flags)
    assert code == 0, err
    read: dict[str, Any] = json.loads(Path("b.json").read_text())
    sides = {m["side"] for m in read["measurements"]}
    assert sides == {"headway", "headway-single", "openspiel-python", "openspiel-c++"}
    assert all(row["difference"] < 1e-9 for row in read["agreement"])
    assert len(read["agreement"]) == 2
    assert all(row["times"] > 0 for row in read["ratios"])
    assert "x c++" in out


def test_ratios() -> None:
    def timed(quantity: str, side: str, rows: int, *values: float) -> Measurement:
        return Measurement(quantity, "crowd_modelling", side, rows, list(values))

    found = ratios(
        [
            timed("online_mirror_descent", "headway", 1, 0.5, 0.1, 0.2),
            timed("online_mirror_descent", "openspiel-c++", 1, 4.0),
            timed("batch", "headway", 100, 2.0),
            timed("env", "headway", 8, 600.0),
            timed("env", "openspiel-python", 1, 20.0),
        ]
    )
    assert [(r["quantity"], r["rows"], r["peer"], r["times"]) for r in found] == [
        ("online_mirror_descent", 1, "openspiel-c++", 20.0),
        ("batch", 100, "openspiel-c++", 200.0),
        ("env", 8, "openspiel-python", 30.0),
    ]


def test_iterations_are_timed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    made = benchmark_mean_field.our_solver(make_game("left_right"), "fictitious_play", 2)
    calls: list[int] = []
    monkeypatch.setattr(benchmark_mean_field, "solve", lambda game, algorithm, n, **_: calls.append(n))
    made.run(5)
    assert calls == [2, 2, 1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--games", "four_room"), "--games four_room: the benchmark has no such game: did you mean four_rooms?"),
        (("--env-games", "sis"), "--env-games sis: the benchmark has no such game"),
        (("--rounds", 0), "--rounds must lie in [1, inf), got 0"),
        (("--num-envs", 4, 0), "--num-envs must lie in [1, inf), got 0"),
        (("--json", "/proc/b.json"), "cannot write /proc/b.json: "),
    ],
)
def test_mistakes_of_the_benchmark(headway: Command, flags: tuple[Any, ...], message: str) -> None:
    code, out, err = headway("benchmark", "mfg", *flags)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err


def test_every_peer_is_a_game_of_ours() -> None:
    assert PEERS.keys() <= GAMES.keys()
    assert set(MeanFieldOptions().games) | {"periodic_aversion"} == set(PEERS)
