"""Games and algorithms by name, with their parameters, for the commands of ``headway mfg``."""

import inspect
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

import torch

from ...agents.core.config import fits
from ...envs.mean_field import GAMES, SOLVERS, MFGame, make_game
from ...envs.mean_field.library import builder_of
from ...envs.naming import nearest
from ..options import Flags, check_device, flag_of


@dataclass(frozen=True, kw_only=True)
class SolverFlags(Flags):
    """What commands have in common that solve games."""

    device: str = "cpu"
    """cpu, cuda, cuda:0, … or auto."""

    progress: bool = True
    """Show progress bars."""


def device_of(name: str) -> str:
    """:return: the device that a flag names; auto is a GPU where there is one.

    :raises ValueError: there is no such device
    """
    check_device(name)
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def parameters_of(name: str) -> dict[str, inspect.Parameter]:
    """:return: the parameters of a registered game, by name."""
    signature = inspect.signature(builder_of(name)).parameters
    return {key: value for key, value in signature.items() if key not in ("compat", "device", "dtype")}


def has_compat(name: str) -> bool:
    """:return: whether OpenSpiel has a game of that name that differs from it."""
    return "compat" in inspect.signature(builder_of(name)).parameters


def make_form(name: str, compat: Literal["openspiel", "none"], device: str, **parameters: Any) -> MFGame:
    """Make a game, as OpenSpiel 2.0.2 computes it where that is asked for and differs.

    :param name: of a registered game
    :param compat: "none": as it is defined
    :param device: where its tensors shall be
    :param parameters: of the game
    :return: the game
    :raises ValueError: an unknown name or parameter
    """
    form: Any = "openspiel" if compat == "openspiel" and has_compat(name) else None
    return make_game(name, form, device=device, **parameters)


def flat(groups: Sequence[Sequence[str]]) -> list[str]:
    """:return: what a flag was given that may be given several times, several values each."""
    return [text for group in groups for text in group]


def split_pairs(flag: str, pairs: Sequence[str], form: str = "KEY=VALUE") -> dict[str, str]:
    """Split KEY=VALUE.

    :param flag: what they were given to, for errors
    :param pairs: the texts
    :param form: what they should look like, for errors
    :return: values, as texts, by key
    :raises ValueError: one is no pair, or is given twice
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"{flag} takes {form}, got {pair!r}")
        if key in found:
            raise ValueError(f"{flag} {key} is given twice")
        found[key] = text
    return found


def parse_pairs(pairs: Sequence[str], game: str) -> dict[str, Any]:
    """Read parameters of a game.

    :param pairs: KEY=VALUE, the value a number, true, false, none, a list in brackets, or else a text
    :param game: whose parameters they are
    :return: values by name
    :raises ValueError: one is no pair, is unknown (the nearest is named), is given twice, or of the wrong type
    """
    known, found = parameters_of(game), dict[str, Any]()
    hints = get_type_hints(builder_of(game))
    for key, text in split_pairs("--param", pairs).items():
        if key not in known:
            raise ValueError(f"game {game!r} has no parameter {key!r}: {nearest(key, known)}")
        value = parse_value(text)
        if not _has_type(value, hints.get(key, Any)):
            wanted = hints[key].__name__ if isinstance(hints[key], type) else str(hints[key]).replace("typing.", "")
            raise ValueError(f"--param {key} must be {wanted}, got {text!r}")
        found[key] = value
    return found


def parse_value(text: str) -> Any:
    """:return: a number, None, True, False, a list, or the text itself."""
    if text.lower() in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[text.lower()]
    try:
        return json.loads(text, parse_constant=lambda name: name)
    except ValueError:
        return text


def _has_type(value: Any, annotation: Any) -> bool:
    try:
        return fits(value, annotation)
    except TypeError:  # a type that flags never have, such as Sequence[int]: the game looks at it itself
        return True


def algorithm_parameters(algorithm: str) -> dict[str, Any]:
    """Look up what a solver can be told.

    :param algorithm: its name
    :return: defaults by name
    :raises ValueError: there is none; the nearest names are given
    """
    if algorithm not in SOLVERS:
        raise ValueError(f"there is no algorithm {algorithm!r}: {nearest(algorithm, SOLVERS)}")
    signature = inspect.signature(SOLVERS[algorithm]).parameters
    return {key: value.default for key, value in signature.items() if key not in ("sweeps", "policy")}


def checked_parameters(algorithm: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """See that a solver has the parameters it is given.

    :param algorithm: its name
    :param given: by name; None: not given
    :return: those that are given
    :raises ValueError: it does not have one
    """
    known = algorithm_parameters(algorithm)
    found = {key: value for key, value in given.items() if value is not None}
    for key in found:
        if key not in known:
            flags = ", ".join(flag_of(name) for name in known) or "none"
            raise ValueError(f"{flag_of(key)}: {algorithm} has no such parameter; it has {flags}")
    return found


def list_games(text: str) -> None:
    """Print the games whose names contain a text, with their sizes and parameters.

    :param text: part of the name
    """
    names = [name for name in sorted(GAMES) if text.lower() in name.lower()]
    if not names:
        raise ValueError(f"no game's name contains {text!r}: {nearest(text, GAMES)}")
    width = max(map(len, names))
    print(f"{'':<{width}}  {'S':>5} {'A':>3} {'H':>4} {'n_pop':>5}  parameters and their defaults")
    for name in names:
        try:
            parameters, game = parameters_of(name), make_game(name)
        except Exception as cause:  # somebody's own game: anything can happen in it
            print(f"{name:<{width}}  cannot be made with its defaults: {cause}")
            continue
        lines = textwrap.wrap(", ".join(_with_default(p) for p in parameters.values()) or "none", 88)
        mark = "*" if has_compat(name) else " "
        print(f"{name:<{width}}{mark} {game.S:>5} {game.A:>3} {game.H:>4} {game.n_pop:>5}  {lines[0]}")
        for line in lines[1:]:
            print(f"{'':<{width + 23}}{line}")
    print("S states, A actions, H decisions, n_pop populations; * has a form as OpenSpiel 2.0.2 computes it as well")


def _with_default(parameter: inspect.Parameter) -> str:
    default = parameter.default
    return parameter.name if default is inspect.Parameter.empty else f"{parameter.name}={default}"


def describe_game(name: str) -> None:
    """Print what a game is, and its parameters.

    :param name: of a registered game
    """
    game = make_game(name)
    doc = inspect.getdoc(builder_of(name)) or ""
    about = doc.partition(":param")[0].partition(":return")[0].strip()
    print(f"{sizes(name, game)}\n\n{about}\n\nparameters:")
    for parameter in parameters_of(name).values():
        print(f"  {_with_default(parameter)}")
    print(f"\nsolve it: headway mfg solve {name}")


def sizes(name: str, game: MFGame) -> str:
    """:return: how many states, actions, decisions and populations a game has, in words."""
    populations = f", {game.n_pop} populations" if game.n_pop > 1 else ""
    return f"{name}: {game.S} states, {game.A} actions, {game.H} decisions{populations}"
