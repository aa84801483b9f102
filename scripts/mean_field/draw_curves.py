"""Pictures of how far from an equilibrium solvers were on their way."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter, NullLocator

from ..figures import COLOURS, LINES, decades, legend_below, panel_grid, plain_axes

FLOOR = 1e-16
"""Exploitability below is drawn here: it is rounding, and may be negative, which a logarithmic axis cannot show."""

COMPARED = 1e-6
"""Where solvers are compared, exploitability below this share of the beginning's is drawn here (our choice): one that
comes to 0 would leave the others no room."""

Against = Literal["iterations", "seconds"]


@dataclass(frozen=True)
class Curve:
    """How far from an equilibrium a solver was on its way.

    :param iterations: (T,), from 0, the policy it began with
    :param seconds: (T,), since the beginning
    :param exploitability: (T,)
    """

    iterations: np.ndarray
    seconds: np.ndarray
    exploitability: np.ndarray


def exploitability_curves(path: Path, title: str, curves: Mapping[str, Curve]) -> None:
    """Draw exploitability against iterations, both axes logarithmic.

    :param path: file to write
    :param title: above the figure
    :param curves: by label
    """
    figure = Figure(figsize=(7, 4.5), dpi=130, layout="constrained")
    axes = figure.subplots()
    labels = _draw_curves(axes, curves, "iterations")
    axes.set_title(textwrap.fill(title, 62), fontsize=11)
    axes.set(xlabel="iterations", ylabel="exploitability (NashConv)")
    legend_below(figure, dict(zip(*labels[::-1], strict=True)), 2)
    figure.savefig(path)


def solver_comparison(path: Path, games: Mapping[str, Mapping[str, Curve]], note: str = "") -> None:
    """Draw exploitability against iterations and against seconds, a row of two panels per game.

    :param path: file to write
    :param games: curves by game and by label of the solver
    :param note: small, below the figure
    """
    figure = Figure(figsize=(9, 2.7 * len(games) + 1.1), dpi=130, layout="constrained")
    panels = figure.subplots(len(games), 2, squeeze=False, sharey="row")
    order = list(dict.fromkeys(label for curves in games.values() for label in curves))
    handles: dict[str, Any] = {}
    for (left, right), (game, curves) in zip(panels, games.items(), strict=True):
        floor = max(FLOOR, COMPARED * max(float(curve.exploitability[0]) for curve in curves.values()))
        drawn: tuple[tuple[Axes, Against], ...] = ((left, "iterations"), (right, "seconds"))
        for axes, against in drawn:
            handles |= dict(zip(*_draw_curves(axes, curves, against, order, floor)[::-1], strict=True))
        left.set_ylabel("exploitability")
        left.set_title(game, fontsize=11, loc="left")
    panels[-1, 0].set_xlabel("iterations")
    panels[-1, 1].set_xlabel("seconds, evaluations included")
    legend_below(figure, handles, 3, note, 9, room=1.1)
    figure.savefig(path)


def _draw_curves(
    axes: Axes, curves: Mapping[str, Curve], against: Against, order: Sequence[str] = (), floor: float = FLOOR
) -> tuple[list[Any], list[str]]:
    """Draw curves, and dotted where the policy that they begin with is; return handles and labels for a legend."""
    order = order or list(curves)
    handles, labels = [], []
    axes.set(xscale="log", yscale="log")  # before there is anything: a curve of one evaluation has nothing but zeros
    for label, curve in curves.items():
        number = order.index(label)
        look = look_of(number)
        values = np.maximum(curve.exploitability, floor)
        x = getattr(curve, against)
        marker = "o" if len(x) < 3 else ""
        (line,) = axes.plot(x[1:], values[1:], lw=1.6, marker=marker, ms=4, **look)
        handles.append(line)
        labels.append(label)
    if against == "iterations":
        firsts = dict.fromkeys(float(max(curve.exploitability[0], floor)) for curve in curves.values())
        for first in firsts:
            rule = axes.axhline(first, color="0.5", lw=1, ls=":", zorder=1)
        handles.append(rule)
        labels.append("at the beginning: uniform policy")
    _plain_decades(axes)
    if against == "seconds":
        axes.xaxis.set_major_formatter(EngFormatter(unit="s"))
    else:
        axes.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}" if n > 0.99 else "")
    axes.xaxis.set_minor_formatter(NullFormatter())
    plain_axes(axes)
    return handles, labels


def _plain_decades(axes: Axes) -> None:
    """Label a logarithmic axis of exploitability: by 1, 2 and 5 where there are few decades, by 0 where that is all."""
    if np.isclose(axes.dataLim.y1, FLOOR, rtol=1e-6, atol=0):
        axes.set_autoscaley_on(False)  # which warns of limits that are equal
        axes.set_ylim(0.1 * FLOOR, 10 * FLOOR)
        axes.set_yticks([FLOOR], ["0"])
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        decades(axes.yaxis, *axes.get_ylim())


def look_of(number: int) -> dict[str, Any]:
    """Curves may coincide, as those of mirror descent's two forms do: each lets those below show through."""
    return {"color": COLOURS[number % len(COLOURS)], "ls": LINES[number % len(LINES)]}


