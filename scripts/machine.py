"""What something was made on, and by what."""

import functools
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from ..agents.core.files.contents import versions


def cores() -> int:
    """:return: processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy() -> float:
    """:return: how many processors others use: on average over the last minute, or at this moment if that is more."""
    now = Path("/proc/loadavg")
    running = int(now.read_text().split()[3].partition("/")[0]) - 1 if now.exists() else 0
    return max(os.getloadavg()[0], running)


def machine() -> dict[str, Any]:
    """:return: operating system, processor, cores and GPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "system": platform.platform(),
        "processor": model or platform.processor() or platform.machine(),
        "cores": cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


SOURCE = Path(__file__).resolve().parents[1]


@functools.cache
def commit(root: Path = SOURCE) -> str | None:
    """Describe the source tree that this process runs.

    :param root: its folder
    :return: its commit as ``git describe`` names it, "-dirty" at its end where files differ from it; None of an
        installed package, of which the version says all
    """
    if not (root / ".git").exists():  # of a repository around an environment, say, git would describe that
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    quiet = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # not in the way of other gits
    try:
        described = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet, timeout=20)
    except (OSError, subprocess.TimeoutExpired):  # no git
        return None
    return described.stdout.strip() or None


def command_line() -> str:
    """:return: the command of this process, without the paths of this machine: those below the working folder are
    relative to it, of all others the name stays."""
    return shlex.join(["headway", *map(portable, sys.argv[1:])])


def without_folders(text: str) -> str:
    """:return: a text, such as the end of a log, in which absolute paths are but the names of their files; those of
    packages begin with the package."""
    for known in (re.escape(f"{SOURCE.parent}/"), r"/[^\s\"']*/site-packages/", r"(?<![\w:/.~-])/(?:[\w.+@~-]+/)+"):
        text = re.sub(known, "", text)
    return text


def portable(argument: str) -> str:
    """:return: an argument of a command line, without folders of this machine."""
    flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    path = Path(value)
    if not path.is_absolute():
        return argument
    return flag + equals + (str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name)


def origin() -> dict[str, Any]:
    """:return: machine, versions, commit and command line, as files say of themselves."""
    return {"machine": machine(), "versions": versions(), "commit": commit(), "command": command_line()}
