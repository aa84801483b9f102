"""What agents write to disk and read back: policies, checkpoints, experience. The format is in :mod:`.archive`."""

import logging
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ..normalization import normalizer_state
from ..spaces import space_from_json, space_to_json
from .archive import Archive, read_archive, write_archive
from .checkpoints import checkpoint_path, newest_archive, prune_checkpoints
from .errors import FileFormatError
from .training_state import load_training_state, training_state
from .trees import pack, unpack

if TYPE_CHECKING:
    from ..agent import ActorCriticAgent
    from ..data import ReplayStore

log = logging.getLogger("headway")

A = TypeVar("A", bound="ActorCriticAgent[Any]")
PathOrFile = Any


def versions() -> dict[str, str]:
    """:return: the versions that a file or a run is made with."""
    names = ("headway-rl", "torch", "stable-baselines3", "gymnasium", "mujoco", "numpy")
    return {"python": platform.python_version()} | {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def save_agent(agent: "ActorCriticAgent[Any]", path: PathOrFile) -> None:
    """See :meth:`ActorCriticAgent.save`."""
    normalizer = agent._vec_normalize_env
    tree, tensors = pack(None if normalizer is None else normalizer_state(normalizer))
    members = {"networks": agent.modules.state(), "normalizer": tensors}
    write_archive(_with_suffix(path), _manifest(agent, "policy") | {"normalizer": tree}, members)


def save_checkpoint(agent: "ActorCriticAgent[Any]", directory: Path, extra: Any, keep: int | None) -> Path:
    """See :meth:`ActorCriticAgent.save_checkpoint`."""
    directory.mkdir(parents=True, exist_ok=True)
    tree, tensors = pack({"training": training_state(agent), "extra": extra})
    members = {"networks": agent.modules.state(), "state": tensors}
    store = getattr(agent, "store", None)
    store_tree = None
    if store is not None:
        store_tree, members["store"] = pack(store.state())
    path = checkpoint_path(directory, agent.num_timesteps)
    write_archive(path, _manifest(agent, "checkpoint") | {"state": tree, "store": store_tree}, members)
    if keep is not None:
        prune_checkpoints(directory, keep)
    return path


def save_store(store: "ReplayStore[Any]", path: PathOrFile) -> None:
    """Write experience alone."""
    tree, tensors = pack(store.state())
    write_archive(path, {"kind": "store", "store": tree}, {"store": tensors})


def load_store(store: "ReplayStore[Any]", path: PathOrFile) -> None:
    """Read experience alone."""
    archive = read_archive(path)
    _expect_kind(archive, ("store", "checkpoint"), path)
    store.load_state(unpack(archive.manifest["store"], archive.members["store"]))


def load_agent(
    cls: type[A], path: PathOrFile, env: Any, device: torch.device | str, overrides: Mapping[str, Any], print_info: bool
) -> A:
    """See :meth:`ActorCriticAgent.load`."""
    path = _existing(path)
    archive = read_archive(path)
    _expect_kind(archive, ("policy", "checkpoint"), path)
    if print_info:
        print("\n".join(f"{name}: {version}" for name, version in archive.manifest["versions"].items()))
    return _build(cls, archive, path, env, device, dict(overrides))


def resume_agent(cls: type[A], directory: Path, env: Any, device: torch.device | str, options: Mapping[str, Any]) -> A:
    """See :meth:`ActorCriticAgent.resume`."""
    path, archive = newest_archive(directory)
    _expect_kind(archive, ("checkpoint",), path)
    manifest = archive.manifest
    if env is None:
        if manifest.get("env_id") is None or manifest["n_envs"] != 1:
            raise ValueError(
                f"{path} was saved with {manifest['n_envs']} environments of id {manifest.get('env_id')}: "
                "pass env=, built as it was then"
            )
        env = manifest["env_id"]
    agent = _build(cls, archive, path, env, device, dict(options))
    if agent.n_envs != manifest["n_envs"]:
        raise ValueError(f"{path} was saved with {manifest['n_envs']} environments, env has {agent.n_envs}")
    if manifest["threads"] != torch.get_num_threads():
        log.warning(
            "saved with %d torch threads, resuming with %d: sums may round differently (torch.set_num_threads)",
            manifest["threads"],
            torch.get_num_threads(),
        )
    state = unpack(manifest["state"], archive.members["state"])
    if manifest["store"] is not None:
        agent.store.load_state(unpack(manifest["store"], archive.members["store"]))  # type: ignore[attr-defined]
    load_training_state(agent, state["training"])
    agent.resumed_extra = state["extra"]
    return agent


def _manifest(agent: "ActorCriticAgent[Any]", kind: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "class": type(agent).__name__,
        "policy": agent.policy_name,
        "config": agent.config.to_dict(),
        "observation_space": space_to_json(agent.observation_space),
        "action_space": space_to_json(agent.action_space),
        "n_envs": agent.n_envs,
        "env_id": agent.env_id,
        "seed": agent.seed,
        "num_timesteps": agent.num_timesteps,
        "n_updates": agent._n_updates,
        "episodes": agent._episode_num,
        "stats_window_size": agent._stats_window_size,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _build(
    cls: type[A], archive: Archive, path: PathOrFile, env: Any, device: torch.device | str, overrides: dict[str, Any]
) -> A:
    """Make the agent that a file describes, and fill in its networks."""
    manifest = archive.manifest
    if manifest["class"] != cls.__name__:
        raise FileFormatError(
            f"{path} holds a {manifest['class']} agent, not {cls.__name__}: "
            f"use {manifest['class']}.load, or headway.agents.load for any agent"
        )
    plain = {name: overrides.pop(name) for name in ("seed", "verbose", "tensorboard_log") if name in overrides}
    try:
        # As a configuration, never as keywords: a file that names "env" there must not choose what is imported.
        config = cls.config_class.from_dict(manifest["config"])
        agent = cls(
            manifest["policy"],
            device=device,
            config=config,
            stats_window_size=manifest["stats_window_size"],
            **({"seed": manifest["seed"]} | plain),
            **overrides,
        )
        agent.observation_space = space_from_json(manifest["observation_space"])
        agent.action_space = space_from_json(manifest["action_space"])
    except (KeyError, TypeError, ValueError) as cause:
        if overrides:
            raise
        raise FileFormatError(f"{path} does not describe a {cls.__name__} of this version: {cause}") from cause
    agent.n_envs = manifest["n_envs"]
    agent.env_id = manifest["env_id"]
    if env is not None:
        agent.attach_env(env)
    agent._setup_model()
    _load_networks(agent, archive.members["networks"], path)
    agent.num_timesteps, agent._n_updates = manifest["num_timesteps"], manifest["n_updates"]
    agent._episode_num = manifest["episodes"]
    return agent


def _load_networks(agent: "ActorCriticAgent[Any]", tensors: Mapping[str, Tensor], path: PathOrFile) -> None:
    try:
        agent.modules.load_state(tensors)
    except ValueError as cause:
        raise FileFormatError(f"{path} does not fit its own configuration: {cause}") from cause


def _expect_kind(archive: Archive, kinds: tuple[str, ...], path: PathOrFile) -> None:
    kind = archive.manifest.get("kind")
    if kind not in kinds:
        raise FileFormatError(f"{path} is a {kind} file, expected a {' or '.join(kinds)} file")


def _with_suffix(path: PathOrFile) -> PathOrFile:
    """Add ".zip" where Stable-Baselines3 would."""
    if isinstance(path, (str, Path)) and not Path(path).suffix:
        return Path(f"{path}.zip")
    return path


def _existing(path: PathOrFile) -> PathOrFile:
    """The file meant, with or without its suffix."""
    if isinstance(path, (str, Path)) and not Path(path).exists():
        return _with_suffix(path)
    return path
