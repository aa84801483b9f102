"""Figures, and what they have in common: axes, legends, colours."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from ..agents.core.logging import read_csv
from .statistics import Summary, estimate_curve


def read_columns(path: Path, *names: str) -> list[np.ndarray]:
    """Read columns of a CSV file.

    :param path: the file
    :param names: columns; rows in which one is empty are left out, as is a last line that is still being written
    :return: one float array per name
    """
    rows = [row for row in read_csv(path) if all(row.get(name) for name in names)]
    return [np.array([float(row[name]) for row in rows]) for name in names]


def plain_axes(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """Give axes a faint grid and no frame but the two scales.

    :param axes: the axes
    :param grid: along which scale
    """
    axes.grid(axis=grid, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def decades(axis: Axis, low: float, high: float) -> None:
    """Label a logarithmic axis by plain numbers: 1, 2 and 5 of each decade, or 1 alone where there are many."""
    few = high / low < 3000
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=10))
    axis.set_minor_formatter(NullFormatter())
    if few:
        axis.set_major_formatter("{x:g}")


def panel_grid(
    count: int, columns: int, size: tuple[float, float], room: float, x: str, y: str = ""
) -> tuple[Figure, list[Axes]]:
    """Make a figure with a grid of panels, of which the outer ones are labelled.

    :param count: of panels
    :param columns: of the grid
    :param size: width and height of a panel, in inches
    :param room: height for titles and legend
    :param x: label of the axes at the lower end
    :param y: label of the axes on the left
    :return: the figure and its panels, line by line
    """
    lines = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * lines + room), dpi=130, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel(y)
    for axes in grid.flat[max(0, count - columns) : count]:
        axes.set_xlabel(x)
    return figure, list(grid.flat[:count])


def legend_below(
    figure: Figure, handles: Mapping[str, Any], columns: int, title: str = "", size: float = 8, room: float = 0.6
) -> None:
    """Put a legend below a figure's panels, where no curve can be, in as many columns as its width has room for.

    :param figure: with its panels drawn; it becomes higher where the legend is
    :param handles: what is explained, by label
    :param columns: at most
    :param title: above the entries
    :param size: of letters, in points
    :param room: height that the figure has for it already, in inches
    """
    width = figure.get_figwidth()
    labels = [
        textwrap.fill(label, int(width * 110 / size)) for label in handles
    ]  # a letter is about half as wide as high
    for ncols in range(min(len(labels), columns), 0, -1):
        legend = figure.legend(
            list(handles.values()), labels, loc="outside lower center", ncols=ncols, frameon=False, fontsize=size,
            title=textwrap.fill(title, int(width * 14)) or None, title_fontsize=8,
        )  # fmt: skip
        extent = legend.get_window_extent()
        if extent.width < figure.bbox.width or ncols == 1:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + max(0.0, extent.height / figure.dpi - room))


def learning_curve(run: Path, title: str, steps_of: str = "environment steps") -> Path:
    """Draw a run's returns against its steps.

    :param run: folder with ``evaluations.csv`` and ``progress.csv``
    :param title: above the figure
    :param steps_of: below it: what is counted
    :return: the PNG written, ``learning_curve.png`` in the folder
    """
    figure = Figure(figsize=(7, 4.5), dpi=130, layout="constrained")
    axes = figure.subplots()
    steps, returns = read_columns(run / "progress.csv", "time/total_timesteps", "rollout/ep_rew_mean")
    if len(steps):  # none while the first episode lasts
        axes.plot(steps, returns, color="0.55", lw=1.2, label="training episodes (mean of the last 100)")
    steps, means, stds = read_columns(run / "evaluations.csv", "step", "mean", "std")
    axes.plot(steps, means, "o-", color="C0", ms=3.5, label="evaluation, deterministic (mean ± std)")
    axes.fill_between(steps, means - stds, means + stds, color="C0", alpha=0.2, lw=0)
    axes.set(xlabel=steps_of, ylabel="return", xlim=(0, None))
    axes.set_title(textwrap.fill(title, 62), fontsize=11)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 500k, 1M: written out, long runs' labels would touch
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    plain_axes(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)  # where no curve can be
    path = run / "learning_curve.png"
    figure.savefig(path)
    return path


def delay_laws(path: Path, laws: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Draw laws of delays beside the ages that follow from them.

    :param path: file to write
    :param laws: by name, the probabilities of delays of 0, 1, … ticks, and those of ages
    """
    figure = Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
    panels: Any = figure.subplots(1, 2, sharey=True)
    width = 0.8 / len(laws)
    for place, (name, pair) in enumerate(laws.items()):
        for axes, probs in zip(panels, pair, strict=True):
            ticks = np.arange(len(probs)) + (place - (len(laws) - 1) / 2) * width
            label = name if axes is panels[0] else None
            axes.bar(ticks, probs, width, color=COLOURS[place % len(COLOURS)], label=label)
    for axes, what in zip(panels, ("delay of a packet", "age of the newest that has arrived"), strict=True):
        axes.set(xlabel=f"{what}, ticks")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain_axes(axes, "y")
    panels[0].set_ylabel("probability")
    legend_below(figure, dict(zip(laws, panels[0].containers, strict=True)), 4, room=0.4)
    figure.savefig(path)


