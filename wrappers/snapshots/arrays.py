"""Arrays and tensors. Those that share memory are written into; others are replaced, and need no node."""

import math
import types
from collections.abc import Iterable
from pickle import PickleBuffer
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .nodes import State, is_array, mismatch, plain_copy, refuse
from .walking import Kind, Kinds, Loader, Saver, is_a

_LONGEST = 4096  # bytes of a text in an array that a state may ask for by itself; our choice


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


def overlapping(objects: Iterable[object]) -> frozenset[int]:
    """:return: ids of the arrays among objects that share memory with another one, as views do"""
    spans = sorted((*memory, id(array)) for array in objects if is_array(array) and (memory := _memory(array)))
    found, reach, widest = set(), 0, 0
    for start, end, key in spans:
        if start < reach:
            found |= {widest, key}
        if end > reach:
            reach, widest = end, key
    return frozenset(found)


def _save_memory(saver: Saver, value: Any, path: str) -> Any:
    array = plain_copy(value, path)
    return {"kind": "memory", "array": array} if id(value) in saver.pinned or _is_pinned(value) else array


def _load_memory(loader: Loader, node: State, live: Any, path: str) -> Any:
    array = node["array"]
    kind = Tensor if isinstance(array, Tensor) else np.ndarray
    fits = isinstance(live, kind) and (array.shape, array.dtype) == (live.shape, live.dtype)
    fits = fits and (kind is Tensor or live.flags.writeable)
    target = loader.claim(path, live, fits, lambda: mismatch(path, "view of memory that others use", live))
    with torch.no_grad():
        target.copy_(array) if kind is Tensor else np.copyto(target, array)
    return target


def _save_items(saver: Saver, value: Any, path: str) -> State:
    if value.dtype.kind not in "OUS" or (isinstance(value, np.ndarray) and type(value) is not np.ndarray):
        refuse(path, value, f"of dtype {value.dtype}, not a plain array of numbers, text or objects")
    array = np.asarray(value)
    node: State = {"kind": "array", "dtype": array.dtype.str, "shape": list(array.shape)}
    return {**node, "scalar": array is not value, "items": saver.items(array.ravel().tolist(), path)}


def _load_items(loader: Loader, node: State, live: Any, path: str) -> Any:
    size = np.dtype(node["dtype"]).itemsize
    alike = isinstance(live, np.ndarray) and live.dtype == node["dtype"]
    if math.prod(node["shape"]) != len(node["items"]) or not (size <= _LONGEST or alike):
        raise ValueError(f"{path} must have an item for each place of an array of shape {node['shape']}")
    array = loader.claim(path, live, False, lambda: np.empty(node["shape"], node["dtype"]))
    old = live.ravel().tolist() if isinstance(live, np.ndarray) else []
    for index, item in zip(np.ndindex(array.shape), loader.items(node["items"], old, path), strict=True):
        array[index] = item
    return array[()] if node["scalar"] else array


KINDS: Kinds = {
    "memory": Kind(is_array, _save_memory, _load_memory, made=False),
    "array": Kind(is_a(np.ndarray, np.generic), _save_items, _load_items),
}
