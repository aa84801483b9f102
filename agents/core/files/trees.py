"""Nested plain data as JSON and named tensors, and back, type for type.

JSON says everything but what it cannot say exactly. That becomes a tagged node, an object whose one key starts with
"$": {"$tuple": [...]}, {"$array": "<tensor name>"}. A dictionary of which a key starts with "$", or is not a string,
becomes {"$dict": [[key, value], ...]} itself, so no user's dictionary can look like a tagged node.
"""

import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .errors import FileFormatError, refusal

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

MAX_DEPTH = 64  # levels of nesting in a packed tree; our choice, far below Python's recursion limit

_LONG_LIST = 16  # lists of more numbers than this become one tensor; our choice
_DTYPE_NAMES = "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64"
_DTYPES = {getattr(torch, name) for name in [*_DTYPE_NAMES.split(), "float8_e4m3fn", "float8_e5m2"]}


def pack(tree: Any) -> tuple[JSON, dict[str, Tensor]]:
    """Split nested plain data into JSON and named tensors, from which :func:`unpack` restores it type for type.

    Takes None, bool, int, float, str, bytes, NumPy scalars and arrays, tensors (of any device; a Parameter comes back
    as a tensor), and lists, tuples and dictionaries of these. Dictionary keys are strings or integers. A tensor that is
    contiguous and on the CPU already is not copied: write the result before the original changes.

    :param tree: the data, at most ``MAX_DEPTH`` levels deep
    :return: JSON for the manifest, and the tensors for one member
    :raises TypeError: for any other type, naming the path to it
    :raises ValueError: for a tree that is too deep or contains itself, naming the path
    """
    tensors: dict[str, Tensor] = {}
    return _Packer(tensors).pack(tree, ()), tensors


class _Packer:
    """Walks a tree and collects its tensors; ``path`` is the chain of keys down to the value."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.storages: set[int] = set()

    def pack(self, value: Any, path: tuple[Any, ...]) -> JSON:
        if len(path) > MAX_DEPTH:
            raise ValueError(f"{_where(path[:3])}... is nested over {MAX_DEPTH} deep, or contains itself; flatten it")
        kind = type(value)  # the exact type: a subclass would come back as something else
        if kind is list:
            tag = _numbers(value) if len(value) > _LONG_LIST else None
            if tag is not None:
                return {tag: self.store(torch.from_numpy(np.array(value)), path)}
            return [self.pack(item, (*path, i)) for i, item in enumerate(value)]
        if kind is tuple:
            return {"$tuple": [self.pack(item, (*path, i)) for i, item in enumerate(value)]}
        if kind is dict:
            return self.pack_dict(value, path)
        if isinstance(value, Tensor):
            value, axes = _in_order(value, value.stride() if value.layout is torch.strided else ())
            return _permuted({"$tensor": self.store(value, path)}, axes)
        if kind is np.ndarray or isinstance(value, np.generic):
            return self.pack_numpy(value, path)
        if kind is bytes:
            return {"$bytes": self.store(torch.from_numpy(np.frombuffer(value, np.uint8).copy()), path)}
        return _pack_leaf(value, path)

    def pack_dict(self, value: dict[Any, Any], path: tuple[Any, ...]) -> JSON:
        items = []
        for key, item in value.items():
            if type(key) not in (str, int):
                raise TypeError(f"{_where(path)} has the key {key!r} of type {type(key).__name__}; use strings")
            items.append((_pack_leaf(key, path), self.pack(item, (*path, key))))
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in items):
            return {str(key): item for key, item in items}
        return {"$dict": [[key, item] for key, item in items]}

    def pack_numpy(self, value: Any, path: tuple[Any, ...]) -> JSON:
        array, axes = _in_order(np.asarray(value), np.asarray(value).strides)
        dtype = np.dtype(array.dtype.newbyteorder("=").str)  # by its name: torch knows int64, not its twin longlong
        try:  # the copy gives torch native byte order, positive strides and memory that may be written
            tensor = torch.from_numpy(array.astype(dtype, order="C"))
        except TypeError:
            raise TypeError(f"{_where(path)} is a NumPy value of dtype {array.dtype}; give numbers or bools") from None
        swapped = array.dtype.str.startswith(">")
        tag = "$scalar" if isinstance(value, np.generic) else "$bigendian" if swapped else "$array"
        return _permuted({tag: self.store(tensor, path)}, axes)

    def store(self, tensor: Tensor, path: tuple[Any, ...]) -> str:
        name = str(len(self.tensors))
        self.tensors[name] = dense(tensor, _where(path), self.storages)
        return name


def _in_order(array: Any, strides: tuple[int, ...]) -> tuple[Any, list[int]]:
    """Turn the axes of an array so that they lie in memory in their order, as far as they do not now.

    A sum over columns of a Fortran array is rounded in another way than over those of its copy in C order.

    :return: a view, and the axes of it that the original's are; none where nothing is to turn
    """
    order = sorted(range(len(strides)), key=lambda axis: -abs(strides[axis]))
    if 0 in array.shape or sum(length > 1 for length in array.shape) < 2 or order == list(range(len(strides))):
        return array, []
    turned = array.permute(order) if isinstance(array, Tensor) else array.transpose(order)
    return turned, [order.index(axis) for axis in range(len(order))]


def _permuted(node: JSON, axes: list[int]) -> JSON:
    return {"$permuted": [[*axes], node]} if axes else node


def _numbers(values: list[Any]) -> str | None:
    """The tag of a list that one tensor holds: all floats, or all integers of 64 bits."""
    kinds = {type(value) for value in values}
    if kinds == {float}:
        return "$floats"
    return "$ints" if kinds == {int} and -(2**63) <= min(values) <= max(values) < 2**63 else None


def _pack_leaf(value: Any, path: tuple[Any, ...]) -> JSON:
    packed: JSON = value
    match value:
        case None | bool():
            return packed
        case int() if type(value) is int:  # long ones as hexadecimal: reading long decimals takes quadratic time
            return packed if -(2**63) <= value < 2**63 else {"$int": format(value, "x")}
        case float() if type(value) is float:  # JSON has no NaN or infinity; eight bytes keep a NaN's payload too
            return packed if math.isfinite(value) else {"$float": struct.pack(">d", value).hex()}
        case str() if type(value) is str:
            raw = value.encode("utf-8", "surrogatepass")  # JSON would join two lone surrogates into one character
            return packed if raw.decode("utf-8", "replace") == value else {"$str": raw.hex()}
    raise TypeError(
        f"{_where(path)} is of type {type(value).__module__}.{type(value).__qualname__}, which no file can hold; "
        "convert it to None, bool, int, float, str, bytes, list, tuple, dict, a NumPy array or a tensor"
    )


def _where(path: tuple[Any, ...]) -> str:
    return "tree" + "".join(f"[{key!r}]" for key in path)


def dense(tensor: Tensor, where: str, storages: set[int]) -> Tensor:
    """:return: the tensor as safetensors wants it: on the CPU, contiguous, sharing memory with none seen before."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in _DTYPES:
        what = f"{tensor.dtype} tensor ({tensor.layout}, {tensor.device})"
        raise TypeError(f"{where} is a {what}, which safetensors cannot hold; convert it to a dense plain one")
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    storage = tensor.untyped_storage().data_ptr()
    if storage in storages:
        return tensor.clone()
    storages.add(storage)
    return tensor


