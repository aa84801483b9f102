"""Games by name."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch

from ..naming import nearest
from .game import MFGame

Compat = Literal["openspiel"]
Builder = Callable[..., MFGame]

_GAMES = "headway.envs.mean_field.games"
GAMES: dict[str, str | Builder] = {
    "crowd_avoidance": f"{_GAMES}.populations:crowd_avoidance",
    "crowd_modelling": f"{_GAMES}.crowds:crowd_modelling",
    "crowd_modelling_2d": f"{_GAMES}.crowds:crowd_modelling_2d",
    "dynamic_routing": f"{_GAMES}.networks:dynamic_routing",
    "four_rooms": f"{_GAMES}.crowds:four_rooms",
    "garnet": f"{_GAMES}.networks:garnet",
    "graph": "headway.envs.mean_field.graph:build_graph_game",
    "left_right": f"{_GAMES}.populations:left_right",
    "linear_quadratic": f"{_GAMES}.quadratic:linear_quadratic",
    "maze": f"{_GAMES}.crowds:maze",
    "periodic_aversion": f"{_GAMES}.quadratic:periodic_aversion",
    "predator_prey": f"{_GAMES}.populations:predator_prey",
    "predator_prey_4": f"{_GAMES}.populations:predator_prey_4",
    "rock_paper_scissors": f"{_GAMES}.populations:rock_paper_scissors",
    "sis": f"{_GAMES}.networks:sis",
}
"""Builders, or where they are: ``module:function``."""


def register_game(name: str, builder: str | Builder) -> None:
    """Give a game a name, by which :func:`make_game` knows it, and ``headway mfg`` as ``module:name``.

    :param name: the name
    :param builder: a function, or ``module:function``; it takes the game's parameters by name, and ``device`` and
        ``dtype``; one that differs from OpenSpiel's game of that name takes ``compat`` too
    :raises ValueError: the name is taken by another
    """
    if GAMES.get(name, builder) != builder:
        raise ValueError(f"there is a game {name!r} already, {GAMES[name]}: choose another name")
    GAMES[name] = builder


def builder_of(name: str) -> Builder:
    """Look up what makes a game.

    :param name: see :func:`make_game`
    :return: the function
    :raises ValueError: there is none (the nearest names are given), or its module cannot be imported
    """
    module, _, own = name.rpartition(":")
    if module:
        _import(module, name)
    if own not in GAMES:
        raise ValueError(f"there is no game {name!r}: {nearest(own, GAMES)}")
    builder = GAMES[own]
    if isinstance(builder, str):
        module, _, function = builder.partition(":")
        builder = getattr(_import(module, name), function, None)  # type: ignore[assignment]
        if builder is None:
            raise ValueError(f"game {name!r}: there is no {function} in {module}")
    return builder  # type: ignore[return-value]


def _import(module: str, game: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise ValueError(
            f"game {game!r} cannot be loaded: {cause}; install {module}, or run from the folder that holds it with "
            "PYTHONPATH=."
        ) from cause
    except (Exception, SystemExit) as cause:  # the module's own code: anything can happen in it
        text = " ".join(f"{type(cause).__name__}: {cause}".split())
        raise ValueError(f"game {game!r}: module {module!r} cannot be imported: {text}") from cause


def make_game(
    name: str,
    compat: Compat | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
    **parameters: Any,
) -> MFGame:
    """Make a game.

    :param name: one of :data:`GAMES`, or ``module:name`` to import the module that registers it first
    :param compat: None: the game as its definition says; "openspiel": as OpenSpiel 2.0.2 computes it, for comparisons
    :param device: where to compute
    :param dtype: of what is computed
    :param parameters: the game's own, by OpenSpiel's names where it has the game
    :return: the game
    :raises ValueError: an unknown name or parameter (the nearest is named), or one out of range
    """
    builder = builder_of(name)
    if compat not in (None, "openspiel"):
        raise ValueError(f"compat is {compat!r}: it can be None or 'openspiel'")
    known = set(inspect.signature(builder).parameters) - {"device", "dtype", "compat"}
    for parameter in parameters:
        if parameter not in known:
            raise ValueError(f"game {name!r} has no parameter {parameter!r}: {nearest(parameter, known)}")
    if "compat" in inspect.signature(builder).parameters:
        parameters["compat"] = compat
    elif compat is not None:
        raise ValueError(f"game {name!r} has no compat={compat!r}: leave it out")
    game = builder(device=torch.device(device), dtype=dtype, **parameters)
    if not isinstance(game, MFGame):
        raise ValueError(f"game {name!r}: its builder returned {game!r}, not an MFGame")
    return game
