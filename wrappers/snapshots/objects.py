"""Objects with attributes, those that save themselves, and those that are left alone."""

import types
from typing import Any

import gymnasium as gym

from .classes import (
    BEHIND_NUMBERS,
    CODE,
    attributes,
    has_protocol,
    hidden_library,
    is_not_state,
    is_plain,
    is_python,
    is_view,
    slots,
)
from .nodes import MISSING, State, class_node, full_name, is_alike, mismatch, module_of, plain_copy, refuse
from .walking import Kind, Kinds, Loader, Saver


def save_object(saver: Saver, value: Any, path: str) -> State:
    """:return: the node of an object of a class written in Python"""
    if not is_python(type(value)):
        refuse(path, value, "whose state is out of Python's sight")
    if library := hidden_library(type(value)):
        refuse(path, value, f"and its package uses {library}, which keeps its simulation to itself")
    parts = {name: saver.save(part, f"{path}.{name}") for name, part in attributes(value).items()}
    return {"kind": "object", **class_node(type(value)), "attributes": parts}


def load_object(loader: Loader, node: State, live: Any, path: str) -> Any:
    """:return: the object, for :func:`fill_object`"""

    def make() -> Any:
        cls = loader.find(node)
        if not (isinstance(cls, type) and is_plain(cls)):
            mismatch(path, node["type"], live)
        return object.__new__(cls)

    modules = {module_of(type(live)), node.get("module", "__main__")}  # a script's classes, once it is imported
    fits = is_alike(node, live) and (len(modules) == 1 or "__main__" in modules)
    if fits:
        loader.trust(type(live))
    return loader.claim(path, live, fits, make)


def fill_object(loader: Loader, node: State, live: Any, target: Any, path: str) -> None:
    """Write the attributes of an object."""
    fields, old, saved = dict(slots(type(target))), attributes(target), node["attributes"]
    for name in old:  # made after the capture, as by a first step
        if name not in saved and not is_not_state(old[name]) and not isinstance(old[name], CODE):
            fields[name].__delete__(target) if name in fields else vars(target).pop(name)
    for name, part in saved.items():
        before = old.get(name, MISSING)
        value = loader.load(part, before, f"{path}.{name}")
        if value is MISSING and target is not live:  # an object that was made here lacks what only its class makes
            mismatch(f"{path}.{name}", "part that is not state", MISSING)
        if value is before:
            continue
        if name not in fields and not hasattr(target, "__dict__"):
            mismatch(f"{path}.{name}", full_name(type(value)), MISSING)
        # Past __setattr__, which may refuse or do more than set.
        fields[name].__set__(target, value) if name in fields else vars(target).update({name: value})


def _save_protocol(saver: Saver, value: Any, path: str) -> State:
    state = plain_copy(value.state(), f"{path}.state()")
    return {"kind": "protocol", "type": type(value).__qualname__, "state": state}


def _load_protocol(loader: Loader, node: State, live: Any, path: str) -> Any:
    if node["type"] == "Snapshot" and isinstance(live, gym.Env) and not has_protocol(type(live)):
        # That wrapper changes nothing: runs of the command line have one, environments of a script need not.
        Loader(loader.kinds).run(live, node["state"])
        loader.done(path, live)
        return live
    target = loader.claim_in_place(node, live, path)
    target.load_state(plain_copy(node["state"], path))
    return target


def _save_skipped(saver: Saver, value: Any, path: str) -> State:
    if isinstance(value, types.ModuleType) and value.__name__ in BEHIND_NUMBERS:
        refuse(path, value, f"and {value.__name__} keeps its simulation to itself")
    return {"kind": "skipped"}


def _load_skipped(loader: Loader, node: State, live: Any, path: str) -> Any:
    return live


def _save_view(saver: Saver, value: Any, path: str) -> State:
    return {"kind": "view", "type": type(value).__qualname__, "id": getattr(value, "id", None)}


def _load_view(loader: Loader, node: State, live: Any, path: str) -> Any:
    if not is_alike(node, live) or getattr(live, "id", None) != node["id"]:
        mismatch(path, f"{node['type']} of number {node['id']}", live)
    return live


SPECIAL: Kinds = {
    "skipped": Kind(is_not_state, _save_skipped, _load_skipped, kept=True),
    "view": Kind(lambda value: is_view(type(value)), _save_view, _load_view),
    "protocol": Kind(lambda value: has_protocol(type(value)), _save_protocol, _load_protocol, made=False),
}
ANY: Kinds = {"object": Kind(lambda value: True, save_object, load_object, fill_object, kept=True)}