def median_curve(runs: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, int]:
    """Take the median over the runs that got furthest.

    :param runs: of one game
    :return: iterations (T,), medians (T,), and of how many runs
    """
    last = max(run.iterations[-1] for run in runs)
    whole = [run for run in runs if run.iterations[-1] == last]
    return whole[0].iterations, np.median([run.exploitability for run in whole], 0), len(whole)


def learning_curves(
    path: Path, title: str, games: Mapping[str, tuple[Sequence[Curve], Curve | None]], exact: str
) -> None:
    """Draw what runs of a deep solver came to, beside the exact algorithm that it approximates, a panel per game.

    :param path: file to write
    :param title: above the figure
    :param games: by name, runs and the exact algorithm's curve, if there is one; one of the two at least
    :param exact: the exact algorithm's name
    """
    columns = 2 if len(games) == 4 else min(len(games), 3)
    size = (7, 3.6) if len(games) == 1 else (4.2, 3.3)
    figure, panels = panel_grid(len(games), columns, size, 0.9, "iterations", "exploitability (NashConv)")
    handles: dict[str, Any] = {}
    for axes, (game, (runs, reference)) in zip(panels, games.items(), strict=True):
        handles |= _draw_runs(axes, runs, reference, exact)
        axes.set_title(game, fontsize=11)
    figure.suptitle(textwrap.fill(title, 62 if len(games) == 1 else 36 * columns), fontsize=11)
    legend_below(figure, handles, 3)
    figure.savefig(path)


def _draw_runs(axes: Axes, runs: Sequence[Curve], reference: Curve | None, exact: str) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    lowest = []
    look: dict[str, Any] = {"lw": 0.9, "alpha": 0.6} if len(runs) > 1 else {"lw": 1.8}
    for run in runs:
        values = np.maximum(run.exploitability, FLOOR)
        lowest.append(values.min())
        (line,) = axes.plot(run.iterations, values, color=COLOURS[0], marker="o" if len(values) < 2 else "", **look)
        handles["each seed" if len(runs) > 1 else "one seed"] = line
    if len(runs) > 1:
        iterations, values, count = median_curve(runs)
        if count > 1:
            (line,) = axes.plot(iterations, np.maximum(values, FLOOR), color=COLOURS[0], lw=2.2)
            handles[f"median of {count} seeds"] = line
    if reference is not None:
        values = np.maximum(reference.exploitability, FLOOR)
        (handles[f"exact: {exact}"],) = axes.plot(reference.iterations, values, color=COLOURS[1], lw=1.6, ls="--")
    axes.set_yscale("log")
    if lowest:  # where the exact one goes further down, it leaves the figure
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0.03 * min(lowest)), high)
    _plain_decades(axes)
    axes.set_xlim(0, None if axes.dataLim.x1 > 0 else 1)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    plain_axes(axes)
    return handles
