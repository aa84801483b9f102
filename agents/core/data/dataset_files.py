"""Data sets on disk: Minari's, by id or folder, in and out; OGBench's, in. Nothing is downloaded, no environment built.

Minari keeps a data set ``ns/name-v0`` in ``$MINARI_DATASETS_PATH/ns/name-v0/data`` (by default below
``~/.minari/datasets``): ``metadata.json``, and episodes in one of three formats (:mod:`.episode_files`).
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ....envs.naming import nearest
from ....envs.registration import versioned
from ....wrappers.specs import named, not_imported, spec_to_json
from ..files.errors import one_line
from ..files.replacing import replacing
from ..spaces import Obs, shown
from .dataset import Dataset, DatasetError
from .episode_files import Array, EpisodeReader, needs, reading_episodes, writing_episodes
from .ogbench import load_npz

EXTRAS = ("behavior_logp", "policy_id")
"""What is read of ``infos`` where it is there."""

ID = re.compile(r"([-\w][-\w/]*[-\w]/)?[-\w]+-v\d+")
"""Minari's ids, less those without a version."""

_OWN = {"total_episodes", "total_steps", "data_format", "jpeg_encoding", "observation_space", "action_space"}
_OWN |= {"dataset_id", "minari_version", "dataset_size", "ref_min_score", "ref_max_score", "env_id"}
"""What metadata say beside ``Dataset.about``."""

_WIDER = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}
"""Unsigned numbers with which torch can do little."""

_SPARE = 64 << 20
"""Bytes of a disk that stay free; our choice."""


def datasets_root() -> Path:
    """:return: the folder of all data sets"""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def find_datasets() -> dict[str, Path]:
    """:return: the folder of each data set that is here, by its id"""
    root = datasets_root()
    places = (path.parent.parent.relative_to(root) for path in sorted(root.glob("**/data/metadata.json")))
    return {str(place): root / place for place in places if not any(part.startswith(".") for part in place.parts)}


# -- reading ---------------------------------------------------------------------------------------------------------


def load_dataset(name: str | Path, *, extras: Collection[str] = EXTRAS) -> Dataset:
    """Read a data set as flat tensors: a million steps in seconds.

    :param name: the id of one that is here, the folder of one, or an ``.npz`` file of OGBench's
    :param extras: which of the infos of each step to keep, where there are such
    :return: the data set; ``about`` is what its metadata say besides, the environment's spec (``env_spec``) included
    :raises FileNotFoundError: there is none
    :raises DatasetError: (a ``ValueError``) it is empty, partial, foreign, or holds what no data set may: all of that
    :raises ValueError: a package is missing
    """
    path = Path(name)
    if path.suffix == ".npz":
        return load_npz(path)
    folder = _folder(str(name))
    metadata = read_metadata(folder)
    label = str(metadata.get("dataset_id") or name)
    with _explained(label), episodes_of(folder, metadata) as episodes:
        return _read(label, metadata, episodes, extras)


def env_of(name: str | Path) -> str | None:
    """Say where a data set was recorded, without reading its steps.

    :param name: as of :func:`load_dataset`
    :return: the id of the environment; None where it does not say
    """
    return None if Path(name).suffix == ".npz" else _env_id(read_metadata(_folder(str(name))))


def read_references(name: str | Path) -> tuple[float | None, float | None]:
    """Read the returns that count as 0 and as 1, without reading steps.

    :param name: as of :func:`load_dataset`
    :return: them; None where they are not stored
    """
    if Path(name).suffix == ".npz":
        return None, None
    metadata = read_metadata(_folder(str(name)))
    low, high = (metadata.get(f"ref_{end}_score") for end in ("min", "max"))
    return None if low is None else float(low), None if high is None else float(high)


