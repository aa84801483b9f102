"""Bit-exact saving and restoring of environments, however they are wrapped and vectorised.

:func:`capture` walks over an environment's attributes and returns everything that changes as plain data, which needs no
pickle to be written to a file; :func:`restore` writes such data into an environment that was built the same way. The
restored environment goes on exactly as the saved one would have: same observations, rewards and episodes, bit for bit.

What is walked: ``__dict__`` and ``__slots__`` of Python objects, containers, arrays, tensors, random generators,
MuJoCo's ``MjData``, the workers of ``SubprocVecEnv`` and ``AsyncVectorEnv``. A class with ``state()`` and
``load_state(state)`` is asked instead. Whatever keeps its state out of Python's sight (a lock, a socket, an iterator, a
C++ simulator) is refused with its path.

What is left alone, because it is not state or is made again with the environment:

- code: functions, methods, modules, classes, specs, compiled patterns; what a closure remembers is out of reach;
- Gymnasium spaces, so the generator behind ``space.sample()`` is not saved: draw warm-up actions from one of your own;
- ``MjModel`` and views into MuJoCo's memory: an environment that edits its model must save the edits itself;
- renderers, windows, loggers, and files that are only written to;
- class attributes, and the process-wide generators (``numpy.random.seed``, ``random.seed``, ``torch.manual_seed``);
- the order in which a set is iterated, and the ``reset_infos`` that workers of ``SubprocVecEnv`` repeat until a reset.

Episode statistics that hold durations read the clock, and are the one thing that differs after a restore.
"""

from __future__ import annotations

import functools
import io
import math
import pathlib
import random
import struct
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from copy import deepcopy
from enum import Enum, Flag
from pickle import PickleBuffer
from typing import Any, NamedTuple, NoReturn, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import gymnasium as gym
import mujoco
import numpy as np
import torch
from gymnasium.core import ActType, ObsType
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import EzPickle, RecordConstructorArgs
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState
from numpy.random import MT19937, PCG64, PCG64DXSM, SFC64, Generator, Philox, RandomState, SeedSequence
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper
from torch import Tensor

from ..envs.generators import write_numpy, write_numpy_legacy, write_python, write_torch

_T = TypeVar("_T")
State: TypeAlias = dict[str, Any]
"""None, bool, int, float, str, bytes, NumPy scalars, arrays of numbers or booleans, tensors, and lists, tuples and
str-keyed dicts of those. A dict with a ``kind`` describes an object; everything else stands for itself.
"""


class StateNotSavable(ValueError):
    """Part of an environment keeps its state where it cannot be read; the message says which part, and what to do."""


_INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION
_LEAVES = frozenset({types.NoneType, bool, int, float, str, bytes})
_NUMERIC = "biufc"  # kinds of NumPy dtype
_LONGEST = 4096  # bytes of a text in an array that a state may ask for by itself; our choice
_MISSING = object()
_BIT_GENERATORS = {cls.__name__: cls for cls in (MT19937, PCG64, PCG64DXSM, Philox, SFC64)}
_CONTAINERS = {cls.__qualname__: cls for cls in (list, tuple, dict, set, frozenset, deque, OrderedDict, torch.Size)}
_BY_ARGUMENTS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    complex: lambda value: (value.real, value.imag),
    range: lambda value: (value.start, value.stop, value.step),
    slice: lambda value: (value.start, value.stop, value.step),
    pathlib.PosixPath: lambda value: (str(value),),
    pathlib.WindowsPath: lambda value: (str(value),),
}
_VALUES = (Enum, tuple, frozenset, np.generic, *_BY_ARGUMENTS)  # immutable: equal is as good as identical
_ONLY_IN_PLACE = frozenset({"object", "protocol", "workers", "mujoco", "memory"})  # kinds that are never made anew
_KEPT = _ONLY_IN_PLACE | {"stream", "skipped"}  # a container of these is part of the machinery, and keeps its identity

