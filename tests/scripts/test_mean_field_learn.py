"""``headway mfg learn`` and ``headway mfg recover``, on tiny games."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from headway.envs.mean_field import exploitability, make_game, solve
from headway.scripts.mean_field import recover, study
from headway.scripts.mean_field.learners import ALGORITHMS
from headway.scripts.runs import locked
from mean_field_support import image, rows
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

FEW = ("--set", "episodes=20", "members=20", "learning_starts=20", "train_freq=5", "--iterations", 2, "--no-progress")


def values(folder: str) -> list[tuple[str, ...]]:
    """What was found, in order, seconds left out."""
    lines = rows(Path(folder) / "exploitability.csv")
    return sorted(tuple(text for name, text in line.items() if name != "seconds") for line in lines)


def test_learn_writes_what_it_watches(headway: Command) -> None:
    code, out, err = headway("mfg", "learn", "left_right", "sis", *FEW, "--seeds", 0, 3, "--out", "run")
    assert code == 0, err
    lines = rows(Path("run/exploitability.csv"))
    assert list(lines[0]) == ["game", "algorithm", "seed", "iteration", "steps", "seconds", "exploitability"]
    assert [(line["seed"], line["iteration"]) for line in lines if line["game"] == "sis"] == [
        (seed, str(k)) for seed in ("", "0", "3") for k in range(3)
    ]
    exact = [float(line["exploitability"]) for line in lines[:3]]
    assert exact == solve(make_game("left_right"), "online_mirror_descent", 2).history.exploitability.tolist()
    assert lines[0]["algorithm"] == "online_mirror_descent"
    policy = load_file("run/sis/seed-3/policy.safetensors")["policy"]
    found = float(exploitability(make_game("sis"), policy))
    assert float(lines[-1]["exploitability"]) == found
    assert lines[-1]["steps"] == str(2 * 20 * make_game("sis").H)
    assert f"sis, seed 3: NashConv {found:.6g} after 2 iterations" in out
    assert re.search(r"\nmedian of 2 ( +[0-9.]+){3}\n", out)
    manifest = json.loads(Path("run/learn.json").read_text())
    assert manifest["config"]["episodes"] == 20
    assert manifest["flags"]["seeds"] == [0, 3]
    assert {"command", "machine", "versions"} <= manifest.keys()
    events = EventAccumulator("run/sis/seed-3").Reload()
    assert [point.step for point in events.Scalars("mean_field/iteration")] == [0, 1000, 2000]
    assert events.Scalars("mean_field/exploitability")[-1].value == pytest.approx(found)
    image("run/exploitability.png")
    code, _, err = headway("mfg", "learn", "sis", *FEW, "--out", "run")
    assert (code, "File exists" in err) == (1, True)


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        ("average_fictitious_play", ("episodes=20", "learning_starts=5", "train_freq=5", "average_steps=3")),
        ("deep_fictitious_play", ("episodes=20", "learning_starts=5", "train_freq=5")),
        ("ppo", ("timesteps=20", "members=4", "n_steps=5", "batch_size=10", "n_epochs=1", "net_arch=[8]")),
    ],
)
def test_learn_with_every_algorithm(headway: Command, algorithm: str, settings: tuple[str, ...]) -> None:
    flags = ("--algorithm", algorithm, "--set", *settings, "--iterations", 1, "--no-progress", "--out", "run")
    code, out, err = headway("mfg", "learn", "left_right", *flags)
    assert code == 0, err
    lines = rows(Path("run/exploitability.csv"))
    assert [line["algorithm"] for line in lines] == ["fictitious_play"] * 2 + [algorithm] * 2
    assert int(lines[-1]["steps"]) >= 20
    assert Path("run/left_right/seed-0/learner-0.zip").exists()
    assert "exact fictitious_play" in out


def test_learn_goes_on_after_ctrl_c_as_if_nothing_had_been(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("left_right", *FEW, "--seeds", 0, 1)
    headway("mfg", "learn", *flags, "--out", "whole")
    log, calls = study.log_iterations, []

    def pressed(iteration: Any) -> None:
        calls.append(iteration.number)
        if calls == [0, 1, 2, 0, 1]:  # seed 0 is finished, and an iteration of seed 1
            raise KeyboardInterrupt

    monkeypatch.setattr(study, "log_iterations", lambda logger: pressed)
    code, out, _ = headway("mfg", "learn", *flags, "--out", "run")
    assert code == 130
    assert "interrupted: 1 of 2 runs are finished; the one that was cut off starts again" in out
    assert "go on with: headway mfg learn --resume run\n" in out
    assert len(values("run")) == len(values("whole")) - 1
    image("run/exploitability.png")
    policy = Path("run/left_right/seed-0/policy.safetensors")
    before = policy.stat().st_mtime_ns
    with Path("run/exploitability.csv").open("a") as file:
        file.write("left_right,deep_mirr")  # as if the process had been killed
    monkeypatch.setattr(study, "log_iterations", log)
    code, out, err = headway("mfg", "learn", *flags, "--out", "run", "--resume", "run")
    assert code == 0, err
    assert "left_right, seed 0: finished before" in out
    assert policy.stat().st_mtime_ns == before
    assert values("run") == values("whole")
    code, out, _ = headway("mfg", "learn", "--resume=run", "--no-progress", "--seeds", 2)
    assert code == 0
    assert len(values("run")) == len(values("whole")) + 3
    manifest = json.loads(Path("run/learn.json").read_text())
    assert (manifest["flags"]["seeds"], len(manifest["resumed"])) == ([0, 1, 2], 2)


def test_learn_resumes_nothing_else(headway: Command) -> None:
    headway("mfg", "learn", "left_right", *FEW, "--no-exact", "--out", "run")
    before = values("run")
    for flags, message in (
        (("--iterations", 3), "--iterations is 2 in run and cannot become 3: leave the flag out"),
        (("--set", "alpha=1"), "--set is episodes=20"),
        (("left_right", "sis"), "--games is left_right in run and cannot become left_right sis"),
        (("--exact",), "--exact is False in run and cannot become True"),
        (("--out", "elsewhere"), "--out elsewhere: a command that goes on with run writes there"),
    ):
        code, out, err = headway("mfg", "learn", *flags, "--resume", "run")
        assert (code, out, message in err) == (1, "", True), err
    with locked(Path("run")) as free:
        assert free
        code, _, err = headway("mfg", "learn", "--resume", "run")
    assert (code, "another process is learning in run" in err) == (1, True)
    assert values("run") == before
    Path("run/exploitability.csv").write_text("game,seed\nleft_right,0\n")
    code, _, err = headway("mfg", "learn", "--resume", "run")
    assert (code, "run/exploitability.csv is broken" in err) == (1, True)
    Path("run/learn.json").write_text("{}")
    code, _, err = headway("mfg", "learn", "--resume", "run")
    assert (code, "run/learn.json is broken" in err) == (1, True)


def test_a_run_without_its_record_or_policy_is_not_finished(headway: Command) -> None:
    command = ("mfg", "learn", "left_right", "--iterations", 1, "--no-exact", "--no-progress", "--out", "run")
    tiny = ("--set", "episodes=20", "members=20", "learning_starts=20", "batch_size=8", "train_freq=4")
    assert headway(*command, *tiny)[0] == 0
    policy, record = Path("run/left_right/seed-0/policy.safetensors"), Path("run/exploitability.csv")
    kept = record.read_text()
    assert "finished before" in headway("mfg", "learn", "--resume", "run", "--no-progress")[1]
    for spoil in (lambda: policy.write_bytes(b""), lambda: record.write_text(kept[:-10])):
        spoil()
        code, out, _ = headway("mfg", "learn", "--resume", "run", "--no-progress")
        assert (code, "finished before" in out) == (0, False)
        assert len(record.read_text().splitlines()) == len(kept.splitlines())


def test_a_run_that_fails_does_not_stop_the_others(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    known = ALGORITHMS["deep_mirror_descent"]

    def diverging(*args: Any, seed: int, iterations: int, **options: Any) -> Any:
        if seed == 0 and iterations:
            raise ValueError("outputs are no longer finite")
        return known.solve(*args, seed=seed, iterations=iterations, **options)

    monkeypatch.setitem(ALGORITHMS, "deep_mirror_descent", dataclasses.replace(known, solve=diverging))
    code, out, _ = headway("mfg", "learn", "left_right", *FEW, "--seeds", 0, 1, "--out", "run")
    assert code == 1
    assert "left_right, seed 0: failed: outputs are no longer finite" in out
    assert "1 of 2 runs failed" in out
    assert [place.parent.name for place in Path("run").rglob("policy.safetensors")] == ["seed-1"]


def test_settings_are_listed(headway: Command) -> None:
    code, out, _ = headway("mfg", "learn", "--algorithm", "ppo", "--set", "help")
    assert code == 0
    assert "  batch_size=64: Rows per gradient step. Range: [1, inf).\n" in out


def test_recover_plants_and_finds(headway: Command) -> None:
    code, out, err = headway("mfg", "recover", "--people", 0, 200, 2000, "--draws", 2, "--no-progress", "--out", "run")
    assert code == 0, err
    lines = rows(Path("run/recovery.csv"))
    assert [(line["people"], line["flow"], line["draw"]) for line in lines] == [
        (people, flow, draw)
        for people, draw in (("all", "0"), ("200", "0"), ("200", "1"), ("2000", "0"), ("2000", "1"))
        for flow in ("data", "model")
    ]
    assert float(lines[0]["error_u"]) < 1e-6
    assert abs(float(lines[0]["log_congestion"]) - 1) < 1e-6
    assert all(line["converged"] == "1" for line in lines)
    many, few = (np.median([float(r["error_u"]) for r in lines if r["people"] == n]) for n in ("2000", "200"))
    assert many < few
    assert re.search(r"\n +2000  model  0\.0\d+ \[0\.0\d+, 0\.0\d+\] .* 2 of 2\n", out)
    assert json.loads(Path("run/recover.json").read_text())["people"] == [0, 200, 2000]
    image("run/recovery.png")


def test_recover_topics(headway: Command) -> None:
    flags = ("--instance", "topics", "--people", 0, "--flow", "data", "--no-progress", "--out", "run")
    code, out, err = headway("mfg", "recover", *flags)
    assert code == 0, err
    (line,) = rows(Path("run/recovery.csv"))
    assert float(line["stay"]) == pytest.approx(0.2, abs=1e-6)
    assert float(line["popularity"]) == pytest.approx(1.0, abs=1e-6)
    assert abs(float(line["exploitability"])) < 1e-9
    assert "error_popularity" in out
    assert not Path("run/recovery.png").exists()  # without numbers of people there is no axis for them


def test_recover_keeps_what_it_has_at_ctrl_c(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = iter([recover.fit] * 3)

    def pressed(*args: Any, **options: Any) -> Any:
        try:
            return next(fits)(*args, **options)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(recover, "fit", pressed)
    code, out, _ = headway("mfg", "recover", "--people", 100, "--draws", 3, "--no-progress", "--out", "run")
    assert code == 130
    assert "interrupted after 3 of 6 fits" in out
    assert len(rows(Path("run/recovery.csv"))) == 3
    image("run/recovery.png")
