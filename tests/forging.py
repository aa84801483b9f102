"""Forged files: what a sound one holds, changed in one to three places, with all checksums right again.

Whoever reads one answers in one line, soon and in little memory, or holds nothing that is impossible.
"""

import contextlib
import math
import random
import resource
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SECONDS = 2.0
"""Of this process: others may keep the machine busy."""

BYTES = 500 << 20

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 10**6, 10**9, 10**12, 10**18, 2**63 - 1, -(2**63), 2**64 - 1),
    *(0.5, -0.5, 1e-300, 1e30, 1e300, -1e300, "", "a", "1", "nan", "inf", "-inf", "a\nb", "\x1b[31m", "x" * 5000),
    *("os:system", "no_such_module:Id-v0", "Pendulum-v1", "float32", "int64", "object", "torch", "..", "/dev/zero"),
    *([], {}, [[]], [None], [1e9] * 3, [10**9], [10**6, 10**6], [30_000, 30_000], {"a": 1}, {"$tensor": "0"}),
    *({"$float": "7ff8000000000000"}, {"$float": "7ff0000000000000"}, {"$int": "f" * 40}, {"$int": "-1"}),
    *({"$tuple": []}, {"$dict": []}, {"kind": "object"}, {"kind": "list", "type": "list", "items": []}),
)
"""What can stand in a place of JSON and seldom belongs there."""


class Forger:
    """Changes what files hold.

    :param seed: of what is changed, and how
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def tree(self, tree: Any) -> Any:
        """:return: nested data, of JSON or of a part's state, changed in one place"""
        paths = list(_paths(tree))
        if not paths:
            return deepcopy(self.rng.choice(ODD))
        depth = self.rng.choice(sorted({*map(len, paths)}))  # first: most places are deep in some long list
        return self._changed(tree, self.rng.choice([path for path in paths if len(path) == depth]))

    def _changed(self, node: Any, path: tuple[Any, ...]) -> Any:
        owner = dict(node) if isinstance(node, dict) else list(node)
        key, *rest = path
        if rest:
            owner[key] = self._changed(owner[key], tuple(rest))
        else:
            self._change(owner, key)
        return tuple(owner) if isinstance(node, tuple) else owner

    def _change(self, owner: Any, key: Any) -> None:
        value = owner[key]
        match self.rng.randrange(9):
            case 0:
                del owner[key]
            case 1 if isinstance(owner, dict):
                owner[self.rng.choice(["", "a", "env", "kind", "0"])] = owner.pop(key)
            case 2:
                owner[key] = owner[self.rng.choice(list(owner if isinstance(owner, dict) else range(len(owner))))]
            case 3:
                owner[key] = self.rng.choice([[value], {"a": value}, (value,)])
            case 4 if isinstance(value, (list, tuple)):
                owner[key] = value * self.rng.choice([2, 3, 100])
            case _ if isinstance(value, (Tensor, np.ndarray)):
                owner[key] = self.array(value)
            case 5 | 6 if type(value) in (int, float):
                owner[key] = self.rng.choice([-value, value * 10**6, value + 1, value / 3, float(value), str(value)])
            case _:
                owner[key] = deepcopy(self.rng.choice(ODD))

    def tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """:return: named tensors, one of which is changed"""
        name, tensors = self.rng.choice(sorted(tensors)), dict(tensors)
        match self.rng.randrange(8):
            case 0:
                del tensors[name]
            case 1:
                tensors[self.rng.choice(["", "0", "99", "x" * 300])] = tensors.pop(name)
            case _:
                tensors[name] = self.array(tensors[name])
        return tensors

    def array(self, value: Any) -> Any:
        """:return: a tensor or an array of another type or shape, or with other numbers"""
        if isinstance(value, np.ndarray):
            return (
                self.array(torch.from_numpy(np.array(value))).float().numpy()
                if self.rng.random() < 0.2
                else (self._filled(np.array(value)))
            )
        tensor = value.clone()
        match self.rng.randrange(4):
            case 0:
                dtypes = [torch.bool, torch.int64, torch.uint8, torch.float16, torch.float64, torch.bfloat16]
                return tensor.to(self.rng.choice(dtypes))
            case 1:
                flat = tensor.flatten()
                return self.rng.choice([tensor[None], tensor[..., None], flat, flat[:-1], flat[:0], flat.repeat(3)])
        return self._filled(tensor)

    def _filled(self, array: Any) -> Any:
        """:return: it with another number, in one place or in all"""
        number = self._number(array)
        if array.shape and min(array.shape) and self.rng.random() < 0.6:
            array[tuple(self.rng.randrange(size) for size in array.shape)] = number
        else:
            array[...] = number
        return array

    def _number(self, array: Any) -> Any:
        kind = str(array.dtype).removeprefix("torch.")
        if "float" in kind:
            return self.rng.choice([math.nan, math.inf, -math.inf, -1.0, 0.0, 0.5, 60_000.0])
        if kind == "bool":
            return self.rng.random() < 0.5
        info = np.iinfo(kind)
        return self.rng.choice([info.min, info.max, 0, info.max // 2, max(-1, info.min), 1])


def _paths(node: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """:return: the keys that lead to each value in a tree"""
    items: Any = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in items:
        yield (*above, key)
        yield from _paths(value, (*above, key))


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Let the process have only so much more memory than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def out_of_memory(error: BaseException | None) -> bool:
    """:return: whether an error, or what it came of, is a lack of memory"""
    if error is None:
        return False
    own = isinstance(error, MemoryError) or "allocate memory" in str(error)
    return own or out_of_memory(error.__cause__) or out_of_memory(error.__context__)


def attempt(read: Callable[[], Any], check: Callable[[Any], None], refusal: type[Exception]) -> tuple[str, str]:
    """Read a forged file.

    :param read: what reads it
    :param check: raises an ``AssertionError`` for what is impossible of that which was read
    :param refusal: the error that is told of such a file
    :return: "refused", "accepted", or what is wrong; and more about it
    """
    begun = time.process_time()
    try:
        with little_memory(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = read()
            except refusal as error:
                if out_of_memory(error):
                    return "over 500 MB", str(error)
                if "\n" in str(error):
                    return "several lines", str(error)
                if time.process_time() - begun > SECONDS:
                    return "over 2 s", str(error)
                return "refused", str(error)
            if time.process_time() - begun > SECONDS:
                return "over 2 s", ""
            check(found)
    except MemoryError:
        return "over 500 MB", traceback.format_exc()
    except AssertionError:
        return "impossible", traceback.format_exc()
    except Exception:
        return "other error", traceback.format_exc()
    return "accepted", ""


def report(outcomes: dict[str, tuple[str, str]]) -> str:
    """:return: how many forgeries came out how, and the first of each kind that should not be"""
    counts = Counter(kind for kind, _ in outcomes.values())
    lines = [", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))]
    shown = Counter[str]()
    for case, (kind, text) in outcomes.items():
        if kind not in ("refused", "accepted") and shown[kind] < 5:
            shown[kind] += 1
            lines.append(f"{case}: {kind}\n{text[-2500:]}")
    return "\n".join(lines)
