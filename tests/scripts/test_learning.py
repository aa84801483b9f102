"""``headway benchmark learn``: suites, their runs, what stops and fails, and the report."""

import csv
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Command
from headway.scripts import learning, runs
from headway.scripts.learning import COMMANDS, SUITE
from headway.scripts.machine import command_line, commit
from headway.scripts.results import Trial, area_under_curve, compare, final_score, list_trials, read_result
from headway.scripts.suites import Suite, parse_seeds, read_suite, suite_names
from kill_resume import launch

TESTS = Path(__file__).parent
TINY = {"learning_starts": 20, "batch_size": 8, "net_arch": [8], "log_every": 10, "checkpoint_every": 20}


def content(**changes: Any) -> dict[str, Any]:
    """A small suite as read from YAML; None takes a key away."""
    suite = {
        "name": "tiny",
        "total_timesteps": 60,
        "seeds": 2,
        "eval_every": 20,
        "eval_episodes": 1,
        "final_evaluations": 2,
        "flags": TINY,
        "environments": [{"id": "worlds:Point-v0", "reference_low": -10, "reference_high": 0}],
        "arms": [
            {"label": "SAC", "agent": "sac"},
            {"label": "fast", "agent": "sac", "flags": {"tau": "1e-2"}},
        ],
    }
    return {key: value for key, value in (suite | changes).items() if value is not None}


def suite_of(**changes: Any) -> Suite:
    return Suite.from_dict(content(**changes), "tiny.yaml")


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a suite file."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(content(**changes)))
        return path

    return write


# ---- suites ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", suite_names())
def test_suites_that_come_along_are_sound(name: str) -> None:
    suite = read_suite(name)
    assert suite.name == name
    assert suite.description
    assert Suite.from_dict(yaml.safe_load(yaml.safe_dump(suite.to_dict())), "again") == suite


def test_pendulum_small_is_what_it_is_said_to_be() -> None:
    suite = read_suite("pendulum-small")
    assert [environment.id for environment in suite.environments] == ["Pendulum-v1", "InvertedPendulum-v5"]
    assert [(arm.agent, arm.flags) for arm in suite.arms] == [("sac", {}), ("td3", {})]
    assert suite.seeds == (0, 1, 2, 3, 4)
    assert suite.baseline == "SAC"


