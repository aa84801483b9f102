"""Gymnasium's spaces as JSON, and back; and on one line."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from ....envs.schema import Check, each, either, group, row, text, whole

FREE = 1 << 20
"""Numbers that an element of a space may have whatever else a file holds; our choice."""

_WHOLE = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def _any(value: Any, where: str) -> None:
    """Let everything pass, to be looked at later."""


_SHAPE = each(whole(0, 2**40))
_FIELDS: dict[str, dict[str, Check]] = {
    "Box": {
        "shape": _SHAPE,
        "dtype": text("bool", *_WHOLE, "float16", "float32", "float64"),
        "low": _any,
        "high": _any,
    },
    "Discrete": {"n": whole(1, 2**40), "start": whole(-(2**62), 2**62), "dtype": text(*_WHOLE)},
    "MultiDiscrete": {"nvec": each(_any), "start": each(_any), "dtype": text(*_WHOLE)},
    "MultiBinary": {"n": either(whole(1, 2**40), each(whole(1, 2**40)))},
    "Dict": {"spaces": each(row(text(), _any))},
}
"""What descriptions hold beside ``type``."""


def shown(space: spaces.Space[Any]) -> str:
    """:return: a space on one line, for messages."""
    return " ".join(str(space).split())


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """Describe a Box, Discrete, MultiDiscrete, MultiBinary or Dict space in JSON.

    :param space: the space
    :return: its description, from which :func:`space_from_json` builds an equal space
    :raises ValueError: another kind of space
    """
    if isinstance(space, spaces.Box):
        bounds = {name: _bound_to_json(getattr(space, name)) for name in ("low", "high")}
        return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiDiscrete):
        return {
            "type": "MultiDiscrete",
            "nvec": space.nvec.tolist(),
            "start": space.start.tolist(),
            "dtype": str(space.dtype),
        }
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": [[key, space_to_json(part)] for key, part in space.spaces.items()]}
    raise ValueError(
        f"a {type(space).__name__} space cannot be saved: use Box, Discrete, MultiDiscrete, MultiBinary, or a Dict"
    )


def space_from_json(description: Mapping[str, Any], held: int = 0) -> spaces.Space[Any]:
    """Build a space from its description.

    :param description: what :func:`space_to_json` returned
    :param held: how many numbers come with it in its file, by which the networks read elements of the space: one of
        more numbers than these, and than ``FREE``, is no space of that file's
    :return: the space
    :raises ValueError: the description is not of a space
    """
    try:
        space, _ = _space(description, max(held, FREE), "the space")
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, OverflowError) as error:
        raise ValueError(f"not the description of a space: {error}") from error
    return space


def _space(content: Any, left: int, where: str) -> tuple[spaces.Space[Any], int]:
    """Read a space of at most so many numbers; :return: it, and how many more there may be."""
    group({"type": text(*_FIELDS)}, others=True)(content, where)
    kind = content["type"]
    optional = ("dtype",) if kind == "Discrete" else ()  # the first files had none
    group({"type": text(kind), **_FIELDS[kind]}, optional=optional)(content, where)
    if kind == "Dict":
        parts = []
        for key, part in content["spaces"]:
            inner, left = _space(part, left, f"{where}[{key!r}]")
            parts.append((key, inner))
        return spaces.Dict(parts), left  # order is kept
    left -= _numbers(kind, content)
    if left < 0:
        raise ValueError(f"{where} has more numbers than the file has weights to read them by")
    return _make(kind, content), left


def _numbers(kind: str, content: Mapping[str, Any]) -> int:
    """:return: how many numbers networks read of an element, a choice as one-hot"""
    if kind == "MultiDiscrete":
        return int(min(np.array(content["nvec"], np.float64).sum(), 2.0**62))
    size = content["shape"] if kind == "Box" else content["n"]
    return math.prod(size) if isinstance(size, list) else int(size)


def _make(kind: str, content: Mapping[str, Any]) -> spaces.Space[Any]:
    dtype = np.dtype(content.get("dtype", "int64"))
    if kind == "Box":
        shape = tuple(content["shape"])
        low, high = (_bound_from_json(content[name], shape, dtype) for name in ("low", "high"))
        if not (low <= high).all():  # not with NaN either
            raise ValueError("a Box's bounds must be numbers, the low ones not above the high ones")
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(content["n"], start=content["start"], dtype=dtype.type)
    if kind == "MultiDiscrete":
        nvec, start = (np.array(content[name], np.int64) for name in ("nvec", "start"))
        if nvec.shape != start.shape or nvec.size == 0 or nvec.min() < 1:
            raise ValueError("a MultiDiscrete has a start and at least one choice for each of its dimensions")
        return spaces.MultiDiscrete(nvec, dtype.type, start=start)
    return spaces.MultiBinary(content["n"])


def _bound_to_json(bound: np.ndarray[Any, Any]) -> Any:
    """One number where all are equal (an image has thousands), else nested lists; infinities as strings."""
    equal = bound.size > 0 and np.full_like(bound, bound.flat[0]).tobytes() == bound.tobytes()  # 0.0 is not -0.0 here
    return _plain(bound.flat[0].item() if equal else bound.tolist())


def _plain(bound: Any) -> Any:
    if isinstance(bound, list):
        return [_plain(item) for item in bound]
    return str(bound) if bound in (float("inf"), float("-inf")) else bound


def _bound_from_json(bound: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    if dtype.kind != "f" and np.array(bound).dtype.kind not in "iub":
        raise ValueError(f"the bounds of a Box of {dtype} must be such numbers")
    # reads the strings that stand for infinities too, and raises an OverflowError for what the type cannot hold
    return np.broadcast_to(np.array(bound, dtype), shape).copy()
