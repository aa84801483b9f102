"""MuJoCo's ``MjData`` and ``MjModel``."""

import functools
import zlib
from typing import Any, NoReturn, TypeAlias
from weakref import WeakKeyDictionary

import mujoco
import numpy as np

from .classes import per_class
from .nodes import State, is_array, refuse
from .walking import Kind, Kinds, Loader, Saver, is_a

Arrays: TypeAlias = dict[str, np.ndarray[Any, Any]]

_INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION
_ASSETS = ("tex_", "mesh_", "skin_", "bvh_", "oct_")  # what can be large
_TEXTS = ("names", "paths", "text_data", "names_map")

_fixed_arrays: WeakKeyDictionary[mujoco.MjModel, tuple[str, ...]] = WeakKeyDictionary()


def _refuse_other(path: str) -> NoReturn:
    raise ValueError(f"{path} was saved from another MuJoCo model, or with another version of MuJoCo")


def _data_arrays(data: mujoco.MjData) -> Arrays:
    """Views of the arrays whose size the model fixes.

    Contacts, constraint rows and islands (``contact``, ``efc_*``, ``dof_island``) live in an arena that starts empty,
    and are left out: loading rebuilds them from positions and velocities, and so does a step. ``plugin_data`` holds
    pointers, which mean nothing elsewhere.
    """
    names = _fixed_arrays.get(data.model)
    if names is None:
        fresh = mujoco.MjData(data.model)
        found = {name: getattr(fresh, name) for name in dir(fresh) if name[0] != "_" and name != "plugin_data"}
        arrays = {name: a for name, a in found.items() if is_array(a) and a.size and a.flags.writeable}
        # Of what is not in the arena yet there is another stand-in at every look.
        names = tuple(name for name, array in arrays.items() if np.may_share_memory(array, getattr(fresh, name)))
        _fixed_arrays[data.model] = names
    return {name: getattr(data, name) for name in names}


def _save_data(saver: Saver, value: mujoco.MjData, path: str) -> State:
    if value.model.opt.enableflags & mujoco.mjtEnableBit.mjENBL_SLEEP:
        refuse(path, value, "whose model lets bodies sleep on contacts that cannot be restored")
    vector = np.empty(mujoco.mj_stateSize(value.model, _INTEGRATION))
    mujoco.mj_getState(value.model, value, vector, _INTEGRATION)
    derived = {name: array.copy() for name, array in _data_arrays(value).items()}
    model = saver.save(value.model, f"{path}.model")
    return {"kind": "mujoco", "integration": vector, "derived": derived, "model": model}


def _load_data(loader: Loader, node: State, live: Any, path: str) -> Any:
    target = loader.claim_in_place({"type": "MjData"}, live, path)
    if "model" in node:  # first, for its options decide what is integrated
        loader.load(node["model"], live.model, f"{path}.model")
    arrays, vector, derived = _data_arrays(live), node["integration"], node["derived"]
    if vector.size != mujoco.mj_stateSize(live.model, _INTEGRATION) or not derived.keys() >= arrays.keys():
        _refuse_other(path)
    for name, array in arrays.items():
        if array.shape != derived[name].shape:
            raise ValueError(f"{path}.{name} was saved with shape {derived[name].shape}, but has {array.shape}")
    mujoco.mj_setState(live.model, live, vector, _INTEGRATION)
    # Contacts and constraint rows are made anew: dm_control takes a step's second half first, which goes on from them.
    mujoco.mj_fwdPosition(live.model, live)
    mujoco.mj_fwdVelocity(live.model, live)
    # All else is as it was saved: derived arrays may lag a sub-step behind the positions.
    mujoco.mj_setState(live.model, live, vector, _INTEGRATION)
    for name, array in arrays.items():
        np.copyto(array, derived[name])
    return target


def _options(model: mujoco.MjModel) -> dict[str, Any]:
    """Everything in a model that stands in its options and statistics."""
    parts = {"opt": model.opt, "stat": model.stat}
    return {f"{part}.{name}": getattr(of, name) for part, of in parts.items() for name in dir(of) if name[0] != "_"}


@per_class
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


def _model_values(model: mujoco.MjModel) -> Arrays:
    """Views of everything else in a model that an environment may edit."""
    arrays = {name: getattr(model, name) for name in _model_names(type(model))[0]}
    return arrays | {name: value for name, value in _options(model).items() if isinstance(value, np.ndarray)}


def _layout(arrays: Arrays) -> int:
    """A checksum of the names and shapes of arrays."""
    return zlib.crc32(repr([(name, array.shape) for name, array in arrays.items()]).encode())


def _joined(arrays: Arrays) -> np.ndarray[Any, Any]:
    """The bytes of arrays, one after the other."""
    return np.frombuffer(bytearray().join(array.tobytes() for array in arrays.values()), np.uint8)


def _save_model(saver: Saver, value: mujoco.MjModel, path: str) -> State:
    arrays = _model_values(value)
    numbers = {name: option for name, option in _options(value).items() if isinstance(option, (int, float))}
    return {
        **{"kind": "model", "layout": _layout(arrays), "assets": _model_assets(value)},
        **{"values": _joined(arrays).copy(), "numbers": numbers},
    }


def _load_model(loader: Loader, node: State, live: Any, path: str) -> Any:
    target = loader.claim_in_place({"type": "MjModel"}, live, path)
    arrays, options = _model_values(live), _options(live)
    if _layout(arrays) != node["layout"] or options.keys() < node["numbers"].keys():
        _refuse_other(path)
    if _model_assets(live) != node["assets"]:
        raise ValueError(f"{path} was saved from a model with other meshes, textures or skins")
    values, start = node["values"], 0
    if not np.array_equal(values, _joined(arrays)):
        for array in arrays.values():
            np.copyto(array, values[start : start + array.nbytes].view(array.dtype).reshape(array.shape))
            start += array.nbytes
    for name, number in node["numbers"].items():
        part_name, _, field = name.partition(".")
        setattr(getattr(live, part_name), field, number)
    return target


KINDS: Kinds = {
    "model": Kind(is_a(mujoco.MjModel), _save_model, _load_model, made=False),
    "mujoco": Kind(is_a(mujoco.MjData), _save_data, _load_data, made=False),
}
