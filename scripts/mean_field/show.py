"""``headway mfg show``: look at what was solved, or at a game."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from ...agents.core.config import Range
from ...envs.mean_field import GAMES, exploitability
from ...envs.naming import nearest
from ..options import Flags
from .files import FORMS, Solved, load_solution
from .games import describe_game, device_of, list_games, sizes

Film = Literal["gif", "mp4", "none"]


@dataclass(frozen=True, kw_only=True)
class Options(Flags):
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

    trust_game: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Import the module that the folder's game is named with; name one only if you trust the folder."""


def run(options: Options) -> None:
    """Run ``headway mfg show``.

    :param options: its arguments
    :raises ValueError: neither a folder nor a game; a folder whose files are broken
    """
    if options.trust_game and not Path(options.what).is_dir():
        raise ValueError("--trust-game is about the game that a folder names: name a folder")
    if not options.what:
        list_games("")
    elif options.what not in GAMES and Path(options.what).is_dir():
        _show_folder(Path(options.what), options)
    elif options.what in GAMES or ":" in options.what:
        describe_game(options.what)
    else:
        raise ValueError(f"{options.what!r} is no folder and no game: {nearest(options.what, GAMES)}")


def to_ten_places(value: float) -> str:
    """:return: a number with ten places, without a sign where rounding leaves it at 0."""
    return f"{round(value, 10) + 0.0:.10f}"


def _show_folder(folder: Path, options: Options) -> None:
    device = device_of(options.device)
    saved = load_solution(folder, device, trust_game=options.trust_game)
    name, algorithm = saved.manifest["game"], saved.manifest["algorithm"]
    print_solved(name, algorithm, saved.solved)
    out = options.out or folder
    out.mkdir(parents=True, exist_ok=True)
    for part in saved.solved:
        again = float(exploitability(part.game, part.solution.policy))
        print(f"NashConv {to_ten_places(again)}  {FORMS[part.compat]}: computed again from the policy in the folder")
    draw_solved(out, titled(name, algorithm), saved.solved, options.format, options.fps)
    print(f"pictures: {out}")


def print_solved(name: str, algorithm: str, solved: Sequence[Solved]) -> None:
    """Print what was found.

    :param name: of the game
    :param algorithm: its name
    :param solved: the forms of the game
    """
    print(f"{sizes(name, solved[0].game)}; {algorithm}")
    for part in solved:
        history = part.solution.history
        print(f"NashConv {to_ten_places(float(part.solution.exploitability))}  {FORMS[part.compat]}", end="")
        print(f", after {history.iterations[-1]} iterations, {history.seconds[-1]:.3g} s", end="")
        print(f" (uniform policy: {float(history.exploitability[0]):.10f})")


def draw_solved(folder: Path, title: str, solved: Sequence[Solved], film: Film, fps: float) -> None:
    """Draw exploitability on the way, and the crowd.

    :param folder: where to
    :param title: above the pictures
    :param solved: the forms of the game; the crowd is the first one's
    :param film: of the crowd
    :param fps: of the film; 0: see :func:`flow_film`
    """
    from .draw_crowds import flow_film, flow_still
    from .draw_curves import Curve, exploitability_curves

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


def titled(game: str, algorithm: str) -> str:
    """:return: a title for pictures."""
    return f"{game}, {algorithm.replace('_', ' ')}"