def test_flags_reach_the_command_line_verbatim() -> None:
    suite = suite_of(
        flags={"learning_rate": 0.1, "gamma": 0.5, "compile": False},
        environments=[
            {"id": "worlds:Point-v0", "flags": {"learning-rate": 0.2, "video": False, "max_grad_norm": None}}
        ],
        arms=[
            {"label": "A", "agent": "td3", "flags": {"gamma": "9e-1", "net_arch": [8, 4], "train_freq": [2, "episode"]}}
        ],
    )
    (environment,), (arm,) = suite.environments, suite.arms
    assert " ".join(suite.command(environment, arm)) == (
        "train td3 --env worlds:Point-v0 --total-timesteps 60 --eval-every 20 --eval-episodes 1 --learning-rate 0.2 "
        "--gamma 9e-1 --compile off --no-video --max-grad-norm None --net-arch 8 4 --train-freq 2 episode"
    )
    run = suite.run(environment, arm)
    assert (run.config.learning_rate, run.config.gamma, run.config.compile) == (0.2, 0.9, "off")
    assert (run.config.net_arch, run.config.max_grad_norm) == ((8, 4), None)
    assert environment.label == "Point-v0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": 3}, "tiny.yaml has an unknown key 'sedes': did you mean seeds?"),
        ({"environments": [{"id": "Pendulum-v1", "flag": {}}]}, r"environments\[0\] has an unknown key 'flag'.*flags"),
        ({"arms": [{"label": "A", "agnt": "sac"}]}, r"arms\[0\] has an unknown key 'agnt': did you mean agent"),
        ({"arms": [{"label": "A", "agent": "sacc"}]}, "there is no agent 'sacc': did you mean sac"),
        ({"arms": [{"label": "A"}]}, "needs a key 'agent': Name of the agent"),
        ({"total_timesteps": None}, "needs a key 'total_timesteps'"),
        ({"seeds": None}, "needs a key 'seeds'"),
        ({"seeds": 0}, "seeds must name at least one"),
        ({"seeds": []}, "seeds must name at least one"),
        ({"seeds": [1, 2, 1]}, "seeds must differ, got '1' and '1'"),
        ({"seeds": [-1]}, r"seeds must lie in \[0, 4e\+09\], got -1"),
        ({"seeds": "three"}, "seeds must be a count or a list of int, got 'three'"),
        ({"seeds": [0, 1.5]}, "seeds must be a count or a list of int"),
        ({"seeds": True}, "seeds must be a count or a list of int, got True"),
        ({"total_timesteps": "1e4"}, "total_timesteps must be int, got '1e4'"),
        ({"total_timesteps": 0}, r"total_timesteps must lie in \[1, inf\), got 0"),
        ({"eval_every": 0}, "eval_every must lie in"),
        ({"name": "a/b"}, "name must be of letters"),
        ({"name": ".."}, "name must be of letters"),
        ({"arms": []}, "arms must name at least one"),
        ({"arms": "sac"}, "arms must be a list, got 'sac'"),
        ({"arms": ["sac"]}, r"arms\[0\] must hold names and values"),
        ({"flags": [1]}, "flags must hold names and values"),
        ({"flags": {"gama": 0.9}}, "arm 'SAC' in environment 'Point-v0': there is no flag 'gama': did you mean gamma"),
        ({"flags": {"gamma": 2}}, r"gamma must lie in \[0, 1\], got 2"),
        ({"flags": {"gamma": "much"}}, "--gamma"),
        ({"flags": {"seed": 3}}, "flags cannot hold 'seed': the benchmark sets it"),
        ({"flags": {"eval-every": 3}}, "flags cannot hold 'eval_every': the key eval_every sets it"),
        ({"environments": [{"id": "Pendulum-v1", "reference_low": 3}]}, "belong together"),
        ({"environments": [{"id": "P-v1", "reference_low": 3, "reference_high": 3}]}, "must be less than"),
        ({"environments": [{"id": "Pendulum-v1"}] * 2}, "labels of environments must differ"),
        ({"environments": [{"id": "A-v0"}, {"id": "B-v0", "label": "a/v0"}]}, "labels of environments must differ"),
        ({"arms": [{"label": "?", "agent": "sac"}]}, "holds neither letters nor digits"),
        (
            {"final_evaluations": 4},
            "60 steps hold 3 evaluations .* fewer than final_evaluations: 4",
        ),
        ({"baseline": "slow"}, "there is no arm 'slow', the baseline"),
    ],
)
def test_broken_suites(headway: Command, file: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    code, out, err = headway("benchmark", "learn", file(**changes), "--out", "out")
    assert (code, out) == (1, "")
    assert re.search(message, err), err
    assert err.startswith("headway: error: ")
    assert err.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not YAML"),
        ("- a\n- b\n", "must hold names and values"),
        ("", "must hold names and values"),
        ("name: !!python/object/apply:os.getcwd []\n", "is not YAML"),
    ],
)
def test_files_that_are_no_suite(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_suite(tmp_path / "bad.yaml")


def test_suites_that_do_not_exist(headway: Command) -> None:
    assert "there is no suite 'pendulum-smal'" in headway("benchmark", "learn", "pendulum-smal")[2]
    assert "did you mean pendulum-small" in headway("benchmark", "learn", "pendulum-smal")[2]
    assert "there is no suite mine.yaml" in headway("benchmark", "learn", "mine.yaml")[2]


def test_seeds_on_the_command_line() -> None:
    assert parse_seeds("3") == (0, 1, 2)
    assert parse_seeds("7-7") == (7,)
    assert parse_seeds("4,2,10-12") == (4, 2, 10, 11, 12)
    for text in ("", "0", "x", "3-", "5-3", "1,,2", "-1", "1.5"):
        with pytest.raises(ValueError, match="--seeds must be a count"):
            parse_seeds(text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "1,1"], "seeds must differ"),
        (["--total-timesteps", "20"], "20 steps hold 1 evaluation"),
        (["--total-timesteps", "0"], "--total-timesteps must lie in"),
        (["--workers", "-1"], "--workers must lie in"),
        (["--report-only"], "holds no runs of a suite"),
        (["--wrokers", "1"], "did you mean --workers"),
    ],
)
def test_flags_that_do_not_fit(headway: Command, file: Callable[..., Path], flags: list[str], message: str) -> None:
    code, _, err = headway("benchmark", "learn", file(), "--out", "out", *flags)
    assert code == 1
    assert message in err
    assert not Path("out").exists()


def test_unknown_environments_are_refused_before_anything_starts(headway: Command, file: Callable[..., Path]) -> None:
    path = file(environments=[{"id": "worlds:Point-v0"}, {"id": "worlds:Poimt-v0"}])
    code, _, err = headway("benchmark", "learn", path, "--out", "out")
    assert code == 1
    assert "did you mean Point-v0" in err
    assert not Path("out").exists()


# ---- scores and report, from runs made by hand -----------------------------------------------------------------------


def make_run(trial: Trial, returns: list[float], finished: bool = True) -> None:
    """Evaluations every 20 steps, as ``headway train`` would have left them."""
    trial.folder.mkdir(parents=True)
    config = {"agent": "SAC", "options": {}, "config": {}, "versions": {"torch": "2.0"}}
    (trial.folder / "config.json").write_text(json.dumps(config | {"finished": trial.steps} if finished else config))
    lines = [f"{20 * number},{value}" for number, value in enumerate(returns)]
    (trial.folder / "evaluations.csv").write_text("\n".join(["step,mean", *lines, ""]))
    (trial.folder / "progress.csv").write_text(f"time/total_timesteps\n{20 * (len(returns) - 1)}\n")


