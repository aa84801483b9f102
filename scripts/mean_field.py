"""``headway mfg``: solve mean field games, look at what was found, fit rewards to data."""

import csv
import importlib
import inspect
import json
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
import torch
import tyro
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..agents.core.config import Range, describe, fits
from ..agents.core.files import versions
from ..envs.mean_field import GAMES, SOLVERS, History, MFGame, Solution, exploitability, make_game, solve
from ..envs.naming import nearest
from .machine import machine
from .options import check_device, run_flags

FORMAT = 1
"""Of the files in a folder; a newer one is refused."""

FORMS = {None: "as defined", "openspiel": "as OpenSpiel 2.0.2 computes it"}
"""A game's ``compat``, in words."""

KEYS = {None: "defined", "openspiel": "openspiel"}
"""A game's ``compat``, in files."""

Film = Literal["gif", "mp4", "none"]


def check_ranges(options: Any) -> None:
    """See that numbers lie in the ranges that their fields declare.

    :param options: a dataclass of flags
    :raises ValueError: one does not
    """
    for name, info in describe(type(options)).items():
        value, flag = getattr(options, name), "--" + name.replace("_", "-")
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and any(number not in interval for interval in info.ranges):
                raise ValueError(f"{flag} must lie in {info.ranges[0]}, got {number}")


def device_of(name: str) -> str:
    """:return: the device that a flag names; auto is a GPU where there is one.

    :raises ValueError: there is no such device
    """
    check_device(name)
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


# -- Games and solvers by name ---------------------------------------------------------------------------------------


def builder_of(name: str) -> Callable[..., MFGame]:
    """Look up what makes a game.

    :param name: of a registered game
    :return: the function
    :raises ValueError: there is none; the nearest names are given
    """
    if name not in GAMES:
        raise ValueError(f"there is no game {name!r}: {nearest(name, GAMES)}")
    builder = GAMES[name]
    if isinstance(builder, str):
        module, _, function = builder.partition(":")
        try:
            builder = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as cause:
            raise ValueError(f"game {name!r} cannot be loaded from {GAMES[name]}: {cause}") from cause
    return builder


def parameters_of(name: str) -> dict[str, inspect.Parameter]:
    """:return: the parameters of a registered game, by name."""
    signature = inspect.signature(builder_of(name)).parameters
    return {key: value for key, value in signature.items() if key not in ("compat", "device", "dtype")}


def has_compat(name: str) -> bool:
    """:return: whether OpenSpiel has a game of that name that differs from it."""
    return "compat" in inspect.signature(builder_of(name)).parameters


def parse_pairs(pairs: Sequence[str], game: str) -> dict[str, Any]:
    """Read parameters of a game.

    :param pairs: KEY=VALUE, the value a number, true, false, none, a list in brackets, or else a text
    :param game: whose parameters they are
    :return: values by name
    :raises ValueError: one is no pair, is unknown (the nearest is named), is given twice, or of the wrong type
    """
    known, found = parameters_of(game), dict[str, Any]()
    hints = get_type_hints(builder_of(game))
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--param takes KEY=VALUE, got {pair!r}")
        if key not in known:
            raise ValueError(f"game {game!r} has no parameter {key!r}: {nearest(key, known)}")
        if key in found:
            raise ValueError(f"--param {key} is given twice")
        value = parse_value(text)
        if not _has_type(value, hints.get(key, Any)):
            wanted = getattr(hints[key], "__name__", str(hints[key]).replace("typing.", ""))
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
            flags = ", ".join(_flag(name) for name in known) or "none"
            raise ValueError(f"{_flag(key)}: {algorithm} has no such parameter; it has {flags}")
    return found


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# -- headway mfg solve -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SolveOptions:
    """Look for a Nash equilibrium of a mean field game; write it, its exploitability on the way, and a film of it."""

    game: tyro.conf.Positional[str]
    """A game (`headway mfg games` lists them)."""

    algorithm: str = "online_mirror_descent"
    """online_mirror_descent, fictitious_play, munchausen_mirror_descent, boltzmann_policy_iteration, fixed_point."""

    iterations: Annotated[int, Range(0)] = 100
    """At most so many."""

    compat: Literal["auto", "openspiel", "none"] = "auto"
    """none: the game as it is defined; openspiel: as OpenSpiel 2.0.2 computes it; auto: the first and, where that
    differs, the second as well, for comparison."""

    param: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Parameters of the game, KEY=VALUE, such as size=20 horizon=15."""

    learning_rate: float | None = None
    """Of the algorithm, where it has one; by default its own."""

    temperature: float | None = None
    """Of the algorithm's responses, where it has one: above 0 they are a softmax."""

    damping: Annotated[float | None, Range(0, 1, open_high=True)] = None
    """Of fixed_point: share of the crowd that stays as it was."""

    tie: Literal["split", "first"] | None = None
    """Where responses take the best action: equally good ones equally often, or the first of them."""

    tolerance: Annotated[float | None, Range(0)] = None
    """Stop as soon as exploitability is no greater."""

    evaluate_every: Annotated[int, Range(1, unit="iterations")] = 1
    """Distance between evaluations of exploitability."""

    out: Path | None = None
    """Folder to write, which must not exist yet; by default runs/mfg/<game>/<algorithm>/<time>."""

    device: str = "cpu"
    """cpu, cuda, cuda:0, … or auto."""

    format: Film = "gif"
    """Of the film of the flow; none leaves it out."""

    fps: Annotated[float, Range(0, 60, unit="times of the game per second")] = 0
    """Speed of the film; 0 has it last about eight seconds."""

    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Solved:
    """One form of a game, solved.

    :param compat: which form
    :param game: the game
    :param solution: what was found
    """

    compat: Literal["openspiel"] | None
    game: MFGame
    solution: Solution


