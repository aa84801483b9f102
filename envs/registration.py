"""Environment ids: looking them up, with an answer for each way of getting them wrong."""

import importlib
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium import error
from gymnasium.envs.registration import EnvSpec, find_highest_version, get_env_id, parse_env_id

from . import mazes, metaworld, sparse, trap
from .batched import BatchedEnv
from .mean_field import registration as mean_field
from .mujoco import MujocoTask
from .mujoco.making import name_of
from .mujoco.rendering import draw_without_screen
from .mujoco.tasks import TASKS
from .naming import nearest

_MUJOCO = "headway.envs.mujoco"
_LISTED = "`headway envs` lists what is registered"
_MUJOCO_VECTOR = f"{_MUJOCO}.making:make_vector"
_BATCHED_ENTRY_POINTS = {
    _MUJOCO_VECTOR,
    trap.VECTOR_ENTRY_POINT,
    *sparse.VECTOR_ENTRY_POINTS,
    *mean_field.BATCHED_ENTRY_POINTS,
}


def _register_dm_control() -> None:
    draw_without_screen()  # dm_control chooses what to draw with when it is imported
    importlib.import_module("dm_control")  # without which shimmy registers nothing, and says nothing
    importlib.import_module("shimmy")


_REGISTRARS: dict[str, tuple[Callable[[], object], str]] = {
    "dm_control": (_register_dm_control, "dmc"),
    "metaworld": (metaworld.register_all, "metaworld"),
}
"""By namespace, what registers its ids, which need no module in front, and the extra that installs it."""


def register_mujoco_task(
    env_id: str,
    task: type[MujocoTask],
    *,
    max_episode_steps: int | None = None,
    reward_threshold: float | None = None,
    **options: Any,
) -> None:
    """Give a task an id, by which ``gymnasium.make``, ``gymnasium.make_vec`` and :func:`make_batched` know it.

    :param env_id: ``Name-v0`` or ``namespace/Name-v0``
    :param task: the task's class
    :param max_episode_steps: when to truncate; None: the task's own limit
    :param reward_threshold: return at which it counts as solved; None: the task's own
    :param options: fields of the task to set
    """
    gym.register(
        env_id,
        entry_point=f"{_MUJOCO}.single:MujocoTaskEnv",
        vector_entry_point=_MUJOCO_VECTOR,
        max_episode_steps=task.max_episode_steps if max_episode_steps is None else max_episode_steps,
        reward_threshold=task.reward_threshold if reward_threshold is None else reward_threshold,
        kwargs={"task": name_of(task), **options},
    )


def register_all() -> None:
    """Register Headway's own environments; importing ``headway.envs`` has done it."""
    for name, task in TASKS.items():
        register_mujoco_task(f"headway/{name}-v5", task)
    mean_field.register_all()
    mazes.register_all()
    trap.register_all()
    sparse.register_all()
    gym.register("headway/Frostbite-v0", entry_point="headway.envs.frostbite:FrostbiteEnv")


def is_batched(env_id: str) -> bool:
    """Whether many rows of an environment step together as tensors: whether :func:`make_batched` makes it.

    :param env_id: as for :func:`make`
    :raises ValueError: the module in front of the id is missing or broken
    """
    spec = _find_spec(env_id)
    return spec is not None and spec.vector_entry_point in _BATCHED_ENTRY_POINTS


def make_batched(
    env_id: str, num_envs: int = 1, *, device: torch.device | str = "cpu", num_threads: int = 0, **kwargs: Any
) -> BatchedEnv:
    """Make many rows of an environment that step together as tensors.

    :param env_id: ``Id-v0``, or ``module:Id-v0`` to import the module that registers it first
    :param num_envs: rows
    :param device: where the tensors are; "cuda" simulates there too
    :param num_threads: threads that step a MuJoCo task on the CPU; 0: one per CPU. What is tensors only uses torch's
    :param kwargs: passed on, for a MuJoCo task to :func:`headway.envs.mujoco.making.make_batch`
    :return: the batch
    :raises ValueError: there is no such id (the nearest ones are named), it has no batched form, or cannot be built
    """
    if not is_batched(env_id):
        name = env_id.rpartition(":")[2]
        if name not in gym.registry:
            raise ValueError(f"there is no environment {env_id!r}: {nearest(name, gym.registry, _LISTED)}")
        raise ValueError(
            f"environment {env_id!r} has no batched form: step several with "
            "headway.wrappers.as_batched(gymnasium.make_vec(…)), or write it as a headway.envs.mujoco.MujocoTask"
        )
    name = versioned(env_id.rpartition(":")[2])
    if num_threads and gym.registry[name].vector_entry_point == _MUJOCO_VECTOR:
        kwargs["num_threads"] = num_threads
    try:
        batched = gym.make_vec(name, num_envs, device=device, **kwargs)
    except Exception as cause:
        raise ValueError(f"environment {env_id!r} cannot be made: {_described(cause)}") from cause
    assert isinstance(batched, BatchedEnv)
    return batched


