"""What something was made on, and by what."""

import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from ..agents.core.files.contents import versions


def cores() -> int:
    """:return: processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def command_line() -> str:
    """:return: the command of this process, without the paths of this machine: those below the working folder are
    relative to it, of all others the name stays."""
    return shlex.join(["headway", *map(_portable, sys.argv[1:])])


def _portable(argument: str) -> str:
    flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    path = Path(value)
    if not path.is_absolute():
        return argument
    return flag + equals + (str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name)


def origin() -> dict[str, Any]:
    """:return: machine, versions and command line, as files say of themselves."""
    return {"machine": machine(), "versions": versions(), "command": command_line()}