def returns_by_name(path: Path, title: str, what: str, names: Sequence[str], summaries: Sequence[Summary]) -> None:
    """Draw what one policy returns under several conditions.

    :param path: file to write
    :param title: above the figure
    :param what: the names are of
    :param names: of the conditions
    :param summaries: of the returns under each
    """
    figure = Figure(figsize=(7, 1.6 + 0.45 * len(names)), dpi=130, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(names))
    means, iqms = ([getattr(summary, name) for summary in summaries] for name in ("mean", "iqm"))
    axes.errorbar(
        means, places, xerr=[s.std for s in summaries], fmt="none", ecolor="0.7", capsize=3, label="mean ± std"
    )
    intervals = [[s.iqm - s.low for s in summaries], [s.high - s.iqm for s in summaries]]
    axes.errorbar(iqms, places, xerr=intervals, fmt="o", color="C0", lw=3, label="IQM, 95 % interval")
    axes.set(yticks=places, yticklabels=names, xlabel="return", ylabel=what)
    axes.set_ylim(len(names) - 0.5, -0.5)  # in the order given, from the top
    axes.set_title(textwrap.fill(title, 62), fontsize=11)
    plain_axes(axes, "x")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path)


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind people tell apart, less the yellow that white swallows."""

LINES = ("-", "--", ":", "-.")
"""One per round through the colours."""

Curve = tuple[np.ndarray, np.ndarray]
"""Steps (T) and returns (T) of one run."""


def return_histograms(path: Path, panels: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Draw how the returns of data sets are distributed, as shares of their episodes.

    :param path: file to write
    :param panels: returns (E) of data sets by name, by environment
    """
    most = max(map(len, panels.values()))
    figure, grid = panel_grid(len(panels), 2 if len(panels) > 1 else 1, (6, 3.2), 0.2 * most, "return", "% of episodes")
    for axes, (env, sets) in zip(grid, panels.items(), strict=True):
        low, high = (function(np.concatenate(list(sets.values()))) for function in (np.min, np.max))
        edges = np.linspace(low, high, 41) if low < high else np.array([low - 0.5, high + 0.5])
        for colour, (name, returns) in zip(itertools.cycle(COLOURS), sets.items(), strict=False):
            shares = 100 * np.histogram(returns, edges)[0] / len(returns)
            label = f"{name} ({len(returns):,}, mean {returns.mean():.4g})"
            axes.stairs(shares, edges, color=colour, fill=True, alpha=0.25)
            axes.stairs(shares, edges, color=colour, label=label)
            axes.axvline(returns.mean(), color=colour, lw=1, ls=":")
        axes.set_title(env, fontsize=11)
        axes.legend(frameon=False, fontsize=8)
        plain_axes(axes)
    figure.savefig(path)