def make(env_id: str, *, render_mode: str | None = None, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make an environment from its id.

    :param env_id: ``Id-v0``, or ``module:Id-v0`` to import the module that registers it first
    :param render_mode: as in ``gymnasium.make``
    :param kwargs: passed on to the environment
    :return: the environment
    :raises ValueError: there is no such id (the nearest ones are named), its module is missing, or it cannot be built
    """
    name = _register_named(env_id)
    if render_mode is not None:  # an environment that cannot render need not know the word
        kwargs["render_mode"] = render_mode
        draw_without_screen()
    try:
        return gym.make(name, **kwargs)
    except error.UnregisteredEnv as cause:
        raise ValueError(f"there is no environment {env_id!r}: {nearest(name, gym.registry, _LISTED)}") from cause
    except (error.DependencyNotInstalled, ModuleNotFoundError) as cause:
        raise ValueError(f"environment {env_id!r} needs a package that is not installed: {_one_line(cause)}") from cause
    except Exception as cause:  # the environment's own code: anything can happen in it
        raise ValueError(f"environment {env_id!r} cannot be made: {_described(cause)}") from cause


def supports_rgb(env_id: str) -> bool:
    """Whether an environment can draw itself into arrays; False too where the id is not known.

    :param env_id: as for :func:`make`
    :return: whether ``make(env_id, render_mode="rgb_array")`` can be rendered
    :raises ValueError: the module in front of the id is missing or broken
    """
    spec = _find_spec(env_id)
    if spec is None or spec.entry_point is None:
        return False
    cls: Any = spec.entry_point
    if isinstance(cls, str):
        try:
            cls = getattr(importlib.import_module(cls.partition(":")[0]), cls.partition(":")[2])
        except (ImportError, AttributeError):
            return False
    return "rgb_array" in getattr(cls, "metadata", {}).get("render_modes", ())


def _find_spec(env_id: str) -> EnvSpec | None:
    return gym.registry.get(versioned(_register_named(env_id)))


def _register_named(env_id: str) -> str:
    """Import what registers an id; :return: the id without its module"""
    module, _, name = env_id.rpartition(":")
    namespace = name.partition("/")[0]
    if module:
        _import(module, env_id)
    elif namespace in _REGISTRARS and name not in gym.registry:
        register, extra = _REGISTRARS[namespace]
        try:
            register()
        except ImportError as cause:
            raise ValueError(
                f"environment {env_id!r} cannot be made ({_one_line(cause)}): pip install 'headway-rl[{extra}]'"
            ) from cause
    return name


def versioned(name: str) -> str:
    """:return: an id with the version that Gymnasium makes where none is given, the newest one"""
    try:
        namespace, base, version = parse_env_id(name)
    except error.Error:
        return name
    newest = find_highest_version(namespace, base) if version is None and name not in gym.registry else None
    return name if newest is None else get_env_id(namespace, base, newest)


_NAMED_WITH: dict[str, str] = {}
"""The modules that stood in front of ids."""


def full_id(env_id: str) -> str:
    """:return: an id with the module in front that it was named with in this process, if it was with any."""
    module = None if ":" in env_id else _NAMED_WITH.get(env_id)
    return env_id if module is None else f"{module}:{env_id}"


def _import(module: str, env_id: str) -> None:
    try:
        importlib.import_module(module)
        _NAMED_WITH[env_id.rpartition(":")[2]] = module
    except ModuleNotFoundError as cause:
        raise ValueError(
            f"environment {env_id!r}: there is no module {cause.name!r}: "
            "install it, or run from the folder that holds it with PYTHONPATH=."
        ) from cause
    except (Exception, SystemExit) as cause:  # the module's own code: anything can happen in it
        raise ValueError(
            f"environment {env_id!r}: module {module!r} cannot be imported: {_described(cause)}"
        ) from cause


def _one_line(cause: BaseException) -> str:
    return " ".join(str(cause).split())


def _described(cause: BaseException) -> str:
    if text := _one_line(cause):
        return f"{type(cause).__name__}: {text}"
    place = traceback.extract_tb(cause.__traceback__)[-1]
    return f"{type(cause).__name__} in {Path(place.filename).name}:{place.lineno}, {place.line}"
