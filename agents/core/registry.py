"""Agent classes by name: Headway's own, and users', which are named with their module."""

import importlib
from typing import Any

from ...envs.naming import nearest

AGENTS: dict[str, type[Any]] = {}
"""Headway's agents by class name, users' by ``module:Class``; classes enter when they are defined."""


def register_agent(cls: type[Any]) -> None:
    """Enter a class.

    :param cls: the agent
    :raises TypeError: another class of the same name, with which it could be confused, is there
    """
    taken = AGENTS.setdefault(agent_name(cls), cls)
    if (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        raise TypeError(
            f"there is an agent {agent_name(cls)} already, {taken.__qualname__}: give {cls.__qualname__} another name"
        )
    AGENTS[agent_name(cls)] = cls  # the newest, where a module is loaded again


def agent_name(cls: type[Any]) -> str:
    """:return: the name under which files know an agent."""
    own = cls.__module__.startswith(f"{__name__.rpartition('.core.')[0]}.")
    return cls.__name__ if own else f"{cls.__module__}:{cls.__name__}"


def find_agent(name: str) -> type[Any]:
    """Look an agent up for somebody who trusts the name: a module in it is imported.

    :param name: of one of Headway's in any case, ``sac``, or ``module:Class``
    :return: its class
    :raises ValueError: there is none; the nearest names are given
    """
    module, colon, _ = name.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except ImportError as cause:
            raise ValueError(f"agent {name!r}: module {module!r} cannot be imported: {cause}") from cause
    known = known_agents()
    key = name if colon else name.lower()
    if key not in known:
        raise ValueError(f"there is no agent {name!r}: {nearest(key, known)}, or module:Class for one of your own")
    return known[key]


def known_agents() -> dict[str, type[Any]]:
    """:return: every agent by its name on the command line."""
    return {name if ":" in name else name.lower(): cls for name, cls in AGENTS.items()}
