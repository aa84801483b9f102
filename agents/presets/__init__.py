"""Hyper-parameters per agent and environment, in safely read YAML: ``default`` first, then the environment's own."""

from importlib import resources
from typing import Any

from ...envs.naming import nearest
from ..core.config import AgentConfig, describe
from ..core.plain_yaml import read_yaml

FOLDER = resources.files(__name__)
"""Where the presets of an agent lie, in a file of its name."""

_FAMILIES = {"dm_control": "dmc"}
"""Presets that the environments of a namespace share."""


def preset_names(agent: str) -> list[str]:
    """:return: the presets of an agent: "default" and environment ids."""
    return list(_read(agent))


def preset(agent: str, name: str, config_class: type[AgentConfig]) -> dict[str, Any]:
    """Read a preset.

    :param agent: the agent's name, in lower case
    :param name: "default", or an environment id to put its entries on top of the default's
    :param config_class: the agent's configuration, against which keys are checked
    :return: field names to values
    :raises ValueError: no such preset, or an unknown key; the nearest names are given
    """
    presets = _read(agent)
    if name not in presets:
        raise ValueError(f"agent {agent} has no preset {name!r}: {nearest(name, presets)}")
    merged = {**(presets["default"] or {}), **(presets[name] or {})}
    known = describe(config_class)
    for key in merged:
        if key not in known:
            raise ValueError(f"preset {name!r} of agent {agent} has an unknown key {key!r}: {nearest(key, known)}")
    return merged


def preset_for(agent: str, env_id: str) -> str:
    """Choose a preset for an environment.

    :param agent: the agent's name, in lower case
    :param env_id: its id, with a namespace if it has one, with or without a version
    :return: its own preset, one of another version of it (the newest), that of its namespace, or "default"
    """
    env_id = env_id.removeprefix("headway/")  # which are Gymnasium's, bit for bit
    names = preset_names(agent)
    if env_id in names:
        return env_id
    base = _versioned(env_id)[0]
    family = _FAMILIES.get(env_id.rpartition(":")[2].partition("/")[0])
    otherwise = family if family in names else "default"
    return max((name for name in names if _versioned(name)[0] == base), key=_versioned, default=otherwise)


def _versioned(env_id: str) -> tuple[str, int]:
    """:return: an id without its version, and the version, -1 where it has none"""
    base, dash, version = env_id.rpartition("-v")
    return (base, int(version)) if dash and version.isdecimal() else (env_id, -1)


def _read(agent: str) -> dict[str, Any]:
    file = FOLDER / f"{agent}.yaml"
    read = read_yaml(file.read_text(), str(file)) if file.is_file() else None
    return read or {"default": {}}
