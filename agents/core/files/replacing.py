"""Files that get new content all at once, or keep what they had."""

import contextlib
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = False, suffix: str = "") -> Iterator[Path]:
    """Write a file or a folder under a temporary name beside it, which takes its place when the context is left.

    Folders on the way are made. After an error the temporary one is removed, and what stood there still does. Its name
    begins with a dot and contains ``.tmp-``. A file's mode stays as it was.

    :param path: the file
    :param sync: wait until the content, and then the new name, are safely on disk
    :param suffix: ending of the temporary name, for libraries that choose a format by it
    :return: the temporary path
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # On Linux the main thread's native id is the process id; other threads get names of their own.
    temporary = path.with_name(f".{path.name}.tmp-{threading.get_native_id()}{suffix}")
    try:
        if path.is_file():  # what only its owner may read stays so, from the first byte on
            mode = stat.S_IMODE(path.stat().st_mode)
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
            temporary.chmod(mode)
        yield temporary
        if sync:
            _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()
        raise
    if sync:  # file systems that cannot sync a folder only lose the rename in a power cut
        with contextlib.suppress(OSError):
            _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
