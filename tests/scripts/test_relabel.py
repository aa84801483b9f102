"""``headway relabel``, on tiny data sets."""

import hashlib
import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from headway.agents.core.data.dataset import Dataset
from headway.agents.core.data.dataset_files import load_dataset, write_dataset
from headway.agents.relabelling import EpisodeCosts, RelabelConfig, best, relabel
from headway.scripts import relabel as command
from headway.scripts.cli import main
from walks import recorded, walk

LENGTHS = [12, 30, 1, 20, 30, 9]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A data set on disk, toy/walks-v0."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    made = recorded([walk(n, s) for s, n in enumerate(LENGTHS)], env_id="CartPole-v1")
    made.terminated[::2] = True
    write_dataset(made)
    return load_dataset("toy/walks-v0")


def hashed(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_a_data_set_in_another_out(headway: Command, data: Dataset, tmp_path: Path, data_format: str) -> None:
    source = hashed(tmp_path / "minari" / "toy" / "walks-v0")
    flags = ("--demos", "best:2", "--to", "toy/otr-v0", "--data-format", data_format, "--workers", 1)
    code, out, err = headway("relabel", "toy/walks-v0", *flags, "--plot", "figure.png")
    assert code == 0, err
    assert hashed(tmp_path / "minari" / "toy" / "walks-v0") == source
    written, expected = load_dataset("toy/otr-v0"), relabel(data, best(data, 2))
    torch.testing.assert_close(written.rewards, expected.rewards, atol=0, rtol=0)
    for name in ("obs", "final_obs", "actions", "lengths", "terminated"):
        assert torch.equal(getattr(written, name), getattr(data, name)), name
    assert written.env_id == "CartPole-v1"
    assert written.about["relabelling"] == json.loads(json.dumps(expected.about["relabelling"]))
    assert "6 episodes, 102 steps; 2 demonstrations" in out
    assert "rank correlation of returns with those by the rewards of toy/walks-v0" in out
    assert Path("figure.png").stat().st_size > 10_000
    assert list(Path("runs/relabel").iterdir()) == []  # partial results are gone


@pytest.mark.parametrize("method", ["min-distance", "segment", "temporal", "shuffled"])
def test_methods(headway: Command, data: Dataset, method: Any) -> None:
    code, _, err = headway(
        "relabel", "toy/walks-v0", "--demos", "best:1", "--method", method, "--to", "ab/b-v0", "--workers", 1
    )
    assert code == 0, err
    expected = relabel(data, best(data, 1), RelabelConfig(method=method))
    torch.testing.assert_close(load_dataset("ab/b-v0").rewards, expected.rewards, atol=0, rtol=0)


@pytest.mark.parametrize("method", ["constant", "ground-truth"])
def test_controls_need_no_demonstrations(headway: Command, data: Dataset, method: Any) -> None:
    flags = ("--method", method, "--to", "ab/b-v0", "--plot", "figure.svg")
    code, out, err = headway("relabel", "toy/walks-v0", *flags)
    assert code == 0, err
    assert "0 demonstrations" in out
    assert Path("figure.svg").exists()
    torch.testing.assert_close(
        load_dataset("ab/b-v0").rewards, relabel(data, None, RelabelConfig(method=method)).rewards
    )


def test_demonstrations_of_another_data_set(headway: Command, data: Dataset) -> None:
    expert = recorded([walk(9, 50), walk(14, 51)], rewards=[1.0, 2.0], name="toy/expert-v0", env_id="CartPole-v1")
    write_dataset(expert)
    for to, demos, chosen in (("ab/all-v0", "toy/expert-v0", [0, 1]), ("ab/one-v0", "toy/expert-v0,best:1", [1])):
        code, _, err = headway("relabel", "toy/walks-v0", "--demos", demos, "--to", to, "--workers", 1)
        assert code == 0, err
        written = load_dataset(to)
        torch.testing.assert_close(written.rewards, relabel(data, expert.select(chosen)).rewards, atol=0, rtol=0)
        about = written.about["relabelling"]["demonstrations"]
        assert (about["name"], about["episodes"]) == ("toy/expert-v0", chosen)


def test_an_estimate_writes_nothing(headway: Command, data: Dataset, tmp_path: Path) -> None:
    before = hashed(tmp_path)
    code, out, err = headway("relabel", "toy/walks-v0", "--demos", "best:2", "--dry-run", "--workers", 2)
    assert code == 0, err
    assert "12 pairs: about 0 s with 2 at once" in out
    assert "MB as hdf5; nothing was written" in out
    assert hashed(tmp_path) == before


FLAGS = ("relabel", "toy/walks-v0", "--demos", "best:1", "--to", "toy/new-v0")


def killed_at_the_third(folder: str, pids: str) -> None:
    """Relabel until three episodes are known, then die as by ``kill -9``."""
    os.chdir(folder)
    command.SAVE_EVERY = 0.0
    add = command.Parts.add

    def count(parts: command.Parts, episode: int, costs: EpisodeCosts) -> None:
        add(parts, episode, costs)
        if len(parts.done) == 3:
            Path(pids).write_text(" ".join(str(child.pid) for child in multiprocessing.active_children()))
            os.kill(os.getpid(), signal.SIGKILL)

    command.Parts.add = count  # type: ignore[method-assign]
    main([*FLAGS, "--workers", "2"])


def runs(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_killed_relabelling_goes_on(headway: Command, data: Dataset, tmp_path: Path) -> None:
    source = hashed(tmp_path / "minari")
    process = multiprocessing.get_context("spawn").Process(  # a fork server keeps the variables that it began with
        target=killed_at_the_third, args=(str(tmp_path), str(tmp_path / "pids"))
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert hashed(tmp_path / "minari") == source
    workers = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, workers))  # they end with the one that started them
    other = headway("relabel", "toy/walks-v0", "--demos", "best:2", "--to", "toy/new-v0", "--dry-run")
    assert other[0] == 0
    code, out, err = headway(*FLAGS, "--workers", 1)
    assert code == 0, err
    assert "going on: 3 of 6 episodes are known" in out
    torch.testing.assert_close(load_dataset("toy/new-v0").rewards, relabel(data, best(data, 1)).rewards, atol=0, rtol=0)
    assert list(Path("runs/relabel").iterdir()) == []


def test_ctrl_c_keeps_what_is_known(headway: Command, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    add = command.Parts.add

    def stopped(parts: command.Parts, episode: int, costs: EpisodeCosts) -> None:
        add(parts, episode, costs)
        if episode == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(command.Parts, "add", stopped)
        code, _, err = headway(*FLAGS, "--workers", 1)
        assert code == 130
        assert "2 episodes are kept in runs/relabel/toy-new-v0" in err
    (folder,) = Path("runs/relabel").iterdir()
    (part,) = folder.glob("*.npz")
    whole = part.read_bytes()
    changed = headway(*FLAGS, "--workers", 1, "--epsilon", 0.02, "--to", "toy/other-v0")
    assert changed[0] == 0
    assert "going on" not in changed[1]  # other settings know nothing of it
    part.write_bytes(whole[:-50])
    code, out, _ = headway(*FLAGS, "--workers", 1)
    assert code == 0
    assert "going on" not in out
    torch.testing.assert_close(load_dataset("toy/new-v0").rewards, relabel(data, best(data, 1)).rewards, atol=0, rtol=0)


def test_one_process_at_a_time(headway: Command, data: Dataset) -> None:
    from headway.agents.relabelling import prepare
    from headway.scripts.runs import locked

    problem = prepare(data, best(data, 1), RelabelConfig())
    folder = Path(f"runs/relabel/toy-new-v0-{problem.fingerprint()}")
    folder.mkdir(parents=True)
    with locked(folder):
        code, _, err = headway(*FLAGS, "--workers", 1)
    assert (code, "another process is relabelling in runs/relabel/toy-new-v0" in err) == (1, True)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["toy/walk-v0", "--demos", "best:1", "--to", "ab/b-v0"], "there is no data set toy/walk-v0"),
        (["toy/walks-v0", "--to", "ab/b-v0"], "--method otr needs --demos DATASET, or --demos best:1"),
        (["toy/walks-v0", "--demos", "best:1"], "pass --to namespace/name-v0, or --dry-run"),
        (["toy/walks-v0", "--demos", "best:7", "--to", "ab/b-v0"], "best:7: toy/walks-v0 has 6 episodes"),
        (["toy/walks-v0", "--demos", "best:0", "--to", "ab/b-v0"], "best:0: toy/walks-v0 has 6 episodes"),
        (["toy/walks-v0", "--demos", "toy/walk-v0", "--to", "ab/b-v0"], "there is no data set toy/walk-v0"),
        (["toy/walks-v0", "--demos", "best:1", "--to", "toy/walks-v0"], "there is a data set toy/walks-v0 already"),
        (["toy/walks-v0", "--demos", "best:1", "--to", "new"], "'new' is no id of a data set"),
        (["toy/walks-v0", "--demos", "best:1", "--method", "constant"], "--method constant compares nothing"),
        (["toy/walks-v0", "--demos", "best:1", "--to", "ab/b-v0", "--top-k", 2], "there are only 1 demonstrations"),
        (
            ["toy/walks-v0", "--demos", "best:1", "--to", "ab/b-v0", "--epsilon", 0],
            "--epsilon must lie in [0.0001, 10]",
        ),
        (["toy/walks-v0", "--demos", "best:1", "--to", "ab/b-v0", "--device", "tpu"], "--device tpu: there is no such"),
        (["toy/walks-v0", "--demos", "best:1", "--to", "ab/b-v0", "--plot", "a.txt"], "--plot must end in .png"),
        (["toy/walks-v0", "--demos", "toy/thin-v0", "--to", "ab/b-v0"], "toy/thin-v0 has the observation space"),
        (["toy/walks-v0", "--demos", "toy/far-v0", "--to", "ab/b-v0"], "toy/far-v0 is of Acrobot-v1, toy/walks-v0 of"),
        (
            ["toy/walks-v0", "--demos", "toy/nan-v0", "--to", "ab/b-v0"],
            "obs are not finite at episode 3, step 7",
        ),
        (
            ["toy/nan-v0", "--demos", "best:1", "--to", "ab/b-v0"],
            "obs are not finite at episode 3, step 7",
        ),
    ],
)
def test_one_line_for_each_mistake(
    headway: Command, data: Dataset, tmp_path: Path, flags: list[Any], reason: str
) -> None:
    write_dataset(recorded([walk(5, 0, 4)], name="toy/thin-v0", env_id=None))
    write_dataset(recorded([walk(5, 0)], name="toy/far-v0", env_id="Acrobot-v1"))
    write_dataset(replace(data, name="toy/nan-v0"))
    import h5py

    with h5py.File(tmp_path / "minari/toy/nan-v0/data/main_data.hdf5", "a") as file:
        file["episode_3/observations"][7, 2] = np.nan
    before = hashed(tmp_path)
    code, _, err = headway("relabel", *flags)
    assert code == 1
    assert err.count("\n") == 1
    assert reason in err
    assert hashed(tmp_path) == before


def test_what_is_odd_but_no_mistake(headway: Command, data: Dataset) -> None:
    """Episodes of one step, zero states, rewards that are all alike."""
    odd = recorded([walk(1, 0), torch.zeros(4, 5, dtype=torch.float64)], rewards=[0.0, 0.0], name="toy/odd-v0")
    write_dataset(replace(odd, env_id="CartPole-v1"))
    code, out, err = headway("relabel", "toy/odd-v0", "--demos", "best:1", "--to", "ab/b-v0", "--workers", 1)
    assert code == 0, err
    assert "rank correlation" not in out
    written = load_dataset("ab/b-v0")
    assert torch.isfinite(written.rewards).all()
    assert written.about["relabelling"]["episodes"]["cost"] == pytest.approx([0, 1], abs=1e-6)  # of float32
    code, _, err = headway("relabel", "toy/odd-v0", "--method", "ground-truth", "--to", "ab/c-v0")
    assert code == 0, err
    assert load_dataset("ab/c-v0").rewards.tolist() == [0] * 5
