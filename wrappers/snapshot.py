"""Bit-exact saving and restoring of environments, however they are wrapped and vectorised.

:func:`capture` walks over an environment's attributes and returns everything that changes as plain data, which needs no
pickle to be written to a file; :func:`restore` writes such data into an environment that was built the same way. The
restored environment goes on exactly as the saved one would have: same observations, rewards and episodes, bit for bit.

What is walked: ``__dict__`` and ``__slots__`` of Python objects, containers, arrays, tensors, random generators (also
those of spaces), what functions and methods are bound to, MuJoCo's ``MjData`` and ``MjModel``, the workers of
``SubprocVecEnv`` and ``AsyncVectorEnv``. A class with ``state()`` and ``load_state(state)`` is asked instead. Whatever
keeps its state out of Python's sight (a lock, a socket, an iterator, a C++ simulator) is refused with its path, and so
is all else that goes wrong on the way: :class:`StateNotSavable` is the one exception of :func:`capture`.

Code is known by its name and compared, not saved: a state in which another function, class or bound method stands is
restored by that name. Objects that are missing are made anew if their class is plain, belongs to the environment's own
package, and is imported already: nothing that a state names is imported or called.

What is left alone, because it is not state or is made again with the environment:

- modules, specs, compiled patterns, the bounds of spaces;
- renderers, windows, loggers, and files that are only written to;
- class attributes, and the process-wide generators, which :func:`global_streams` reads;
- the order in which a set is iterated, and the ``reset_infos`` that workers of ``SubprocVecEnv`` repeat until a reset.

:func:`~headway.wrappers.verify_snapshot` finds out whether something of an environment's state is among these.

Episode statistics that hold durations read the clock, and are the one thing that differs after a restore.
"""

from __future__ import annotations

import datetime
import decimal
import functools
import io
import math
import pathlib
import random
import struct
import sys
import types
import zlib
from collections import Counter, OrderedDict, defaultdict, deque
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
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState
from numpy.random import MT19937, PCG64, PCG64DXSM, SFC64, Generator, Philox, RandomState, SeedSequence
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper
from torch import Tensor

from ..envs.generators import write_global_numpy, write_numpy, write_numpy_legacy, write_python, write_torch
from ..envs.schema import group

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
_NEAR = 8  # objects in one another that one node describes; files limit the depth of a tree. Our choice
_MISSING = object()
_BIT_GENERATORS = {cls.__name__: cls for cls in (MT19937, PCG64, PCG64DXSM, Philox, SFC64)}
_CONTAINERS: dict[str, Any] = {
    cls.__qualname__: cls for cls in (list, tuple, dict, set, frozenset, deque, OrderedDict, Counter, torch.Size)
}
_FACTORIES = {cls.__name__: cls for cls in (bool, int, float, complex, str, tuple, list, dict, set)}  # of a defaultdict
_BY_ARGUMENTS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    complex: lambda value: (value.real, value.imag),
    range: lambda value: (value.start, value.stop, value.step),
    slice: lambda value: (value.start, value.stop, value.step),
    pathlib.PosixPath: lambda value: (str(value),),
    pathlib.WindowsPath: lambda value: (str(value),),
    datetime.date: lambda value: (value.year, value.month, value.day),
    datetime.datetime: lambda value: (*value.timetuple()[:6], value.microsecond, value.tzinfo),
    datetime.timedelta: lambda value: (value.days, value.seconds, value.microseconds),
    datetime.timezone: lambda value: (value.utcoffset(None),),
    decimal.Decimal: lambda value: (str(value),),
}
_BOUND = (types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType)
_CODE = (type, types.FunctionType, *_BOUND, functools.partial)
# immutable: equal is as good as identical
_VALUES = (Enum, tuple, frozenset, np.generic, type, *_BOUND, functools.partial, *_BY_ARGUMENTS)
_ONLY_IN_PLACE = frozenset({"protocol", "workers", "mujoco", "model", "space", "memory"})  # kinds never made anew
# A container of these is part of the machinery, and keeps its identity.
_KEPT = _ONLY_IN_PLACE | {"object", "far", "stream", "skipped", "code", "method", "partial"}
_MACHINERY = (gym.Env, VecEnv, VectorEnv, torch.nn.Module)  # objects that are never made anew, nor dropped