def test_scores_by_hand() -> None:
    steps, returns = np.array([0.0, 20, 40, 60]), np.array([-9.0, -5, -3, -2])
    assert final_score(steps, returns, 1) == -2
    assert final_score(steps, returns, 2) == -2.5
    assert final_score(steps, returns, 3) == -10 / 3
    assert np.isnan(final_score(steps, returns, 4))  # the one before training is no result of it
    assert area_under_curve(steps, returns) == pytest.approx((-7 - 4 - 2.5) / 3)
    assert area_under_curve(np.array([0.0, 10, 40]), np.array([0.0, 2, 2])) == pytest.approx((10 + 60) / 40)
    assert np.isnan(area_under_curve(steps[:1], returns[:1]))


def test_results_tell_how_a_run_went(tmp_path: Path) -> None:
    trials = list_trials(suite_of(seeds=3), tmp_path)
    assert [str(trial) for trial in trials[:2]] == ["Point-v0 · SAC · seed 0", "Point-v0 · fast · seed 0"]
    finished, failed, stopped, killed, _, torn = trials
    make_run(finished, [-9, -5, -3, -2])
    for trial, last in ((failed, "exit code 1"), (stopped, "exit code 130"), (killed, "20 steps")):
        make_run(trial, [-9, -5], finished=False)
        trial.log.write_text(f"$ headway train\n 10% |#|\r 20% |##|\nheadway: error: no luck\n{last}\n")
    make_run(torn, [-9, -5, -3], finished=False)
    with (torn.folder / "evaluations.csv").open("a") as file:
        file.write("60,-1")  # of -12.5, say
    found = [read_result(trial, 2) for trial in trials]
    assert [result.status for result in found] == [
        "finished", "failed", "unfinished", "unfinished", "not started", "unfinished",
    ]  # fmt: skip
    assert [result.step for result in found] == [60, 20, 20, 20, 0, 40]
    assert [result.counts for result in found] == [True] + [False] * 5
    assert found[1].problem == "$ headway train\n 20% |##|\nheadway: error: no luck\nexit code 1"
    assert found[2].problem == ""
    assert found[5].final == -4


def hand_made(out: Path) -> Suite:
    """Five seeds of two arms in two environments with scores to know the statistics of."""
    environments = [
        {"id": "worlds:Point-v0", "label": "one", "reference_low": -10, "reference_high": 0},
        {"id": "worlds:Point-v0", "label": "two", "reference_low": 0, "reference_high": 100},
    ]
    suite = suite_of(seeds=5, environments=environments, final_evaluations=1)
    ends = {
        ("one", "SAC"): [-100.0, -4, -3, -2, -1],
        ("one", "fast"): [-2.0, -2, -2, -2, -2],
        ("two", "SAC"): [50.0, 60, 70, 0, 1000],
        ("two", "fast"): [60.0, 60, 60, 60, 60],
    }
    for trial in list_trials(suite, out):
        make_run(trial, [0, 0, 0, ends[trial.environment, trial.arm][trial.seed]])
    (out / SUITE).write_text(yaml.safe_dump(suite.to_dict()))
    return suite


