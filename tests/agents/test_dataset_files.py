"""Data sets on disk: bit for bit in every format, readable by Minari, never overwritten, refused in words."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import minari
import numpy as np
import pyarrow.ipc
import pytest
import torch
from gymnasium import spaces
from headway.agents.core.data import Dataset, DatasetError, load_dataset, write_dataset
from headway.agents.core.data.dataset_files import find_datasets, size_of
from headway.agents.core.data.episode_files import FORMATS
from minari.data_collector import EpisodeBuffer
from toys import FORMS, MOVES, PLACE, recorded

NAME = "toys/recorded-v0"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    return tmp_path / "root"


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one.dtype == other.dtype and torch.equal(one, other))


def assert_same(one: Dataset, other: Dataset) -> None:
    for name in ("obs", "final_obs", "actions", "rewards", "lengths", "terminated", "extras"):
        assert same(getattr(one, name), getattr(other, name)), name
    for name in ("observation_space", "action_space", "name", "env_id", "ref_min_score", "ref_max_score"):
        assert getattr(one, name) == getattr(other, name), name


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(bytes(path.name, "utf8") + path.read_bytes() for path in files)).hexdigest()


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize(("form", "moves"), [*((form, "box") for form in FORMS), *(("box", moves) for moves in MOVES)])
def test_round_trip(data_format: str, form: str, moves: str) -> None:
    data = recorded(form, moves, lengths=(1, 3, 2), env_id="mine:Point-v0", ref_max_score=0.0, about={"why": ["a", 1]})
    folder = write_dataset(data, data_format=data_format)
    before = digest(folder)
    back = load_dataset(NAME)
    assert_same(data, back)
    assert back.about == data.about
    assert digest(folder) == before
    theirs = minari.load_dataset(NAME)
    assert (len(theirs), theirs.total_steps) == (3, 6)
    for episode, part in zip(theirs, map(data.select, ([0], [1], [2])), strict=True):
        np.testing.assert_array_equal(episode.rewards, part.rewards)
        assert episode.terminations.tolist() == [False] * (len(part) - 1) + part.terminated.tolist()
        np.testing.assert_array_equal(episode.infos["policy_id"][1:], part.extras["policy_id"])
        if form == "box":
            np.testing.assert_array_equal(episode.observations, torch.cat((part.obs, part.final_obs)))
            np.testing.assert_array_equal(episode.actions, part.actions)


@pytest.mark.parametrize("data_format", FORMATS)
def test_extras_of_several_numbers(data_format: str) -> None:
    data = recorded(extras={"memory": torch.arange(30.0).view(5, 2, 3)})
    write_dataset(data, data_format=data_format)
    assert load_dataset(NAME).extras == {}
    assert same(load_dataset(NAME, extras=("memory", "unknown")).extras, data.extras)
    np.testing.assert_array_equal(minari.load_dataset(NAME)[1].infos["memory"][1:], data.extras["memory"][3:])


def test_by_minari_into_minari() -> None:
    """What Minari writes is read, infos without a row for the reset too; what is written again, Minari reads."""
    rng = np.random.default_rng(0)
    buffers = [
        EpisodeBuffer(
            id=k,
            observations=rng.normal(size=(4, 3)),
            actions=rng.uniform(-2, 2, (3, 1)).astype(np.float32),
            rewards=list(rng.normal(size=3)),
            terminations=[False] * 3,
            truncations=[False, False, k == 1],
            infos={"behavior_logp": rng.normal(size=3), "policy_id": np.full(3, k)},
        )
        for k in range(2)
    ]
    with pytest.warns(UserWarning, match="is set to None"):  # the author and the like
        minari.create_dataset_from_buffers("theirs/pendulum-v3", buffers, env="Pendulum-v1", data_format="hdf5")
    data = load_dataset("theirs/pendulum-v3")
    assert data.env_id == "Pendulum-v1"
    assert data.extras["policy_id"].tolist() == [0] * 3 + [1] * 3
    np.testing.assert_array_equal(
        data.extras["behavior_logp"], np.concatenate([b.infos["behavior_logp"] for b in buffers])
    )
    np.testing.assert_array_equal(data.final_obs, np.stack([b.observations[-1] for b in buffers]))
    assert not data.terminated.any()
    write_dataset(replace(data, name="ours/pendulum-v0"), data_format="arrow")
    again = minari.load_dataset("ours/pendulum-v0")
    assert again.recover_environment().spec.id == "Pendulum-v1"
    np.testing.assert_array_equal(again[1].rewards, buffers[1].rewards)
    assert_same(replace(data, name="ours/pendulum-v0"), load_dataset("ours/pendulum-v0"))
    assert list(minari.list_local_datasets()) == ["ours/pendulum-v0", "theirs/pendulum-v3"] == [*find_datasets()]


@pytest.mark.parametrize("data_format", FORMATS)
def test_pictures_that_minari_has_compressed(data_format: str) -> None:
    picture = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    shown = np.full((3, 16, 16, 3), 200, np.uint8)
    buffer = EpisodeBuffer(0, None, None, shown, np.zeros((2, 1), np.float32), [0.0] * 2, [False] * 2, [False, True])
    with pytest.warns(UserWarning, match="to None|is None"):
        minari.create_dataset_from_buffers(
            "xx/pictures-v0", [buffer], observation_space=picture, action_space=PLACE, data_format=data_format
        )
    data = load_dataset("xx/pictures-v0")
    assert isinstance(data.obs, torch.Tensor)
    assert data.obs.shape == (2, 16, 16, 3)
    assert (data.obs.int() - 200).abs().max() <= 2  # what JPEG makes of a plain colour


def test_an_id_is_never_overwritten(root: Path) -> None:
    write_dataset(recorded())
    before = digest(root)
    with pytest.raises(FileExistsError, match=f"there is a data set {NAME} already, in .*choose another id"):
        write_dataset(recorded(seed=1))
    assert digest(root) == before


@pytest.mark.parametrize("name", ["", "x", "../out-v0", "/out-v0", "a b/c-v0", "ns/name", "x/y-v0", "ns/../y-v0"])
def test_malformed_ids(name: str) -> None:
    with pytest.raises(ValueError, match="is no id of a data set: write namespace/name-v0"):
        write_dataset(recorded(name=name))


def test_what_minari_cannot_hold() -> None:
    class Odd(spaces.Space[Any]):
        """A space of one's own."""

    with pytest.raises(ValueError, match=r"Minari cannot hold the observation space .*Odd"):
        write_dataset(recorded(observation_space=Odd((1,), np.float32)))
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        write_dataset(recorded(about={"x": {1, 2}}))
    with pytest.raises(ValueError, match="hdf5, arrow, parquet, got 'csv'"):
        write_dataset(recorded(), data_format="csv")
    assert find_datasets() == {}


