"""What is known of classes: which are no state, which can be made anew, and where their instances keep attributes."""

import datetime
import decimal
import functools
import io
import pathlib
import struct
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import EzPickle, RecordConstructorArgs
from gymnasium.vector import AsyncVectorEnv, VectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper

from .nodes import full_name, package_of

_T = TypeVar("_T")

BOUND = (types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType)
CODE = (type, types.FunctionType, *BOUND, functools.partial)
BY_ARGUMENTS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
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
"""Immutable classes, and what makes an equal object of each."""
VALUES = (Enum, tuple, frozenset, np.generic, type, *BOUND, functools.partial, *BY_ARGUMENTS)
"""Immutable: equal is as good as identical."""
MACHINERY = (gym.Env, VecEnv, VectorEnv, torch.nn.Module)
"""Objects that are never made anew, nor dropped."""
BEHIND_NUMBERS = frozenset({"pybullet", "libsumo", "traci", "raisimpy", "carla", "isaacgym", "unityagents"})
"""Libraries that keep a simulation to themselves, and give out numbers for it, which would be all there is to copy."""
LIBRARIES = sys.stdlib_module_names - {"__main__"} | {"gymnasium", "headway", "numpy", "stable_baselines3", "torch"}
"""Whose classes no state may name to have them made: an environment's own are all that it can need."""

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
    "dm_control.mujoco.index.",  # views of the simulation's arrays, by name
)
# Views, such as data.body("torso") and model.opt: their memory is saved with what they look into.
_VIEWS = ("mujoco._structs._Mj", "mujoco._structs.MjOption", "mujoco._structs.MjStatistic", "mujoco._structs.MjVis")
# Python objects around something of the operating system's: copying their attributes would hijack a file descriptor.
_NOT_STATE_BY_NAME = {"dm_control.mujoco.engine.Physics": frozenset({"_contexts", "_contexts_lock"})}  # for drawing
_OUTSIDE = frozenset({"multiprocessing", "subprocess", "threading", "socket", "asyncio", "concurrent", "ctypes", "ray"})
_NOT_STATE_ATTRIBUTES: tuple[tuple[type, frozenset[str]], ...] = (
    (VecEnvWrapper, frozenset({"class_attributes"})),
    (DummyVecEnv, frozenset({"actions"})),  # the caller's array, read only between step_async and step_wait
    (SubprocVecEnv, frozenset({"remotes", "work_remotes", "processes"})),
    (AsyncVectorEnv, frozenset({"parent_pipes", "processes", "error_queue"})),
    (RecordConstructorArgs, frozenset({"_saved_kwargs"})),
    (EzPickle, frozenset({"_ezpickle_args", "_ezpickle_kwargs"})),
)


def per_class(function: Callable[[type], _T]) -> Callable[[type], _T]:
    """:return: a function of a class that remembers its answers"""
    return functools.lru_cache(maxsize=4096)(function)


@per_class
def _is_not_state_type(cls: type) -> bool:
    return issubclass(cls, _NOT_STATE_TYPES) or full_name(cls).startswith(_NOT_STATE_NAMES)


def is_not_state(value: object) -> bool:
    """:return: whether a value is left alone"""
    if isinstance(value, io.IOBase):  # a file that is read has a position, which is state: not skipped, hence refused
        return value.closed or not value.readable()
    return _is_not_state_type(type(value))


@per_class
def is_view(cls: type) -> bool:
    """:return: whether a class is one of MuJoCo's views"""
    return full_name(cls).startswith(_VIEWS)


@per_class
def has_protocol(cls: type) -> bool:
    """:return: whether a class has ``state()`` and ``load_state(state)`` of its own"""
    # On the class: SB3's wrappers pass their inner environment's methods off as theirs, and CartPole's `state` is data.
    return all(callable(getattr(cls, name, None)) for name in ("state", "load_state"))


@per_class
def slots(cls: type) -> tuple[tuple[str, Any], ...]:
    """:return: name and descriptor of each slot, base classes first"""
    bases = [vars(base).items() for base in reversed(cls.__mro__) if "__slots__" in vars(base)]
    return tuple(item for base in bases for item in base if isinstance(item[1], types.MemberDescriptorType))


@per_class
def is_python(cls: type) -> bool:
    """:return: whether instances have room for slots, ``__dict__`` and weak references alone: pickle's own rule"""
    words = len(slots(cls)) + (cls.__dictoffset__ > 0) + (cls.__weakrefoffset__ > 0)
    fits = cls.__itemsize__ == 0 and cls.__basicsize__ == object.__basicsize__ + words * struct.calcsize("P")
    return fits and package_of(cls) not in _OUTSIDE


@per_class
def is_plain(cls: type) -> bool:
    """:return: whether an object can be made by filling in its attributes, and no code of its class runs for it"""
    maker: Any = cls.__new__
    made = maker is object.__new__ and not hasattr(cls, "__del__")
    return made and is_python(cls) and not has_protocol(cls) and not issubclass(cls, MACHINERY)


@per_class
def hidden_library(cls: type) -> str | None:
    """:return: a library that the package of a class imports, and that keeps simulations behind numbers"""
    package = package_of(cls)
    if package in LIBRARIES:
        return None
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == package]
    used = (value for module in modules for value in list(getattr(module, "__dict__", {}).values()))
    names = {value.__name__ for value in used if isinstance(value, types.ModuleType)}
    return min(names & BEHIND_NUMBERS, default=None)


@per_class
def _ignored(cls: type) -> frozenset[str]:
    optional = (_NOT_STATE_BY_NAME.get(full_name(base), frozenset()) for base in cls.__mro__)
    return frozenset[str]().union(
        *(names for owner, names in _NOT_STATE_ATTRIBUTES if issubclass(cls, owner)), *optional
    )


def attributes(value: object) -> dict[str, Any]:
    """:return: attributes in ``__slots__`` and ``__dict__``, without those that are known not to be state"""
    found: dict[str, Any] = {}
    for name, slot in slots(type(value)):
        with suppress(AttributeError):  # a slot that was never filled
            found[name] = slot.__get__(value)
    found.update(getattr(value, "__dict__", {}))
    return {name: item for name, item in found.items() if name not in _ignored(type(value))}