def run_solve(options: SolveOptions) -> None:
    """Run ``headway mfg solve``.

    :param options: its arguments
    :raises ValueError: an unknown name, a value out of range; the message says what would do
    :raises FileExistsError: the folder exists
    """
    from . import mean_field_pictures  # noqa: F401  (a missing library should be noticed before the work)

    games, settings = _games(options), _settings(options)
    folder = options.out or new_folder(Path("runs/mfg") / _as_folder(options.game) / options.algorithm)
    folder.mkdir(parents=True)
    try:
        solved = [
            Solved(compat, game, solve(game, options.algorithm, options.iterations, **settings))
            for compat, game in games.items()
        ]
    except BaseException:
        folder.rmdir()
        raise
    _print_solved(options.game, options.algorithm, solved)
    _write_solved(folder, options, settings, solved)
    _draw_solved(folder, _name(options.game, options.algorithm), solved, options.format, options.fps)
    print(f"written: {folder}")


def _games(options: SolveOptions) -> dict[Literal["openspiel"] | None, MFGame]:
    device = device_of(options.device)
    parameters = parse_pairs([pair for group in options.param for pair in group], options.game)
    forms: list[Literal["openspiel"] | None] = ["openspiel"] if options.compat == "openspiel" else [None]
    if options.compat == "auto" and has_compat(options.game):
        forms.append("openspiel")
    games = {compat: make_game(options.game, compat, device=device, **parameters) for compat in forms}
    if batch := games[forms[0]].batch:
        raise ValueError(f"{options.game} is a batch of {batch} games: headway mfg solves one at a time")
    return games


def _settings(options: SolveOptions) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in ("learning_rate", "temperature", "damping", "tie")}
    common = {name: getattr(options, name) for name in ("tolerance", "evaluate_every", "progress")}
    return checked_parameters(options.algorithm, given) | common


def _as_folder(game: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in game)


