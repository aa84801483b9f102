"""Hyper-parameters per agent and environment, in safely read YAML: ``default`` first, then the environment's own."""

from importlib import resources
from typing import Any

import yaml

from ...envs.naming import nearest
from ..core.config import AgentConfig, describe

FOLDER = resources.files(__name__)
"""Where the presets of an agent lie, in a file of its name."""


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


def _read(agent: str) -> dict[str, Any]:
    file = FOLDER / f"{agent}.yaml"
    read = yaml.safe_load(file.read_text()) if file.is_file() else None
    return read or {"default": {}}