def test_too_little_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = recorded()
    usage = shutil.disk_usage(root.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=(64 << 20) + size_of(data, "hdf5") - 1))
    with pytest.raises(OSError, match=r"needs 0 MB, .* has 0 MB to spare: make room, or set MINARI_DATASETS_PATH"):
        write_dataset(data)
    assert not root.exists()


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_a_write_that_fails_leaves_nothing(root: Path, data_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pyarrow.ipc, "new_file", full)
    monkeypatch.setattr(h5py.h5g, "create", full)
    with pytest.raises(OSError, match="No space left"):
        write_dataset(recorded(), data_format=data_format)
    assert [path for path in root.rglob("*") if path.is_file()] == []
    assert find_datasets() == {}


def test_what_a_killed_write_left_is_cleared(root: Path) -> None:
    """It has a hidden name, so that neither Minari nor Headway takes it for a data set."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for number in (dead.pid, os.getppid()):
        (root / f"toys/.recorded-v0.tmp-{number}/data").mkdir(parents=True)
        (root / f"toys/.recorded-v0.tmp-{number}/data/metadata.json").write_text("{}")
    assert find_datasets() == minari.list_local_datasets() == {}
    with pytest.raises(FileNotFoundError):
        load_dataset(NAME)
    write_dataset(recorded())
    assert sorted(path.name for path in (root / "toys").iterdir() if path.is_dir()) == [
        f".recorded-v0.tmp-{os.getppid()}",
        "recorded-v0",
    ]


# -- what cannot be read ---------------------------------------------------------------------------------------------


class Fault(NamedTuple):
    do: Callable[[Path], Any]
    """What is done to a data set's ``data``."""
    message: str
    data_format: str = "hdf5"


