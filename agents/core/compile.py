"""The compile switch: losses are free functions over fixed shapes, so one wrapper can capture them."""

import shutil
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R], mode: str, device: torch.device) -> Callable[P, R]:
    """Compile a loss, or leave it as it is.

    :param function: a function of tensors, modules and constants
    :param mode: "off", or a mode of ``torch.compile``
    :param device: where it will run
    :return: the function to call
    :raises RuntimeError: no C++ compiler is found for a CPU
    """
    if mode == "off":
        return function
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise RuntimeError(
            f"compile={mode!r} needs a C++ compiler on the CPU, none found: install g++ or use compile='off'"
        )
    return torch.compile(function, mode=mode, dynamic=False, fullgraph=True)
