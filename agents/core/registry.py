"""Agent classes by name: Headway's own, and users', which are named with their module."""

import importlib
import sys
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
    if ":" in name:
        cls = find_class(name)
        if cls not in AGENTS.values():
            raise ValueError(f"{name} is no agent of Headway's kind: derive it from headway.agents.ActorCriticAgent")
        return cls
    known = known_agents()
    if name.lower() not in known:
        raise ValueError(f"there is no agent {name!r}: {nearest(name, known)}, or module:Class for one of your own")
    return known[name.lower()]


def find_class(name: str) -> type[Any]:
    """Import a class for somebody who trusts its name.

    :param name: ``module:Class``
    :return: the class
    :raises ValueError: there is none; the message says what is missing
    """
    module, _, attribute = name.rpartition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as cause:
        raise ValueError(
            f"agent {name!r}: there is no module {cause.name!r}: install it, or run from the folder that holds it with "
            "PYTHONPATH=."
        ) from cause
    except (Exception, SystemExit) as cause:  # the module's own code: anything can happen in it
        text = " ".join(str(cause).split())
        raise ValueError(f"agent {name!r}: {module!r} cannot be imported: {type(cause).__name__}: {text}") from cause
    if not isinstance(found, type):
        classes = [key for key, value in vars(sys.modules[module]).items() if isinstance(value, type)]
        raise ValueError(f"agent {name!r}: module {module!r} has no class {attribute!r}: {nearest(attribute, classes)}")
    return found


def known_agents() -> dict[str, type[Any]]:
    """:return: every agent by its name on the command line."""
    return {command_name(cls): cls for cls in AGENTS.values()}


def command_name(cls: type[Any]) -> str:
    """:return: how an agent is named on the command line."""
    name = agent_name(cls)
    return name if ":" in name else name.lower()
