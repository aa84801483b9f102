"""The way through an environment from one object to the next, to describe all of them or to write into them."""

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .classes import LIBRARIES, MACHINERY, VALUES, is_not_state
from .nodes import (
    LEAVES,
    MISSING,
    REMEDY,
    State,
    StateNotSavable,
    find,
    full_name,
    is_alike,
    is_array,
    is_leaf,
    mismatch,
    package_of,
    plain_copy,
    refuse,
    short,
)

_NEAR = 8  # objects in one another that one node describes; files limit the depth of a tree. Our choice


class Kind(NamedTuple):
    """Which objects are of a kind, how they are described by a node, and how it is written into one."""

    matches: Callable[[Any], bool]
    save: "Callable[[Saver, Any, str], Any]"
    load: "Callable[[Loader, State, Any, str], Any]"
    fill: "Callable[[Loader, State, Any, Any, str], object] | None" = None
    """Where an object is there before what it holds: ``load`` gives the object, this fills it in. It can be far."""
    kept: bool = False
    """Part of the machinery: a container of these keeps its identity."""
    made: bool = True
    """Whether one can be made anew, where there is none to write into."""


Kinds: TypeAlias = Mapping[str, Kind]
"""By name; an object is of the first kind that matches."""


def is_a(*types: type) -> Callable[[Any], bool]:
    """:return: whether an object is of one of some classes"""
    return lambda value: isinstance(value, types)


class Saver:
    """Turns objects into nodes.

    What lies deeper than ``_NEAR`` objects in one another is described beside the rest and referred to by number, so
    that neither Python's stack nor the depth of a file limits how far objects are linked.

    :param kinds: of objects
    :param pinned: ids of arrays that are to be written into
    """

    def __init__(self, kinds: Kinds, pinned: frozenset[int] = frozenset()) -> None:
        self.pinned = pinned
        self._kinds = kinds
        self._seen: dict[int, tuple[str, object]] = {}  # by id; the object is held so that its id is not given away
        self._depth = 0
        self._far: list[tuple[Any, str]] = []

    def run(self, env: object) -> State:
        """:return: the node of an environment, and of all that is far from it"""
        state: State = self.save(env, "env")
        nodes = []
        for value, path in self._far:  # grows meanwhile
            self._depth = 0
            nodes.append({**self._kind_of(value).save(self, value, path), "path": path})
        return {**state, "far": nodes} if nodes else state

    def seen(self) -> list[object]:
        """:return: all mutable objects that were described"""
        return [value for _, value in self._seen.values()]

    def save(self, value: Any, path: str) -> Any:
        """:return: the node for a value; a second way to the same mutable object becomes a reference to the first"""
        if type(value) in LEAVES:
            return value
        try:
            if is_leaf(value):
                return value
            if not isinstance(value, VALUES) and not is_not_state(value):
                if id(value) in self._seen:
                    return {"kind": "shared", "path": self._seen[id(value)][0]}
                self._seen[id(value)] = path, value
                if self._depth >= _NEAR and self._kind_of(value).fill is not None:
                    # Paths of a long chain, each with all the others in it, would take the square of its length.
                    number = len(self._far)
                    self._far.append((value, path if len(path) <= 100 else f"{path[:60]}…{number}"))
                    return {"kind": "far", "number": number}
            self._depth += 1
            node = self._kind_of(value).save(self, value, path)
            self._depth -= 1
        except StateNotSavable:
            raise
        except Exception as cause:  # the environment's own code, or types of an unusual make: anything can happen
            what = f"cannot be copied ({type(cause).__name__}: {cause})"
            raise StateNotSavable(f"{short(path)} {what}; {REMEDY}") from cause
        return node

    def items(self, items: Iterable[Any], path: str) -> list[Any]:
        """:return: the nodes of what stands in a sequence"""
        return [v if type(v) in LEAVES else self.save(v, f"{path}[{i}]") for i, v in enumerate(items)]

    def key(self, key: Any, path: str) -> Any:
        """:return: the node of what a set or a dict is looked up by"""
        if isinstance(key, (tuple, frozenset)):
            for part in key:
                self.key(part, path)
        elif not isinstance(key, (Enum, np.generic)) and not is_leaf(key):
            refuse(f"a key in {path}", key, "which another process could not find again")
        return self.save(key, path)

    def _kind_of(self, value: object) -> Kind:
        return next(kind for kind in self._kinds.values() if kind.matches(value))