def _folder(name: str) -> Path:
    """:return: where ``metadata.json`` lies"""
    for folder in (Path(name), Path(name) / "data", datasets_root() / name / "data"):
        if (folder / "metadata.json").is_file():
            return folder
    if Path(name).is_file():
        raise DatasetError(name, ["it is a file: give a Minari id, the folder of a Minari data set, or an .npz file"])
    for folder in (Path(name), datasets_root() / name):
        if folder.is_dir() and os.listdir(folder):
            raise DatasetError(name, [f"{folder} has no data/metadata.json: it is partial, or no data set of Minari's"])
    close = nearest(name, find_datasets(), f"headway datasets list shows those below {datasets_root()}")
    raise FileNotFoundError(
        f"there is no data set {name}: {close}; published ones are fetched by `minari download ID`, "
        "own ones recorded by `headway collect`"
    )


def read_metadata(folder: Path) -> dict[str, Any]:
    """Read what a data set says of itself.

    :param folder: its ``data``
    :return: ``metadata.json``
    :raises DatasetError: (a ``ValueError``) it is broken
    """
    try:
        content = json.loads((folder / "metadata.json").read_text())
    except (ValueError, RecursionError) as cause:
        raise DatasetError(str(folder), [f"its metadata.json is broken: {one_line(str(cause))}"]) from cause
    if not isinstance(content, dict):
        raise DatasetError(str(folder), ["its metadata.json holds no table"])
    return content


def episodes_of(folder: Path, metadata: Mapping[str, Any]) -> contextlib.AbstractContextManager[EpisodeReader]:
    """:return: what reads a data set's episodes, see :func:`reading_episodes`"""
    pictures = bool(metadata.get("jpeg_encoding", True)) and any(
        isinstance(leaf, spaces.Box) and leaf.dtype == np.uint8 and len(leaf.shape) in (2, 3)
        for name in ("observation_space", "action_space")
        for leaf in _leaves(_space(metadata, name), "").values()
    )
    return reading_episodes(folder, str(metadata.get("data_format", "hdf5")), pictures)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """What h5py, Arrow and Minari raise of broken files, in words."""
    try:
        yield
    except DatasetError:
        raise
    except FileNotFoundError as cause:
        raise DatasetError(name, [f"it is partial: {one_line(str(cause))}"]) from cause
    except (OSError, AssertionError, UnicodeError) as cause:
        raise DatasetError(name, [f"its file is broken: {one_line(str(cause))}"]) from cause
    except ValueError as cause:
        if type(cause).__module__.partition(".")[0] in ("pyarrow", "h5py"):
            raise DatasetError(name, [f"its file is broken: {one_line(str(cause))}"]) from cause
        raise


def _space(metadata: Mapping[str, Any], name: str) -> spaces.Space[Any]:
    label, text = str(metadata.get("dataset_id")), metadata.get(name)
    if text is None:
        raise DatasetError(label, [f"its metadata have no {name}, which only building its environment could tell"])
    try:
        space = needs("minari.serialization").deserialize_space(text)
    except (ValueError, KeyError, TypeError, AssertionError, NotImplementedError) as cause:
        raise DatasetError(label, [f"its {name} cannot be read: {one_line(repr(cause))}"]) from cause
    assert isinstance(space, spaces.Space)
    return space


def _leaves(space: spaces.Space[Any], name: str) -> dict[str, spaces.Space[Any]]:
    """:return: the parts of a space by path; below a Dict no other is allowed"""
    return {f"{name}/{key}": part for key, part in space.items()} if isinstance(space, spaces.Dict) else {name: space}