_NOT_STATE_TYPES = (
    *(types.ModuleType, functools._lru_cache_wrapper, np.ufunc, np.dtype, torch.dtype, torch.device, EnvSpec),
)
# By name, so that optional packages need not be imported. Drawing and logging follow the simulation and never steer it;
# what games keep their state in (pygame's Rect, Vector2 and Sprite) is not in this list.
_NOT_STATE_NAMES = (
    *("gymnasium.envs.mujoco.mujoco_rendering.", "mujoco.renderer.", "mujoco.rendering.", "mujoco.viewer."),
    *("mujoco._render.", "mujoco._structs.Mjv", "glfw.", "OpenGL.", "matplotlib.", "tkinter.", "moviepy."),
    *("pygame.surface.Surface", "pygame.time.Clock", "pygame.font.", "pygame.mixer."),
    *("logging.", "stable_baselines3.common.logger.", "stable_baselines3.common.monitor.ResultsWriter"),
    *("torch.utils.tensorboard.", "typing.", "re.Pattern", "numba."),
    "mujoco._specs.",  # what a model was compiled from
)
# Views, such as data.body("torso") and model.opt: their memory is saved with what they look into.
_VIEWS = ("mujoco._structs._Mj", "mujoco._structs.MjOption", "mujoco._structs.MjStatistic", "mujoco._structs.MjVis")
# Python objects around something of the operating system's: copying their attributes would hijack a file descriptor.
_OUTSIDE = frozenset({"multiprocessing", "subprocess", "threading", "socket", "asyncio", "concurrent", "ctypes", "ray"})
# Libraries that keep a simulation to themselves, and give out numbers for it, which would be all there is to copy.
_BEHIND_NUMBERS = frozenset({"pybullet", "libsumo", "traci", "raisimpy", "carla", "isaacgym", "unityagents"})
# Whose classes no state may name to have them made: an environment's own are all that it can need.
_LIBRARIES = sys.stdlib_module_names - {"__main__"} | {"gymnasium", "headway", "numpy", "stable_baselines3", "torch"}
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


def _package(cls: type) -> str:
    return _module(cls).partition(".")[0]


def _name(value: object) -> str:
    return f"{_module(type(value))}.{type(value).__qualname__}"


_REMEDY = "give its class, or the class that holds it, state() and load_state(state)"


def _short(path: str) -> str:
    """The path of what many others lead to, without its middle."""
    return path if len(path) <= 300 else f"{path[:150]} … {path[-150:]}"


def _refuse(path: str, value: object, why: str) -> NoReturn:
    raise StateNotSavable(f"{_short(path)} is a {_name(value)}, {why}; {_REMEDY}")


def _mismatch(path: str, saved: str, live: object) -> NoReturn:
    found = "nothing" if live is _MISSING else f"a {_name(live)}"
    remedy = (
        "build the environment as the saved one was, and reset() and step() it first if it makes its parts only then"
    )
    raise ValueError(f"{_short(path)} was saved from a {saved}, but there is {found} to write into; {remedy}")


def _container(value: object, path: str) -> State:
    """:return: the type of a container, which has nothing but items, and what else it takes to make one."""
    if getattr(value, "__dict__", None) or _slots(type(value)):
        _refuse(path, value, "a container with attributes of its own")
    node: State = {"type": type(value).__qualname__}
    if isinstance(value, deque):
        node["maxlen"] = value.maxlen
    factory: Any = getattr(value, "default_factory", None)
    if type(value) is defaultdict and factory in _FACTORIES.values():
        node["factory"] = factory.__name__
    if node["type"] not in _CONTAINERS:
        node["module"] = _module(type(value))
    return node


def _is_numeric(dtype: Any) -> bool:
    """Whether a file can hold numbers of a NumPy dtype; it cannot hold ``longdouble``."""
    return dtype.kind in _NUMERIC and dtype.itemsize <= (16 if dtype.kind == "c" else 8)


def _is_leaf(value: object) -> bool:
    return type(value) in _LEAVES or (isinstance(value, np.generic) and _is_numeric(value.dtype))


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor) or (type(value) is np.ndarray and _is_numeric(value.dtype))


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
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_meta or value.is_quantized:
            _refuse(path, value, f"of layout {value.layout} and device {value.device}, not a plain dense one")
        return value.detach().clone()
    if _is_array(value):
        return value.copy(order="K")
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


def _find(node: State) -> Any:
    """What a node names, if it is imported already; None: it is not. Nothing is imported or called."""
    module = sys.modules.get(node.get("module", ""))
    first, *names = node["type"].split(".")
    found = getattr(module, "__dict__", {}).get(first)  # a module's __getattr__ may import
    for name in names:
        found = getattr(found, name, None) if isinstance(found, type) else None
    return found


def _find_class(node: State, live: object, base: type) -> type | None:
    """The class that a node names: the live object's, else one already imported."""
    cls = type(live) if type(live).__qualname__ == node["type"] else _find(node)
    return cls if isinstance(cls, type) and issubclass(cls, base) else None


