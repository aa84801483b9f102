"""``headway train AGENT --dataset …``: one seed or several, interrupted and resumed, and what is refused."""

import json
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import Command
from gymnasium import spaces
from headway import agents
from headway.agents import Dataset
from headway.agents.core.data.dataset_files import write_dataset
from toys import PLACE

pytest.importorskip("minari")

TINY = shlex.split("--env worlds:Point-v0 --batch-size 8 --net-arch 8 --eval-episodes 1 --eval-every 25 --log-every 10")
TINY += shlex.split("--checkpoint-every 20 --threads 1 --no-progress")


def recorded(episodes: int = 20, steps: int = 5, name: str = "points/walks-v0") -> Dataset:
    """Walks on the line that go where they should, more or less."""
    draw = torch.Generator().manual_seed(0)
    obs, actions, final = [], [], []
    for _ in range(episodes):
        at = 2 * torch.rand(1, generator=draw) - 1
        for _ in range(steps):
            move = (-at + 0.1 * torch.randn(1, generator=draw)).clamp(-1, 1)
            obs.append(at)
            actions.append(move)
            at = (at + move).clamp(-2, 2)
        final.append(at)
    return Dataset(
        observation_space=PLACE,
        action_space=spaces.Box(-1.0, 1.0, (1,), np.float32),
        obs=torch.stack(obs),
        final_obs=torch.stack(final),
        actions=torch.stack(actions),
        rewards=-torch.stack(obs).abs().squeeze(1).double(),
        lengths=torch.full((episodes,), steps),
        terminated=torch.zeros(episodes, dtype=torch.bool),
        name=name,
        env_id="worlds:Point-v0",
    )


@pytest.fixture(autouse=True)
def walks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.setattr("headway.scripts.figures.learning_curve", lambda run, *_: run / "learning_curve.png")
    write_dataset(recorded())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return agents.load(run / "final.zip", device="cpu").modules.state()


@pytest.mark.parametrize("name", ["bc", "iql", "td3bc", "hdcr", "abm"])
def test_every_agent_learns_from_data_by_command(headway: Command, name: str) -> None:
    code, out, _ = headway(
        "train", name, "--dataset", "points/walks-v0", *TINY, "--total-timesteps", 40, "--run-dir", "r"
    )
    assert code == 0
    assert "from points/walks-v0 (100 steps, 20 episodes), evaluated in worlds:Point-v0" in out
    assert "40 steps in" in out
    code, out, _ = headway("evaluate", "r", "--env", "worlds:Point-v0", "--episodes", 2)
    assert code == 0


def test_seeds_at_once_are_runs_of_their_own(headway: Command) -> None:
    common = ["train", "iql", "--dataset", "points/walks-v0", *TINY, "--total-timesteps", 50]
    code, out, _ = headway(*common, "--seeds", "3-4", "--run-dir", "both")
    assert code == 0
    assert "50 gradient steps of seeds 3, 4 at once" in out.replace("gradient\nsteps", "gradient steps")
    for seed in (3, 4):
        headway(*common, "--seed", seed, "--run-dir", f"alone{seed}")
        for key, tensor in weights(Path(f"alone{seed}")).items():
            assert torch.allclose(tensor, weights(Path(f"both/s{seed}"))[key], atol=1e-5), key
        assert (Path(f"both/s{seed}") / "evaluations.csv").read_text().count("\n") == 4  # head, before, middle, after
        assert (Path(f"both/s{seed}") / "progress.csv").read_text().count("\n") >= 5  # every ten steps
    code, out, _ = headway("train", "iql", "--resume", "both/s3", "--total-timesteps", 60, "--env", "worlds:Point-v0")
    assert (code, "resumed at step 50" in out) == (0, True)
    code, _, err = headway(*common, "--seeds", "3-4", "--run-dir", "both")
    assert (code, "both/s3 exists" in err) == (1, True)


def test_stopped_and_resumed_is_never_stopped(headway: Command) -> None:
    common = ["train", "hdcr", "--dataset", "points/walks-v0", *TINY, "--value-steps", 7, "--actor-steps", 11]
    headway(*common, "--total-timesteps", 50, "--run-dir", "straight")
    headway(*common, "--total-timesteps", 30, "--run-dir", "halted")
    code, out, _ = headway("train", "--resume", "halted", "--total-timesteps", 50, "--env", "worlds:Point-v0")
    assert (code, "resumed at step 30" in out) == (0, True)
    for key, tensor in weights(Path("straight")).items():
        assert torch.equal(tensor, weights(Path("halted"))[key]), key
    assert "sha256" in json.loads(Path("halted/config.json").read_text())["data"]