_READABLE = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def _read(label: str, metadata: Mapping[str, Any], episodes: EpisodeReader, extras: Collection[str]) -> Dataset:
    seen, done = _space(metadata, "observation_space"), _space(metadata, "action_space")
    leaves = {**_leaves(seen, "observations"), "actions": done}
    for leaf, space in leaves.items():
        if not isinstance(space, _READABLE):
            able = "only Box, Discrete, MultiDiscrete, MultiBinary, and a Dict of these as observations, can be read"
            raise DatasetError(label, [f"{leaf} are of {shown(space)}: {able}"])
    total = metadata.get("total_episodes")
    if type(total) is not int or total < 1:
        raise DatasetError(label, [f"it is empty: its metadata count {total} episodes"])
    parts, problems = _gather(episodes, total, leaves, extras)
    if problems:
        raise DatasetError(label, problems)
    lengths = torch.tensor([len(part) for part in parts["rewards"]])
    if (said := metadata.get("total_steps")) != (counted := int(lengths.sum())):
        raise DatasetError(label, [f"it is partial: its metadata count {said} steps, its episodes have {counted}"])
    obs = {leaf.rpartition("/")[2]: parts[leaf] for leaf in leaves if leaf != "actions"}
    before = {key: _tensor([part[:-1] for part in each]) for key, each in obs.items()}
    after = {key: _tensor([part[-1:] for part in each]) for key, each in obs.items()}
    about = {key: value for key, value in metadata.items() if key not in _OWN}
    return Dataset(
        observation_space=seen,
        action_space=done,
        obs=_as_space(seen, before),
        final_obs=_as_space(seen, after),
        actions=_tensor(parts["actions"]),
        rewards=_tensor(parts["rewards"]).double(),
        lengths=lengths,
        terminated=torch.tensor([bool(part[-1]) for part in parts["terminations"]]),
        extras={name: _tensor(parts[name]) for name in extras if name in parts},
        name=label,
        env_id=_env_id(metadata),
        ref_min_score=metadata.get("ref_min_score"),
        ref_max_score=metadata.get("ref_max_score"),
        about=about,
    )


def _gather(
    episodes: EpisodeReader, total: int, leaves: Mapping[str, spaces.Space[Any]], extras: Collection[str]
) -> tuple[dict[str, list[Array]], list[str]]:
    """Read all leaves of all episodes; :return: them, and what is wrong with them"""
    names = [*leaves, "rewards", "terminations", "truncations"]
    kept = [name for name in extras if _has(episodes, f"infos/{name}")]
    parts: dict[str, list[Array]] = {name: [] for name in [*names, *kept]}
    problems: list[str] = []
    for episode in range(total):
        try:
            read = {name: _shaped(episodes.read(episode, name), leaves.get(name)) for name in names}
            read |= {name: episodes.read(episode, f"infos/{name}") for name in kept}
        except KeyError as cause:
            problems.append(f"it is partial: episode {episode} of {total} cannot be read ({one_line(str(cause))})")
            break
        faults = list(_faults(read, leaves, kept))
        problems += [f"episode {episode}: {fault}" for fault in faults]
        steps = len(read["rewards"])
        for name, array in read.items():
            parts[name].append(array[1:] if name in kept and len(array) == steps + 1 else array)
    return parts, problems


def _shaped(array: Array, space: spaces.Space[Any] | None) -> Array:
    """:return: an array in the shape of its space; Arrow's hold elements flattened"""
    shape = () if space is None else space.shape or ()
    flat = array.ndim == 2 and array.shape[1] == np.prod(shape)
    return array.reshape(len(array), *shape) if flat else array


def _has(episodes: EpisodeReader, leaf: str) -> bool:
    try:
        episodes.read(0, leaf)
    except KeyError:
        return False
    return True


def _faults(read: Mapping[str, Array], leaves: Mapping[str, spaces.Space[Any]], kept: Collection[str]) -> Iterator[str]:
    """:return: what is wrong with an episode's arrays"""
    steps = len(read["rewards"])
    if not steps:
        yield "it has no steps"
        return
    for name, array in read.items():
        above = 1 if name.startswith("observations") else 0
        if len(array) != steps + above and not (name in kept and len(array) == steps + 1):
            why = ": the last is what the last step led to" if above else ""
            yield f"{steps} rewards need {steps + above} {name}, it has {len(array)}{why}"
        space = leaves.get(name)
        if space is not None and array.shape[1:] != (space.shape or ()):
            yield f"{name} have the shape {array.shape[1:]}, those of {shown(space)} have {space.shape or ()}"
    for name in ("terminations", "truncations"):
        early = read[name][:-1].nonzero()[0]
        if len(early):
            yield f"it goes on after its end: {name} are set at step {early[0]} of {steps}"


