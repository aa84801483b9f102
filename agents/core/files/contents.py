"""What agents write to disk and read back: policies, checkpoints, experience. The format is in :mod:`.archive`."""

import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ....envs.schema import by_name, flag, group, maybe, real, text, whole
from .archive import MAX_MANIFEST_BYTES, Archive, read_archive, write_archive
from .checkpoints import checkpoint_path, newest_archive, prune_checkpoints
from .errors import FileFormatError, one_line, reading
from .trees import pack, unpack

PathOrFile = Any
_log = logging.getLogger("headway")
NETWORKS = "networks"

MAX_ROWS = 1 << 20
"""Environments that an agent can have been saved with; our choice."""

_ANYTHING = by_name(lambda *_: None)
_DESCRIPTION = group(
    {
        "class": text(),
        "policy": text(),
        "config": _ANYTHING,
        "observation_space": _ANYTHING,
        "action_space": _ANYTHING,
        "n_envs": whole(1, MAX_ROWS),
        "env_id": maybe(text()),
        "env_spec": maybe(text()),
        "seed": maybe(whole(0, 2**32 - 1)),
        "seed_is_drawn": flag,
        "scaled_buffers": flag,
        "reward_unit": real(0, above=True),
        "num_timesteps": whole(0, 10**18 - 1),
        "n_updates": whole(),
        "episodes": whole(),
        "stats_window_size": whole(1, 2**31 - 1),
        "threads": whole(1, 2**16),
        "versions": by_name(text()),
    },
    optional=("env_spec", "seed_is_drawn", "scaled_buffers", "reward_unit"),
    others=True,
)
"""What a manifest says of an agent."""