def learning_curves(
    panels: Mapping[str, Mapping[str, Sequence[Curve]]], path: Path, steps_of: str = "environment steps"
) -> None:
    """Draw interquartile means over runs with pointwise 95 % bootstrap bands, a panel per environment.

    :param panels: the runs' curves, by environment and by the label of their group
    :param path: the PNG to write
    :param steps_of: below the panels: what is counted
    """
    columns = len(panels) if len(panels) < 4 else 2 if len(panels) == 4 else 3
    size = (7, 3.9) if len(panels) == 1 else (4.5, 3.4)
    figure, grid = panel_grid(len(panels), columns, size, 0.6, steps_of, "return of evaluations")
    labels = list(dict.fromkeys(label for groups in panels.values() for label in groups))
    handles: dict[str, Any] = {}
    for axes, (title, groups) in zip(grid, panels.items(), strict=True):
        for label, curves in groups.items():
            if curves:
                number = labels.index(label)
                look = {"color": COLOURS[number % len(COLOURS)], "ls": LINES[number // len(COLOURS) % len(LINES)]}
                handles[label] = _draw_group(axes, curves, look)
        axes.set_title(textwrap.fill(title, 45), fontsize=11)
        axes.margins(x=0.02)
        axes.set(xlim=(0, None))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(EngFormatter(sep="") if max(map(abs, axes.get_ylim())) >= 10_000 else "{x:,g}")
        plain_axes(axes)
    counts = sorted({len(curves) for groups in panels.values() for curves in groups.values() if curves})
    runs = f"{counts[0]} to {counts[-1]} runs" if len(counts) > 1 else f"{counts[0]} run{'s' * (counts[0] > 1)}"
    band = "; band: 95 % bootstrap interval" if counts[-1] > 1 else ""
    shown = {label: handles[label] for label in labels if label in handles}
    legend_below(figure, shown, 3 + columns, f"interquartile mean of {runs} each{band}", 9)
    figure.savefig(path)


def _draw_group(axes: Axes, curves: Sequence[Curve], look: Mapping[str, Any]) -> Any:
    steps, values = aligned(curves)
    middle, low, high = estimate_curve(values)
    (line,) = axes.plot(steps, middle, lw=1.8, marker="o" if len(steps) == 1 else "", **look)
    axes.fill_between(steps, low, high, color=look["color"], alpha=0.18, lw=0)
    return line


def aligned(curves: Sequence[Curve]) -> Curve:
    """Bring runs that were evaluated at different steps together, by linear interpolation.

    :param curves: of N runs
    :return: steps (T) that all of them have reached, and returns (N, T)
    """
    steps = np.unique(np.concatenate([steps for steps, _ in curves]))
    start, end = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    steps = steps[(steps >= start) & (steps <= end)]
    return steps, np.stack([np.interp(steps, *curve) for curve in curves])


STYLES: dict[str, tuple[str, str, str, str, float]] = {
    "headway": ("Headway, CPU", "#0072B2", "o", "-", 1.0),
    "headway-delayed": ("Headway behind delays, CPU", "#E69F00", "v", "-", 1.0),
    "headway-gpu": ("Headway, GPU", "#D55E00", "D", "-", 1.0),
    "mujoco.batch": ("mujoco.batch alone: the limit", "#7F7F7F", "_", "--", 1.0),
    "envpool": ("EnvPool", "#009E73", "^", "", 1.0),
    "gymnasium": ("one Gymnasium env", "#000000", "x", "", 1.0),
    "gymnasium-sync": ("Gymnasium SyncVectorEnv", "#56B4E9", "s", "", 0.86),
    "gymnasium-async": ("Gymnasium AsyncVectorEnv", "#56B4E9", "P", "", 0.86),
    "sb3-dummy": ("SB3 DummyVecEnv", "#CC79A7", "s", "", 1.16),
    "sb3-subproc": ("SB3 SubprocVecEnv", "#CC79A7", "P", "", 1.16),
}
"""Of what a rollout benchmark times: label, colour (Okabe and Ito's), marker, line, and how far beside its place it is
drawn, so that none hides another."""


def rollout_speeds(
    rates: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]], title: str, note: str, path: Path
) -> None:
    """Draw steps per second against the number of rows, a panel per robot, both axes logarithmic.

    :param rates: rates of all rounds, by robot, side (a key of ``STYLES``) and number of rows
    :param title: above the figure
    :param note: small, below it
    :param path: the PNG to write
    """
    columns = min(2, len(rates))
    labels = ("rows stepped together", "environment steps per second")
    figure, panels = panel_grid(len(rates), columns, (5.2, 3.6), 1.6, *labels)
    handles: dict[str, Any] = {}
    for axes, (robot, sides) in zip(panels, rates.items(), strict=True):
        for side, by_rows in sides.items():
            handles[STYLES[side][0]] = _draw_side(axes, side, by_rows)
        axes.set(title=robot, xscale="log", yscale="log", xticks=sorted({n for side in sides.values() for n in side}))
        axes.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_minor_formatter(NullFormatter())
        plain_axes(axes)
    figure.suptitle(textwrap.fill(title, 40 * columns), fontsize=12)
    legend_below(figure, handles, columns + 1, note, room=1.2)
    figure.savefig(path)


def _draw_side(axes: Axes, side: str, by_rows: Mapping[int, Sequence[float]]) -> Any:
    """Medians, and bars from the least to the greatest."""
    _, colour, marker, line, beside = STYLES[side]
    rows = sorted(by_rows)
    medians = np.array([np.median(by_rows[n]) for n in rows])
    reach = np.abs([[min(by_rows[n]) for n in rows], [max(by_rows[n]) for n in rows]] - medians)
    places = [n * beside for n in rows]
    order = 3 if side.startswith("headway") else 2
    return axes.errorbar(places, medians, reach, c=colour, marker=marker, ms=6, ls=line, elinewidth=1, zorder=order)