def test_other_data_of_the_same_name_are_not_resumed_from(headway: Command, tmp_path: Path) -> None:
    headway("train", "bc", "--dataset", "points/walks-v0", *TINY, "--total-timesteps", 30, "--run-dir", "r")
    for file in sorted((tmp_path / "datasets/points/walks-v0").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    (tmp_path / "datasets/points/walks-v0").rmdir()
    write_dataset(recorded(episodes=21))
    code, _, err = headway("train", "--resume", "r", "--total-timesteps", 50, "--env", "worlds:Point-v0")
    assert (code, "is not what r has begun with" in err) == (1, True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hdcr --total-timesteps 8 --train-freq 2147483648", "--train-freq 2147483648 makes rounds of 2,147,483,648"),
        (
            "hdcr --total-timesteps 100",
            "--train-freq 2048 makes rounds of 2,048 steps, longer than --total-timesteps 100",
        ),
        ("sac --dataset points/walks-v0", "SAC learns in environments: it takes no --dataset"),
        ("bc", "BC learns from data: pass --dataset"),
        ("iql --seeds 3", "--seeds trains several seeds at once from data"),
        ("iql --dataset points/walks-v0 --delay constant:1,1", "--delay is about the environment to learn in"),
        ("iql --dataset points/walks-v0 --n-envs 3", "--n-envs is about the environment to learn in"),
        ("iql --dataset points/walks-v0 --vec subproc", "--vec is about the environment to learn in"),
        ("iql --dataset points/walks-v0 --seeds 3 --seed 5", "--seed 5 beside --seeds 3: name all seeds"),
        ("bc --dataset points/talks-v0", "there is no data set points/talks-v0: did you mean"),
        ("bc --dataset points/walks-v0 --seeds x", "--seeds must be a count"),
        ("bc --dataset points/walks-v0 --env Pendulum-v1", "pass the --env in which it was recorded"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(headway: Command, line: str, message: str) -> None:
    code, _, err = headway("train", *shlex.split(line.partition(" ")[0]), *TINY, *shlex.split(line.partition(" ")[2]))
    assert (code, err.count("\n")) == (1, 1)
    assert message in err


def test_data_do_not_decide_what_is_imported(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "worlds", raising=False)  # which other tests have imported
    code, _, err = headway("train", "bc", "--dataset", "points/walks-v0", "--run-dir", "r")
    assert (code, "data do not decide that: pass --env worlds:Point-v0" in err) == (1, True)


def test_a_suite_trains_the_seeds_of_an_arm_at_once(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # where the runs' processes find the world
    suite = {
        "name": "walks",
        "total_timesteps": 40,
        "seeds": 2,
        "eval_every": 20,
        "eval_episodes": 1,
        "flags": {"net_arch": [8], "batch_size": 8, "checkpoint_every": 20},
        "environments": [{"id": "worlds:Point-v0", "data": "points/walks"}],
        "arms": [
            {"label": "IQL", "agent": "iql", "flags": {"dataset": "{data}-v0"}},
            {"label": "BC", "agent": "bc", "flags": {"dataset": "{data}-v0"}},
        ],
    }
    Path("walks.yaml").write_text(yaml.safe_dump(suite))
    code, out, err = headway("benchmark", "learn", "walks.yaml", "--workers", 2, "--out", "at-once", "--at-once")
    assert code == 0, err
    assert "4 of 4 runs are finished" in out
    assert "--seeds 0,1" in Path("at-once/Point-v0/IQL/s0.log").read_text()
    assert "see at-once/Point-v0/IQL/s0.log" in Path("at-once/Point-v0/IQL/s1.log").read_text()
    code, _, err = headway("benchmark", "learn", "walks.yaml", "--workers", 2, "--out", "alone")
    assert code == 0, err
    for run in ("IQL/s0", "IQL/s1", "BC/s0", "BC/s1"):
        for key, tensor in weights(Path("alone/Point-v0") / run).items():
            assert torch.allclose(tensor, weights(Path("at-once/Point-v0") / run)[key], atol=1e-5), key
    code, out, err = headway("benchmark", "learn", "at-once", "--at-once", "--seeds", 3)  # one more, by itself
    assert code == 0, err
    assert "6 of 6 runs are finished" in out