def unpack(packed: JSON, tensors: Mapping[str, Tensor]) -> Any:
    """Restore the tree that :func:`pack` split. NumPy arrays share memory with CPU tensors in ``tensors``.

    :param packed: the JSON that ``pack`` returned
    :param tensors: the tensors that ``pack`` returned, all of them and no others, on any device
    :return: the tree
    :raises FileFormatError: if the two do not belong together or did not come from ``pack``
    """
    remaining = dict(tensors)
    try:
        tree = _Unpacker(remaining).unpack(packed, 0)
    except FileFormatError:
        raise
    except (ValueError, TypeError, RuntimeError, OverflowError, struct.error) as err:
        raise _bad_tree(f"hold a value that cannot be restored ({err})") from err
    if remaining:
        raise _bad_tree(f"leave {len(remaining)} tensors unused, {min(remaining)!r} among them")
    return tree


def _bad_tree(what: str) -> FileFormatError:
    return refusal("the packed data", what, "save them again")


class _Unpacker:
    """Builds a tree; each tensor is taken once, so a small file cannot name one tensor a million times."""

    def __init__(self, remaining: dict[str, Tensor]) -> None:
        self.remaining = remaining
        self.leaves: dict[str, Callable[[Any], Any]] = {
            "$tensor": self.take,
            "$array": lambda name: self.take(name).numpy(force=True),
            "$bigendian": lambda name: _big_endian(self.take(name).numpy(force=True)),
            "$scalar": lambda name: self.take(name, dim=0).numpy(force=True)[()],
            "$floats": lambda name: self.take(name, dim=1, dtype=torch.float64).tolist(),
            "$ints": lambda name: self.take(name, dim=1, dtype=torch.int64).tolist(),
            "$bytes": lambda name: self.take(name, dim=1, dtype=torch.uint8).numpy(force=True).tobytes(),
            "$int": lambda text: int(text, 16),
            "$float": lambda text: struct.unpack(">d", bytes.fromhex(text))[0],
            "$str": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
        }

    def unpack(self, node: JSON, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise _bad_tree(f"are nested over {MAX_DEPTH} deep")
        if isinstance(node, list):
            return [self.unpack(item, depth + 1) for item in node]
        if not isinstance(node, dict):
            return node
        tag = next((key for key in node if key.startswith("$")), None)
        if tag is None:
            return {key: self.unpack(item, depth + 1) for key, item in node.items()}
        if len(node) != 1:
            raise _bad_tree(f"have keys beside the tag {tag!r}")
        return self.unpack_tagged(tag, node[tag], depth)

    def unpack_tagged(self, tag: str, content: JSON, depth: int) -> Any:
        if tag in self.leaves and isinstance(content, str):
            return self.leaves[tag](content)
        if tag == "$tuple" and isinstance(content, list):
            return tuple(self.unpack(item, depth + 1) for item in content)
        if tag == "$permuted" and isinstance(content, list) and len(content) == 2:
            axes: Any = content[0]
            array = self.unpack(content[1], depth + 1)
            known = isinstance(array, np.ndarray | Tensor) and isinstance(axes, list)
            if known and sorted(axes) == list(range(array.ndim)):
                return array.permute(axes) if isinstance(array, Tensor) else array.transpose(axes)
        if tag == "$dict" and isinstance(content, list):
            pairs = [item for item in content if isinstance(item, list) and len(item) == 2]
            tree = {self.unpack(key, depth): self.unpack(item, depth + 1) for key, item in pairs}
            if len(tree) == len(content):
                return tree
        raise _bad_tree(f"have an unknown or malformed tag {tag!r}")

    def take(self, name: str, dim: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        tensor = self.remaining.pop(name, None)
        if tensor is None:
            raise _bad_tree(f"name a tensor {name!r} that is missing or used before")
        if dim not in (None, tensor.dim()) or dtype not in (None, tensor.dtype):
            raise _bad_tree(f"expect another shape or dtype of tensor {name!r}")
        return tensor


def _big_endian(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.astype(array.dtype.newbyteorder(">"))