def _tensor(parts: list[Array]) -> Tensor:
    array = np.concatenate(parts)
    return torch.from_numpy(array.astype(_WIDER.get(str(array.dtype), array.dtype), copy=False))


def _as_space(space: spaces.Space[Any], parts: dict[str, Tensor]) -> Obs:
    return parts if isinstance(space, spaces.Dict) else next(iter(parts.values()))


def _env_id(metadata: Mapping[str, Any]) -> str | None:
    """:return: the environment's id; with its module, if Headway wrote the data set"""
    if isinstance(metadata.get("env_id"), str):
        return str(metadata["env_id"])
    try:
        return str(json.loads(metadata.get("env_spec") or "null")["id"])
    except (ValueError, TypeError, KeyError):
        return None


# -- writing ---------------------------------------------------------------------------------------------------------


def check_new_dataset(name: str, size: int = 0) -> Path:
    """See that a data set can be written, before the work that fills it begins.

    :param name: its id
    :param size: bytes that it will have
    :return: its folder to be
    :raises FileExistsError: there is one of this id
    :raises ValueError: the id is malformed
    :raises OSError: it cannot be written there, or the disk has too little room
    """
    if not ID.fullmatch(name):
        raise ValueError(f"{name!r} is no id of a data set: write namespace/name-v0, of letters, digits, - and _")
    place = datasets_root() / name
    if os.path.lexists(place):
        raise FileExistsError(f"there is a data set {name} already, in {place}: none is overwritten, choose another id")
    folder = next(parent for parent in place.absolute().parents if parent.exists())
    if not os.access(folder, os.W_OK):
        raise OSError(f"cannot write {place}: {folder} is not to be written to; set MINARI_DATASETS_PATH")
    free = shutil.disk_usage(folder).free
    if size + _SPARE > free:
        raise OSError(
            f"data set {name} needs {size / 1e6:,.0f} MB, {folder} has {max(0, free - _SPARE) / 1e6:,.0f} MB to spare: "
            "make room, or set MINARI_DATASETS_PATH"
        )
    return place


def size_of(dataset: Dataset, data_format: str) -> int:
    """:return: about how many bytes a data set takes on disk"""
    stored = [*_by_leaf(dataset.obs), *_by_leaf(dataset.final_obs), dataset.actions, dataset.rewards]
    stored += dataset.extras.values()
    total = sum(part.numel() * part.element_size() for part in stored) + 2 * len(dataset)
    return total + dataset.episodes * (6_000 if data_format == "hdf5" else 16_000)  # measured; blocks of 4 kB


def _by_leaf(obs: Obs) -> list[Tensor]:
    return [obs] if isinstance(obs, Tensor) else list(obs.values())


def write_dataset(dataset: Dataset, *, data_format: str = "hdf5") -> Path:
    """Write a new data set in Minari's layout, under its name; all of it or nothing.

    ``about`` becomes metadata; the spec of the environment is taken from there (``env_spec``), or from its id if that
    is registered, so that ``minari.load_dataset(name).recover_environment()`` makes it. Images are kept as they are.

    :param dataset: it
    :param data_format: hdf5, arrow or parquet
    :return: its folder
    :raises FileExistsError: there is one of this name; none is overwritten
    :raises ValueError: the name is no id, a package is missing, Minari cannot hold a space, or JSON what it is about
    :raises OSError: it cannot be written there, or the disk has too little room
    """
    place = check_new_dataset(dataset.name, size_of(dataset, data_format))
    metadata = json.dumps(_metadata(dataset, data_format))
    _clear_leftovers(place)
    with replacing(place) as temporary:
        folder = temporary / "data"
        folder.mkdir(parents=True)
        with writing_episodes(folder, data_format) as writer:
            for episode, leaves in enumerate(_episodes(dataset)):
                writer.write(episode, leaves)
        (folder / "metadata.json").write_text(metadata)
        for above in place.relative_to(datasets_root()).parents[:-1]:
            note = datasets_root() / above / "namespace_metadata.json"
            if not note.exists():
                note.write_text("{}")
    return place


