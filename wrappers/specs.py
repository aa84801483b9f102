"""Environments as files name them: by Gymnasium's ``EnvSpec`` in JSON, made again without running what a file chooses.

A spec says an id, keywords, a time limit, wrappers and their keywords. Here and in files its id has the module in front
that it was named with: ``module:Id-v0``. Of a file's spec only the id decides what is built, by
what is registered under it in this process; the entry point that the spec also names is never called.
"""

import copy
import importlib
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from stable_baselines3.common.vec_env import VecEnv

from ..envs import BatchedEnv, is_batched, make, make_batched
from ..envs.registration import full_id
from ..envs.schema import by_name, each, group, maybe, real, text, whole

DELAYED = "headway/Delayed-v0"
RANDOM_DELAY = "headway.wrappers.random_delay:RandomDelay"
_UNSEEN = {"stable_baselines3.common.monitor:Monitor", "headway.wrappers.snapshot:Snapshot"}
"""Wrappers that change nothing of what is seen; whoever makes the environment again puts his own around it."""

_OF_ROWS = {"num_envs", "vectorization_mode", "vector_kwargs", "wrappers", "device", "dtype", "autoreset_mode"}
_OF_ROWS |= {"num_threads", "terminal_delivery"}
_LAWS = {"observation_delay", "action_delay"}
OURS = ("gymnasium", "headway")
"""Packages whose modules a file may name."""
_ACTING = {"RecordVideo", "HumanRendering", "Monitor", "VideoRecorder"}
"""Wrappers that write files, or open windows."""

_KEYWORDS = by_name(lambda *_: None)
_LIMIT = maybe(whole(-1))
_DELAYED = group(
    {"env_id": text(), "observation_delay": text(), "action_delay": text(), "form": text("dict", "flat", "bare")},
    optional=("form",),
    others=True,
)
_WRAPPER = group({"name": text(), "entry_point": text(), "kwargs": maybe(_KEYWORDS)})
_CONTENT = group(
    {
        "id": text(),
        "entry_point": maybe(text()),
        "vector_entry_point": maybe(text()),
        "reward_threshold": maybe(real()),
        "max_episode_steps": _LIMIT,
        "kwargs": _KEYWORDS,
        "additional_wrappers": each(_WRAPPER),
    },
    others=True,
)
"""What Gymnasium's JSON of a spec says, of what is read here."""


def spec_of(env: VecEnv) -> EnvSpec | None:
    """Read how an environment is made.

    :param env: the environment; its rows are taken to be alike
    :return: its spec; None: it has none, or a wrapper of it does not tell its keywords
    """
    try:
        spec = env.get_attr("spec")[0]
    except (AttributeError, NotImplementedError):
        return None
    if not isinstance(spec, EnvSpec):
        return None
    spec = copy.copy(spec)
    spec.additional_wrappers = tuple(w for w in spec.additional_wrappers if w.entry_point not in _UNSEEN)
    if any(wrapper.kwargs is None for wrapper in spec.additional_wrappers):
        return None
    spec.id = full_id(spec.id)
    if spec.id == DELAYED:
        spec.kwargs = {**spec.kwargs, "env_id": full_id(spec.kwargs["env_id"])}
    return spec


def named(name: str) -> EnvSpec:
    """:return: the spec of an id, or of ``id@form@laws``, as which files once named environments behind delays."""
    env_id, *behind = name.split("@", 2)
    try:
        spec = EnvSpec(env_id.rpartition(":")[2])
    except gym.error.Error as cause:
        raise ValueError(f"{env_id!r} is no id of an environment: {' '.join(str(cause).split())}") from cause
    spec.id = env_id
    if len(behind) == 2:
        from .delays import parse_pair

        laws = dict(zip(("observation_delay", "action_delay"), map(str, parse_pair(behind[1])), strict=True))
        delays = {**laws, "initial_action": None, "form": behind[0]}
        spec.additional_wrappers = (WrapperSpec("RandomDelay", RANDOM_DELAY, delays),)
    return spec


def inner_id(spec: EnvSpec) -> str:
    """:return: the id of the environment, of one behind delays that of what is delayed."""
    return str(spec.kwargs.get("env_id", spec.id)) if spec.id == DELAYED else spec.id


def spec_to_json(spec: EnvSpec | None) -> str | None:
    """Write a spec.

    :param spec: of an environment
    :return: its JSON; None: there is none, or JSON cannot hold a keyword of it
    """
    if spec is None:
        return None
    spec = copy.copy(spec)
    spec.kwargs = {key: str(value) if key == "device" else value for key, value in spec.kwargs.items()}
    for key in ("entry_point", "vector_entry_point"):
        maker = getattr(spec, key)
        if callable(maker) and not hasattr(maker, "__qualname__"):  # a partial, say; it is never called by this name
            maker = type(maker)
        setattr(spec, key, f"{maker.__module__}:{maker.__qualname__}" if callable(maker) else maker)
    try:
        return spec.to_json()
    except (TypeError, ValueError):
        return None


