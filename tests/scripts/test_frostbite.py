"""``headway frostbite``: data with instructions, the same for everybody."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("ale_py")
pytest.importorskip("minari")

from headway.agents import load_dataset
from headway.envs.missions import find_task, tasks_of, vocabulary_of
from headway.scripts.frostbite import calibrate, collect
from headway.wrappers.missions import Tokenizer

Command = Any


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    monkeypatch.setitem(collect.SIZES, "tiny", 400)
    monkeypatch.setattr(collect, "RANDOM_GAMES", 3)


def test_collecting(headway: Command) -> None:
    code, out, err = headway("frostbite", "collect", "--size", "tiny", "--workers", 1, "--no-progress")
    assert code == 0, err
    assert "games: runs/frostbite/traces-s0   data set: frostbite/tiny-v0, 400 steps" in out
    assert "not shown: " in out
    data = load_dataset("frostbite/tiny-v0")
    assert len(data) >= 400
    assert f"{data.episodes:,} episodes, {len(data):,} steps" in out
    tasks, tokenizer = list(tasks_of("frostbite")), Tokenizer(vocabulary_of("frostbite"))
    first = data.lengths.cumsum(0) - data.lengths
    for episode, start in enumerate(first.tolist()):
        task = find_task("frostbite", tasks[int(data.obs["mission_task"][start])])  # type: ignore[call-overload,index]
        told = tokenizer.decode(data.obs["mission_tokens"][start].tolist())  # type: ignore[call-overload,index]
        assert told in [" ".join(sentence.replace(",", "").replace("'", "").split()) for sentence in task.train]
        assert 0 <= float(data.returns[episode]) <= 1 + 1e-9
        if task.ends:
            assert float(data.returns[episode]) > 0.5
        assert int(data.lengths[episode]) <= task.horizon // 4
    games = sorted(Path("runs/frostbite/traces-s0").glob("game-*.npz"))
    times = [path.stat().st_mtime_ns for path in games]
    code, _, err = headway(
        "frostbite", "collect", "--size", "tiny", "--workers", 2, "--dataset", "frostbite/again-v0", "--no-progress"
    )
    assert code == 0, err
    assert [path.stat().st_mtime_ns for path in games] == times  # none was played again
    assert load_dataset("frostbite/again-v0").digest() == data.digest()
    assert data.observation_space == gym.make(data.env_id).observation_space  # type: ignore[arg-type]
    sizes = ("--width", 16, "--layers", 1, "--heads", 2, "--context", 3)
    run = ("--total-timesteps", 3, "--eval-episodes", 1, "--run-dir", "run", "--no-video", "--no-progress")
    code, _, err = headway("train", "tdt", "--dataset", "frostbite/tiny-v0", *sizes, *run)
    assert code == 0, err
    assert Path("run/final.zip").exists()


def test_workers_play_the_same(headway: Command, tmp_path: Path) -> None:
    digests = []
    for workers in (1, 2):
        name = f"frostbite/w{workers}-v0"
        flags = ("--size", "tiny", "--workers", workers, "--dataset", name, "--traces", tmp_path / f"w{workers}")
        code, _, err = headway("frostbite", "collect", *flags, "--no-progress", "--seed", 3)
        assert code == 0, err
        digests.append(load_dataset(name).digest())
    assert digests[0] == digests[1]


def test_broken_games_are_named(headway: Command) -> None:
    folder = Path("runs/frostbite/traces-s0")
    folder.mkdir(parents=True)
    for content in (b"nothing", b""):
        (folder / "game-000000.npz").write_bytes(content)
        code, _, err = headway("frostbite", "collect", "--size", "tiny", "--workers", 1, "--no-progress")
        assert code == 1
        assert "game-000000.npz is no game that was played" in err
    np.savez(folder / "game-000000.npz", rams=np.zeros((3, 128), np.uint8), rewards=np.zeros(9, np.int32), actions=[1])
    code, _, err = headway("frostbite", "collect", "--size", "tiny", "--workers", 1, "--no-progress")
    assert code == 1
    assert "its parts do not fit each other" in err


def test_screens_are_drawn_anew(headway: Command) -> None:
    pytest.importorskip("cv2")
    flags = ("--size", "tiny", "--workers", 1, "--no-progress")
    for obs in ("ram", "pixels"):
        code, _, err = headway("frostbite", "collect", *flags, "--obs", obs)
        assert code == 0, err
    by_memory, by_screen = (load_dataset(f"frostbite/{name}-v0") for name in ("tiny", "tiny-pixels"))
    assert torch.equal(by_memory.actions, by_screen.actions)
    assert torch.equal(by_memory.lengths, by_screen.lengths)
    frames = by_screen.obs["frames"]  # type: ignore[call-overload,index]
    assert frames.shape[1:] == (1, 84, 84)
    env = gym.make(by_screen.env_id)  # type: ignore[arg-type]
    assert by_screen.observation_space == env.observation_space
    (episode,) = by_screen.about["episodes"][:1]
    begun = collect.begun(0, episode["game"], "pixels")
    trace = collect.read_trace(Path("runs/frostbite/traces-s0"), episode["game"])
    shown = [begun.observed(), *(begun.step(action)[0] for action in trace.actions[: episode["start"] + 5].tolist())]
    assert np.array_equal(frames[:5], np.stack(shown[episode["start"] : episode["start"] + 5]))
    sizes = ("--width", 8, "--layers", 1, "--heads", 1, "--context", 2, "--batch-size", 2)
    run = ("--total-timesteps", 2, "--eval-episodes", 1, "--run-dir", "run", "--no-video", "--no-progress")
    code, _, err = headway("train", "tdt", "--dataset", "frostbite/tiny-pixels-v0", *sizes, *run)
    assert code == 0, err


def test_games_of_another_version_are_played_again(headway: Command, caplog: pytest.LogCaptureFixture) -> None:
    flags = ("--size", "tiny", "--workers", 1, "--no-progress")
    assert headway("frostbite", "collect", *flags)[0] == 0
    path = Path("runs/frostbite/traces-s0/game-000001.npz")
    with np.load(path) as parts:
        kept = dict(parts)
    np.savez(path, **{**kept, "ale_py": np.array("0.1")})  # type: ignore[arg-type]
    assert headway("frostbite", "collect", *flags, "--dataset", "frostbite/again-v0")[0] == 0
    assert "game-000001.npz was played with ale-py 0.1" in caplog.text
    assert load_dataset("frostbite/again-v0").digest() == load_dataset("frostbite/tiny-v0").digest()
    kept["rams"][-1, 5] += 1
    np.savez(path, **{**kept, "ale_py": np.array("0.1")})  # type: ignore[arg-type]
    code, _, err = headway("frostbite", "collect", *flags, "--dataset", "frostbite/third-v0")
    assert code == 1
    assert "leads elsewhere; delete it" in err


def test_without_the_emulator(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    code, _, err = headway("frostbite", "collect", "--size", "tiny")
    assert code == 1
    assert "Frostbite needs ale-py: pip install 'headway-rl[atari]'" in err


def test_commands(headway: Command) -> None:
    assert "collect        play Frostbite" in headway("frostbite")[1]
    code, _, err = headway("frostbite", "colect")
    assert code == 1
    assert "there is no command 'frostbite colect': did you mean collect?" in err
    assert headway("frostbite", "collect", "--size", "huge")[0] != 0


def test_ctrl_c_says_what_is_kept(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    flags = {"collect": ("--size", "tiny", "--no-progress"), "calibrate": ("--tasks", "land_row-1")}
    monkeypatch.setattr(collect, "play_game", interrupted)
    monkeypatch.setattr(calibrate, "play_episode", interrupted)
    for command, place in (("collect", "runs/frostbite/traces-s0"), ("calibrate", "runs/frostbite/references/ale-")):
        code, out, err = headway("frostbite", command, "--workers", 1, *flags[command])
        assert code == 130
        assert f"kept in {place}" in out
        assert "interrupted" in err
