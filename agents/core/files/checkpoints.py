"""A folder of checkpoints: their names, the newest that is whole, and how many are kept."""

import contextlib
import errno
import logging
import os
import re
import time
from pathlib import Path

import torch

from .archive import Archive, read_archive, read_manifest
from .errors import FileFormatError, one_line

_CHECKPOINT_NAME = re.compile(r"checkpoint-([0-9]{12,18})\.zip")
_STALE_SECONDS = 3600.0  # a temporary unwritten for so long has no living writer; our choice
_log = logging.getLogger(__name__)


def checkpoint_path(directory: str | os.PathLike[str], step: int) -> Path:
    """Where the checkpoint of a step belongs.

    :param directory: the run's folder of checkpoints
    :param step: environment steps so far, 0 or more
    :return: ``directory/checkpoint-<step in 12 digits>.zip``
    """
    if not 0 <= step < 10**18:
        raise ValueError(f"step is {step}; it must be from 0 to below 10**18")
    return Path(directory) / f"checkpoint-{step:012d}.zip"


def list_checkpoints(directory: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints in a directory, largest step first; none if the directory does not exist.

    :param directory: the folder to look into; other files and temporaries there are ignored
    :return: their paths
    """
    folder = Path(directory)
    steps = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _CHECKPOINT_NAME.fullmatch(path.name)
        if match and path.is_file():
            steps[path] = int(match[1])
    return sorted(steps, key=lambda path: (steps[path], path.name), reverse=True)


def newest_archive(directory: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> tuple[Path, Archive]:
    """The newest checkpoint that reads completely; broken ones before it are skipped with a line in the log.

    :param directory: the run's folder of checkpoints
    :param device: where to put the tensors
    :return: its path and content
    :raises FileNotFoundError: if no checkpoint there can be read
    """
    paths = list_checkpoints(directory)
    for path in paths:
        try:
            return path, read_archive(path, device=device)
        except (FileFormatError, OSError) as err:
            _log.warning("skipping a checkpoint that cannot be read: %s", one_line(str(err)))
    found = f"none of the {len(paths)} checkpoints can be read" if paths else "there is no checkpoint"
    message = f"{found} in {directory}; name the folder of a run that saved one, or train from the start"
    raise FileNotFoundError(errno.ENOENT, one_line(message))


def prune_checkpoints(directory: str | os.PathLike[str], keep: int) -> None:
    """Delete all checkpoints older than the ``keep`` newest sound ones, and what killed writers left behind.

    A checkpoint counts as sound if its manifest reads, so a broken newest one never costs the last good one.

    :param directory: the run's folder of checkpoints
    :param keep: how many to keep, at least 1
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; it must be at least 1")
    kept = 0
    for path in list_checkpoints(directory):
        if kept >= keep:
            path.unlink(missing_ok=True)
            continue
        with contextlib.suppress(FileFormatError, OSError):
            read_manifest(path)
            kept += 1
    for leftover in Path(directory).glob(".checkpoint-*.zip.tmp-*"):
        with contextlib.suppress(FileNotFoundError):  # its writer may rename it at this moment
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                leftover.unlink()