def new_folder(parent: Path) -> Path:
    """:return: a folder named by the time, that does not exist yet."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    names = (stamp if number == 1 else f"{stamp}-{number}" for number in range(1, 1000))
    return next(parent / name for name in names if not (parent / name).exists())


def _name(game: str, algorithm: str) -> str:
    return f"{game}, {algorithm.replace('_', ' ')}"


def _print_solved(name: str, algorithm: str, solved: Sequence[Solved]) -> None:
    print(f"{_sizes(name, solved[0].game)}; {algorithm}")
    for part in solved:
        history = part.solution.history
        print(f"NashConv {float(part.solution.exploitability):.10f}  {FORMS[part.compat]}", end="")
        print(f", after {history.iterations[-1]} iterations, {history.seconds[-1]:.3g} s", end="")
        print(f" (uniform policy: {float(history.exploitability[0]):.10f})")


def _sizes(name: str, game: MFGame) -> str:
    populations = f", {game.n_pop} populations" if game.n_pop > 1 else ""
    return f"{name}: {game.S} states, {game.A} actions, {game.H} decisions{populations}"


def _write_solved(folder: Path, options: SolveOptions, settings: dict[str, Any], solved: Sequence[Solved]) -> None:
    tensors, forms = dict[str, Tensor](), dict[str, Any]()
    for part in solved:
        key, solution = KEYS[part.compat], part.solution
        tensors |= {f"{key}.policy": solution.policy.cpu(), f"{key}.flow": solution.flow.cpu()}
        forms[key] = {
            "iterations": solution.history.iterations[-1],
            "exploitability": float(solution.exploitability),
            "seconds": solution.history.seconds[-1],
        }
    save_file(tensors, folder / "solution.safetensors")
    rows = [
        [KEYS[part.compat], iteration, repr(float(value)), f"{seconds:.6f}"]
        for part in solved
        for history in [part.solution.history]
        for iteration, value, seconds in zip(history.iterations, history.exploitability, history.seconds, strict=True)
    ]
    with (folder / "exploitability.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["game", "iteration", "exploitability", "seconds"], *rows])
    game = solved[0].game
    manifest = {
        "format": FORMAT,
        "game": options.game,
        "parameters": parse_pairs([pair for group in options.param for pair in group], options.game),
        "sizes": {"S": game.S, "A": game.A, "H": game.H, "n_pop": game.n_pop},
        "algorithm": options.algorithm,
        "settings": {key: value for key, value in settings.items() if key != "progress"},
        "forms": forms,
        "device": str(game.device),
        "machine": machine(),
        "versions": versions(),
        "command": " ".join(["headway", *sys.argv[1:]]),
    }
    (folder / "solution.json").write_text(json.dumps(manifest, indent=2) + "\n")


def _draw_solved(folder: Path, title: str, solved: Sequence[Solved], film: Film, fps: float) -> None:
    from .mean_field_pictures import Curve, exploitability_curves, flow_film, flow_still

    curves = {}
    for part in solved:
        history = part.solution.history
        columns = (history.iterations, history.seconds, history.exploitability.cpu().numpy())
        curves[FORMS[part.compat]] = Curve(*map(np.asarray, columns))
    exploitability_curves(folder / "exploitability.png", title, curves)
    first = solved[0]
    found = f"{title}, {first.solution.history.iterations[-1]} iterations"
    found += f": NashConv {float(first.solution.exploitability):.4g}"
    if first.compat is not None:
        found += f", game {FORMS[first.compat]}"
    flow = first.solution.flow.cpu().numpy()
    flow_still(folder / "flow.png", first.game, flow, found)
    if film != "none":
        flow_film(folder / f"flow.{film}", first.game, flow, found, fps)


# -- headway mfg show, headway mfg games -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Draw what was solved again, describe a game, or list all games."""

    what: tyro.conf.Positional[str] = ""
    """A folder that `headway mfg solve` wrote, or a game; without it, all games are listed."""

    out: Path | None = None
    """Folder for the pictures; by default the one they belong to, where they replace the old ones."""

    format: Film = "gif"
    """Of the film of the flow; none leaves it out."""

    fps: Annotated[float, Range(0, 60, unit="times of the game per second")] = 0
    """Speed of the film; 0 has it last about eight seconds."""

    device: str = "cpu"
    """cpu, cuda, cuda:0, … or auto."""

    def __post_init__(self) -> None:
        check_ranges(self)


def run_show(options: ShowOptions) -> None:
    """Run ``headway mfg show``.

    :param options: its arguments
    :raises ValueError: neither a folder nor a game; a folder whose files are broken
    """
    if not options.what:
        list_games("")
    elif options.what in GAMES:
        _describe_game(options.what)
    elif Path(options.what).is_dir():
        _show_folder(Path(options.what), options)
    else:
        raise ValueError(f"{options.what!r} is no folder and no game: {nearest(options.what, GAMES)}")


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
        parameters = parameters_of(name)
        game = make_game(name)
        lines = textwrap.wrap(", ".join(_with_default(p) for p in parameters.values()) or "none", 88)
        mark = "*" if has_compat(name) else " "
        print(f"{name:<{width}}{mark} {game.S:>5} {game.A:>3} {game.H:>4} {game.n_pop:>5}  {lines[0]}")
        for line in lines[1:]:
            print(f"{'':<{width + 23}}{line}")
    print("S states, A actions, H decisions, n_pop populations; * has a form as OpenSpiel 2.0.2 computes it as well")


