"""Gymnasium's spaces as JSON, and back; and on one line."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces


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


def space_from_json(description: Mapping[str, Any]) -> spaces.Space[Any]:
    """Build a space from its description.

    :param description: what :func:`space_to_json` returned
    :return: the space
    :raises ValueError: the description is not of a space
    """
    try:
        kind = description["type"]
        if kind == "Box":
            shape, dtype = tuple(description["shape"]), np.dtype(description["dtype"])
            low, high = (_bound_from_json(description[name], shape, dtype) for name in ("low", "high"))
            return spaces.Box(low, high, shape, dtype.type)
        if kind == "Discrete":
            dtype = np.dtype(description.get("dtype", "int64"))
            return spaces.Discrete(description["n"], start=description["start"], dtype=dtype.type)
        if kind == "MultiDiscrete":
            dtype = np.dtype(description["dtype"])
            return spaces.MultiDiscrete(np.array(description["nvec"]), dtype.type, start=np.array(description["start"]))
        if kind == "MultiBinary":
            return spaces.MultiBinary(description["n"])
        if kind == "Dict":
            return spaces.Dict([(key, space_from_json(part)) for key, part in description["spaces"]])  # order is kept
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, OverflowError) as error:
        raise ValueError(f"not the description of a space: {error}") from error
    raise ValueError(f"not the description of a space: type {kind!r}")


def _bound_to_json(bound: np.ndarray[Any, Any]) -> Any:
    """One number where all are equal (an image has thousands), else nested lists; infinities as strings."""
    equal = bound.size > 0 and np.full_like(bound, bound.flat[0]).tobytes() == bound.tobytes()  # 0.0 is not -0.0 here
    return _plain(bound.flat[0].item() if equal else bound.tolist())


def _plain(bound: Any) -> Any:
    if isinstance(bound, list):
        return [_plain(item) for item in bound]
    return str(bound) if bound in (float("inf"), float("-inf")) else bound


def _bound_from_json(bound: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return np.broadcast_to(np.array(bound, dtype), shape).copy()  # reads the strings that stand for infinities too