def _fingerprint(function: types.FunctionType) -> int:
    """What tells functions of one name apart, as lambdas are: their instructions and the constants in them."""
    code = function.__code__
    constants = [value for value in code.co_consts if _is_leaf(value)]
    return zlib.crc32(code.co_code + repr((constants, code.co_names)).encode("utf-8", "replace"))


def _cells(function: Any) -> list[tuple[str, types.CellType]]:
    """What a function remembers from where it was made, by name."""
    cells = getattr(function, "__closure__", None) or ()
    return list(zip(function.__code__.co_freevars, cells, strict=True)) if cells else []


def _is_named(value: Any, name: State) -> bool:
    return isinstance(value, type | types.FunctionType | types.BuiltinFunctionType) and _code(value) == name


def _code(value: Any) -> State:
    """How a function or a class is known."""
    node: State = {"module": getattr(value, "__module__", None) or "builtins", "type": value.__qualname__}
    if isinstance(value, types.FunctionType) and "<" in value.__qualname__:
        node["code"] = _fingerprint(value)
    return node


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
def _is_plain(cls: type) -> bool:
    """Whether an object can be made of a class by filling in its attributes, and no code of the class runs for it."""
    maker: Any = cls.__new__
    made = maker is object.__new__ and not hasattr(cls, "__del__")
    return made and _is_python(cls) and not _has_protocol(cls) and not issubclass(cls, _MACHINERY)


def _inner_spaces(space: gym.Space[Any]) -> list[gym.Space[Any]]:
    """A space and all that it is made of, each of which draws from a stream of its own."""
    parts: Any = getattr(space, "spaces", ())
    parts = parts.values() if isinstance(parts, dict) else parts
    parts = [*parts, *(part for part in vars(space).values() if isinstance(part, gym.Space))]
    return [space, *(inner for part in parts for inner in _inner_spaces(part))]


@_per_class
def _is_view(cls: type) -> bool:
    return f"{_module(cls)}.{cls.__qualname__}".startswith(_VIEWS)


@_per_class
def _hidden_library(cls: type) -> str | None:
    """A library that the package of a class imports, and that keeps simulations behind numbers."""
    package = _package(cls)
    if package in _LIBRARIES:
        return None
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == package]
    used = (value for module in modules for value in list(getattr(module, "__dict__", {}).values()))
    names = {value.__name__ for value in used if isinstance(value, types.ModuleType)}
    return next(iter(sorted(names & _BEHIND_NUMBERS)), None)


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

    Contacts, constraint rows and islands (``contact``, ``efc_*``, ``dof_island``) live in an arena that starts empty,
    and are left out: they are rebuilt at the next step. ``plugin_data`` holds pointers, which mean nothing elsewhere.
    """
    names = _fixed_arrays.get(data.model)
    if names is None:
        fresh = mujoco.MjData(data.model)
        arrays = {name: getattr(fresh, name) for name in dir(fresh) if not name.startswith("_")}
        del arrays["plugin_data"]
        arrays = {name: a for name, a in arrays.items() if _is_array(a) and a.size and a.flags.writeable}
        # Of what is not in the arena yet there is another stand-in at every look.
        names = tuple(name for name, array in arrays.items() if np.may_share_memory(array, getattr(fresh, name)))
        _fixed_arrays[data.model] = names
    return names


_ASSETS = ("tex_", "mesh_", "skin_", "bvh_", "oct_")  # what can be large
_TEXTS = ("names", "paths", "text_data", "names_map")


def _options(model: mujoco.MjModel) -> dict[str, Any]:
    """Everything in a model that stands in its options and statistics."""
    parts = {"opt": model.opt, "stat": model.stat}
    return {f"{part}.{name}": getattr(of, name) for part, of in parts.items() for name in dir(of) if name[0] != "_"}


@_per_class
def _model_names(cls: type[Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the arrays in every model: those that are saved, and those that are only compared."""
    model = cls.from_xml_string("<mujoco/>")
    names = [name for name in dir(model) if not name.startswith(("_", *_TEXTS))]
    names = [name for name in names if isinstance(getattr(model, name), np.ndarray)]
    assets = tuple(name for name in names if name.startswith(_ASSETS))
    return tuple(name for name in names if name not in assets), assets


def _model_assets(model: mujoco.MjModel) -> int:
    """A checksum of geometry and pictures, which are too large to be saved."""
    arrays = (getattr(model, name) for name in _model_names(type(model))[1])
    return functools.reduce(lambda checksum, array: zlib.adler32(array.tobytes(), checksum), arrays, 1)


def _model_values(model: mujoco.MjModel) -> dict[str, np.ndarray[Any, Any]]:
    """Views of everything else in a model that an environment may edit."""
    arrays = {name: getattr(model, name) for name in _model_names(type(model))[0]}
    return arrays | {name: value for name, value in _options(model).items() if isinstance(value, np.ndarray)}


