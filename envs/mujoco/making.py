"""From a registered id to a batch: what keyword belongs to the task, what to the batch, what to the camera."""

import dataclasses
import importlib
import inspect
from typing import Any

import torch
from gymnasium.vector import VectorEnv

from ..naming import nearest
from ..vector import NumpyVectorEnv
from .batch import MujocoBatch
from .rendering import Camera
from .task import MujocoTask

TaskName = str | type[MujocoTask]
"""A task's class, or where to find it: ``module:Class``."""

_CAMERA = {field.name for field in dataclasses.fields(Camera)}
_BATCH = set(inspect.signature(MujocoBatch.__init__).parameters) - {"self", "task", "num_envs", "camera"}


def name_of(task: type[MujocoTask]) -> TaskName:
    """:return: ``module:Class``, which JSON can hold; the class itself if it cannot be found by that."""
    return task if "<locals>" in task.__qualname__ else f"{task.__module__}:{task.__qualname__}"


def class_of(task: TaskName) -> type[MujocoTask]:
    """:return: the class that :func:`name_of` named."""
    if not isinstance(task, str):
        return task
    module, _, path = task.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def make_batch(task: TaskName, num_envs: int, **options: Any) -> MujocoBatch:
    """Make a batch of a task.

    :param task: its class
    :param num_envs: N
    :param options: fields of the task (``xml_file``, Gymnasium's word, is its ``model``), of :class:`Camera`, and
        keywords of :class:`MujocoBatch`, all by their names
    :return: the batch
    :raises TypeError: one that none of them has; the nearest is named. Or the class is no dataclass of its own
    """
    cls = class_of(task)
    if "__dataclass_params__" not in vars(cls):
        raise TypeError(f"{cls.__name__} needs @dataclass(frozen=True, kw_only=True) above it: its fields are options")
    if "xml_file" in options:
        options["model"] = options.pop("xml_file")
    fields = {field.name for field in dataclasses.fields(cls)}
    for name in options.keys() - fields - _CAMERA - _BATCH:
        hint = nearest(name, fields | _CAMERA | _BATCH, f"its options are {', '.join(sorted(fields))}")
        raise TypeError(f"{cls.__name__} has no option {name!r}: {hint}")
    chosen = {name: {k: v for k, v in options.items() if k in known} for name, known in _groups(fields).items()}
    return MujocoBatch(cls(**chosen["task"]), num_envs, camera=Camera(**chosen["camera"]), **chosen["batch"])


def _groups(fields: set[str]) -> dict[str, set[str]]:
    return {"task": fields, "camera": _CAMERA - fields, "batch": _BATCH - fields}


def make_vector(
    task: TaskName, num_envs: int, device: torch.device | str | None = None, **options: Any
) -> VectorEnv[Any, Any, Any]:
    """Make what ``gymnasium.make_vec`` returns: NumPy arrays in float64, as Gymnasium's own; tensors given a device.

    :param task: the task's class
    :param num_envs: N
    :param device: where the tensors are; None: arrays
    :param options: as for :func:`make_batch`
    :return: the vector environment
    """
    if device is not None:
        return make_batch(task, num_envs, device=device, **options)
    batch = make_batch(task, num_envs, **{"dtype": torch.float64, **options})
    return NumpyVectorEnv(batch, lambda: batch.task.reset_info(batch.sim))