def spec_from_json(text: str) -> EnvSpec:
    """Read a spec; nothing is imported.

    :param text: what :func:`spec_to_json` or Gymnasium wrote
    :return: the spec
    :raises ValueError: it is none
    """
    try:
        content = json.loads(text)
        _CONTENT(content, "it")
        if content["id"] == DELAYED:
            _DELAYED(content["kwargs"], "kwargs of what is delayed")
        # Gymnasium reads no id with a dotted module before a namespace, so the module is put in front afterwards.
        spec = EnvSpec.from_json(json.dumps({**content, "id": content["id"].rpartition(":")[2]}))
        spec.id = content["id"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, gym.error.Error) as cause:
        raise ValueError(f"this is no spec of an environment: {' '.join(str(cause).split())}") from cause
    return spec


def unasked(spec: EnvSpec) -> str | None:
    """Say what making an environment from a spec would do besides, which a stranger's file must not decide.

    :param spec: of a file
    :return: what, in words, after "which would"; None: nothing
    """
    if (module := not_imported(spec)) is not None:
        return f"import the module {module}"
    acting = (w.entry_point for w in spec.additional_wrappers if w.entry_point.rpartition(":")[2] in _ACTING)
    return next((f"write files or open windows with the wrapper {name}" for name in acting), None)


def not_imported(spec: EnvSpec) -> str | None:
    """Say what making an environment from a spec would import.

    :param spec: of a stranger's file, say
    :return: a module that is neither imported yet nor Gymnasium's or Headway's; None: there is none
    """
    module, _, name = spec.id.rpartition(":")
    modules = [module] if module else []
    if not module and name not in gym.registry and isinstance(spec.entry_point, str):
        modules.append(spec.entry_point.partition(":")[0])
    modules += [wrapper.entry_point.partition(":")[0] for wrapper in spec.additional_wrappers]
    for key, value in spec.kwargs.items():  # as of a task, or of what is delayed: "module:Class", "module:Id-v0"
        if key not in _LAWS:
            modules += [found[1] for text in _texts(value) if (found := re.match(r"([A-Za-z_][\w.]*):", text))]
    return next((m for m in modules if m not in sys.modules and m.partition(".")[0] not in OURS), None)


def _texts(value: Any) -> Iterator[str]:
    """:return: all texts in a value of JSON's"""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def changes(spec: EnvSpec) -> dict[str, Any]:
    """Import what registers a spec's id, and say what the spec asks for beyond it.

    :param spec: as for :func:`make_spec`
    :return: keywords for ``gymnasium.make``, the time limit among them; none of them how rows are put together
    :raises ValueError: a module of it is missing or broken
    """
    is_batched(spec.id)  # imports the module in front
    name, maker = spec.id.rpartition(":")[2], spec.entry_point
    if name not in gym.registry and isinstance(maker, str):
        is_batched(f"{maker.partition(':')[0]}:{name}")
    registered = gym.registry.get(name)
    if registered is None:
        return dict(spec.kwargs)  # making it will say what is wrong
    known = registered.kwargs
    kwargs = {key: value for key, value in spec.kwargs.items() if key not in known or known[key] != value}
    kwargs = {key: value for key, value in kwargs.items() if key not in _OF_ROWS}
    limit = spec.max_episode_steps
    if maker is not None and name != DELAYED and limit != registered.max_episode_steps:
        kwargs.setdefault("max_episode_steps", -1 if limit is None else limit)
    return kwargs


def make_spec(spec: EnvSpec, rows: int = 1) -> gym.Env[Any, Any] | BatchedEnv:
    """Make an environment again: one, or its batch where that is what the spec describes.

    What the spec names is imported: ask :func:`not_imported` first, unless it is trusted.

    :param spec: of :func:`spec_of`, or from a file
    :param rows: of a batch
    :return: it
    :raises ValueError: its id is not registered, or it cannot be made
    """
    if not is_batch(spec):
        return make_single(spec)
    how = {key: value for key, value in spec.kwargs.items() if key in ("num_threads", "terminal_delivery")}
    kwargs = {**changes(spec), **how, "device": spec.kwargs.get("device") or "cpu"}
    if spec.id != DELAYED:
        return make_batched(spec.id, rows, **kwargs)
    batch = gym.make_vec(DELAYED, rows, **kwargs)
    assert isinstance(batch, BatchedEnv)
    return batch


def is_batch(spec: EnvSpec) -> bool:
    """:return: whether a spec describes rows that step together."""
    return "vectorization_mode" in spec.kwargs or "terminal_delivery" in spec.kwargs


def make_single(spec: EnvSpec, **options: Any) -> gym.Env[Any, Any]:
    """Make one environment from a spec, of a batch one row.

    :param spec: as for :func:`make_spec`
    :param options: keywords that override the spec's, such as ``render_mode``
    :return: it
    :raises ValueError: its id is not registered, or it cannot be made
    """
    env = make(spec.id, **{**changes(spec), **options})
    made = 0 if env.spec is None else len(env.spec.additional_wrappers)
    for wrapper in spec.additional_wrappers[made:]:
        env = _wrapper(wrapper)(env, **(wrapper.kwargs or {}))
    return env


def _wrapper(spec: WrapperSpec) -> Any:
    module, _, name = spec.entry_point.partition(":")
    try:
        cls = getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as cause:  # the module's own code: anything can happen in it
        text = " ".join(f"{type(cause).__name__}: {cause}".split())
        raise ValueError(f"the environment's wrapper {spec.entry_point} cannot be imported: {text}") from cause
    if not (isinstance(cls, type) and issubclass(cls, gym.Wrapper)):
        raise ValueError(f"the environment's wrapper {spec.entry_point} is none")
    return cls