def edit(**changes: Any) -> Callable[[Path], None]:
    def do(data: Path) -> None:
        content = json.loads((data / "metadata.json").read_text()) | changes
        (data / "metadata.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return do


def put(leaf: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def do(data: Path) -> None:
        with h5py.File(data / "main_data.hdf5", "a") as file:
            values = file[leaf][()]
            del file[leaf]
            if (new := change(values)) is not None:
                file[leaf] = new

    return do


def early_end(values: Any) -> Any:
    values[0] = True
    return values


def with_nan(values: Any) -> Any:
    values[1] = np.nan
    return values


def cut(data: Path) -> None:
    file = data / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:-500])


FAULTS = {
    "no metadata": Fault(lambda data: (data / "metadata.json").unlink(), "has no data/metadata.json: it is partial"),
    "broken metadata": Fault(lambda data: (data / "metadata.json").write_text("{"), "its metadata.json is broken"),
    "a list": Fault(lambda data: (data / "metadata.json").write_text("[]"), "its metadata.json holds no table"),
    "no file": Fault(lambda data: (data / "main_data.hdf5").unlink(), "it is partial: .*No such file"),
    "no episode": Fault(lambda data: shutil.rmtree(data / "1"), "episode 1 of 2 cannot be read", "arrow"),
    "half a table": Fault(lambda data: (data / "1/part-0.arrow").write_bytes(b"ARROW1"), "its file is broken", "arrow"),
    "a cut file": Fault(cut, "its file is broken: .*truncated file"),
    "another file": Fault(lambda data: (data / "main_data.hdf5").write_bytes(b"none"), "its file is broken"),
    "no spaces": Fault(edit(observation_space=None), "its metadata have no observation_space"),
    "odd spaces": Fault(edit(action_space='{"type": "Cube"}'), "its action_space cannot be read"),
    "words": Fault(edit(action_space=minari.serialization.serialize_space(spaces.Text(5))), r"actions are of Text\("),
    "other spaces": Fault(
        edit(action_space=minari.serialization.serialize_space(FORMS["tokens"])),
        r"episode 0: actions have the shape \(1,\)",
    ),
    "another dtype": Fault(
        edit(action_space=minari.serialization.serialize_space(spaces.Box(0, 1, (1,), np.int64))), "actions: expected"
    ),
    "empty": Fault(edit(total_episodes=0), "it is empty: its metadata count 0 episodes"),
    "more episodes": Fault(edit(total_episodes=3), "it is partial: episode 2 of 3 cannot be read"),
    "more steps": Fault(edit(total_steps=6), "it is partial: its metadata count 6 steps, its episodes have 5"),
    "another format": Fault(edit(data_format="csv"), "is in the format 'csv'"),
    "no rewards": Fault(put("episode_1/rewards", lambda values: None), "episode 1 of 2 cannot be read"),
    "no last observation": Fault(
        put("episode_1/observations", lambda v: v[:-1]),
        "episode 1: 2 rewards need 3 observations, it has 2: the last is",
    ),
    "fewer actions": Fault(put("episode_0/actions", lambda v: v[:-1]), "episode 0: 3 rewards need 3 actions, it has 2"),
    "an early end": Fault(put("episode_0/terminations", early_end), "terminations are set at step 0 of 3"),
    "no steps": Fault(put("episode_1/rewards", lambda v: v[:0]), "episode 1: it has no steps"),
    "NaN": Fault(put("episode_1/rewards", with_nan), "rewards are not finite at episode 1, step 1"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_is_wrong_is_said(what: str, root: Path) -> None:
    fault = FAULTS[what]
    fault.do(write_dataset(recorded(), data_format=fault.data_format) / "data")
    with pytest.raises(ValueError, match=fault.message) as caught:
        load_dataset(NAME)
    assert len(str(caught.value).splitlines()) == 1


def test_missing_and_foreign(tmp_path: Path) -> None:
    write_dataset(recorded())
    with pytest.raises(FileNotFoundError, match=f"did you mean {NAME}.*minari download ID.*headway collect"):
        load_dataset("toys/recorded-v1")
    (tmp_path / "d4rl.hdf5").write_bytes(b"")
    with pytest.raises(DatasetError, match="it is a file: give a Minari id"):
        load_dataset(tmp_path / "d4rl.hdf5")
    for path in (find_datasets()[NAME], find_datasets()[NAME] / "data"):
        assert_same(load_dataset(path), recorded())


# -- OGBench ---------------------------------------------------------------------------------------------------------

ROWS = np.arange(7, dtype=np.float32)
ENDS = np.array([0, 0, 1, 0, 0, 0, 1], np.float32)
NPZ = {"observations": np.stack((ROWS, -ROWS), 1), "actions": ROWS[:, None] / 7, "terminals": ENDS}


def test_ogbench_trajectories_end_in_a_row_without_an_action(tmp_path: Path) -> None:
    path = tmp_path / "pointmaze-medium-navigate-v0-val.npz"
    np.savez(path, **NPZ, qpos=ROWS)
    data = load_dataset(path)
    assert data.env_id == "pointmaze-medium-v0"
    assert data.lengths.tolist() == [2, 3]
    assert isinstance(data.obs, torch.Tensor)
    assert isinstance(data.final_obs, torch.Tensor)
    assert data.obs[:, 0].tolist() == [0, 1, 3, 4, 5]
    assert data.final_obs[:, 0].tolist() == [2, 6]
    torch.testing.assert_close(data.actions[:, 0], torch.tensor([0, 1, 3, 4, 5]) / 7, rtol=0, atol=1e-7)
    assert (data.action_space.low, data.action_space.high) == (-1, 1)  # type: ignore[attr-defined]
    assert not data.terminated.any()
    assert data.rewards.tolist() == [0] * 5
    assert data.about["guessed"] == "spaces, rewards (zeros)"


def test_ogbench_with_rewards_masks_and_next_observations(tmp_path: Path) -> None:
    masks = np.ones(7, np.float32)
    masks[5] = 0
    np.savez(tmp_path / "a.npz", **NPZ, rewards=-ROWS, masks=masks)
    data = load_dataset(tmp_path / "a.npz")
    assert data.rewards.tolist() == [0, -1, -3, -4, -5]
    assert data.terminated.tolist() == [False, True]
    assert data.env_id is None
    np.savez(tmp_path / "b.npz", **{**NPZ, "actions": ROWS.astype(np.int32)}, next_observations=NPZ["observations"] + 1)
    data = load_dataset(tmp_path / "b.npz")
    assert data.lengths.tolist() == [3, 4]
    assert isinstance(data.final_obs, torch.Tensor)
    assert data.final_obs[:, 0].tolist() == [3, 7]
    assert data.action_space == spaces.Discrete(7)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"observations": ROWS}, "it has no actions and no terminals"),
        ({**NPZ, "actions": ROWS[:3]}, "it is empty or partial: its arrays have the lengths"),
        ({**NPZ, "terminals": ENDS * 0}, "its last row is not the end of a trajectory"),
        ({**NPZ, "terminals": np.maximum(ENDS, np.roll(ENDS, 1))}, "episode 0 has no steps"),
        ({**NPZ, "observations": np.array([{}] * 7)}, "it is no sound .npz file of arrays"),
    ],
)
def test_odd_npz_files(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DatasetError, match=message):
        load_dataset(tmp_path / "x.npz")


def test_no_npz_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ogbench\.download_datasets"):
        load_dataset(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(b"PK")
    with pytest.raises(DatasetError, match="no sound"):
        load_dataset(tmp_path / "x.npz")