def test_comparisons_by_hand(tmp_path: Path) -> None:
    suite = hand_made(tmp_path)
    results = [read_result(trial, 1) for trial in list_trials(suite, tmp_path)]
    found = {(c.score, c.environment, c.arm): c for c in compare(suite, results)}
    assert len(found) == 2 * 3 * 2
    sac, fast = found["final", "one", "SAC"], found["final", "one", "fast"]
    assert sac.iqm is not None
    assert fast.iqm is not None
    assert fast.improvement is not None
    assert sac.iqm.value == -3
    assert sac.improvement is None
    assert (fast.iqm.value, fast.iqm.low, fast.iqm.high) == (-2, -2, -2)
    assert fast.improvement.value == pytest.approx((3 + 0.5) / 5)
    area = found["area", "one", "SAC"].iqm
    assert area is not None
    assert area.value == pytest.approx(-3 / 2 / 3)  # the last evaluation ends the last of three equal stretches
    pooled = found["final", "all, normalised", "SAC"].iqm
    improvement = found["final", "all, normalised", "fast"].improvement
    assert pooled is not None
    assert improvement is not None
    # -9, 0.6, 0.7, 0.8, 0.9 and 0.5, 0.6, 0.7, 0, 10; two of ten are put aside at each end.
    assert pooled.value == pytest.approx(np.mean([0.5, 0.6, 0.6, 0.7, 0.7, 0.8]))
    assert improvement.value == pytest.approx((0.7 + 0.5) / 2)  # 60 beats 50 and 0, ties with 60
    assert pooled.low < pooled.value < pooled.high


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_report_from_folders_alone(headway: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    hand_made(out)
    broken = out / "one" / "SAC" / "s0"
    (broken / "config.json").write_text(json.dumps({"agent": "SAC", "options": {}, "config": {}}))
    broken.with_name("s0.log").write_text("headway: error: no | luck\nexit code -9\n")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    code, printed, err = headway("benchmark", "learn", out, "--report-only")
    assert code == 1  # one run failed
    assert "failed: one · SAC · seed 0, see " in err
    assert "19 of 20 runs are finished" in printed
    assert f"written in {out}: results.md, results.csv, runs.csv, results.json, learning_curves.png" in printed

    text = (out / "results.md").read_text()
    for part in (
        "# tiny",
        "**Only 19 of 20 runs enter the comparison**",
        " SAC | -2.500 [-4.000, -1.000] (4 of 5 runs) | ",  # IQM of -4, -3, -2, -1
        " fast | 0.62 [",  # wins against -4 and -3, ties with -2
        "headway train sac --env worlds:Point-v0 --total-timesteps 60",
        "--tau 1e-2",
        "Seeds: 0, 1, 2, 3, 4.",
        "torch 2.0",
        "![Learning curves](learning_curves.png)",
        "### one · SAC · seed 0: failed",
        "headway: error: no | luck\nexit code -9",
    ):
        assert part in re.sub(" +", " ", text), part
    runs = rows(out / "runs.csv")
    assert len(runs) == 20
    assert [(run["status"], run["final"]) for run in runs[:2]] == [("failed", "-100.0"), ("finished", "-4.0")]
    table = {(row["score"], row["environment"], row["arm"]): row for row in rows(out / "results.csv")}
    assert float(table["final", "one", "SAC"]["iqm"]) == -2.5
    assert table["final", "one", "SAC"]["improvement"] == ""
    read = json.loads((out / "results.json").read_text())
    assert read["runs"][0]["problem"].endswith("exit code -9")
    assert read["comparisons"][0]["improvement"] is None
    assert Suite.from_dict(read["suite"], "json") == read_suite(out / SUITE)

    reports = {path: path.read_bytes() for path in out.glob("*.*") if path.name != SUITE}
    code, printed, _ = headway("benchmark", "learn", out, "--report-only")
    assert f"replaced in {out}: " in printed
    assert {path: path.read_bytes() for path in reports} == reports
    assert {path: path.read_bytes() for path in before} == before


def test_report_of_hardly_anything(headway: Command, tmp_path: Path) -> None:
    """No run at all; one run of one arm: no figure of nothing, no interval of one, no number that is none."""
    suite = suite_of(arms=[{"label": "SAC", "agent": "sac"}], seeds=1)
    (tmp_path / SUITE).write_text(yaml.safe_dump(suite.to_dict()))
    assert headway("benchmark", "learn", tmp_path, "--report-only")[0] == 1
    assert "| SAC | - (0 of 1 runs) |" in re.sub(" +", " ", (tmp_path / "results.md").read_text())
    assert not (tmp_path / "learning_curves.png").exists()
    (trial,) = list_trials(suite, tmp_path)
    make_run(trial, [-9, -5, -3, -2])
    assert headway("benchmark", "learn", tmp_path, "--report-only")[0] == 0
    assert "-2.500 (too few runs for an interval)" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "learning_curves.png").exists()
    (trial.folder / "evaluations.csv").write_text("step,mean\n0,-1\n40,nan\n60,nan\n")
    assert headway("benchmark", "learn", tmp_path, "--report-only")[0] == 0
    text = (tmp_path / "results.md").read_text()
    assert "**Only 0 of 1 runs enter" in text
    assert "(0 of 1 runs, 1 without a finite score)" in text
    assert json.loads((tmp_path / "results.json").read_text())["runs"][0]["final"] is None


def rewritten(folder: Path, **changes: Any) -> None:
    """Change values in a run's config.json: of the agent, an option or a hyper-parameter."""
    about = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        place = next((part for part in (about["options"], about["config"]) if name in part), about)
        place[name] = value
    (folder / "config.json").write_text(json.dumps(about))


def whole(out: Path, **changes: Any) -> Suite:
    """Runs with everything in their config.json, as the suite asks for."""
    suite = suite_of(**changes)
    for trial in list_trials(suite, out):
        make_run(trial, [-9, -5, -3, -2 - trial.seed])
        arm = next(arm for arm in suite.arms if arm.label == trial.arm)
        about = suite.run(suite.environments[0], arm).to_dict()
        about |= {"versions": {"torch": "2.0"}, "commit": "abc", "finished": 60}
        (trial.folder / "config.json").write_text(json.dumps(about))
        rewritten(trial.folder, seed=trial.seed, run_dir=str(trial.folder))
    (out / SUITE).write_text(yaml.safe_dump(suite.to_dict()))
    return suite


FOREIGN: list[tuple[dict[str, Any], str]] = [
    ({"total_timesteps": 120, "finished": 120}, "--total-timesteps is 120, in the suite 60"),  # trained on afterwards
    ({"agent": "TD3"}, "--agent is TD3, in the suite SAC"),  # the folder of another agent
    ({"agent": "sb3:SAC"}, "--agent is sb3:SAC, in the suite SAC"),
    ({"seed": 0}, "--seed is 0, in the suite 1"),  # the folder of another seed, copied
    ({"env": "worlds:Wide-v0"}, "--env is worlds:Wide-v0, in the suite worlds:Point-v0"),
    ({"batch_size": 9}, "--batch-size is 9, in the suite 8"),
    ({"net_arch": [8, 8]}, r"--net-arch is \[8, 8\], in the suite \[8\]"),
    ({"eval_episodes": 100}, "--eval-episodes is 100, in the suite 1"),
    ({"checkpoint_every": 21}, "--checkpoint-every is 21, in the suite 20"),
]