_NOT_STATE_TYPES = (
    *(type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType),
    *(functools.partial, functools._lru_cache_wrapper, np.ufunc, np.dtype, torch.dtype, torch.device),
    *(gym.Space, EnvSpec),
)
# By name, so that optional packages need not be imported. Drawing and logging follow the simulation and never steer it;
# what games keep their state in (pygame's Rect, Vector2 and Sprite) is not in this list.
_NOT_STATE_NAMES = (
    *("gymnasium.envs.mujoco.mujoco_rendering.", "mujoco.renderer.", "mujoco.rendering.", "mujoco.viewer."),
    *("mujoco._render.", "mujoco._structs.Mjv", "glfw.", "OpenGL.", "matplotlib.", "tkinter.", "moviepy."),
    *("pygame.surface.Surface", "pygame.time.Clock", "pygame.font.", "pygame.mixer."),
    *("mujoco._structs.MjModel", "mujoco._structs.MjOption", "mujoco._specs."),  # constant
    "mujoco._structs._Mj",  # views, such as data.body("torso")
    *("logging.", "stable_baselines3.common.logger.", "stable_baselines3.common.monitor.ResultsWriter"),
    *("torch.utils.tensorboard.", "typing.", "re.Pattern", "numba."),
)
# Python objects around something of the operating system's: copying their attributes would hijack a file descriptor.
_OUTSIDE = frozenset({"multiprocessing", "subprocess", "threading", "socket", "asyncio", "concurrent", "ctypes", "ray"})
_NOT_STATE_ATTRIBUTES: tuple[tuple[type, frozenset[str]], ...] = (
    (VecEnvWrapper, frozenset({"class_attributes"})),
    (DummyVecEnv, frozenset({"actions"})),  # the caller's array, read only between step_async and step_wait
    (SubprocVecEnv, frozenset({"remotes", "work_remotes", "processes"})),
    (AsyncVectorEnv, frozenset({"parent_pipes", "processes", "error_queue"})),
    (RecordConstructorArgs, frozenset({"_saved_kwargs"})),
    (EzPickle, frozenset({"_ezpickle_args", "_ezpickle_kwargs"})),
)


def _module(cls: type) -> str:
    """The module of a class; types that SWIG makes (Box2D's) have none."""
    return str(getattr(cls, "__module__", "builtins"))


def _name(value: object) -> str:
    return f"{_module(type(value))}.{type(value).__qualname__}"


def _refuse(path: str, value: object, why: str) -> NoReturn:
    remedy = "give its class, or the class that holds it, state() and load_state(state)"
    raise StateNotSavable(f"{path} is a {_name(value)}, {why}; {remedy}")


def _mismatch(path: str, saved: str, live: object) -> NoReturn:
    found = "nothing" if live is _MISSING else f"a {_name(live)}"
    remedy = (
        "build the environment as the saved one was, and reset() and step() it first if it makes its parts only then"
    )
    raise ValueError(f"{path} was saved from a {saved}, but there is {found} to write into; {remedy}")


def _container(value: object, path: str) -> str:
    """:return: the type of a container, which has nothing but items."""
    if getattr(value, "__dict__", None) or _slots(type(value)):
        _refuse(path, value, "a container with attributes of its own")
    return type(value).__qualname__


def _is_leaf(value: object) -> bool:
    return type(value) in _LEAVES or (isinstance(value, np.generic) and value.dtype.kind in _NUMERIC)


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor) or (type(value) is np.ndarray and value.dtype.kind in _NUMERIC)


def _per_class(function: Callable[[type], _T]) -> Callable[[type], _T]:
    return functools.lru_cache(maxsize=4096)(function)


@_per_class
def _is_not_state_type(cls: type) -> bool:
    return issubclass(cls, _NOT_STATE_TYPES) or f"{_module(cls)}.{cls.__qualname__}".startswith(_NOT_STATE_NAMES)


def _is_not_state(value: object) -> bool:
    if isinstance(value, io.IOBase):  # a file that is read has a position, which is state: not skipped, hence refused
        return value.closed or not value.readable()
    return _is_not_state_type(type(value))


@_per_class
def _has_protocol(cls: type) -> bool:
    # On the class: SB3's wrappers pass their inner environment's methods off as theirs, and CartPole's `state` is data.
    return all(callable(getattr(cls, name, None)) for name in ("state", "load_state"))


def _plain_copy(value: Any, path: str) -> Any:
    """Deep copy of plain data; anything else is refused."""
    if _is_leaf(value):
        return value
    if _is_array(value):
        return value.detach().clone() if isinstance(value, Tensor) else value.copy(order="K")
    if type(value) in (list, tuple):
        return type(value)(_plain_copy(item, f"{path}[{i}]") for i, item in enumerate(value))
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: _plain_copy(item, f"{path}[{key!r}]") for key, item in value.items()}
    _refuse(path, value, "which is not plain data")