def versions() -> dict[str, str]:
    """:return: the versions that a file or a run is made with."""
    names = ("headway-rl", "torch", "stable-baselines3", "gymnasium", "mujoco", "numpy")
    return {"python": platform.python_version()} | {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def mention_versions(path: PathOrFile, manifest: Mapping[str, Any]) -> None:
    """Say in the log which versions a file was written by that are not those here.

    :param path: the file
    :param manifest: of it
    """
    saved, here = manifest.get("versions"), versions()
    if not isinstance(saved, Mapping):
        return
    others = [f"{name} {saved[name]} (here {here[name]})" for name in here if saved.get(name, here[name]) != here[name]]
    if others:
        _log.warning(
            "%s was saved with %s: what follows may differ in the last digits from what an uninterrupted run would do",
            path,
            one_line(", ".join(others)),
        )


class Stateful(Protocol):
    """What can be put into a checkpoint."""

    def state(self) -> Any:
        """:return: nested plain data: numbers, texts, arrays, tensors, lists, tuples and dicts of them"""

    def load_state(self, state: Any) -> None:
        """Go back to what :meth:`state` returned."""


@dataclass(frozen=True)
class Contents:
    """What a file of an agent holds.

    :param path: the file
    :param manifest: what describes the agent
    :param networks: weights and moments by name
    :param parts: in a checkpoint, the state of each part; empty in a policy
    """

    path: PathOrFile
    manifest: dict[str, Any]
    networks: dict[str, Tensor]
    parts: dict[str, Any]
    normalizer: Any = None
    """State of the ``VecNormalize`` that the agent was trained in, if it was in one."""


def write_policy(
    path: PathOrFile, manifest: Mapping[str, Any], networks: Mapping[str, Tensor], normalizer: Mapping[str, Any] | None
) -> None:
    """Write a policy.

    :param path: the file, or a binary stream
    :param manifest: what describes the agent
    :param networks: weights and moments by name
    :param normalizer: state of a ``VecNormalize``
    """
    tree, tensors = pack(normalizer)
    entries = {**manifest, "kind": "policy", "normalizer": tree}
    write_archive(_with_suffix(path), entries, {NETWORKS: networks, "normalizer": tensors})


def write_checkpoint(
    directory: Path,
    manifest: Mapping[str, Any],
    networks: Mapping[str, Tensor],
    parts: Mapping[str, Any],
    keep: int | None,
    run: int = 1,
) -> Path:
    """Write a checkpoint, one member for each part.

    :param directory: of checkpoints; made if missing
    :param manifest: what describes the agent
    :param networks: weights and moments by name
    :param parts: states by name
    :param keep: how many of the run's newest to keep; None keeps all
    :param run: its number among those that have saved in the directory
    :return: the file
    """
    directory.mkdir(parents=True, exist_ok=True)
    packed = {name: pack(state) for name, state in parts.items()}
    members = {NETWORKS: networks} | {name: tensors for name, (_, tensors) in packed.items()}
    path = checkpoint_path(directory, manifest["num_timesteps"], run)
    trees = {name: tree for name, (tree, _) in packed.items()}
    write_archive(path, {**manifest, "kind": "checkpoint", "parts": trees}, members)
    if keep is not None:
        prune_checkpoints(directory, keep, run)
    return path


def check_holdable(state: Any) -> None:
    """Make sure that a file can hold the state of a part, beside the others.

    :param state: nested data
    :raises TypeError: it is not plain
    :raises ValueError: it is too deep or too long
    """
    tree, _ = pack(state)
    length, limit = len(json.dumps(tree)), MAX_MANIFEST_BYTES // 2
    if length > limit:
        raise ValueError(f"it takes {length:,} bytes of the {limit:,} that a file has for it besides arrays")


def read(path: PathOrFile, kinds: tuple[str, ...]) -> Contents:
    """Read a policy, or what a checkpoint holds of one.

    :param path: the file, with or without its suffix, or a binary stream
    :param kinds: that will do
    :return: its contents, without the parts
    :raises FileFormatError: it is broken, or of another kind
    """
    path = _existing(path)
    archive = read_archive(path)
    _expect_kind(archive, kinds, path)
    trees = archive.manifest.get("parts")
    within = trees.get("normalizer") if isinstance(trees, dict) else None
    tree = archive.manifest.get("normalizer", within)
    normalizer = None if tree is None else unpack(tree, _member(archive, "normalizer", path))
    return _contents(path, archive, {}, normalizer)


def read_newest(directory: Path) -> Contents:
    """Read the newest checkpoint that is complete.

    :param directory: of checkpoints
    :return: its contents
    :raises FileNotFoundError: there is none
    :raises FileFormatError: it does not describe an agent, or was written by a version that laid checkpoints out in
        another way
    """
    path, archive = newest_archive(directory)
    _expect_kind(archive, ("checkpoint",), path)
    trees = archive.manifest.get("parts")
    if not isinstance(trees, dict):
        raise FileFormatError(
            f"{path} was written by an earlier version: finish the run with that version, or load its policy alone"
        )
    parts = {name: unpack(tree, _member(archive, name, path)) for name, tree in trees.items()}
    return _contents(path, archive, parts)


def _contents(path: PathOrFile, archive: Archive, parts: dict[str, Any], normalizer: Any = None) -> Contents:
    with reading(path):
        _DESCRIPTION(archive.manifest, "its manifest")
    return Contents(path, archive.manifest, _member(archive, NETWORKS, path), parts, normalizer)


def save_store(store: Stateful, path: PathOrFile) -> None:
    """Write experience alone."""
    tree, tensors = pack(store.state())
    write_archive(path, {"kind": "store", "parts": {"store": tree}}, {"store": tensors})


STREAM_SIZES = (16, 5056)
"""Bytes of the state of torch's generators, on a GPU and on a CPU."""


def load_store(store: Stateful, path: PathOrFile) -> None:
    """Read experience, from a file of it or from a checkpoint.

    Where it was saved on another kind of device, the store draws on from its own random stream.
    """
    archive = read_archive(path)
    _expect_kind(archive, ("store", "checkpoint"), path)
    trees = archive.manifest.get("parts")
    if not isinstance(trees, dict) or "store" not in trees:
        raise FileFormatError(f"{path} holds no experience that this version can read")
    with reading(path):
        state = unpack(trees["store"], _member(archive, "store", path))
        saved, own = state.get("generator"), store.state()["generator"]
        if isinstance(saved, Tensor) and len(saved) != len(own) and saved.shape in [(size,) for size in STREAM_SIZES]:
            state["generator"] = own
        store.load_state(state)


def _member(archive: Archive, name: str, path: PathOrFile) -> dict[str, Tensor]:
    if name not in archive.members:
        raise FileFormatError(f"{path} has no {name}, which every file of its kind has")
    return archive.members[name]


def _expect_kind(archive: Archive, kinds: tuple[str, ...], path: PathOrFile) -> None:
    kind = archive.manifest.get("kind")
    if kind not in kinds:
        kind = kind if isinstance(kind, str) else "nameless"
        raise FileFormatError(f"{path} is a {kind[:99]} file, expected a {' or '.join(kinds)} file")


def _with_suffix(path: PathOrFile) -> PathOrFile:
    """Add ".zip" where Stable-Baselines3 would."""
    if isinstance(path, (str, Path)) and not Path(path).suffix:
        return Path(f"{path}.zip")
    return path


def _existing(path: PathOrFile) -> PathOrFile:
    """The file meant, with or without its suffix."""
    if isinstance(path, (str, Path)) and not Path(path).exists():
        return _with_suffix(path)
    return path
