"""Python's containers, and small values that are made of a few arguments."""

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable
from enum import Enum, Flag
from typing import Any

import torch

from .classes import BY_ARGUMENTS, slots
from .nodes import MISSING, State, class_node, find_class, is_alike, is_leaf, mismatch, module_of, refuse
from .walking import Kind, Kinds, Loader, Saver, is_a

_CONTAINERS: dict[str, Any] = {
    cls.__qualname__: cls for cls in (list, tuple, dict, set, frozenset, deque, OrderedDict, Counter, torch.Size)
}
_FACTORIES = {cls.__name__: cls for cls in (bool, int, float, complex, str, tuple, list, dict, set)}  # of a defaultdict


def _save_container(value: object, path: str) -> State:
    """:return: the type of a container, which has nothing but items, and what else it takes to make one"""
    if getattr(value, "__dict__", None) or slots(type(value)):
        refuse(path, value, "a container with attributes of its own")
    node: State = {"type": type(value).__qualname__}
    if isinstance(value, deque):
        node["maxlen"] = value.maxlen
    factory: Any = getattr(value, "default_factory", None)
    if type(value) is defaultdict and factory in _FACTORIES.values():
        node["factory"] = factory.__name__
    if node["type"] not in _CONTAINERS:
        node["module"] = module_of(type(value))
    return node


def _claim_container(loader: Loader, node: State, live: Any, path: str, parts: Iterable[Any]) -> Any:
    def make() -> Any:
        if "factory" in node:
            return defaultdict(_FACTORIES[node["factory"]])
        cls: Any = _CONTAINERS.get(node["type"]) or loader.find(node)
        if not (isinstance(cls, type) and issubclass(cls, (list, deque, set, dict))):
            mismatch(path, node["type"], live)
        maker: Any = cls.__new__
        return deque(maxlen=node["maxlen"]) if cls is deque else maker(cls)

    keep = node["type"] not in _CONTAINERS or loader.keeps(parts)
    fits = is_alike(node, live) and getattr(live, "maxlen", None) == node.get("maxlen")
    return loader.claim(path, live, keep and fits, make)


def _save_list(saver: Saver, value: Any, path: str) -> State:
    return {"kind": "list", **_save_container(value, path), "items": saver.items(value, path)}


def _load_list(loader: Loader, node: State, live: Any, path: str) -> Any:
    return _claim_container(loader, node, live, path, node["items"])


def _fill_list(loader: Loader, node: State, live: Any, target: Any, path: str) -> None:
    items = loader.items(node["items"], list(live) if isinstance(live, (list, deque)) else [], path)
    target.clear()
    target.extend(items)


def _save_tuple(saver: Saver, value: Any, path: str) -> Any:
    name, cls = _save_container(value, path)["type"], type(value)
    if name not in _CONTAINERS and not hasattr(cls, "_make"):
        refuse(path, value, "a tuple that only its own class can make")
    if cls is tuple and all(map(is_leaf, value)):
        return value
    return {"kind": "tuple", "type": name, "module": module_of(cls), "items": saver.items(value, path)}


def _load_tuple(loader: Loader, node: State, live: Any, path: str) -> Any:
    items = loader.items(node["items"], list(live) if isinstance(live, tuple) else [], path)
    if node["type"] in ("tuple", "Size"):
        return _CONTAINERS[node["type"]](items)
    cls: Any = find_class(node, live, tuple)
    if not hasattr(cls, "_make"):
        mismatch(path, node["type"], live)
    return cls._make(items)


def _save_set(saver: Saver, value: Any, path: str) -> State:
    return {"kind": "set", **_save_container(value, path), "items": [saver.key(item, path) for item in value]}


def _load_set(loader: Loader, node: State, live: Any, path: str) -> Any:
    items = [loader.part(item, MISSING, f"a key in {path}") for item in node["items"]]
    if node["type"] == "frozenset":
        return frozenset(items)
    target = _claim_container(loader, node, live, path, ())
    target.clear()
    target.update(items)
    return target


def _save_dict(saver: Saver, value: Any, path: str) -> State:
    items = [[saver.key(k, path), saver.save(v, f"{path}[{k!r}]")] for k, v in value.items()]
    return {"kind": "dict", **_save_container(value, path), "items": items}


def _load_dict(loader: Loader, node: State, live: Any, path: str) -> Any:
    return _claim_container(loader, node, live, path, [item for _, item in node["items"]])


def _fill_dict(loader: Loader, node: State, live: Any, target: Any, path: str) -> None:
    old = dict(live) if isinstance(live, dict) else {}
    items = {}
    for key_node, item in node["items"]:
        key = loader.part(key_node, MISSING, f"a key in {path}")
        items[key] = loader.part(item, old.get(key, MISSING), f"{path}[{key!r}]")
    target.clear()
    for key, item in items.items():  # no update(): a Counter's adds
        target[key] = item


def _save_enum(saver: Saver, value: Enum, path: str) -> State:
    return {"kind": "enum", **class_node(type(value)), "member": value.value if isinstance(value, Flag) else value.name}


def _load_enum(loader: Loader, node: State, live: Any, path: str) -> Any:
    cls: Any = find_class(node, live, Enum)
    if cls is None:
        mismatch(path, node["type"], live)
    return cls(node["member"]) if issubclass(cls, Flag) else cls[node["member"]]


def _save_by_arguments(saver: Saver, value: Any, path: str) -> State:
    arguments = saver.items(BY_ARGUMENTS[type(value)](value), path)
    return {"kind": "arguments", "type": type(value).__qualname__, "items": arguments}


def _load_by_arguments(loader: Loader, node: State, live: Any, path: str) -> Any:
    cls = next(cls for cls in BY_ARGUMENTS if cls.__qualname__ == node["type"])
    return cls(*loader.items(node["items"], [], path))


KINDS: Kinds = {
    "enum": Kind(is_a(Enum), _save_enum, _load_enum),
    "list": Kind(is_a(list, deque), _save_list, _load_list, _fill_list),
    "tuple": Kind(is_a(tuple), _save_tuple, _load_tuple),
    "set": Kind(is_a(set, frozenset), _save_set, _load_set),
    "dict": Kind(is_a(dict), _save_dict, _load_dict, _fill_dict),
    "arguments": Kind(is_a(*BY_ARGUMENTS), _save_by_arguments, _load_by_arguments),
}
