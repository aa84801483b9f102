"""Functions, classes, methods and partials: known by name and compared; what they are bound to is state."""

import functools
import types
import zlib
from typing import Any

from .classes import BOUND
from .nodes import MISSING, State, is_leaf, mismatch
from .walking import Kind, Kinds, Loader, Saver, is_a


def _fingerprint(function: types.FunctionType) -> int:
    """What tells functions of one name apart, as lambdas are: their instructions and the constants in them."""
    code = function.__code__
    constants = [value for value in code.co_consts if is_leaf(value)]
    return zlib.crc32(code.co_code + repr((constants, code.co_names)).encode("utf-8", "replace"))


def _cells(function: Any) -> list[tuple[str, types.CellType]]:
    """What a function remembers from where it was made, by name."""
    cells = getattr(function, "__closure__", None) or ()
    return list(zip(function.__code__.co_freevars, cells, strict=True)) if cells else []


def _named(value: Any) -> State:
    """How a function or a class is known."""
    node: State = {"module": getattr(value, "__module__", None) or "builtins", "type": value.__qualname__}
    if isinstance(value, types.FunctionType) and "<" in value.__qualname__:
        node["code"] = _fingerprint(value)
    return node


def _is_named(value: Any, name: State) -> bool:
    return isinstance(value, type | types.FunctionType | types.BuiltinFunctionType) and _named(value) == name


def _save_code(saver: Saver, value: Any, path: str) -> State:
    parts = [saver.save(cell.cell_contents, f"{path}.<{name}>") for name, cell in _cells(value)]
    return {"kind": "code", **_named(value), **({"cells": parts} if parts else {})}


def _load_code(loader: Loader, node: State, live: Any, path: str) -> Any:
    name = {key: part for key, part in node.items() if key not in ("kind", "cells")}
    value: Any = live if _is_named(live, name) else loader.find(node)
    if not _is_named(value, name):
        mismatch(path, f"function or class {node['type']}", live)
    loader.done(path, value)
    for (variable, cell), part in zip(_cells(value), node.get("cells", ()), strict=True):
        before = cell.cell_contents
        if (after := loader.part(part, before, f"{path}.<{variable}>")) is not before:
            cell.cell_contents = after
    return value


def _save_method(saver: Saver, value: Any, path: str) -> State:
    if isinstance(owner := value.__self__, types.NoneType | types.ModuleType):  # a function of a C module
        return _save_code(saver, value, path)
    of = saver.save(owner, f"{path}.__self__")
    function = getattr(value, "__func__", None)
    if not isinstance(function, types.FunctionType):  # but one of C or Cython
        return {"kind": "method", "of": of, "name": value.__name__}
    return {"kind": "method", "of": of, "function": saver.save(function, f"{path}.__func__")}


def _load_method(loader: Loader, node: State, live: Any, path: str) -> Any:
    of = loader.part(node["of"], getattr(live, "__self__", MISSING), f"{path}.__self__")
    if "name" not in node:
        function = loader.part(node["function"], getattr(live, "__func__", MISSING), f"{path}.__func__")
        method = types.MethodType(function, of)
        return live if live == method else method
    fits = isinstance(live, BOUND) and live.__self__ is of and live.__name__ == node["name"]
    bound = live if fits else getattr(of, node["name"], None)
    if not isinstance(bound, BOUND):
        mismatch(path, f"method {node['name']}", live)
    return bound


def _save_partial(saver: Saver, value: Any, path: str) -> State:
    parts = [value.func, *value.args, *value.keywords.values()]
    return {"kind": "partial", "keywords": list(value.keywords), "items": saver.items(parts, path)}


def _load_partial(loader: Loader, node: State, live: Any, path: str) -> Any:
    fits = type(live) is functools.partial and list(live.keywords) == node["keywords"]
    old = [live.func, *live.args, *live.keywords.values()] if fits else []
    items: list[Any] = loader.items(node["items"], old, path)
    if len(old) == len(items) and all(one is other for one, other in zip(items, old, strict=True)):
        return live
    split = len(items) - len(node["keywords"])
    partial: Any = functools.partial
    return partial(*items[:split], **dict(zip(node["keywords"], items[split:], strict=True)))


KINDS: Kinds = {
    "method": Kind(is_a(*BOUND), _save_method, _load_method, kept=True),
    "partial": Kind(is_a(functools.partial), _save_partial, _load_partial, kept=True),
    "code": Kind(is_a(type, types.FunctionType), _save_code, _load_code, kept=True),
}
