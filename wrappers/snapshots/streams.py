"""Random generators: an environment's, those of its spaces, and the process-wide ones."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.random import MT19937, PCG64, PCG64DXSM, SFC64, Generator, Philox, RandomState

from ...envs.generators import (
    read_numpy,
    write_global_numpy,
    write_numpy,
    write_numpy_legacy,
    write_python,
    write_torch,
)
from ...envs.schema import group
from .nodes import State, mismatch, plain_copy, refuse
from .walking import Kind, Kinds, Loader, Saver, is_a

_BIT_GENERATORS = {cls.__name__: cls for cls in (MT19937, PCG64, PCG64DXSM, Philox, SFC64)}


class _Stream(NamedTuple):
    """How one library's random generators are made from their source (bit generator or device), read and written."""

    cls: type
    source: Callable[[Any], str]
    make: Callable[[str], Any]
    read: Callable[[Any], Any]
    write: Callable[[Any, Any, str], object]


_STREAMS = {
    "numpy": _Stream(
        Generator,
        lambda generator: type(generator.bit_generator).__name__,
        lambda bits: Generator(_BIT_GENERATORS[bits]()),
        read_numpy,
        write_numpy,
    ),
    "numpy_legacy": _Stream(
        RandomState,
        lambda generator: str(generator.get_state(legacy=False)["bit_generator"]),
        lambda bits: RandomState(_BIT_GENERATORS[bits]()),
        lambda generator: generator.get_state(legacy=False),
        write_numpy_legacy,
    ),
    "python": _Stream(
        random.Random, lambda _: "MT19937", lambda _: random.Random(), random.Random.getstate, write_python
    ),
    "torch": _Stream(torch.Generator, lambda g: str(g.device), torch.Generator, torch.Generator.get_state, write_torch),
}
_LIBRARIES = {stream.cls: library for library, stream in _STREAMS.items()}


def _save_stream(saver: Saver, value: Any, path: str) -> State:
    library = _LIBRARIES[type(value)]
    stream = _STREAMS[library]
    source = stream.source(value)
    if library.startswith("numpy") and source not in _BIT_GENERATORS:
        refuse(path, value, f"which draws from an unknown {source}")
    return {"kind": "stream", "library": library, "source": source, "state": plain_copy(stream.read(value), path)}


def _load_stream(loader: Loader, node: State, live: Any, path: str) -> Any:
    stream = _STREAMS[node["library"]]
    fits = type(live) is stream.cls and stream.source(live) == node["source"]
    target = loader.claim(path, live, fits, lambda: stream.make(node["source"]))
    stream.write(target, plain_copy(node["state"], path), path)
    return target


def _inner_spaces(space: gym.Space[Any]) -> list[gym.Space[Any]]:
    """A space and all that it is made of, each of which draws from a stream of its own."""
    parts: Any = getattr(space, "spaces", ())
    parts = parts.values() if isinstance(parts, dict) else parts
    parts = [*parts, *(part for part in vars(space).values() if isinstance(part, gym.Space))]
    return [space, *(inner for part in parts for inner in _inner_spaces(part))]


def _save_space(saver: Saver, value: Any, path: str) -> State:
    streams = [saver.save(space._np_random, f"{path}.np_random") for space in _inner_spaces(value)]
    return {"kind": "space", "type": type(value).__qualname__, "streams": streams}


def _load_space(loader: Loader, node: State, live: Any, path: str) -> Any:
    target = loader.claim_in_place(node, live, path)
    inner = _inner_spaces(target)
    if len(inner) != len(node["streams"]):
        mismatch(path, f"{node['type']} of {len(node['streams'])} spaces", live)
    for space, stream in zip(inner, node["streams"], strict=True):
        space._np_random = loader.load(stream, space._np_random, f"{path}.np_random")
    return target


KINDS: Kinds = {
    "space": Kind(is_a(gym.Space), _save_space, _load_space, made=False),
    "stream": Kind(lambda value: type(value) in _LIBRARIES, _save_stream, _load_stream, kept=True),
}


def global_streams() -> State:
    """:return: state of Python's, NumPy's and torch's process-wide generators, from which environments may draw"""
    return {
        "torch": torch.get_rng_state(),
        "numpy": list(np.random.get_state(legacy=True)),  # noqa: NPY002
        "python": list(random.getstate()),
    }


def set_global_streams(streams: State) -> None:
    """Go back to them.

    :param streams: of :func:`global_streams`
    :raises ValueError: they are none
    """
    where = "global_streams"
    group(dict.fromkeys(("torch", "numpy", "python"), lambda *_: None))(streams, where)
    write_torch(torch.default_generator, streams["torch"], f"{where}['torch']")
    write_global_numpy(streams["numpy"], f"{where}['numpy']")
    write_python(random, streams["python"], f"{where}['python']")
