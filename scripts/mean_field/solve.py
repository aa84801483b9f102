"""``headway mfg solve``: look for a Nash equilibrium."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ...agents.core.config import Range
from ...envs.mean_field import MFGame, make_game, solve
from .files import FORMS, Solved, as_folder, kept_if_done, new_folder, write_solution
from .games import SolverFlags, checked_parameters, device_of, flat, has_compat, parse_pairs
from .show import Film, draw_solved, print_solved, titled

Games = dict[Literal["openspiel"] | None, MFGame]
"""By their ``compat``."""


@dataclass(frozen=True, kw_only=True)
class Options(SolverFlags):
    """Look for a Nash equilibrium of a mean field game; write it, its exploitability on the way, and a film of it."""

    game: tyro.conf.Positional[str]
    """A game (`headway mfg games` lists them)."""

    algorithm: str = "online_mirror_descent"
    """online_mirror_descent, fictitious_play, munchausen_mirror_descent, boltzmann_policy_iteration, fixed_point."""

    iterations: Annotated[int, Range(1)] = 100
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

    format: Film = "gif"
    """Of the film of the flow; none leaves it out."""

    fps: Annotated[float, Range(0, 60, unit="times of the game per second")] = 0
    """Speed of the film; 0 has it last about eight seconds."""


def run(options: Options) -> int:
    """Run ``headway mfg solve``.

    :param options: its arguments
    :return: exit code: 0, or 130 after Ctrl-C, at which what was found by then is written
    :raises ValueError: an unknown name, a value out of range; the message says what would do
    :raises FileExistsError: the folder exists
    """
    from . import draw_crowds  # noqa: F401  (a missing library should be noticed before the work)

    parameters = parse_pairs(flat(options.param), options.game)
    games, settings = _games(options, parameters), _settings(options)
    folder = new_folder(options.out, as_folder(options.game), options.algorithm)
    with kept_if_done(folder):
        solved = _solve_all(games, options, settings)
    interrupted = solved[-1].solution.interrupted
    print_solved(options.game, options.algorithm, solved)
    about = {"game": options.game, "parameters": parameters, "algorithm": options.algorithm, "settings": settings}
    write_solution(folder, about | {"interrupted": interrupted}, solved)
    if interrupted:
        form, done = solved[-1], solved[-1].solution.history.iterations[-1]
        print(f"interrupted after {done} of {options.iterations} iterations of the game {FORMS[form.compat]}")
    print(f"written: {folder}")
    try:
        draw_solved(folder, titled(options.game, options.algorithm), solved, options.format, options.fps)
    except KeyboardInterrupt:
        print(f"pictures unfinished: headway mfg show {folder}")
        return 130
    return 130 if interrupted else 0


def _solve_all(games: Games, options: Options, settings: dict[str, Any]) -> list[Solved]:
    """:return: the forms of the game, up to one at which Ctrl-C was pressed."""
    common: dict[str, Any] = {"progress": options.progress, "interruptible": True}
    solved: list[Solved] = []
    for compat, game in games.items():
        solution = solve(game, options.algorithm, options.iterations, **common, **settings)
        solved.append(Solved(compat, game, solution))
        if solution.interrupted:
            break
    return solved


def _games(options: Options, parameters: dict[str, Any]) -> Games:
    device = device_of(options.device)
    forms: list[Literal["openspiel"] | None] = ["openspiel"] if options.compat == "openspiel" else [None]
    if options.compat == "auto" and has_compat(options.game):
        forms.append("openspiel")
    games = {compat: make_game(options.game, compat, device=device, **parameters) for compat in forms}
    if batch := games[forms[0]].batch:
        raise ValueError(f"{options.game} is a batch of {batch} games: headway mfg solves one at a time")
    return games


def _settings(options: Options) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in ("learning_rate", "temperature", "damping", "tie")}
    common = {name: getattr(options, name) for name in ("tolerance", "evaluate_every")}
    return checked_parameters(options.algorithm, given) | common
