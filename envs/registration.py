"""Environment ids: looking them up, with an answer for each way of getting them wrong."""

import difflib
import importlib
import re
from typing import Any

import gymnasium as gym
from gymnasium import error


def make(env_id: str, *, render_mode: str | None = None, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make an environment from its id.

    :param env_id: ``Id-v0``, or ``module:Id-v0`` to import the module that registers it first
    :param render_mode: as in ``gymnasium.make``
    :param kwargs: passed on to the environment
    :return: the environment
    :raises ValueError: there is no such id (the nearest ones are named), its module is missing, or it cannot be built
    """
    module, _, name = env_id.rpartition(":")
    if module:
        _import(module, env_id)
    if render_mode is not None:  # an environment that cannot render need not know the word
        kwargs["render_mode"] = render_mode
    try:
        return gym.make(name, **kwargs)
    except error.UnregisteredEnv as cause:
        raise ValueError(f"there is no environment {env_id!r}: {_nearest_ids(name)}") from cause
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
    module, _, name = env_id.rpartition(":")
    if module:
        _import(module, env_id)
    spec = gym.registry.get(name)
    if spec is None or spec.entry_point is None:
        return False
    cls: Any = spec.entry_point
    if isinstance(cls, str):
        try:
            cls = getattr(importlib.import_module(cls.partition(":")[0]), cls.partition(":")[2])
        except (ImportError, AttributeError):
            return False
    return "rgb_array" in getattr(cls, "metadata", {}).get("render_modes", ())


def _import(module: str, env_id: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as cause:
        raise ValueError(
            f"environment {env_id!r}: there is no module {cause.name!r}: "
            "install it, or run from the folder that holds it with PYTHONPATH=."
        ) from cause
    except Exception as cause:  # the module's own code: anything can happen in it
        raise ValueError(
            f"environment {env_id!r}: module {module!r} cannot be imported: {_described(cause)}"
        ) from cause


def _nearest_ids(name: str) -> str:
    ids = list(gym.registry)
    close = difflib.get_close_matches(name, ids, n=3, cutoff=0.6)
    stem = re.sub(r"-v\d+$", "", name)
    close += [env_id for env_id in ids if re.sub(r"-v\d+$", "", env_id).lower() == stem.lower() and env_id not in close]
    return f"did you mean {' or '.join(close[:4])}?" if close else "`headway envs` lists what is registered"


def _one_line(cause: BaseException) -> str:
    return " ".join(str(cause).split())


def _described(cause: BaseException) -> str:
    return f"{type(cause).__name__}: {_one_line(cause)}"