def _is_pinned(array: Any) -> bool:
    """Whether others are sure to use this array's memory: MuJoCo, another process, or what optimises a network."""
    if isinstance(array, Tensor):
        return type(array) is not Tensor or array.requires_grad
    writeable = array.flags.writeable
    while isinstance(array.base, np.ndarray):
        array = array.base
    return writeable and not isinstance(array.base, (types.NoneType, Tensor, bytes, bytearray, PickleBuffer))


def _memory(array: Any) -> tuple[int, int] | None:
    """First address and the one after the last, of what can be written through this array."""
    if isinstance(array, Tensor):
        storage = array.untyped_storage() if array.layout is torch.strided else None
        return (storage.data_ptr(), storage.data_ptr() + storage.nbytes()) if storage else None
    return np.lib.array_utils.byte_bounds(array) if array.size and array.flags.writeable else None


def _has_kind(nodes: Iterable[Any], kinds: frozenset[str]) -> bool:
    return any(isinstance(node, dict) and node["kind"] in kinds for node in nodes)


def _find_class(node: State, live: object, base: type) -> type | None:
    """The class that a node names: the live object's, else one already imported. Nothing is imported or called."""
    cls: Any = type(live)
    if cls.__qualname__ != node["type"]:
        cls = sys.modules.get(node["module"])
        for name in node["type"].split("."):
            cls = getattr(cls, name, None)
    return cls if isinstance(cls, type) and issubclass(cls, base) else None


@_per_class
def _slots(cls: type) -> tuple[tuple[str, Any], ...]:
    """Name and descriptor of each slot, base classes first."""
    bases = [vars(base).items() for base in reversed(cls.__mro__) if "__slots__" in vars(base)]
    return tuple(item for base in bases for item in base if isinstance(item[1], types.MemberDescriptorType))


@_per_class
def _is_python(cls: type) -> bool:
    """Whether instances have room for nothing but slots, ``__dict__`` and weak references: pickle's own rule."""
    words = len(_slots(cls)) + (cls.__dictoffset__ > 0) + (cls.__weakrefoffset__ > 0)
    fits = cls.__itemsize__ == 0 and cls.__basicsize__ == object.__basicsize__ + words * struct.calcsize("P")
    return fits and _module(cls).partition(".")[0] not in _OUTSIDE


@_per_class
def _ignored(cls: type) -> frozenset[str]:
    return frozenset[str]().union(*(names for owner, names in _NOT_STATE_ATTRIBUTES if issubclass(cls, owner)))


def _attributes(value: object) -> dict[str, Any]:
    """Attributes in ``__slots__`` and ``__dict__``, without those that are known not to be state."""
    found: dict[str, Any] = {}
    for name, slot in _slots(type(value)):
        with suppress(AttributeError):  # a slot that was never filled
            found[name] = slot.__get__(value)
    found.update(getattr(value, "__dict__", {}))
    return {name: item for name, item in found.items() if name not in _ignored(type(value))}


class _Stream(NamedTuple):
    """How one library's random generators are made from their source (bit generator or device), read and written."""

    cls: type
    source: Callable[[Any], str]
    make: Callable[[str], Any]
    read: Callable[[Any], Any]
    write: Callable[[Any, Any, str], object]


def _read_generator(generator: Any) -> State:
    # What the seed sequence has spawned belongs to the stream: it decides what Generator.spawn() returns next.
    bits, seeds = generator.bit_generator.__getstate__()
    return {"bits": bits, "seeds": seeds.state if type(seeds) is SeedSequence else None}