class Loader:
    """Writes nodes into live objects. Plain data is made anew: what is there may be in the hands of the caller.

    :param kinds: of objects
    """

    def __init__(self, kinds: Kinds) -> None:
        self.kinds = kinds
        self._only_in_place = {name for name, kind in kinds.items() if not kind.made}
        self._kept = {"far", *(name for name, kind in kinds.items() if kind.kept), *self._only_in_place}
        self._done: dict[str, Any] = {}  # by path, for shared objects
        self._claimed: dict[int, Any] = {}  # by id: written into for one node, so not for another
        self._packages: set[str] = set()  # of the environment's own classes, which are all that is made anew
        self._far: dict[int, State] = {}  # each is written once, or one that holds itself would have no end
        self._waiting: list[Callable[[], object]] = []

    def run(self, env: object, state: State) -> None:
        """Write a whole state into an environment.

        :raises ValueError: it does not fit
        """
        self._far = dict(enumerate(state.get("far", ())))
        target = self.load(state, env, "env")
        for fill in self._waiting:  # grows meanwhile
            fill()
        if target is not env:
            raise ValueError(f"env is a {full_name(type(env))}, which this state cannot be written into")

    def load(self, node: Any, live: Any, path: str) -> Any:
        """:return: what ``node`` stands for: ``live`` where that can be written into; ``MISSING`` if skipped and not
        there
        """
        if node is None and is_not_state(live):  # a renderer, say, opened after the capture
            return live
        if is_array(node):
            return self.claim(path, live, False, lambda: plain_copy(node, path))
        if not isinstance(node, dict):
            return node
        if node.get("kind") == "shared":
            if node["path"] not in self._done:
                raise ValueError(f"{path} was the same object as {node['path']}, which is not there now")
            return self._done[node["path"]]
        if is_far := node.get("kind") == "far":
            node = self._far.pop(node["number"])
        if node.get("kind") not in self.kinds:
            raise ValueError(f"{path}: a state of kind {node.get('kind')!r} is not known here")
        kind = self.kinds[node["kind"]]
        target = kind.load(self, node, live, path)
        if kind.fill is not None and is_far:  # in the order in which it was described
            self._waiting.append(partial(kind.fill, self, node, live, target, node["path"]))
        elif kind.fill is not None:
            kind.fill(self, node, live, target, path)
        return target

    def part(self, node: Any, live: Any, path: str) -> Any:
        """:return: as :meth:`load`, and never ``MISSING``"""
        value = self.load(node, live, path)
        if value is MISSING:
            mismatch(path, "part that is not state", live)
        return value

    def items(self, nodes: list[Any], old: list[Any], path: str) -> list[Any]:
        """:return: what stands in a sequence, written into what stood there"""
        lost = old[len(nodes) :]
        if any(isinstance(item, MACHINERY) for item in lost) or (lost and _are_some(nodes, self._only_in_place)):
            raise ValueError(f"{path} was saved with {len(nodes)} elements, but there are {len(old)} to write into")
        old = old + [MISSING] * (len(nodes) - len(old))
        return [self.part(node, old[i], f"{path}[{i}]") for i, node in enumerate(nodes)]

    def keeps(self, nodes: Iterable[Any]) -> bool:
        """:return: whether a container of these keeps its identity"""
        return _are_some(nodes, self._kept)

    def done(self, path: str, value: Any) -> None:
        """Say what a path leads to, for those that share it."""
        self._done[path] = value

    def claim(self, path: str, live: Any, fits: bool, make: Callable[[], Any]) -> Any:
        """:return: the object to write a node into: the live one if it fits and is free, else a new one"""
        target = live if fits and id(live) not in self._claimed else make()
        self._claimed[id(target)] = self._done[path] = target
        return target

    def claim_in_place(self, node: State, live: Any, path: str) -> Any:
        """:return: the live object, which nothing else can stand for"""
        return self.claim(path, live, is_alike(node, live), lambda: mismatch(path, node["type"], live))

    def trust(self, cls: type) -> None:
        """Take a class for the environment's own: others of its package can be made anew."""
        if package_of(cls) not in LIBRARIES:
            self._packages.add(package_of(cls))

    def find(self, node: State) -> Any:
        """:return: what a node names, if it is the environment's own"""
        return find(node) if node.get("module", "").partition(".")[0] in self._packages else None


def _are_some(nodes: Iterable[Any], kinds: set[str]) -> bool:
    return any(isinstance(node, dict) and node["kind"] in kinds for node in nodes)