@pytest.mark.parametrize(("changes", "message"), FOREIGN, ids=[str(list(changes)) for changes, _ in FOREIGN])
def test_runs_that_are_not_the_suites(headway: Command, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """What would train on refuses them, and a report leaves them out and says why."""
    out = tmp_path / "out"
    whole(out)
    rewritten(out / "Point-v0" / "SAC" / "s1", **changes)
    before = (out / "Point-v0" / "SAC" / "s1" / "config.json").read_bytes()
    code, printed, err = headway("benchmark", "learn", out, "--report-only")
    text = (out / "results.md").read_text()
    assert (code, "3 of 4 runs are finished" in printed) == (1, True)
    assert re.search(rf"left out: Point-v0 · SAC · seed 1, .*{message}", err)
    assert "**Only 3 of 4 runs enter the comparison**" in text
    assert re.search(message, text)
    assert [row["status"] for row in rows(out / "runs.csv")] == ["finished", "foreign", "finished", "finished"]
    code, printed, err = headway("benchmark", "learn", out, "--seeds", 3)
    assert (code, printed) == (1, "")
    assert re.search(rf"is not the suite's run of Point-v0 · SAC · seed 1: .*{message}.*; move it away", err)
    assert (out / "Point-v0" / "SAC" / "s1" / "config.json").read_bytes() == before
    assert not (out / "Point-v0" / "SAC" / "s2").exists()


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"tau": 0.5}, "| Point-v0 | SAC | tau | 0.005: seeds 0; 0.5: seeds 1 |"),  # as a changed preset does it
        ({"delay": "constant:1,1"}, "| Point-v0 | SAC | delay | None: seeds 0; constant:1,1: seeds 1 |"),
        ({"commit": "def"}, "| Point-v0 | SAC | commit | abc: seeds 0; def: seeds 1 |"),
        ({"versions": {"torch": "3"}}, "| Point-v0 | SAC | version of torch | 2.0: seeds 0; 3: seeds 1 |"),
        ({"threads": 7}, "| Point-v0 | SAC | threads | 0: seeds 0; 7: seeds 1 |"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_differs_within_an_arm_is_shown(
    headway: Command, tmp_path: Path, changes: dict[str, Any], shown: str
) -> None:
    whole(tmp_path)
    assert headway("benchmark", "learn", tmp_path, "--report-only")[0] == 0
    text = (tmp_path / "results.md").read_text()
    assert "not alike" not in text
    assert "torch 2.0, commit abc" in text
    rewritten(tmp_path / "Point-v0" / "SAC" / "s1", **changes)
    code, _, err = headway("benchmark", "learn", tmp_path, "--report-only")
    assert code == 0
    text = (tmp_path / "results.md").read_text()
    assert "**Runs of one arm are not alike**" in text
    assert shown in re.sub(" +", " ", text)
    (difference,) = json.loads((tmp_path / "results.json").read_text())["differences"]
    assert list(difference["seeds"].values()) == [[0], [1]]
    assert "runs of SAC in Point-v0 differ: " in err


def test_an_arm_is_not_gone_on_with_by_other_presets(
    headway: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What presets and defaults add may have changed between the seeds: no seed is started that would differ."""
    monkeypatch.setattr(learning, "PROGRAM", FAKE)
    whole(tmp_path)
    for seed in (0, 1):
        rewritten(tmp_path / "Point-v0" / "SAC" / f"s{seed}", tau=0.5)
    code, _, err = headway("benchmark", "learn", tmp_path, "--seeds", 3)
    assert code == 1
    assert "s0 was trained with --tau 0.5, now 0.005: a preset or a default has changed" in err
    assert headway("benchmark", "learn", tmp_path)[0] == 0  # nothing is to be started


def test_results_hold_settings_commit_and_curves_of_every_run(headway: Command, tmp_path: Path) -> None:
    whole(tmp_path, arms=[{"label": "SAC", "agent": "sac"}])
    stray = tmp_path / "Point-v0" / "SAC" / "s9"
    stray.mkdir()
    (stray / "config.json").write_text("{}")
    for seed in (0, 1):  # as a preset has it: in no command
        rewritten(tmp_path / "Point-v0" / "SAC" / f"s{seed}", learning_rate=0.25)
    headway("benchmark", "learn", tmp_path, "--report-only")
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert len(runs) == 2
    for run in runs:
        assert (run["settings"]["commit"], run["settings"]["agent"]) == ("abc", "SAC")
        assert run["settings"]["config"]["learning_rate"] == 0.25
        assert run["settings"]["options"]["env"] == "worlds:Point-v0"
        assert "run_dir" not in run["settings"]["options"]
    curves = rows(tmp_path / "curves.csv")
    assert [row["step"] for row in curves] == ["0", "20", "40", "60"] * 2
    assert [(row["seed"], row["mean"]) for row in curves[3::4]] == [("0", "-2.0"), ("1", "-3.0")]
    text = (tmp_path / "results.md").read_text()
    assert "learning_rate=0.25" in text
    assert "Not the suite's, and left out: `Point-v0/SAC/s9`" in text


def test_a_report_while_a_run_begins(headway: Command, tmp_path: Path) -> None:
    """Its file of evaluations is there, and nothing in it yet."""
    whole(tmp_path, arms=[{"label": "SAC", "agent": "sac"}])
    (tmp_path / "Point-v0" / "SAC" / "s1" / "evaluations.csv").write_text("")
    headway("benchmark", "learn", tmp_path, "--report-only")
    assert {row["seed"] for row in rows(tmp_path / "curves.csv")} == {"0"}


def test_a_suite_that_is_not_text(headway: Command) -> None:
    Path("picture.png").write_bytes(b"\x89PNG")
    code, _, err = headway("benchmark", "learn", "picture.png", "--report-only")
    assert code == 1
    assert err.startswith("headway: error: picture.png is not YAML: 'utf-8' codec can't decode byte 0x89")
    assert "HEADWAY_TRACEBACK" not in err


@pytest.mark.parametrize("spawned", [True, False])
def test_a_report_says_of_seeds_what_its_runs_say(headway: Command, tmp_path: Path, spawned: bool) -> None:
    whole(tmp_path, arms=[{"label": "SAC", "agent": "sac"}])
    for seed in (0, 1):
        file = tmp_path / "Point-v0" / "SAC" / f"s{seed}" / "config.json"
        about = json.loads(file.read_text())
        about.pop("seeds", None)
        if spawned or seed == 0:  # a single run of an earlier version is enough for the page to keep silent
            about["seeds"] = {"environments": 1, "evaluation": 2}
        file.write_text(json.dumps(about))
    headway("benchmark", "learn", tmp_path, "--report-only")
    text = (tmp_path / "results.md").read_text()
    assert ("twice as many. The seeds of a run's environments and evaluations are spawned" in text) == spawned
    assert ("twice as many. All settings of every run" in text) != spawned


def test_intervals_of_few_runs_say_what_they_are_worth(headway: Command, tmp_path: Path) -> None:
    whole(tmp_path, seeds=3)
    headway("benchmark", "learn", tmp_path, "--report-only")
    text = (tmp_path / "results.md").read_text()
    assert "| IQM over runs [95 % interval, in truth 75 %] |" in text
    assert "from 3 runs are the least and the greatest of them and hold the true value in about 75 % of cases" in text
    assert "3 against 3 that are alike would do with probability 0.1." in text  # two of twenty orders


def test_the_analysis_of_variance_is_on_the_page(headway: Command, tmp_path: Path) -> None:
    hand_made(tmp_path)
    _, printed, _ = headway("benchmark", "learn", tmp_path, "--report-only", "--analyse")
    text = (tmp_path / "results.md").read_text()
    for part in ("## Where the scores' variance comes from", "reliability of a run", "| Above SAC [95 % interval] |"):
        assert part in text
        assert part in printed
    found = json.loads((tmp_path / "results.json").read_text())["analyses"]
    assert [(a["score"], a["environment"]) for a in found] == [
        (score, place) for score in ("final", "area") for place in ("one", "two", "all, normalised")
    ]
    assert found[0]["runs"] == 10
    assert found[0]["effects"]["fast"][0] == pytest.approx(20)  # -2 over the mean of -100, -4, -3, -2, -1
    headway("benchmark", "learn", tmp_path, "--report-only")
    assert "variance" not in (tmp_path / "results.md").read_text()


def test_an_analysis_of_nothing_says_so(headway: Command, tmp_path: Path) -> None:
    suite = suite_of(seeds=1)
    (tmp_path / SUITE).write_text(yaml.safe_dump(suite.to_dict()))
    headway("benchmark", "learn", tmp_path, "--report-only", "--analyse")
    assert "Point-v0: no run enters." in (tmp_path / "results.md").read_text()


def test_reports_hold_no_folders_of_the_machine(headway: Command, tmp_path: Path) -> None:
    whole(tmp_path, seeds=1)
    folder = tmp_path / "Point-v0" / "SAC" / "s0"
    (folder / "config.json").unlink()
    folder.with_name("s0.log").write_text(
        f'$ headway train --run-dir {folder}\n  File "/usr/lib/python3.11/site-packages/torch/nn/x.py", line 3\n'
        f"cannot open {tmp_path}/a.txt, see https://x.org/a/b and runs/c\nexit code 1\n"
    )
    headway("benchmark", "learn", tmp_path, "--report-only")
    for name in ("results.md", "results.json"):
        text = (tmp_path / name).read_text()
        assert str(tmp_path) not in text
        assert "/usr/" not in text
        for kept in ("torch/nn/x.py", "cannot open a.txt, see https://x.org/a/b and runs/c"):
            assert kept in text


# ---- many runs, of a program that only looks like `headway train` ----------------------------------------------------

FAKE = """
import json, os, pathlib, signal, sys, time
stopped = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: stopped.append(number))
arguments = sys.argv[1:]
resumed = "--resume" in arguments
folder = pathlib.Path(arguments[arguments.index("--resume" if resumed else "--run-dir") + 1])
folder.mkdir(exist_ok=resumed)
config, place = folder / "config.json", folder / "place"
read = json.loads(config.read_text()) if resumed else {"agent": "SAC", "options": {}, "config": {}}
config.write_text(json.dumps(read))
arms = folder.parent.name
step = int(place.read_text()) if place.exists() else 0
(folder / "starts").open("a").write(f"{step} {os.environ['OMP_NUM_THREADS']} {' '.join(arguments[-3:])}\\n")
if folder.parent.name == "fast" and folder.name == "s1" and not (folder.parent / "mended").exists():
    print("this world is closed", file=sys.stderr)
    sys.exit(3)
while step < 60:
    time.sleep(0.02 if not (folder.parents[1] / "slow").exists() else 0.1)
    step += 1
    place.write_text(str(step))
    if stopped:
        sys.exit(128 + stopped[0])
(folder / "evaluations.csv").write_text("step,mean\\n" + "".join(f"{s},{s / 10}\\n" for s in (0, 20, 40, 60)))
config.write_text(json.dumps(read | {"finished": 60}))
"""


def starts(out: Path) -> dict[str, list[str]]:
    """How each run was started."""
    found = sorted(out.rglob("starts"))
    return {f"{path.parents[1].name} {path.parent.name}": path.read_text().splitlines() for path in found}


def test_a_failing_run_does_not_stop_the_others(
    headway: Command, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "PROGRAM", FAKE)
    out = Path("out")
    code, printed, err = headway("benchmark", "learn", file(), "--out", out, "--workers", 3)
    assert code == 1
    assert "tiny: 2 arms x 1 environment x 2 seeds = 4 runs, 240 steps, 3 at a time" in printed
    assert "[3/4] " in printed
    assert "[4/4] " not in printed
    assert "Point-v0 · fast · seed 1 failed; the end of out/Point-v0/fast/s1.log:" in err
    assert "this world is closed\nexit code 3" in err
    assert "3/4 runs · " in err
    assert set(starts(out)) == {"SAC s0", "SAC s1", "fast s0", "fast s1"}
    assert all(lines == ["0 1 --threads 1 --no-progress"] for lines in starts(out).values())
    assert (out / "Point-v0" / "fast" / "s1.log").read_text().startswith("$ headway train sac --env worlds:Point-v0 ")

    (out / "Point-v0" / "fast" / "mended").touch()
    code, printed, _ = headway("benchmark", "learn", file(), "--out", out)
    assert code == 0
    assert "(3 runs are finished already)" in printed
    assert "4 of 4 runs are finished" in printed
    assert {name: len(lines) for name, lines in starts(out).items()} == {
        "SAC s0": 1, "SAC s1": 1, "fast s0": 1, "fast s1": 2,
    }  # fmt: skip
    assert len((out / COMMANDS).read_text().splitlines()) == 2


def test_interrupt_saves_every_run_and_says_how_to_go_on(
    headway: Command, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "PROGRAM", FAKE)
    out = Path("out")
    (out / "Point-v0").mkdir(parents=True)
    (out / SUITE).write_text(yaml.safe_dump(content(seeds=1)))
    (out / "Point-v0" / "slow").touch()

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(list(out.rglob("place"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code, printed, err = headway("benchmark", "learn", file(seeds=1), "--out", out, "--workers", 2)
    thread.join()
    assert code == 130
    assert "stopping: every run saves" in err
    assert "interrupted: 0 of 2 runs are finished, what had begun is saved" in printed
    assert "go on with: headway benchmark learn out --workers 2" in printed
    assert "failed" not in err
    assert not (out / "results.md").exists()
    places = {path.parents[1].name: int(path.read_text()) for path in out.rglob("place")}
    assert len(places) == 2

    (out / "Point-v0" / "slow").unlink()
    code, printed, _ = headway("benchmark", "learn", out, "--workers", 2)
    assert code == 0
    for arm, place in places.items():
        first, second = starts(out)[f"{arm} s0"]
        assert first.startswith("0 ")
        assert second.startswith(f"{place} 1 ")
        assert 0 < place < 60


def test_output_folders_keep_to_their_suite(
    headway: Command, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "PROGRAM", FAKE)
    out = Path("out")
    one = [{"label": "SAC", "agent": "sac"}]
    assert headway("benchmark", "learn", file(arms=one, seeds=1), "--out", out)[0] == 0
    before = (out / SUITE).read_text()
    for changes, message in (
        ({"arms": [{"label": "other", "agent": "sac"}]}, "holds runs of SAC in Point-v0, not in this suite"),
        ({"arms": [{"label": "SAC", "agent": "td3"}]}, "holds other runs of SAC in Point-v0: headway train sac"),
        ({"total_timesteps": 80}, "holds other runs of SAC"),
    ):
        code, _, err = headway("benchmark", "learn", file(**{"arms": one} | changes), "--out", out)
        assert code == 1
        assert message in err
        assert (out / SUITE).read_text() == before

    # More seeds and more arms are the same comparison, enlarged; what is there is not done again.
    assert headway("benchmark", "learn", file(), "--out", out, "--seeds", "7-7")[0] == 0
    assert read_suite(out / SUITE).seeds == (0, 7)
    assert set(starts(out)) == {"SAC s0", "SAC s7", "fast s7"}
    assert len(starts(out)["SAC s0"]) == 1

    occupied = Path("occupied")
    occupied.mkdir()
    (occupied / "diary.txt").touch()
    code, _, err = headway("benchmark", "learn", file(), "--out", occupied)
    assert code == 1
    assert "occupied exists and holds no runs of a suite" in err
    with runs.alone(out, "training a suite"):
        assert "another process is training a suite in out" in headway("benchmark", "learn", out)[2]


# ---- the real thing --------------------------------------------------------------------------------------------------


def test_good_and_bad_real_runs(headway: Command, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A world that ends where the seed is odd: one run is trained, the other's error is in the report."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]), prepend=os.pathsep)
    # Few evaluations: what is evaluated is also seeded odd, and would get old enough to end.
    few: dict[str, Any] = {"eval_every": 60, "final_evaluations": 1}
    suite = file(environments=[{"id": "worlds:Crash-v0"}], arms=[{"label": "SAC", "agent": "sac"}], **few)
    code, printed, err = headway("benchmark", "learn", suite)
    out = Path("runs") / "suites" / "tiny"
    assert code == 1
    assert f"output folder: {out}" in printed
    assert "Crash-v0 · SAC · seed 0: final score -" in printed
    assert "the world has ended" in err
    good, bad = out / "Crash-v0" / "SAC" / "s0", out / "Crash-v0" / "SAC" / "s1"
    assert (good / "final.zip").exists()
    assert not (bad / "final.zip").exists()
    assert json.loads((good / "config.json").read_text())["options"]["threads"] == 1
    text = (out / "results.md").read_text()
    assert "the world has ended" in text
    assert "(1 of 2 runs)" in text
    assert [row["status"] for row in rows(out / "runs.csv")] == ["finished", "failed"]
    assert [row["step"] for row in rows(good / "evaluations.csv")] == ["0", "60"]


def test_kill_and_go_on(headway: Command, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark is killed without a chance to say so: its run saves, and then ends as if it had been left alone."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]), prepend=os.pathsep)
    flags = TINY | {"checkpoint_every": 100, "log_every": 100}
    path = file(arms=[{"label": "SAC", "agent": "sac"}], seeds=1, total_timesteps=600, eval_every=200, flags=flags)
    process = launch(["benchmark", "learn", str(path), "--out", "out"], Path("output.txt"))
    folder = Path("out") / "Point-v0" / "SAC" / "s0"
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/*.zip")) and time.monotonic() < deadline:
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    code, printed, err = headway("benchmark", "learn", "out")
    assert (code, "1 of 1 runs are finished" in printed) == (0, True), err
    log = folder.with_name("s0.log").read_text()
    assert "headway train sac --resume out/Point-v0/SAC/s0" in log
    assert re.search(r"resumed at step [1-9]", log)

    suite = read_suite(Path("out") / SUITE)
    (trial,) = list_trials(suite, Path("alone"))
    assert headway(*trial.command, "--threads", 1, "--no-progress")[0] == 0
    assert rows(trial.folder / "evaluations.csv") == rows(folder / "evaluations.csv")


def test_the_commit_is_that_of_the_source_tree(tmp_path: Path) -> None:
    """Not of a repository around it: an environment inside of somebody's project, say."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("1")
    (tmp_path / "inside").mkdir()
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    clean = commit(tmp_path)
    assert clean is not None
    assert re.fullmatch("[0-9a-f]{12}", clean)
    assert commit(tmp_path / "inside") is None
    commit.cache_clear()
    (tmp_path / "file").write_text("2")
    assert commit(tmp_path) == f"{clean}-dirty"


def test_published_commands_hold_no_paths_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["x", "plot", str(tmp_path / "runs" / "a"), "--out=/elsewhere/b c", "--json", "/elsewhere/d.json", "-1"]
    monkeypatch.setattr("sys.argv", given)
    assert command_line() == "headway plot runs/a '--out=b c' --json d.json -1"


def test_an_arm_may_be_longer_than_the_others(tmp_path: Path) -> None:
    arms = [{"label": "short", "agent": "sac"}, {"label": "long", "agent": "sac", "total_timesteps": 200}]
    suite = suite_of(arms=arms)
    commands = {arm.label: suite.command(suite.environments[0], arm) for arm in suite.arms}
    lengths = {label: command[command.index("--total-timesteps") + 1] for label, command in commands.items()}
    assert lengths == {"short": "60", "long": "200"}
    assert {trial.arm: trial.steps for trial in list_trials(suite, tmp_path)} == {"short": 60, "long": 200}
    assert Suite.from_dict(suite.to_dict(), "again") == suite
    assert {trial.steps for trial in list_trials(suite.changed(total_timesteps=90), tmp_path)} == {90}
