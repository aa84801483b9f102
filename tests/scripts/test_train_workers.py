"""``headway train`` with workers of Ray on this machine."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import Command
from headway.agents.core.files import archive

RUN = shlex.split("--env headway/Trap-v0 --total-timesteps 400 --population-size 4 --net-arch 9 --max-episode-steps 25")
RUN += shlex.split("--initial-horizon none --learning-starts 100 --batch-size 16 --surrogate-start 200 --candidates 3")
RUN += shlex.split("--threads 1 --eval-episodes 1 --eval-every 0 --checkpoint-every 0 --log-every 100 --no-progress")


def networks(folder: str) -> dict[str, torch.Tensor]:
    return archive.read_archive(Path(folder) / "final.zip").members["networks"]


@pytest.fixture(autouse=True)
def no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.scripts.figures.learning_curve", lambda run, *_: run / "learning_curve.png")


def test_a_run_is_the_same_with_workers(headway: Command) -> None:
    ray = pytest.importorskip("ray", reason="the extra distributed is not installed")
    handler = signal.getsignal(signal.SIGTERM)
    assert headway("train", "pgps", *RUN, "--run-dir", "alone")[0] == 0
    code, out, err = headway("train", "pgps", *RUN, "--workers", 2, "--run-dir", "together")
    assert code == 0, err
    assert " · 2 workers\n" in out
    alone, together = networks("alone"), networks("together")
    assert all(torch.equal(alone[name], together[name]) for name in alone)
    assert not ray.is_initialized()  # it was started for the run
    assert signal.getsignal(signal.SIGTERM) == handler  # for which Ray has one of its own
    code, out, _ = headway("train", "--resume", "together", "--workers", 0, "--total-timesteps", 450)
    assert code == 0
    assert "worker" not in out


@pytest.mark.slow
def test_ctrl_c_is_heard_while_workers_play(headway: Command) -> None:
    """A terminal's goes to all that it has started."""
    pytest.importorskip("ray", reason="the extra distributed is not installed")
    command = [sys.executable, "-m", "headway.scripts", "train", "pgps", *RUN, "--run-dir", "run"]
    command += shlex.split("--workers 2 --total-timesteps 1000000")
    deadline, progress = time.monotonic() + 120, Path("run/progress.csv")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, start_new_session=True, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
        while time.monotonic() < deadline and (not progress.exists() or progress.read_text().count("\n") < 4):
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, out
    assert "interrupted at step" in out
    assert headway("train", "--resume", "run", "--workers", 0, "--total-timesteps", 3_000)[0] == 0
    assert headway("train", "pgps", *RUN, "--total-timesteps", 3_000, "--run-dir", "alone")[0] == 0
    alone, resumed = networks("alone"), networks("run")
    assert all(torch.equal(alone[name], resumed[name]) for name in alone)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("sac --workers 2", "--workers 2: they play the episodes of a population, SAC has none"),
        ("pgps --workers 2 --vec subproc", "--workers 2 play by themselves: leave --vec subproc out"),
        ("pgps --ray-address 10.0.0.1:6379", "--ray-address says where workers are: say how many with --workers"),
        ("pgps --workers -1", "--workers must lie in [0, inf), got -1"),
    ],
)
def test_mistakes(headway: Command, flags: str, complaint: str) -> None:
    code, out, err = headway("train", *flags.split(), "--env", "headway/Trap-v0")
    assert (code, out) == (1, "")
    assert complaint in err


def test_without_ray(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = headway("train", "pgps", *RUN, "--workers", 2, "--run-dir", "run")
    assert (code, err) == (1, "headway: error: PGPS with workers needs Ray: pip install 'headway-rl[distributed]'\n")
    assert not Path("run").exists()
