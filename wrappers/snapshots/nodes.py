"""What nodes are made of: plain data, names of classes, and the errors of those that do not fit."""

import sys
import types
from typing import Any, NoReturn, TypeAlias

import numpy as np
import torch
from torch import Tensor

State: TypeAlias = dict[str, Any]
"""None, bool, int, float, str, bytes, NumPy scalars, arrays of numbers or booleans, tensors, and lists, tuples and
str-keyed dicts of those. A dict with a ``kind`` describes an object; everything else stands for itself.
"""

MISSING: Any = object()
"""Stands for what is not there."""

REMEDY = "give its class, or the class that holds it, state() and load_state(state)"
LEAVES = frozenset({types.NoneType, bool, int, float, str, bytes})
_NUMERIC = "biufc"  # kinds of NumPy dtype


class StateNotSavable(ValueError):
    """Part of an environment keeps its state where it cannot be read; the message says which part, and what to do."""


def short(path: str) -> str:
    """:return: the path of what many others lead to, without its middle"""
    return path if len(path) <= 300 else f"{path[:150]} … {path[-150:]}"


def refuse(path: str, value: object, why: str) -> NoReturn:
    """Say that an object cannot be described, and why.

    :raises StateNotSavable: always
    """
    raise StateNotSavable(f"{short(path)} is a {full_name(type(value))}, {why}; {REMEDY}")


def mismatch(path: str, saved: str, live: object) -> NoReturn:
    """Say that a node does not fit what is there.

    :raises ValueError: always
    """
    found = "nothing" if live is MISSING else f"a {full_name(type(live))}"
    remedy = (
        "build the environment as the saved one was, and reset() and step() it first if it makes its parts only then"
    )
    raise ValueError(f"{short(path)} was saved from a {saved}, but there is {found} to write into; {remedy}")


def module_of(cls: type) -> str:
    """:return: the module of a class; types that SWIG makes (Box2D's) have none"""
    return str(getattr(cls, "__module__", "builtins"))


def package_of(cls: type) -> str:
    """:return: the distribution's first name"""
    return module_of(cls).partition(".")[0]


def full_name(cls: type) -> str:
    """:return: module and name"""
    return f"{module_of(cls)}.{cls.__qualname__}"


def class_node(cls: type) -> State:
    """:return: how :func:`find_class` knows a class"""
    return {"module": module_of(cls), "type": cls.__qualname__}


def find(node: State) -> Any:
    """:return: what a node names, if it is imported already; None: it is not. Nothing is imported or called"""
    module = sys.modules.get(node.get("module", ""))
    first, *names = node["type"].split(".")
    found = getattr(module, "__dict__", {}).get(first)  # a module's __getattr__ may import
    for name in names:
        found = getattr(found, name, None) if isinstance(found, type) else None
    return found


def find_class(node: State, live: object, base: type) -> type | None:
    """:return: the class that a node names: the live object's, else one already imported"""
    cls = type(live) if is_alike(node, live) else find(node)
    return cls if isinstance(cls, type) and issubclass(cls, base) else None


def is_alike(node: State, live: object) -> bool:
    """:return: whether an object's class has the name that a node was saved with"""
    return bool(type(live).__qualname__ == node["type"])


def is_numeric(dtype: Any) -> bool:
    """:return: whether a file can hold numbers of a NumPy dtype; it cannot hold ``longdouble``"""
    return dtype.kind in _NUMERIC and dtype.itemsize <= (16 if dtype.kind == "c" else 8)


def is_leaf(value: object) -> bool:
    """:return: whether a value is its own node, and not an array"""
    return type(value) in LEAVES or (isinstance(value, np.generic) and is_numeric(value.dtype))


def is_array(value: object) -> bool:
    """:return: whether a value is a tensor, or an array of numbers or booleans"""
    return isinstance(value, Tensor) or (type(value) is np.ndarray and is_numeric(value.dtype))


def plain_copy(value: Any, path: str) -> Any:
    """:return: a deep copy of plain data

    :raises StateNotSavable: it is something else
    """
    if is_leaf(value):
        return value
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_meta or value.is_quantized:
            refuse(path, value, f"of layout {value.layout} and device {value.device}, not a plain dense one")
        return value.detach().clone()
    if is_array(value):
        return value.copy(order="K")
    if type(value) in (list, tuple):
        return type(value)(plain_copy(item, f"{path}[{i}]") for i, item in enumerate(value))
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: plain_copy(item, f"{path}[{key!r}]") for key, item in value.items()}
    refuse(path, value, "which is not plain data")
