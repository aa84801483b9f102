"""A folder of checkpoints: their names, the newest that is whole, and how many are kept.

A folder can hold checkpoints of several runs, if one was started where another had saved. Runs are numbered in the
order of their first checkpoints; the number is in the names from the second run on. Only the newest run is gone on with
or pruned, whatever steps the others have reached.
"""

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

_CHECKPOINT_NAME = re.compile(r"checkpoint-([0-9]{12,18})(?:-run([0-9]{1,9}))?\.zip")
_STALE_SECONDS = 3600.0  # a temporary unwritten for so long has no living writer; our choice
_log = logging.getLogger(__name__)


def checkpoint_path(directory: str | os.PathLike[str], step: int, run: int = 1) -> Path:
    """Where the checkpoint of a step belongs.

    :param directory: the run's folder of checkpoints
    :param step: environment steps so far, 0 or more
    :param run: number of the run among those that have saved in the folder, from 1
    :return: ``directory/checkpoint-<step in 12 digits>.zip``, of later runs with ``-run<number>`` before the suffix
    """
    if not 0 <= step < 10**18:
        raise ValueError(f"step is {step}; it must be from 0 to below 10**18")
    return Path(directory) / f"checkpoint-{step:012d}{f'-run{run}' if run > 1 else ''}.zip"


def _run_and_step(path: Path) -> tuple[int, int] | None:
    match = _CHECKPOINT_NAME.fullmatch(path.name)
    return (int(match[2] or 1), int(match[1])) if match else None


def run_of(path: str | os.PathLike[str]) -> int:
    """:return: the number of the run that a checkpoint belongs to."""
    return (_run_and_step(Path(path)) or (1, 0))[0]


def choose_run(directory: str | os.PathLike[str], step: int, run: int | None) -> int:
    """Number a run whose checkpoint of a step is about to be written.

    :param directory: the folder of checkpoints
    :param step: environment steps so far
    :param run: the number that the run has there; None: it has not saved there yet, nor was it read from there
    :return: the same, or a new one if there is none, or somebody else has gone on with the run and come further
    """
    paths = {path: _run_and_step(path) or (0, 0) for path in list_checkpoints(directory)}
    if run is None or any((run, step) < place and place[0] == run and _reads(path) for path, place in paths.items()):
        return max(map(run_of, paths), default=0) + 1
    return run


def _reads(path: Path) -> bool:
    with contextlib.suppress(FileFormatError, OSError):
        read_manifest(path)
        return True
    return False


def list_checkpoints(directory: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints in a directory, newest run and largest step first; none if the directory does not exist.

    :param directory: the folder to look into; other files and temporaries there are ignored
    :return: their paths
    """
    folder = Path(directory)
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        place = _run_and_step(path)
        if place and path.is_file():
            found[path] = place
    return sorted(found, key=lambda path: (found[path], path.name), reverse=True)


def newest_archive(directory: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> tuple[Path, Archive]:
    """The newest checkpoint that reads completely; broken ones of its run are skipped with a line in the log.

    :param directory: the run's folder of checkpoints
    :param device: where to put the tensors
    :return: its path and content
    :raises FileNotFoundError: if no checkpoint there can be read
    """
    paths = list_checkpoints(directory)
    paths = [path for path in paths if run_of(path) == run_of(paths[0])]  # never another run instead
    for path in paths:
        try:
            return path, read_archive(path, device=device)
        except (FileFormatError, OSError) as err:
            _log.warning("skipping a checkpoint that cannot be read: %s", one_line(str(err)))
    found = f"none of the {len(paths)} checkpoints can be read" if paths else "there is no checkpoint"
    message = f"{found} in {directory}; name the folder of a run that saved one, or train from the start"
    raise FileNotFoundError(errno.ENOENT, one_line(message))


def prune_checkpoints(directory: str | os.PathLike[str], keep: int, run: int = 1) -> None:
    """Delete a run's checkpoints older than its ``keep`` newest sound ones, and what killed writers left behind.

    A checkpoint counts as sound if its manifest reads, so a broken newest one never costs the last good one.

    :param directory: the run's folder of checkpoints
    :param keep: how many to keep, at least 1
    :param run: its number; other runs' checkpoints are left alone
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; it must be at least 1")
    kept = 0
    for path in [path for path in list_checkpoints(directory) if run_of(path) == run]:
        if kept >= keep:
            path.unlink(missing_ok=True)
        elif _reads(path):
            kept += 1
    for leftover in Path(directory).glob(".checkpoint-*.zip.tmp-*"):
        with contextlib.suppress(FileNotFoundError):  # its writer may rename it at this moment
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                leftover.unlink()