def _with_default(parameter: inspect.Parameter) -> str:
    default = parameter.default
    return parameter.name if default is inspect.Parameter.empty else f"{parameter.name}={default}"


def _describe_game(name: str) -> None:
    game = make_game(name)
    doc = inspect.getdoc(builder_of(name)) or ""
    about = doc.partition(":param")[0].partition(":return")[0].strip()
    print(f"{_sizes(name, game)}\n\n{about}\n\nparameters:")
    for parameter in parameters_of(name).values():
        print(f"  {_with_default(parameter)}")
    print(f"\nsolve it: headway mfg solve {name}")


@dataclass(frozen=True)
class Saved:
    """What a folder holds.

    :param manifest: of ``solution.json``
    :param solved: the forms of the game, in the order in which they were solved
    """

    manifest: dict[str, Any]
    solved: list[Solved]


def load_solution(folder: Path, device: str = "cpu") -> Saved:
    """Read what ``headway mfg solve`` wrote. Nothing in it is executed.

    :param folder: the folder
    :param device: where the game shall be
    :return: its manifest, and the solutions, whose policies and flows have been checked against the game
    :raises FileNotFoundError: it is no such folder
    :raises ValueError: a file is broken, was edited, or is of a newer version
    """
    if not (folder / "solution.json").exists():
        raise FileNotFoundError(f"{folder} holds no solution: it has no solution.json")
    try:
        manifest: dict[str, Any] = json.loads((folder / "solution.json").read_text())
        if manifest["format"] > FORMAT:
            raise ValueError(f"it has format {manifest['format']}, this version reads up to {FORMAT}")
        tensors = load_file(folder / "solution.safetensors")
        histories = _read_histories(folder / "exploitability.csv")
        solved = []
        for key in manifest["forms"]:
            compat = next(compat for compat, known in KEYS.items() if known == key)
            game = make_game(manifest["game"], compat, device=device, **manifest["parameters"])  # type: ignore[arg-type]
            policy = game.check_policy(tensors[f"{key}.policy"])
            flow = game.check_flow(tensors[f"{key}.flow"])
            solved.append(Solved(compat, game, Solution(policy, flow, histories[key])))  # type: ignore[arg-type]
        return Saved(manifest, solved)
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, OSError, SafetensorError) as cause:
        reason = f"{type(cause).__name__} {cause}" if isinstance(cause, KeyError) else str(cause)
        raise ValueError(f"{folder} is broken ({reason}): restore it, or solve the game again") from cause


def _read_histories(file: Path) -> dict[str, History]:
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    found = {}
    for key in dict.fromkeys(row["game"] for row in rows):
        own = [row for row in rows if row["game"] == key]
        values = torch.tensor([float(row["exploitability"]) for row in own], dtype=torch.float64)
        iterations = tuple(int(row["iteration"]) for row in own)
        found[key] = History(iterations, values, tuple(float(row["seconds"]) for row in own))
    return found


def _show_folder(folder: Path, options: ShowOptions) -> None:
    device = device_of(options.device)
    saved = load_solution(folder, device)
    name, algorithm = saved.manifest["game"], saved.manifest["algorithm"]
    _print_solved(name, algorithm, saved.solved)
    for part in saved.solved:
        again = float(exploitability(part.game, part.solution.policy))
        print(f"NashConv {again:.10f}  {FORMS[part.compat]}: computed again from the policy in the folder")
    out = options.out or folder
    out.mkdir(parents=True, exist_ok=True)
    _draw_solved(out, _name(name, algorithm), saved.solved, options.format, options.fps)
    print(f"pictures: {out}")


