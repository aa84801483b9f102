"""``headway train`` with search: TPO after PPO or from a run of it, and evaluations that look ahead."""

import csv
import shlex
from pathlib import Path

import pytest
import torch
from conftest import Command
from headway.agents.core.files import archive

POINT = shlex.split(
    "--env worlds:Point-v0 --net-arch 8 --n-steps 16 --batch-size 16 --n-epochs 2 --n-envs 2 --threads 1"
)
POINT += shlex.split("--eval-episodes 2 --checkpoint-every 0 --no-progress")
TPO = [*POINT, *shlex.split("--simulations 4 --candidates 3 --search-batch-size 32 --gate off")]


def networks(folder: str) -> dict[str, torch.Tensor]:
    return archive.read_archive(Path(folder) / "final.zip").members["networks"]


@pytest.fixture(autouse=True)
def no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.scripts.figures.learning_curve", lambda run, *_: run / "learning_curve.png")


def test_a_run_of_ppo_is_a_bootstrap(headway: Command) -> None:
    assert headway("train", "ppo", *POINT, "--total-timesteps", 64, "--run-dir", "ppo")[0] == 0
    for given in ("ppo", "ppo/final.zip"):
        folder = f"from {Path(given).name}"
        flags = ("--total-timesteps", 64, "--start-from", given, "--run-dir", folder)
        code, _, err = headway("train", "tpo", *TPO, *flags)
        assert code == 0, err
        with (Path(folder) / "progress.csv").open() as file:
            told = [row["time/simulator_steps"] for row in csv.DictReader(file) if row["time/simulator_steps"]]
        assert int(float(told[-1])) > 64 + 3 * 64  # it searched from the first step on
    code, _, err = headway("train", "--resume", "from ppo", "--total-timesteps", 96)
    assert code == 0, err
    assert any(not torch.equal(one, networks("from ppo")[name]) for name, one in networks("from final.zip").items())
    code, _, err = headway("train", "ppo", *POINT, "--start-from", "ppo")
    assert (code, "PPO begins with nothing: it takes no --start-from" in err) == (1, True)
    code, _, err = headway("train", "tpo", *TPO, "--start-from", "nowhere")
    assert (code, "there is no policy at nowhere" in err) == (1, True)


def test_sixteen_environments_are_searched_unless_told(headway: Command) -> None:
    place = TPO.index("--n-envs")
    flags = [*TPO[:place], *TPO[place + 2 :], "--bootstrap-steps", 256, "--total-timesteps", 256]
    code, out, err = headway("train", "tpo", *flags, "--run-dir", "run")
    assert code == 0, err
    assert "16 environments" in out


def test_the_gate_ends_a_run_in_one_line(headway: Command) -> None:
    flags = ("--gate", "stop", "--simulations", 1, "--candidates", 1, "--log-std-init", 1, "--bootstrap-steps", 32)
    code, _, err = headway("train", "tpo", *TPO, *flags, "--total-timesteps", 64, "--run-dir", "run")
    assert code == 1
    assert "with search, " in err
    assert "there is nothing to learn from it; train the bootstrap for longer" in err
    assert list(Path("run/checkpoints").glob("*.zip"))  # of the bootstrap


def test_evaluations_look_ahead_and_training_does_not(headway: Command) -> None:
    flags = ("--total-timesteps", 64, "--eval-every", 32)
    assert headway("train", "ppo", *POINT, *flags, "--run-dir", "alone")[0] == 0
    code, _, err = headway("train", "ppo", *POINT, *flags, "--eval-search", "shooting:32,1", "--run-dir", "ahead")
    assert code == 0, err
    alone, ahead = networks("alone"), networks("ahead")
    assert all(torch.equal(alone[name], ahead[name]) for name in alone)
    means = []
    for folder in ("alone", "ahead"):
        with (Path(folder) / "evaluations.csv").open() as file:
            means.append([float(row["mean"]) for row in csv.DictReader(file)])
    assert len(means[0]) == len(means[1]) == 3
    assert means[0] != means[1]
    code, _, err = headway("train", "ppo", *POINT, "--eval-search", "tree:0")
    assert (code, "TreeConfig.simulations must lie in [1, inf), got 0" in err) == (1, True)
    code, _, err = headway("train", "dqn", "--env", "CartPole-v1", "--eval-search", "tree:4", "--run-dir", "dqn")
    assert (code, "DQN has no policy that candidates could be drawn from" in err) == (1, True)
