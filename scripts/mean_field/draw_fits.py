"""Pictures of what a fit of a crowd's reward recovered, and of its forecasts."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from ..figures import COLOURS, decades, legend_below, panel_grid, plain_axes
from .draw_crowds import colours, percent
from .draw_curves import COMPARED, FLOOR, look_of


def recovered_against_planted(
    path: Path, title: str, planted: Mapping[str, np.ndarray], recovered: Mapping[str, np.ndarray]
) -> None:
    """Draw what a fit recovered against what had been planted, with the line on which both are equal.

    :param path: file to write
    :param title: above the figure
    :param planted: values by kind of parameter
    :param recovered: the same, as fitted
    """
    figure = Figure(figsize=(5.2, 5.4), dpi=130, layout="constrained")
    axes = figure.subplots()
    everything = np.concatenate([np.ravel(part) for part in (*planted.values(), *recovered.values())])
    low, high = float(everything.min()), float(everything.max())
    margin = 0.06 * (high - low or 1.0)
    span = (low - margin, high + margin)
    axes.plot(span, span, color="0.6", lw=1, ls="--", label="equal")
    for number, (kind, truth) in enumerate(planted.items()):
        x, y = np.ravel(truth), np.ravel(recovered[kind])
        error = float(np.abs(y - x).max())
        label = f"{kind}: greatest error {error:.2g}"
        few = x.size <= 40
        look: dict[str, Any] = {"s": 45 if few else 8, "lw": 0.8 if few else 0, "edgecolors": "black"}
        axes.scatter(x, y, color=COLOURS[number % len(COLOURS)], label=label, zorder=4 if few else 3, **look)
    axes.set(xlim=span, ylim=span, xlabel="planted", ylabel="recovered", aspect="equal")
    axes.set_title(textwrap.fill(title, 48), fontsize=11, parse_math=False)
    plain_axes(axes)
    figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=8)
    figure.savefig(path)


def forecast_errors(path: Path, title: str, errors: Mapping[str, tuple[float, float]]) -> None:
    """Draw how far forecasts were off, at the last time and on average over times.

    :param path: file to write
    :param title: above the figure
    :param errors: JSD in nats, final and mean, by model
    """
    figure = Figure(figsize=(7, 1.7 + 0.42 * len(errors)), dpi=130, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(errors))
    # A forecast without an error, which a logarithmic axis cannot show, is drawn at its left end.
    floor = max(FLOOR, COMPARED * max(max(pair) for pair in errors.values()))
    axes.set_xscale("log")
    for column, label in enumerate(("at the last time", "mean over times")):
        values = np.array([pair[column] for pair in errors.values()])
        heights = places + (column - 0.5) * 0.36
        axes.plot(np.maximum(values, floor), heights, "os"[column], color=COLOURS[column], ms=6, label=label)
        for value, height in zip(values, heights, strict=True):
            place = (max(value, floor), height)
            axes.annotate(f"{value:.4f}", place, (7, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set(yticks=places, yticklabels=list(errors), xlabel="Jensen-Shannon divergence, nats (less is better)")
    axes.set(ylim=(len(errors) - 0.4, -0.6))
    decades(axes.xaxis, *axes.get_xlim())
    axes.margins(x=0.12)
    axes.set_title(textwrap.fill(title, 62), fontsize=11, parse_math=False)
    plain_axes(axes, "x")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path)


def forecasts(
    path: Path, title: str, observed: np.ndarray, lines: Mapping[str, np.ndarray], labels: Sequence[str], most: int = 8
) -> None:
    """Draw shares of states over time, observed and forecast, a panel per state.

    :param path: file to write
    :param title: above the figure
    :param observed: (N + 1, d)
    :param lines: forecasts of that shape, by model
    :param labels: names of the states
    :param most: states drawn at most: those with the most people
    """
    d = observed.shape[1]
    states = np.sort(np.argsort(-observed.mean(0), kind="stable")[:most])
    columns = 3 if len(states) in (3, 5, 6) else min(4, len(states))
    figure, panels = panel_grid(len(states), columns, (2.7, 2.2), 1.1, "time")
    handles: dict[str, Any] = {}
    for axes, state in zip(panels, states, strict=True):
        (handles["observed"],) = axes.plot(observed[:, state], "o", color="0.35", ms=3, zorder=3)
        for number, (name, line) in enumerate(lines.items()):
            (handles[name],) = axes.plot(line[:, state], lw=2 if number == 0 else 1, **look_of(number))
        axes.set_title(labels[state] if labels else f"state {state}", fontsize=9, parse_math=False)
        axes.yaxis.set_major_formatter(percent)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.label.set_fontsize(9)
        axes.tick_params(labelsize=8)
        axes.set_ylim(0, None)
        plain_axes(axes)
    title += f", {len(states)} of {d} states" if len(states) < d else ""
    figure.suptitle(textwrap.fill(title, 30 * columns), fontsize=11, parse_math=False)
    legend_below(figure, handles, 5)
    figure.savefig(path)


def reward_map(path: Path, title: str, reward: np.ndarray, seen: np.ndarray, labels: Sequence[str]) -> None:
    """Draw what moves from state to state are worth, from the reward of the best.

    :param path: file to write
    :param title: above the figure
    :param reward: (d, d), from and to
    :param seen: (d, d) bool, moves that exist
    :param labels: names of the states
    """
    d = len(reward)
    names = list(labels) or [str(state) for state in range(d)]
    figure = Figure(figsize=(3.4 + 0.5 * d, 2.2 + 0.45 * d), dpi=130, layout="constrained")
    axes = figure.subplots()
    shown = np.ma.masked_where(~seen, reward - reward[seen].max())
    image = axes.imshow(shown, cmap=colours())
    for i, j in zip(*np.nonzero(seen), strict=True):
        low = shown[i, j] < 0.5 * shown.min()
        text = f"{round(float(shown[i, j]), 1) + 0.0:.1f}"
        axes.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if low else "black")
    axes.set(xlabel="to", ylabel="from")
    axes.set_xticks(range(d), names, rotation=45, ha="right", fontsize=8, parse_math=False)
    axes.set_yticks(range(d), names, fontsize=8, parse_math=False)
    axes.set_title(textwrap.fill(title, 50), fontsize=11, parse_math=False)
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02)
    bar.set_label("reward less that of the best move (grey: never seen)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.savefig(path)


CROWDS = {"data": "flow=data: the crowd that was seen", "model": "flow=model: the crowd that follows from the reward"}
"""What fits take for the crowd in a reward."""


def error_against_people(path: Path, title: str, panels: Mapping[str, Mapping[str, Mapping[int, np.ndarray]]]) -> None:
    """Draw errors against the number of people seen, both axes logarithmic: medians, with bands from least to greatest.

    :param path: file to write
    :param title: above the figure
    :param panels: errors of all draws, by what is wrong, by the crowd of the fit, and by people; 0: all, in a note
    """
    figure = Figure(figsize=(4.4 * len(panels), 4.2), dpi=130, layout="constrained")
    handles: dict[str, Any] = {}
    for axes, (name, flows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        exact, shown = list[str](), sorted({count for flow in flows.values() for count in flow if count})
        for number, (flow, by_people) in enumerate(flows.items()):
            people = sorted(count for count in by_people if count)
            values = np.array([np.quantile(by_people[count], (0, 0.5, 1)) for count in people]).reshape(-1, 3)
            look = look_of(number)
            (handles[CROWDS[flow]],) = axes.plot(people, values[:, 1], marker="o", ms=4, lw=1.8, **look)
            axes.fill_between(people, values[:, 0], values[:, 2], color=look["color"], alpha=0.18, lw=0)
            exact += [f"{float(by_people[0].max()):.1g} (flow={flow})"] if 0 in by_people else []
        axes.set(xscale="log", yscale="log", xlabel="people in each crowd", ylabel=name)
        axes.set_xticks(shown, [f"{count:,}" for count in shown])
        axes.xaxis.set_minor_locator(NullLocator())
        decades(axes.yaxis, *axes.get_ylim())
        if exact:
            axes.set_title("exact shares: " + ", ".join(exact), fontsize=8)
        plain_axes(axes)
    figure.suptitle(textwrap.fill(title, 90), fontsize=11)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=8,
        title="median, and range over draws", title_fontsize=8,
    )  # fmt: skip
    figure.savefig(path)