def _layout(arrays: dict[str, np.ndarray[Any, Any]]) -> int:
    """A checksum of the names and shapes of arrays."""
    return zlib.crc32(repr([(name, array.shape) for name, array in arrays.items()]).encode())


def _joined(arrays: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """The bytes of arrays, one after the other."""
    return np.frombuffer(bytearray().join(array.tobytes() for array in arrays.values()), np.uint8)


def _check_workers(venv: Any, path: str) -> None:
    busy = venv._state is not AsyncState.DEFAULT if isinstance(venv, AsyncVectorEnv) else venv.waiting
    if busy:
        raise StateNotSavable(f"{path} is in the middle of a step; wait for its result first")
    if isinstance(venv, AsyncVectorEnv) and venv.autoreset_mode is not AutoresetMode.SAME_STEP:
        remedy = "build it with autoreset_mode=AutoresetMode.SAME_STEP"
        raise StateNotSavable(f"{path}: its workers remember which episodes ended where nothing can reach it; {remedy}")
    # The names of the outermost wrapper: what a wrapper around a Snapshot holds would be lost without a word.
    if not all("attempt" in names for names in _ask_workers(venv, path, "__dir__")):
        remedy = "wrap each environment in headway.wrappers.Snapshot, as the outermost wrapper"
        raise StateNotSavable(f"{path} is a {_name(venv)}, whose environments live in other processes; {remedy}")


def _ask_workers(venv: Any, path: str, method: str, *arguments: Any) -> list[Any]:
    try:
        return list((venv.env_method if isinstance(venv, SubprocVecEnv) else venv.call)(method, *arguments))
    except (EOFError, OSError) as error:  # SB3's worker ends with its environment's exception
        raise StateNotSavable(f"{path}: a worker ended in {method}(); its error output says why") from error


def _tell_workers(venv: Any, path: str, states: list[Any]) -> None:
    try:
        if isinstance(venv, SubprocVecEnv):
            answers = [venv.env_method("attempt", "load_state", s, indices=i)[0] for i, s in enumerate(states)]
        else:  # call() sends the same arguments to everyone, so this is its own protocol with one state for each
            for pipe, state in zip(venv.parent_pipes, states, strict=True):
                pipe.send(("_call", ("attempt", ("load_state", state), {})))
            venv._state = AsyncState.WAITING_CALL
            answers = list(venv.call_wait())
    except (EOFError, OSError) as error:
        raise ValueError(f"{path}: a worker ended in load_state(); its error output says why") from error
    for i, (_, problem) in enumerate(answers):
        if problem is not None:
            raise ValueError(f"{path}, in worker {i}: {problem}")


class _Saver:
    """Turns objects into nodes: leaves and arrays are themselves, all else is a dict with its ``kind``.

    What lies deeper than ``_NEAR`` objects in one another is described beside the rest and referred to by number, so
    that neither Python's stack nor the depth of a file limits how far objects are linked.
    """

    def __init__(self, pinned: frozenset[int] = frozenset()) -> None:
        self._seen: dict[int, tuple[str, object]] = {}  # by id; the object is held so that its id is not given away
        self._pinned = pinned
        self._depth = 0
        self._far: deque[tuple[Any, str]] = deque()
        self._far_count = 0

    def run(self, env: object) -> State:
        """:return: the node of an environment, and of all that is far from it."""
        state: State = self.save(env, "env")
        nodes = []
        while self._far:
            value, path = self._far.popleft()
            self._depth = 0
            nodes.append({**self._describe(value, path), "path": path})
        return {**state, "far": nodes} if nodes else state

    def save(self, value: Any, path: str) -> Any:
        """Node for ``value``; a second way to the same mutable object becomes a reference to the first."""
        if type(value) in _LEAVES:
            return value
        try:
            if _is_leaf(value):
                return value
            if not isinstance(value, _VALUES) and not _is_not_state(value):
                if id(value) in self._seen:
                    return {"kind": "shared", "path": self._seen[id(value)][0]}
                self._seen[id(value)] = path, value
                if self._depth >= _NEAR and _kind_of(value) in _CLAIMED:
                    # Paths of a long chain, each with all the others in it, would take the square of its length.
                    name = path if len(path) <= 100 else f"{path[:60]}…{self._far_count}"
                    self._far.append((value, name))
                    self._far_count += 1
                    return {"kind": "far", "number": self._far_count - 1}
            self._depth += 1
            node = self._describe(value, path)
            self._depth -= 1
        except StateNotSavable:
            raise
        except Exception as cause:  # the environment's own code, or types of an unusual make: anything can happen
            what = f"cannot be copied ({type(cause).__name__}: {cause})"
            raise StateNotSavable(f"{_short(path)} {what}; {_REMEDY}") from cause
        return node

    def _describe(self, value: Any, path: str) -> Any:
        return _KINDS[_kind_of(value)].save(self, value, path)

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
        if library := _hidden_library(type(value)):
            _refuse(path, value, f"and its package uses {library}, which keeps its simulation to itself")
        parts = {name: self.save(part, f"{path}.{name}") for name, part in _attributes(value).items()}
        return {"kind": "object", "module": _module(type(value)), "type": type(value).__qualname__, "attributes": parts}

    def save_skipped(self, value: Any, path: str) -> State:
        if isinstance(value, types.ModuleType) and value.__name__ in _BEHIND_NUMBERS:
            _refuse(path, value, f"and {value.__name__} keeps its simulation to itself")
        return {"kind": "skipped"}

    def save_view(self, value: Any, path: str) -> State:
        return {"kind": "view", "type": type(value).__qualname__, "id": getattr(value, "id", None)}

    def save_code(self, value: Any, path: str) -> State:
        parts = [self.save(cell.cell_contents, f"{path}.<{name}>") for name, cell in _cells(value)]
        return {"kind": "code", **_code(value), **({"cells": parts} if parts else {})}

    def save_method(self, value: Any, path: str) -> State:
        if isinstance(owner := value.__self__, types.NoneType | types.ModuleType):  # a function of a C module
            return self.save_code(value, path)
        of = self.save(owner, f"{path}.__self__")
        function = getattr(value, "__func__", None)
        if not isinstance(function, types.FunctionType):  # but one of C or Cython
            return {"kind": "method", "of": of, "name": value.__name__}
        return {"kind": "method", "of": of, "function": self.save(function, f"{path}.__func__")}

    def save_partial(self, value: Any, path: str) -> State:
        parts = [value.func, *value.args, *value.keywords.values()]
        return {"kind": "partial", "keywords": list(value.keywords), "items": self._save_items(parts, path)}

    def save_space(self, value: Any, path: str) -> State:
        spaces = _inner_spaces(value)
        streams = [self.save(space._np_random, f"{path}.np_random") for space in spaces]
        return {"kind": "space", "type": type(value).__qualname__, "streams": streams}

    def save_workers(self, value: Any, path: str) -> State:
        _check_workers(value, path)
        answers = _ask_workers(value, path, "attempt", "state")
        for i, (_, problem) in enumerate(answers):
            if problem is not None:
                raise StateNotSavable(f"{path}, in worker {i}: {problem}")
        states = _plain_copy([state for state, _ in answers], path)
        return {**self.save_object(value, path), "kind": "workers", "states": states}

    def save_list(self, value: Any, path: str) -> State:
        return {"kind": "list", **_container(value, path), "items": self._save_items(value, path)}

    def save_tuple(self, value: Any, path: str) -> Any:
        name, cls = _container(value, path)["type"], type(value)
        if name not in _CONTAINERS and not hasattr(cls, "_make"):
            _refuse(path, value, "a tuple that only its own class can make")
        if cls is tuple and all(map(_is_leaf, value)):
            return value
        return {"kind": "tuple", "type": name, "module": _module(cls), "items": self._save_items(value, path)}

    def save_set(self, value: Any, path: str) -> State:
        return {"kind": "set", **_container(value, path), "items": [self._save_key(item, path) for item in value]}

    def save_dict(self, value: Any, path: str) -> State:
        items = [[self._save_key(k, path), self.save(v, f"{path}[{k!r}]")] for k, v in value.items()]
        return {"kind": "dict", **_container(value, path), "items": items}

    def save_object_array(self, value: Any, path: str) -> State:
        if value.dtype.kind not in "OUS" or (isinstance(value, np.ndarray) and type(value) is not np.ndarray):
            _refuse(path, value, f"of dtype {value.dtype}, not a plain array of numbers, text or objects")
        array = np.asarray(value)
        node: State = {"kind": "array", "dtype": array.dtype.str, "shape": list(array.shape)}
        node["scalar"] = array is not value
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
        model = self.save(value.model, f"{path}.model")
        return {"kind": "mujoco", "integration": vector, "derived": derived, "model": model}

    def save_model(self, value: mujoco.MjModel, path: str) -> State:
        arrays = _model_values(value)
        numbers = {name: option for name, option in _options(value).items() if isinstance(option, (int, float))}
        return {
            **{"kind": "model", "layout": _layout(arrays), "assets": _model_assets(value)},
            **{"values": _joined(arrays).copy(), "numbers": numbers},
        }


class _Loader:
    """Writes nodes into live objects. Plain data is made anew: what is there may be in the hands of the caller."""

    def __init__(self) -> None:
        self._done: dict[str, Any] = {}  # by path, for shared objects
        self._claimed: dict[int, Any] = {}  # by id: written into for one node, so not for another
        self._packages: set[str] = set()  # of the environment's own classes, which are all that is made anew
        self._far: list[State] = []
        self._waiting: deque[Callable[[], object]] = deque()

    def run(self, env: object, state: State) -> Any:
        """:return: what a whole state stands for, written into an environment."""
        self._far = state.get("far", [])
        target = self.load(state, env, "env")
        while self._waiting:
            self._waiting.popleft()()
        return target

    def load(self, node: Any, live: Any, path: str) -> Any:
        """What ``node`` stands for: ``live`` where that can be written into; ``_MISSING`` if skipped and not there."""
        if node is None and _is_not_state(live):  # a renderer, say, opened after the capture
            return live
        if _is_array(node):
            return self._claim(path, live, False, lambda: _plain_copy(node, path))
        if not isinstance(node, dict):
            return node
        if node.get("kind") == "far":
            return self._load_far(self._far[node["number"]], live, path)
        if node.get("kind") == "shared":
            if node["path"] not in self._done:
                raise ValueError(f"{path} was the same object as {node['path']}, which is not there now")
            return self._done[node["path"]]
        if node.get("kind") not in _KINDS:
            raise ValueError(f"{path}: a state of kind {node.get('kind')!r} is not known here")
        return _KINDS[node["kind"]].load(self, node, live, path)

    def _load_far(self, node: State, live: Any, path: str) -> Any:
        # Claimed now and filled in later, in the order in which it was described.
        claim, fill = _CLAIMED[node["kind"]]
        target = claim(self, node, live, path)
        self._waiting.append(lambda: fill(self, node, live, target, node["path"]))
        return target

    def _claim(self, path: str, live: Any, fits: bool, make: Callable[[], Any]) -> Any:
        target = live if fits and id(live) not in self._claimed else make()
        self._claimed[id(target)] = self._done[path] = target
        return target

    def _find(self, node: State) -> Any:
        """What a node names, if it is the environment's own."""
        return _find(node) if node.get("module", "").partition(".")[0] in self._packages else None

    def _claim_object(self, node: State, live: Any, path: str) -> Any:
        def make() -> Any:
            cls = self._find(node)
            if not (isinstance(cls, type) and _is_plain(cls)):
                _mismatch(path, node["type"], live)
            return object.__new__(cls)

        modules = {_module(type(live)), node.get("module", "__main__")}  # a script's classes, once it is imported
        fits = type(live).__qualname__ == node["type"] and (len(modules) == 1 or "__main__" in modules)
        if fits and _package(type(live)) not in _LIBRARIES:
            self._packages.add(_package(type(live)))
        return self._claim(path, live, fits, make)

    def _claim_in_place(self, node: State, live: Any, path: str) -> Any:
        fits = type(live).__qualname__ == node["type"]
        return self._claim(path, live, fits, lambda: _mismatch(path, node["type"], live))

    def _claim_container(self, node: State, live: Any, path: str, parts: Iterable[Any]) -> Any:
        def make() -> Any:
            if "factory" in node:
                return defaultdict(_FACTORIES[node["factory"]])
            cls: Any = _CONTAINERS.get(node["type"]) or self._find(node)
            if not (isinstance(cls, type) and issubclass(cls, (list, deque, set, dict))):
                _mismatch(path, node["type"], live)
            maker: Any = cls.__new__
            return deque(maxlen=node["maxlen"]) if cls is deque else maker(cls)

        keep = node["type"] not in _CONTAINERS or _has_kind(parts, _KEPT)
        fits = type(live).__qualname__ == node["type"] and getattr(live, "maxlen", None) == node.get("maxlen")
        return self._claim(path, live, keep and fits, make)

    def _claim_list(self, node: State, live: Any, path: str) -> Any:
        return self._claim_container(node, live, path, node["items"])

    def _claim_dict(self, node: State, live: Any, path: str) -> Any:
        return self._claim_container(node, live, path, [item for _, item in node["items"]])

    def _load_part(self, node: Any, live: Any, path: str) -> Any:
        value = self.load(node, live, path)
        if value is _MISSING:
            _mismatch(path, "part that is not state", live)
        return value

    def _load_items(self, nodes: list[Any], old: list[Any], path: str) -> list[Any]:
        lost = old[len(nodes) :]
        if any(isinstance(item, _MACHINERY) for item in lost) or (lost and _has_kind(nodes, _ONLY_IN_PLACE)):
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
        target = self._claim_list(node, live, path)
        return self._fill_list(node, live, target, path)

    def _fill_list(self, node: State, live: Any, target: Any, path: str) -> Any:
        items = self._load_items(node["items"], list(live) if isinstance(live, (list, deque)) else [], path)
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
        target = self._claim_dict(node, live, path)
        return self._fill_dict(node, live, target, path)

    def _fill_dict(self, node: State, live: Any, target: Any, path: str) -> Any:
        old = dict(live) if isinstance(live, dict) else {}
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
        target = self._claim_in_place({"type": "MjData"}, live, path)
        if "model" in node:  # first, for its options decide what is integrated
            self.load(node["model"], live.model, f"{path}.model")
        arrays = {name: getattr(live, name) for name in _mujoco_arrays(live)}
        vector, derived = node["integration"], node["derived"]
        if vector.size != mujoco.mj_stateSize(live.model, _INTEGRATION) or not derived.keys() >= arrays.keys():
            raise ValueError(f"{path} was saved from another MuJoCo model, or with another version of MuJoCo")
        for name, array in arrays.items():
            if array.shape != derived[name].shape:
                raise ValueError(f"{path}.{name} was saved with shape {derived[name].shape}, but has {array.shape}")
        # No mj_forward: the derived arrays lag a sub-step behind the positions, and the solver's warm start must stay.
        mujoco.mj_setState(live.model, live, vector, _INTEGRATION)
        for name, array in arrays.items():
            np.copyto(array, derived[name])
        return target

    def load_model(self, node: State, live: Any, path: str) -> Any:
        target = self._claim_in_place({"type": "MjModel"}, live, path)
        arrays, options = _model_values(live), _options(live)
        if _layout(arrays) != node["layout"] or options.keys() < node["numbers"].keys():
            raise ValueError(f"{path} was saved from another MuJoCo model, or with another version of MuJoCo")
        if _model_assets(live) != node["assets"]:
            raise ValueError(f"{path} was saved from a model with other meshes, textures or skins")
        values, start = node["values"], 0
        for array in () if np.array_equal(values, _joined(arrays)) else arrays.values():
            np.copyto(array, values[start : start + array.nbytes].view(array.dtype).reshape(array.shape))
            start += array.nbytes
        for name, number in node["numbers"].items():
            part_name, _, field = name.partition(".")
            setattr(getattr(live, part_name), field, number)
        return target

    def load_view(self, node: State, live: Any, path: str) -> Any:
        if type(live).__qualname__ != node["type"] or getattr(live, "id", None) != node["id"]:
            _mismatch(path, f"{node['type']} of number {node['id']}", live)
        return live

    def load_code(self, node: State, live: Any, path: str) -> Any:
        named = {key: part for key, part in node.items() if key not in ("kind", "cells")}
        value: Any = live if _is_named(live, named) else self._find(node)
        if not _is_named(value, named):
            _mismatch(path, f"function or class {node['type']}", live)
        self._done[path] = value
        for (name, cell), part in zip(_cells(value), node.get("cells", ()), strict=True):
            before = cell.cell_contents
            if (after := self._load_part(part, before, f"{path}.<{name}>")) is not before:
                cell.cell_contents = after
        return value

    def load_method(self, node: State, live: Any, path: str) -> Any:
        of = self._load_part(node["of"], getattr(live, "__self__", _MISSING), f"{path}.__self__")
        if "name" not in node:
            function = self._load_part(node["function"], getattr(live, "__func__", _MISSING), f"{path}.__func__")
            method = types.MethodType(function, of)
            return live if live == method else method
        fits = isinstance(live, _BOUND) and live.__self__ is of and live.__name__ == node["name"]
        bound = live if fits else getattr(of, node["name"], None)
        if not isinstance(bound, _BOUND):
            _mismatch(path, f"method {node['name']}", live)
        return bound

    def load_partial(self, node: State, live: Any, path: str) -> Any:
        fits = type(live) is functools.partial and list(live.keywords) == node["keywords"]
        old = [live.func, *live.args, *live.keywords.values()] if fits else []
        items: list[Any] = self._load_items(node["items"], old, path)
        if len(old) == len(items) and all(one is other for one, other in zip(items, old, strict=True)):
            return live
        split = len(items) - len(node["keywords"])
        partial: Any = functools.partial
        return partial(*items[:split], **dict(zip(node["keywords"], items[split:], strict=True)))

    def load_space(self, node: State, live: Any, path: str) -> Any:
        target = self._claim_in_place(node, live, path)
        inner = _inner_spaces(target)
        if len(inner) != len(node["streams"]):
            _mismatch(path, f"{node['type']} of {len(node['streams'])} spaces", live)
        for space, stream in zip(inner, node["streams"], strict=True):
            space._np_random = self.load(stream, space._np_random, f"{path}.np_random")
        return target

    def load_protocol(self, node: State, live: Any, path: str) -> Any:
        if node["type"] == "Snapshot" and isinstance(live, gym.Env) and not _has_protocol(type(live)):
            # It changes nothing: runs of the command line have one, environments of a script need not.
            Snapshot(live).load_state(_plain_copy(node["state"], path))
            self._done[path] = live
            return live
        target = self._claim_in_place(node, live, path)
        target.load_state(_plain_copy(node["state"], path))
        return target

    def load_object(self, node: State, live: Any, path: str) -> Any:
        target = self._claim_object(node, live, path)
        return self._fill_object(node, live, target, path)

    def _fill_object(self, node: State, live: Any, target: Any, path: str) -> Any:
        slots, old, saved = dict(_slots(type(target))), _attributes(target), node["attributes"]
        for name in old:  # made after the capture, as by a first step
            if name not in saved and not _is_not_state(old[name]) and not isinstance(old[name], _CODE):
                slots[name].__delete__(target) if name in slots else vars(target).pop(name)
        for name, part in saved.items():
            before = old.get(name, _MISSING)
            value = self.load(part, before, f"{path}.{name}")
            if value is _MISSING and target is not live:  # an object that was made here lacks what only its class makes
                _mismatch(f"{path}.{name}", "part that is not state", _MISSING)
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
    "skipped": _Kind(_is_not_state, _Saver.save_skipped, lambda loader, node, live, path: live),
    "view": _Kind(lambda value: _is_view(type(value)), _Saver.save_view, _Loader.load_view),
    "model": _Kind(_of(mujoco.MjModel), _Saver.save_model, _Loader.load_model),
    "space": _Kind(_of(gym.Space), _Saver.save_space, _Loader.load_space),
    "method": _Kind(_of(*_BOUND), _Saver.save_method, _Loader.load_method),
    "partial": _Kind(_of(functools.partial), _Saver.save_partial, _Loader.load_partial),
    "code": _Kind(_of(type, types.FunctionType), _Saver.save_code, _Loader.load_code),
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
"""By name; an object is of the first kind that matches. Nodes can also be "shared" and "far"."""

_CLAIMED = {
    "list": (_Loader._claim_list, _Loader._fill_list),
    "dict": (_Loader._claim_dict, _Loader._fill_dict),
    "object": (_Loader._claim_object, _Loader._fill_object),
}
"""Kinds of which an object is there before what it holds: these can be far."""


def _kind_of(value: object) -> str:
    return next(name for name, kind in _KINDS.items() if kind.matches(value))


def capture(env: object) -> State:
    """Everything that changes in an environment, as plain data.

    :param env: a Gymnasium or SB3 environment, single or vectorised, with any wrappers; any other mutable object too
    :return: a deep copy, for :func:`restore`. Keep its dicts in order: a shared object is described only once, at first
    :raises StateNotSavable: if part of the environment holds state that cannot be read; the message names the part
    """
    saver = _Saver()
    state = saver.run(env)
    if pinned := saver.overlapping():  # known only when everything has been seen
        state = _Saver(pinned).run(env)
    return state


def restore(env: object, state: State) -> None:
    """Put an environment into a captured state.

    Objects, random generators, MuJoCo's data and networks are written into. Arrays and plain containers are replaced,
    since the environment's caller may hold the old ones (observations, actions, infos). Only arrays that share memory
    with each other or with somebody else are written into, so that views in the environment stay views; a view kept
    outside of it must be taken anew.

    Objects that are missing, or of another class than they were, are made if their class is a plain one of Python's in
    a package of the environment's own, and if it is imported already. Reset an environment first: what it makes in
    ``reset()`` is then there to be written into. After an error the environment is partly restored: reset it again.

    :param env: an environment built like the captured one, new or used
    :param state: what :func:`capture` returned; it can be used again
    :raises ValueError: if the state does not fit; the message names the part
    """
    try:
        written = _Loader().run(env, state)
    except (LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError) as cause:
        what = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
        raise ValueError(f"the state cannot be written into {_name(env)} ({what}): it is not one of it") from cause
    if written is not env:
        raise ValueError(f"env is a {_name(env)}, which this state cannot be written into")


def global_streams() -> State:
    """:return: state of Python's, NumPy's and torch's process-wide generators, from which environments may draw."""
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

    def attempt(self, method: str, *arguments: Any) -> tuple[Any, str | None]:
        """Call :meth:`state` or :meth:`load_state` in another process, which an exception would end.

        :param method: its name
        :param arguments: for it
        :return: what it returned, and None; or None, and what went wrong
        """
        try:
            call: Callable[..., Any] = self.state if method == "state" else self.load_state
            return call(*arguments), None
        except Exception as problem:
            return None, str(problem) if isinstance(problem, ValueError) else f"{type(problem).__name__}: {problem}"