_STREAMS = {
    "numpy": _Stream(
        Generator,
        lambda generator: type(generator.bit_generator).__name__,
        lambda bits: Generator(_BIT_GENERATORS[bits]()),
        _read_generator,
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
_STREAM_TYPES = frozenset(stream.cls for stream in _STREAMS.values())

_fixed_arrays: WeakKeyDictionary[mujoco.MjModel, tuple[str, ...]] = WeakKeyDictionary()


def _mujoco_arrays(data: mujoco.MjData) -> tuple[str, ...]:
    """Names of the arrays whose size the model fixes.

    Contacts and constraint rows (``contact``, ``efc_*``) live in an arena that starts empty, and are left out: they are
    rebuilt at the next step. ``plugin_data`` holds pointers, which mean nothing elsewhere.
    """
    names = _fixed_arrays.get(data.model)
    if names is None:
        fresh = mujoco.MjData(data.model)
        arrays = {name: getattr(fresh, name) for name in dir(fresh) if not name.startswith("_")}
        del arrays["plugin_data"]
        names = tuple(name for name, a in arrays.items() if _is_array(a) and a.size and a.flags.writeable)
        _fixed_arrays[data.model] = names
    return names


def _check_workers(venv: Any, path: str) -> None:
    busy = venv._state is not AsyncState.DEFAULT if isinstance(venv, AsyncVectorEnv) else venv.waiting
    if busy:
        raise StateNotSavable(f"{path} is in the middle of a step; wait for its result first")
    if isinstance(venv, AsyncVectorEnv) and venv.autoreset_mode is not AutoresetMode.SAME_STEP:
        remedy = "build it with autoreset_mode=AutoresetMode.SAME_STEP"
        raise StateNotSavable(f"{path}: its workers remember which episodes ended where nothing can reach it; {remedy}")
    # The names of the outermost wrapper: what a wrapper around a Snapshot holds would be lost without a word.
    if not all({"state", "load_state"} <= set(names) for names in _ask_workers(venv, path, "__dir__")):
        remedy = "wrap each environment in headway.wrappers.Snapshot, as the outermost wrapper"
        raise StateNotSavable(f"{path} is a {_name(venv)}, whose environments live in other processes; {remedy}")


def _ask_workers(venv: Any, path: str, method: str) -> list[Any]:
    try:
        return list(venv.env_method(method) if isinstance(venv, SubprocVecEnv) else venv.call(method))
    except (EOFError, OSError) as error:  # SB3's worker ends with its environment's exception
        raise StateNotSavable(f"{path}: a worker ended in {method}(); its error output says why") from error


def _tell_workers(venv: Any, path: str, states: list[Any]) -> None:
    try:
        if isinstance(venv, SubprocVecEnv):
            for i, state in enumerate(states):
                venv.env_method("load_state", state, indices=i)
        else:  # call() sends the same arguments to everyone, so this is its own protocol with one state for each
            for pipe, state in zip(venv.parent_pipes, states, strict=True):
                pipe.send(("_call", ("load_state", (state,), {})))
            venv._state = AsyncState.WAITING_CALL
            venv.call_wait()
    except (EOFError, OSError) as error:
        raise ValueError(f"{path}: a worker ended in load_state(); its error output says why") from error


class _Saver:
    """Turns objects into nodes: leaves and arrays are themselves, all else is a dict with its ``kind``."""

    def __init__(self, pinned: frozenset[int] = frozenset()) -> None:
        self._seen: dict[int, tuple[str, object]] = {}  # by id; the object is held so that its id is not given away
        self._pinned = pinned

    def save(self, value: Any, path: str) -> Any:
        """Node for ``value``; a second way to the same mutable object becomes a reference to the first."""
        if _is_leaf(value):
            return value
        if _is_not_state(value):
            return {"kind": "skipped"}
        if not isinstance(value, _VALUES):
            if id(value) in self._seen:
                return {"kind": "shared", "path": self._seen[id(value)][0]}
            self._seen[id(value)] = path, value
        return next(kind for kind in _KINDS.values() if kind.matches(value)).save(self, value, path)

    def overlapping(self) -> frozenset[int]:
        """Ids of the arrays seen that share memory with another one, as views do."""
        arrays = [value for _, value in self._seen.values() if _is_array(value)]
        spans = sorted((*memory, id(array)) for array in arrays if (memory := _memory(array)))
        found, reach, widest = set(), 0, 0
        for start, end, key in spans:
            if start < reach:
                found |= {widest, key}
            if end > reach:
                reach, widest = end, key
        return frozenset(found)

    def _save_items(self, items: Iterable[Any], path: str) -> list[Any]:
        return [v if type(v) in _LEAVES else self.save(v, f"{path}[{i}]") for i, v in enumerate(items)]

    def _save_key(self, key: Any, path: str) -> Any:
        if isinstance(key, (tuple, frozenset)):
            for part in key:
                self._save_key(part, path)
        elif not isinstance(key, (Enum, np.generic)) and not _is_leaf(key):
            _refuse(f"a key in {path}", key, "which another process could not find again")
        return self.save(key, path)

    def save_memory(self, value: Any, path: str) -> Any:
        array = _plain_copy(value, path)
        return {"kind": "memory", "array": array} if id(value) in self._pinned or _is_pinned(value) else array

    def save_protocol(self, value: Any, path: str) -> State:
        state = _plain_copy(value.state(), f"{path}.state()")
        return {"kind": "protocol", "type": type(value).__qualname__, "state": state}

    def save_object(self, value: Any, path: str) -> State:
        if not _is_python(type(value)):
            _refuse(path, value, "whose state is out of Python's sight")
        parts = {name: self.save(part, f"{path}.{name}") for name, part in _attributes(value).items()}
        return {"kind": "object", "type": type(value).__qualname__, "attributes": parts}

    def save_workers(self, value: Any, path: str) -> State:
        _check_workers(value, path)
        states = _plain_copy(_ask_workers(value, path, "state"), path)
        return {**self.save_object(value, path), "kind": "workers", "states": states}

    def save_list(self, value: Any, path: str) -> State:
        length = {"maxlen": value.maxlen} if isinstance(value, deque) else {}
        return {"kind": "list", "type": _container(value, path), **length, "items": self._save_items(value, path)}

    def save_tuple(self, value: Any, path: str) -> Any:
        name, cls = _container(value, path), type(value)
        if name not in _CONTAINERS and not hasattr(cls, "_make"):
            _refuse(path, value, "a tuple that only its own class can make")
        if cls is tuple and all(map(_is_leaf, value)):
            return value
        return {"kind": "tuple", "type": name, "module": _module(cls), "items": self._save_items(value, path)}

    def save_set(self, value: Any, path: str) -> State:
        return {"kind": "set", "type": _container(value, path), "items": [self._save_key(item, path) for item in value]}

    def save_dict(self, value: Any, path: str) -> State:
        pairs = ([self._save_key(k, path), self.save(v, f"{path}[{k!r}]")] for k, v in value.items())
        return {"kind": "dict", "type": _container(value, path), "items": list(pairs)}

    def save_object_array(self, value: Any, path: str) -> State:
        if value.dtype.kind not in "OUS" or (isinstance(value, np.ndarray) and type(value) is not np.ndarray):
            _refuse(path, value, f"of dtype {value.dtype}, not a plain array of numbers, text or objects")
        array = np.asarray(value)
        node = {"kind": "array", "dtype": array.dtype.str, "shape": list(array.shape), "scalar": array is not value}
        return {**node, "items": self._save_items(array.ravel().tolist(), path)}

    def save_enum(self, value: Enum, path: str) -> State:
        member = value.value if isinstance(value, Flag) else value.name
        return {"kind": "enum", "module": _module(type(value)), "type": type(value).__qualname__, "member": member}

    def save_by_arguments(self, value: Any, path: str) -> State:
        arguments = self._save_items(_BY_ARGUMENTS[type(value)](value), path)
        return {"kind": "arguments", "type": type(value).__qualname__, "items": arguments}

    def save_stream(self, value: Any, path: str) -> State:
        library, stream = next(item for item in _STREAMS.items() if type(value) is item[1].cls)
        source = stream.source(value)
        if library.startswith("numpy") and source not in _BIT_GENERATORS:
            _refuse(path, value, f"which draws from an unknown {source}")
        return {"kind": "stream", "library": library, "source": source, "state": _plain_copy(stream.read(value), path)}

    def save_mujoco(self, value: mujoco.MjData, path: str) -> State:
        if value.model.opt.enableflags & mujoco.mjtEnableBit.mjENBL_SLEEP:
            _refuse(path, value, "whose model lets bodies sleep on contacts that cannot be restored")
        vector = np.empty(mujoco.mj_stateSize(value.model, _INTEGRATION))
        mujoco.mj_getState(value.model, value, vector, _INTEGRATION)
        derived = {name: getattr(value, name).copy() for name in _mujoco_arrays(value)}
        return {"kind": "mujoco", "integration": vector, "derived": derived}


class _Loader:
    """Writes nodes into live objects. Plain data is made anew: what is there may be in the hands of the caller."""

    def __init__(self) -> None:
        self._done: dict[str, Any] = {}  # by path, for shared objects
        self._claimed: dict[int, Any] = {}  # by id: written into for one node, so not for another

    def load(self, node: Any, live: Any, path: str) -> Any:
        """What ``node`` stands for: ``live`` where that can be written into; ``_MISSING`` if skipped and not there."""
        if node is None and _is_not_state(live):  # a renderer, say, opened after the capture
            return live
        if _is_array(node):
            return self._claim(path, live, False, lambda: _plain_copy(node, path))
        if not isinstance(node, dict):
            return node
        if node.get("kind") == "skipped":
            return live
        if node.get("kind") == "shared":
            if node["path"] not in self._done:
                raise ValueError(f"{path} was the same object as {node['path']}, which is not there now")
            return self._done[node["path"]]
        if node.get("kind") not in _KINDS:
            raise ValueError(f"{path}: a state of kind {node.get('kind')!r} is not known here")
        return _KINDS[node["kind"]].load(self, node, live, path)

    def _claim(self, path: str, live: Any, fits: bool, make: Callable[[], Any]) -> Any:
        target = live if fits and id(live) not in self._claimed else make()
        self._claimed[id(target)] = self._done[path] = target
        return target

    def _claim_object(self, path: str, live: Any, name: str) -> Any:
        return self._claim(path, live, type(live).__qualname__ == name, lambda: _mismatch(path, name, live))

    def _claim_container(self, node: State, live: Any, path: str, parts: Iterable[Any]) -> Any:
        def make() -> Any:
            if node["type"] not in _CONTAINERS:
                _mismatch(path, node["type"], live)
            return deque(maxlen=node["maxlen"]) if "maxlen" in node else _CONTAINERS[node["type"]]()

        keep = node["type"] not in _CONTAINERS or _has_kind(parts, _KEPT)
        fits = type(live).__qualname__ == node["type"] and getattr(live, "maxlen", None) == node.get("maxlen")
        return self._claim(path, live, keep and fits, make)

    def _load_part(self, node: Any, live: Any, path: str) -> Any:
        value = self.load(node, live, path)
        if value is _MISSING:
            _mismatch(path, "part that is not state", live)
        return value

    def _load_items(self, nodes: list[Any], old: list[Any], path: str) -> list[Any]:
        if len(old) != len(nodes) and _has_kind(nodes, _ONLY_IN_PLACE):
            raise ValueError(f"{path} was saved with {len(nodes)} elements, but there are {len(old)} to write into")
        old = old + [_MISSING] * (len(nodes) - len(old))
        return [self._load_part(node, old[i], f"{path}[{i}]") for i, node in enumerate(nodes)]

    def load_memory(self, node: State, live: Any, path: str) -> Any:
        array = node["array"]
        kind = Tensor if isinstance(array, Tensor) else np.ndarray
        fits = isinstance(live, kind) and (array.shape, array.dtype) == (live.shape, live.dtype)
        fits = fits and (kind is Tensor or live.flags.writeable)
        target = self._claim(path, live, fits, lambda: _mismatch(path, "view of memory that others use", live))
        with torch.no_grad():
            target.copy_(array) if kind is Tensor else np.copyto(target, array)
        return target

    def load_object_array(self, node: State, live: Any, path: str) -> Any:
        size = np.dtype(node["dtype"]).itemsize
        alike = isinstance(live, np.ndarray) and live.dtype == node["dtype"]
        if math.prod(node["shape"]) != len(node["items"]) or not (size <= _LONGEST or alike):
            raise ValueError(f"{path} must have an item for each place of an array of shape {node['shape']}")
        array = self._claim(path, live, False, lambda: np.empty(node["shape"], node["dtype"]))
        old = live.ravel().tolist() if isinstance(live, np.ndarray) else []
        for index, item in zip(np.ndindex(array.shape), self._load_items(node["items"], old, path), strict=True):
            array[index] = item
        return array[()] if node["scalar"] else array

    def load_list(self, node: State, live: Any, path: str) -> Any:
        old = list(live) if isinstance(live, (list, deque)) else []
        target = self._claim_container(node, live, path, node["items"])
        items = self._load_items(node["items"], old, path)
        target.clear()
        target.extend(items)
        return target

    def load_tuple(self, node: State, live: Any, path: str) -> Any:
        items = self._load_items(node["items"], list(live) if isinstance(live, tuple) else [], path)
        if node["type"] in ("tuple", "Size"):
            return _CONTAINERS[node["type"]](items)
        cls: Any = _find_class(node, live, tuple)
        if not hasattr(cls, "_make"):
            _mismatch(path, node["type"], live)
        return cls._make(items)

    def load_set(self, node: State, live: Any, path: str) -> Any:
        items = [self._load_part(item, _MISSING, f"a key in {path}") for item in node["items"]]
        if node["type"] == "frozenset":
            return frozenset(items)
        target = self._claim_container(node, live, path, ())
        target.clear()
        target.update(items)
        return target

    def load_dict(self, node: State, live: Any, path: str) -> Any:
        old = dict(live) if isinstance(live, dict) else {}
        target = self._claim_container(node, live, path, [item for _, item in node["items"]])
        items = {}
        for key_node, item in node["items"]:
            key = self._load_part(key_node, _MISSING, f"a key in {path}")
            items[key] = self._load_part(item, old.get(key, _MISSING), f"{path}[{key!r}]")
        target.clear()
        for key, item in items.items():
            target[key] = item
        return target

    def load_enum(self, node: State, live: Any, path: str) -> Any:
        cls: Any = _find_class(node, live, Enum)
        if cls is None:
            _mismatch(path, node["type"], live)
        return cls(node["member"]) if issubclass(cls, Flag) else cls[node["member"]]

    def load_by_arguments(self, node: State, live: Any, path: str) -> Any:
        cls = next(cls for cls in _BY_ARGUMENTS if cls.__qualname__ == node["type"])
        return cls(*self._load_items(node["items"], [], path))

    def load_stream(self, node: State, live: Any, path: str) -> Any:
        stream = _STREAMS[node["library"]]
        fits = type(live) is stream.cls and stream.source(live) == node["source"]
        target = self._claim(path, live, fits, lambda: stream.make(node["source"]))
        stream.write(target, _plain_copy(node["state"], path), path)
        return target

    def load_mujoco(self, node: State, live: Any, path: str) -> Any:
        target = self._claim_object(path, live, "MjData")
        arrays = {name: getattr(live, name) for name in _mujoco_arrays(live)}
        vector, derived = node["integration"], node["derived"]
        if vector.size != mujoco.mj_stateSize(live.model, _INTEGRATION) or derived.keys() != arrays.keys():
            raise ValueError(f"{path} was saved from another MuJoCo model, or with another version of MuJoCo")
        for name, array in arrays.items():
            if array.shape != derived[name].shape:
                raise ValueError(f"{path}.{name} was saved with shape {derived[name].shape}, but has {array.shape}")
        # No mj_forward: the derived arrays lag a sub-step behind the positions, and the solver's warm start must stay.
        mujoco.mj_setState(live.model, live, vector, _INTEGRATION)
        for name, array in arrays.items():
            np.copyto(array, derived[name])
        return target

    def load_protocol(self, node: State, live: Any, path: str) -> Any:
        target = self._claim_object(path, live, node["type"])
        target.load_state(_plain_copy(node["state"], path))
        return target

    def load_object(self, node: State, live: Any, path: str) -> Any:
        target: object = self._claim_object(path, live, node["type"])
        slots, old, saved = dict(_slots(type(target))), _attributes(target), node["attributes"]
        for name in old:
            if name not in saved and not _is_not_state(old[name]):  # made after the capture, as by a first step
                slots[name].__delete__(target) if name in slots else vars(target).pop(name)
        for name, part in saved.items():
            before = old.get(name, _MISSING)
            value = self.load(part, before, f"{path}.{name}")
            if value is before:
                continue
            if name not in slots and not hasattr(target, "__dict__"):
                _mismatch(f"{path}.{name}", _name(value), _MISSING)
            # Past __setattr__, which may refuse or do more than set.
            slots[name].__set__(target, value) if name in slots else vars(target).update({name: value})
        return target

    def load_workers(self, node: State, live: Any, path: str) -> Any:
        if type(live).__qualname__ != node["type"]:
            _mismatch(path, node["type"], live)
        if len(node["states"]) != live.num_envs:
            raise ValueError(f"{path} was saved with {len(node['states'])} environments, but has {live.num_envs}")
        _check_workers(live, path)
        target = self.load_object(node, live, path)
        _tell_workers(target, path, node["states"])
        return target


class _Kind(NamedTuple):
    """Which objects are of a kind, how they are described by a node, and how it is written into one."""

    matches: Callable[[Any], bool]
    save: Callable[[_Saver, Any, str], Any]
    load: Callable[[_Loader, State, Any, str], Any]


def _of(*types_: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, types_)


_KINDS = {
    "memory": _Kind(_is_array, _Saver.save_memory, _Loader.load_memory),
    "protocol": _Kind(lambda value: _has_protocol(type(value)), _Saver.save_protocol, _Loader.load_protocol),
    "enum": _Kind(_of(Enum), _Saver.save_enum, _Loader.load_enum),
    "list": _Kind(_of(list, deque), _Saver.save_list, _Loader.load_list),
    "tuple": _Kind(_of(tuple), _Saver.save_tuple, _Loader.load_tuple),
    "set": _Kind(_of(set, frozenset), _Saver.save_set, _Loader.load_set),
    "dict": _Kind(_of(dict), _Saver.save_dict, _Loader.load_dict),
    "array": _Kind(_of(np.ndarray, np.generic), _Saver.save_object_array, _Loader.load_object_array),
    "arguments": _Kind(_of(*_BY_ARGUMENTS), _Saver.save_by_arguments, _Loader.load_by_arguments),
    "stream": _Kind(lambda value: type(value) in _STREAM_TYPES, _Saver.save_stream, _Loader.load_stream),
    "mujoco": _Kind(_of(mujoco.MjData), _Saver.save_mujoco, _Loader.load_mujoco),
    "workers": _Kind(_of(SubprocVecEnv, AsyncVectorEnv), _Saver.save_workers, _Loader.load_workers),
    "object": _Kind(lambda value: True, _Saver.save_object, _Loader.load_object),
}
"""By name; an object is of the first kind that matches. Nodes can also be "skipped" and "shared"."""


def capture(env: object) -> State:
    """Everything that changes in an environment, as plain data.

    :param env: a Gymnasium or SB3 environment, single or vectorised, with any wrappers; any other mutable object too
    :return: a deep copy, for :func:`restore`. Keep its dicts in order: a shared object is described only once, at first
    :raises StateNotSavable: if part of the environment holds state that cannot be read; the message names the part
    """
    saver = _Saver()
    state: State = saver.save(env, "env")
    if pinned := saver.overlapping():  # known only when everything has been seen
        state = _Saver(pinned).save(env, "env")
    return state


def restore(env: object, state: State) -> None:
    """Put an environment into a captured state.

    Objects, random generators, MuJoCo's data and networks are written into. Arrays and plain containers are replaced,
    since the environment's caller may hold the old ones (observations, actions, infos). Only arrays that share memory
    with each other or with somebody else are written into, so that views in the environment stay views; a view kept
    outside of it must be taken anew.

    No object of a class is made. So an environment that makes its objects or views in ``reset()`` must have been reset,
    and a list of objects must have the length it had. After an error the environment is partly restored: reset it.

    :param env: an environment built like the captured one, new or used
    :param state: what :func:`capture` returned; it can be used again
    :raises ValueError: if the state does not fit; the message names the part
    """
    try:
        written = _Loader().load(state, env, "env")
    except (LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError) as cause:
        what = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
        raise ValueError(f"the state cannot be written into {_name(env)} ({what}): it is not one of it") from cause
    if written is not env:
        raise ValueError(f"env is a {_name(env)}, which this state cannot be written into")


class Snapshot(gym.Wrapper[ObsType, ActType, ObsType, ActType], RecordConstructorArgs):
    """Gives an environment ``state()`` and ``load_state(state)``, which other processes can reach.

    ``SubprocVecEnv`` and ``AsyncVectorEnv`` ask their workers through it, so make it the outermost wrapper there:
    ``make_vec_env(env_id, n_envs, vec_env_cls=SubprocVecEnv, wrapper_class=Snapshot)``. What an episode led to it
    copies, since workers reset an environment, which may reuse its array, before they send it. It changes nothing else.

    :param env: the environment
    """

    def __init__(self, env: gym.Env[ObsType, ActType]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)

    def step(self, action: ActType) -> tuple[ObsType, Any, bool, bool, dict[str, Any]]:
        """See ``gymnasium.Env.step``."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return deepcopy(obs) if terminated or truncated else obs, reward, terminated, truncated, info

    def state(self) -> State:
        """State of the wrapped environment.

        :return: as from :func:`capture`
        :raises StateNotSavable: if part of the environment holds state that cannot be read
        """
        return capture(self.env)

    def load_state(self, state: State) -> None:
        """Put the wrapped environment into a state.

        :param state: what :meth:`state` returned, here or in an environment built the same way
        :raises ValueError: if the state does not fit
        """
        restore(self.env, state)