def _clear_leftovers(place: Path) -> None:
    """Remove what a killed process was writing; its name ends in the process's number."""
    for leftover in place.parent.glob(f".{place.name}.tmp-*"):
        number = leftover.name.rpartition("-")[2]
        if number.isdecimal() and not Path("/proc", number).exists() and Path("/proc").exists():
            shutil.rmtree(leftover)


def _metadata(dataset: Dataset, data_format: str) -> dict[str, Any]:
    serialization, minari = needs("minari.serialization"), needs("minari")
    metadata = {key: value for key, value in dataset.about.items() if key not in _OWN}
    for name in ("observation_space", "action_space"):
        space = getattr(dataset, name)
        try:
            text = serialization.serialize_space(space)
            back = serialization.deserialize_space(text)
        except (NotImplementedError, TypeError, KeyError) as cause:
            raise ValueError(f"Minari cannot hold the {name.replace('_', ' ')} {shown(space)}") from cause
        if back != space:
            raise ValueError(f"Minari cannot hold the {name.replace('_', ' ')} {shown(space)}: it reads {shown(back)}")
        metadata[name] = text
    metadata |= {
        "dataset_id": dataset.name,
        "total_episodes": dataset.episodes,
        "total_steps": len(dataset),
        "data_format": data_format,
        "jpeg_encoding": False,
        "minari_version": minari.__version__,
        "dataset_size": round(size_of(dataset, data_format) / 1e6, 1),
    }
    optional: dict[str, Any] = {"ref_min_score": dataset.ref_min_score, "ref_max_score": dataset.ref_max_score}
    optional |= {"env_id": dataset.env_id, "env_spec": metadata.get("env_spec", _spec(dataset.env_id))}
    metadata |= {key: value for key, value in optional.items() if value is not None}
    try:
        json.dumps(metadata)
    except (TypeError, ValueError) as cause:
        raise ValueError(f"what data set {dataset.name} is about cannot be written as JSON: {cause}") from cause
    return metadata


def _spec(env_id: str | None) -> str | None:
    """:return: the spec of an id that is registered, in JSON"""
    if env_id is None or not_imported(named(env_id)) is not None:
        return None
    return spec_to_json(gym.registry.get(versioned(env_id.rpartition(":")[2])))


def _episodes(dataset: Dataset) -> Iterator[dict[str, Array]]:
    """:return: the leaves of each episode"""
    obs = _leaf_arrays(dataset.obs)
    final = _leaf_arrays(dataset.final_obs)
    actions, rewards = dataset.actions.numpy(), dataset.rewards.numpy()
    extras = {f"infos/{name}": values.numpy() for name, values in dataset.extras.items()}
    end = 0
    for episode, (length, terminated) in enumerate(
        zip(dataset.lengths.tolist(), dataset.terminated.tolist(), strict=True)
    ):
        rows = slice(start := end, end := start + length)
        ends = np.zeros((2, length), bool)
        ends[0 if terminated else 1, -1] = True
        yield {
            **{leaf: np.concatenate((part[rows], final[leaf][episode : episode + 1])) for leaf, part in obs.items()},
            "actions": actions[rows],
            "rewards": rewards[rows],
            "terminations": ends[0],
            "truncations": ends[1],
            # as Minari's collector records them, with a row for the reset in front
            **{leaf: np.concatenate((part[start : start + 1], part[rows])) for leaf, part in extras.items()},
        }


def _leaf_arrays(obs: Obs) -> dict[str, Array]:
    if isinstance(obs, Tensor):
        return {"observations": obs.numpy()}
    return {f"observations/{key}": part.numpy() for key, part in obs.items()}