# -- headway mfg compare ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Solve games with several algorithms; draw exploitability against iterations and seconds into one figure."""

    games: tyro.conf.Positional[tuple[str, ...]]
    """Games (`headway mfg games` lists them), with their default parameters."""

    algorithms: tuple[str, ...] = tuple(SOLVERS)
    """Algorithms, such as fictitious_play or with parameters fixed_point:damping=0.9,temperature=1."""

    iterations: Annotated[int, Range(1)] = 200
    """Of each."""

    evaluate_every: Annotated[int, Range(1, unit="iterations")] = 1
    """Distance between evaluations of exploitability."""

    compat: Literal["openspiel", "none"] = "none"
    """none: games as they are defined; openspiel: as OpenSpiel 2.0.2 computes them."""

    out: Path | None = None
    """Folder to write, which must not exist yet; by default runs/mfg/compare/<time>."""

    device: str = "cpu"
    """cpu, cuda, cuda:0, … or auto."""

    progress: bool = True
    """Show progress bars."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.games:
            raise ValueError(f"name at least one game: {', '.join(sorted(GAMES))}")


def read_arm(text: str) -> tuple[str, dict[str, Any]]:
    """Read an algorithm with parameters.

    :param text: such as ``fixed_point:damping=0.9,temperature=1``
    :return: its name, and parameters by name
    :raises ValueError: there is no such algorithm or parameter
    """
    name, _, rest = text.partition(":")
    algorithm_parameters(name)
    pairs = [pair.partition("=") for pair in rest.split(",") if pair]
    return name, checked_parameters(name, {key: parse_value(value) for key, _, value in pairs})


def run_compare(options: CompareOptions) -> None:
    """Run ``headway mfg compare``.

    :param options: its arguments
    :raises ValueError: an unknown name
    :raises FileExistsError: the folder exists
    """
    from .mean_field_pictures import Curve, solver_comparison

    device = device_of(options.device)
    arms = {text: read_arm(text) for text in options.algorithms}
    compat: Any = None if options.compat == "none" else options.compat
    games = {name: make_game(name, compat if has_compat(name) else None, device=device) for name in options.games}
    folder = options.out or new_folder(Path("runs/mfg/compare"))
    folder.mkdir(parents=True)
    rows: list[list[Any]] = []
    panels: dict[str, dict[str, Curve]] = {name: {} for name in games}
    for name, game in games.items():
        for label, (algorithm, parameters) in arms.items():
            common: dict[str, Any] = {"evaluate_every": options.evaluate_every, "progress": options.progress}
            history = solve(game, algorithm, options.iterations, **common, **parameters).history
            values = history.exploitability.cpu().numpy()
            panels[name][label] = Curve(np.asarray(history.iterations), np.asarray(history.seconds), values)
            columns = zip(history.iterations, values.tolist(), history.seconds, strict=True)
            rows += [[name, label, iteration, repr(value), f"{seconds:.6f}"] for iteration, value, seconds in columns]
            print(f"{name:<20} {label:<40} NashConv {values[-1]:.10f}  {history.seconds[-1]:.3g} s")
    with (folder / "exploitability.csv").open("w", newline="") as file:
        header = ["game", "algorithm", "iteration", "exploitability", "seconds"]
        csv.writer(file).writerows([header, *rows])
    on = machine()
    note = f"{on['gpu'] or on['processor']}, {options.iterations} iterations each; exploitability is NashConv"
    solver_comparison(folder / "exploitability.png", panels, note)
    print(f"written: {folder}")


# -- The command -----------------------------------------------------------------------------------------------------

USAGE = """\
usage: headway mfg COMMAND [--flags]

  solve GAME       look for a Nash equilibrium; write it, exploitability on the way, and a film of the crowd
  show [FOLDER]    draw what was solved again; with a game's name, describe it
  games [TEXT]     games with their sizes and parameters, those whose names contain TEXT
  compare GAME…    exploitability of several algorithms against iterations and seconds
  fit DATA         recover a crowd's reward from how it moved, and compare its forecasts with baselines

algorithms, with their parameters:
"""


def _usage() -> str:
    lines = [
        f"  {name:<28} {', '.join(f'{key}={default}' for key, default in algorithm_parameters(name).items())}"
        for name in sorted(SOLVERS)
    ]
    return USAGE + "\n".join(lines)


COMMANDS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "solve": (SolveOptions, run_solve),
    "show": (ShowOptions, run_show),
    "compare": (CompareOptions, run_compare),
}
"""Flags, and what they are passed to."""


def main(arguments: Sequence[str]) -> int:
    """Run ``headway mfg``.

    :param arguments: the command line after "mfg"
    :return: exit code
    :raises ValueError: an unknown command
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    command, *rest = arguments
    if command == "games":
        list_games(" ".join(rest))
        return 0
    if command == "fit":
        from .mean_field_fit import FitOptions, run_fit

        return run_flags(FitOptions, rest, "headway mfg fit", run_fit)
    if command not in COMMANDS:
        raise ValueError(f"there is no command 'mfg {command}': {nearest(command, [*COMMANDS, 'games', 'fit'])}")
    flags, run = COMMANDS[command]
    return run_flags(flags, rest, f"headway mfg {command}", run)
