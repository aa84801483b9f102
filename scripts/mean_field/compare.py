"""``headway mfg compare``: exploitability of several algorithms."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
import tyro

from ...agents.core.config import Range, fits
from ...agents.core.logging import write_csv
from ...envs.mean_field import GAMES, SOLVERS, MFGame, Solution, make_game, solve
from ..machine import machine
from .draw_curves import Curve, solver_comparison
from .files import new_folder
from .games import SolverFlags, algorithm_parameters, checked_parameters, device_of, make_form, parse_value, split_pairs
from .show import to_ten_places


@dataclass(frozen=True, kw_only=True)
class Options(SolverFlags):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.games:
            raise ValueError(f"name at least one game: {', '.join(sorted(GAMES))}")
        if len(set(self.games)) < len(self.games):
            raise ValueError(f"games {' '.join(self.games)}: one is named twice, name each once")
        if not self.algorithms:
            raise ValueError(f"--algorithms: name at least one: {', '.join(SOLVERS)}")


def read_arm(text: str) -> tuple[str, dict[str, Any]]:
    """Read an algorithm with parameters.

    :param text: such as ``fixed_point:damping=0.9,temperature=1``
    :return: its name, and parameters by name
    :raises ValueError: there is no such algorithm or parameter; a parameter has no value, a wrong one, or two
    """
    name, _, rest = text.partition(":")
    algorithm_parameters(name)
    pairs = split_pairs(f"--algorithms {text}", [pair for pair in rest.split(",") if pair])
    parameters = checked_parameters(name, {key: parse_value(value) for key, value in pairs.items()})
    hints = get_type_hints(SOLVERS[name].__init__)
    for key, value in parameters.items():
        if fits(0.5, hints[key]) and not fits(value, hints[key]):
            raise ValueError(f"--algorithms {text}: {key} must be a number, got {pairs[key]!r}")
    solve(make_game("left_right"), name, 0, **parameters)  # lest a value out of range be noticed after hours
    return name, parameters


def _read_arms(texts: tuple[str, ...]) -> dict[str, tuple[str, dict[str, Any]]]:
    """:return: algorithms with parameters, by the texts that name them; none may be named twice."""
    arms: dict[str, tuple[str, dict[str, Any]]] = {}
    for text in texts:
        if (arm := read_arm(text)) in arms.values():
            raise ValueError(f"--algorithms {' '.join(texts)}: {text} is named twice, name each once")
        arms[text] = arm
    return arms


def run(options: Options) -> int:
    """Run ``headway mfg compare``.

    :param options: its arguments
    :return: exit code: 0, or 130 after Ctrl-C, at which what was found by then is written
    :raises ValueError: an unknown name
    :raises FileExistsError: the folder exists
    """
    device = device_of(options.device)
    arms = _read_arms(options.algorithms)
    games = {name: make_form(name, options.compat, device) for name in options.games}
    folder = new_folder(options.out, "compare")
    found: dict[str, dict[str, Curve]] = {}
    interrupted = False
    try:
        for name, label, solution in _solve_all(games, arms, options):
            history = solution.history
            columns = (history.iterations, history.seconds, history.exploitability.cpu().numpy())
            found.setdefault(name, {})[label] = Curve(*map(np.asarray, columns))
            print(f"{name:<20} {label:<40} NashConv {to_ten_places(columns[2][-1])}  {history.seconds[-1]:.3g} s")
            if solution.interrupted:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted: what was found by then is written")
    _write(folder / "exploitability.csv", found)
    on = machine()
    note = f"{on['gpu'] or on['processor']}, {options.iterations} iterations each; exploitability is NashConv"
    if found:
        solver_comparison(folder / "exploitability.png", found, note + ("; interrupted" if interrupted else ""))
    print(f"written: {folder}")
    return 130 if interrupted else 0


def _solve_all(
    games: Mapping[str, MFGame], arms: Mapping[str, tuple[str, dict[str, Any]]], options: Options
) -> Iterator[tuple[str, str, Solution]]:
    common: dict[str, Any] = {"evaluate_every": options.evaluate_every, "progress": options.progress}
    for name, game in games.items():
        for label, (algorithm, parameters) in arms.items():
            yield name, label, solve(game, algorithm, options.iterations, interruptible=True, **common, **parameters)


def _write(file: Path, found: Mapping[str, Mapping[str, Curve]]) -> None:
    rows = []
    for name, curves in found.items():
        for label, curve in curves.items():
            columns = zip(curve.iterations, curve.exploitability.tolist(), curve.seconds, strict=True)
            rows += [[name, label, str(k), repr(value), f"{seconds:.6f}"] for k, value, seconds in columns]
    write_csv(file, ["game", "algorithm", "iteration", "exploitability", "seconds"], rows)
