"""What commands have in common that work in folders: what a run says of itself, one process at a time, a bar."""

import errno
import fcntl
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..agents.core.files.replacing import replacing
from ..envs.schema import by_name, group, maybe, real, row, text, whole

_VALUES = by_name(lambda *_: None)
_OPTIONS = group(
    {"env": text(), "delay": maybe(text()), "delay_form": text()}, optional=("env", "delay", "delay_form"), others=True
)
_RUN = group(
    {
        "agent": text(),
        "options": _OPTIONS,
        "config": _VALUES,
        "versions": by_name(text()),
        "finished": whole(),
        "torch_threads": whole(1),
        "data": group({"references": row(real(), real())}, optional=("references",), others=True),
    },
    optional=("versions", "finished", "torch_threads", "data"),
    others=True,
)
"""What ``config.json`` holds, of what is read before it is known to be whose."""


def read_run(folder: Path) -> dict[str, Any]:
    """Read a run's ``config.json``.

    :param folder: the run's folder
    :return: its content
    :raises FileNotFoundError: not a run folder
    :raises ValueError: broken
    """
    file = folder / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"{folder} is no run folder: it has no config.json")
    try:
        read: dict[str, Any] = json.loads(file.read_text())
        _RUN(read, "it")
    except (ValueError, RecursionError) as cause:
        raise ValueError(f"{file} is broken ({cause}): restore it, or start a new run") from cause
    return read


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a file of JSON, all of it or nothing.

    :param file: where to
    :param content: what
    """
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


PICTURES = (".png", ".pdf", ".svg")
"""Endings of figures."""


def check_outputs(*paths: Path | None, plot: Path | None = None, flag: str = "--plot", overwrite: bool) -> None:
    """See that files can be written before the work that fills them begins; nothing is left behind.

    :param paths: of the files; None: not to be written
    :param plot: of a figure
    :param flag: that named the figure
    :param overwrite: whether they may exist
    :raises ValueError: a figure's ending is that of no picture
    :raises FileExistsError: one exists
    :raises OSError: one cannot be written there
    """
    if plot is not None and plot.suffix not in PICTURES:
        raise ValueError(f"{flag} must end in .png, .pdf or .svg, got {plot.name}")
    for path in (*paths, plot):
        if path is None:
            continue
        try:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if os.path.lexists(path) and not overwrite:  # a link to nothing is something too
                raise FileExistsError(f"{path} exists: choose another name or pass --overwrite")
            folder = next(parent for parent in path.absolute().parents if parent.exists())  # the others will be made
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as cause:
            if cause.errno is None:
                raise
            raise OSError(f"cannot write {path}: {cause.strerror}; choose another place") from cause


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Lock a folder.

    :param folder: the folder
    :return: whether it is locked now; False if another process has done so
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)  # and with it the lock, as when the process is killed


@contextmanager
def alone(folder: Path, doing: str, remedy: str = "stop it", leftovers: str = "**/.*.tmp*") -> Iterator[None]:
    """Keep other processes from working in a folder, and clear away what a killed one was just writing.

    :param folder: the folder
    :param doing: what is done in it
    :param remedy: what to do if another process does, or wait
    :param leftovers: a pattern of what to clear away
    :raises ValueError: another process does
    """
    with locked(folder) as free:
        if not free:
            raise ValueError(f"another process is {doing} in {folder}: wait for it, or {remedy}")
        for leftover in folder.glob(leftovers):
            leftover.unlink()
        yield


def progress_bar(total: int, done: int, unit: str = "steps") -> "tqdm[Any]":
    """Show progress, return, speed and time left on the standard error stream.

    :param total: environment steps of the whole run
    :param done: of these, steps that an earlier process did
    :param unit: of both, if it is another
    :return: the bar; its description is the return
    """
    terminal = sys.stderr.isatty()
    measured = terminal and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    return tqdm(
        total=total,
        initial=done,
        unit=f" {unit}",
        bar_format="{percentage:3.0f}% |{bar}| {n:,}/{total:,} · {desc}{rate_noinv_fmt} · {remaining} left",
        dynamic_ncols=measured,
        ncols=None if measured else 100,
        nrows=None if measured else 24,
        mininterval=0.2 if terminal else 10.0,
    )
