"""Figures of what agents logged of themselves: the generations of a population, the trainings of a model."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from ..agents.core.logging import read_csv
from .figures import COLOURS, Curve, aligned, decades, panel_grid, plain_axes, read_columns
from .grouping import sort_runs
from .runs import read_run

Record = Mapping[str, Curve]
"""What an agent logged of itself, by name: at which steps, and values. A line of the log that covers several events, as
generations or trainings of a model, has their means, of the steps too; one that covers none is not in it."""

Drawer = Callable[[Axes, Sequence[Record], Mapping[str, Any]], None]
"""Draws a panel from the records of runs and their hyper-parameters."""


@dataclass(frozen=True)
class Inside:
    """A figure of what agents logged of themselves.

    :param name: of the flag, of the figure, and what columns of ``progress.csv`` begin with
    :param event: what is logged; the column of this name has its number
    :param agents: whose runs have it
    :param panels: by title, the column that a panel needs, and who draws it
    """

    name: str
    event: str
    agents: str
    panels: Mapping[str, tuple[str, Drawer]]


def read_inside(runs: Sequence[Path], inside: Inside) -> list[Record]:
    """Read what runs logged of themselves.

    :param runs: run folders, of one agent with one setting in one environment
    :param inside: what is asked for
    :return: one record per run
    :raises ValueError: one has nothing of the kind, or they are of several kinds
    """
    kinds = [f"{label} in {env}" for env, groups in sort_runs(runs).items() for label in groups]
    flag, prefix = f"--{inside.name}", f"{inside.name}/"
    if len(kinds) > 1:
        raise ValueError(f"{flag} draws runs of one kind, got {len(kinds)}: {'; '.join(kinds)}; name one's runs")
    found: list[Record] = []
    for run in runs:
        path, time = run / "progress.csv", f"{prefix}timesteps"
        names = next(iter(read_csv(path)), {}) if path.exists() else {}
        if time not in names:
            raise ValueError(
                f"{run} has no {inside.event}s: it is a run of {read_run(run)['agent']}, or its first one has not been "
                f"logged yet; name runs of {inside.agents}"
            )
        curves = {name: read_columns(path, time, name) for name in names if name.startswith(prefix)}
        record = {name.removeprefix(prefix): (steps, values) for name, (steps, values) in curves.items()}
        evaluations = read_columns(run / "evaluations.csv", "step", "mean")
        record["evaluation"] = tuple(column[1:] for column in evaluations)  # type: ignore[assignment]
        found.append({name: curve for name, curve in record.items() if len(curve[0])})
    return found


def count_events(record: Record, event: str) -> list[int]:
    """:return: how many events each line of a log has the means of, found from the means of their numbers."""
    last, counts = 0, []
    for mean in record[event][1]:
        before, last = last, round(2 * mean) - 1 - last  # from before + 1 to last
        counts.append(last - before)
    return counts


def inside_figure(runs: Sequence[Record], inside: Inside, title: str, path: Path, config: Mapping[str, Any]) -> None:
    """Draw what one run logged of itself, or several seeds of the same.

    :param runs: their records
    :param inside: which figure
    :param title: above it
    :param path: the figure to write
    :param config: hyper-parameters of the runs
    """
    known = {name for run in runs for name in run} - (set() if config.get("guided") else {"guided"})
    chosen = {title: draw for title, (need, draw) in inside.panels.items() if need in known}
    figure, panels = panel_grid(len(chosen), 2, (5.4, 2.7), 0.6, "environment steps")
    for axes, (name, draw) in zip(panels, chosen.items(), strict=True):
        draw(axes, runs, config)
        axes.set_title(name, fontsize=10, loc="left")
        if axes.get_legend_handles_labels()[1]:
            axes.legend(
                loc="lower right", bbox_to_anchor=(1.01, 0.98), ncols=4, frameon=False, fontsize=8, borderpad=0.2,
                handlelength=1.2, columnspacing=0.9, handletextpad=0.4,
            )  # fmt: skip
        axes.set_xlim(0, 1.03 * max(steps[-1] for run in runs for steps, _ in run.values()))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        plain_axes(axes)
    counts = [count_events(run, inside.event) for run in runs]
    totals, most = sorted(map(sum, counts)), max(map(max, counts))
    span = f"{totals[0]:,} to " * (totals[0] < totals[-1]) + f"{totals[-1]:,} {inside.event}" + "s" * (totals[-1] > 1)
    figure.suptitle(textwrap.fill(f"{title}, {span}", 80), fontsize=12)
    means = "; shares: means" * (inside is POPULATION)
    notes = [f"lines: median of {len(runs)} runs; bands: least to greatest{means}"] * (len(runs) > 1)
    notes += [f"a point is the mean of up to {most} {inside.event}s, those since the last line of the log"] * (most > 1)
    figure.supxlabel("; ".join(notes), fontsize=8)
    figure.savefig(path)


def _draw_curves(axes: Axes, runs: Sequence[Record], names: Mapping[str, str], **look: Any) -> None:
    """Lines of a run; of several the median, and a band from the least to the greatest."""
    for (name, label), colour in zip(names.items(), COLOURS, strict=False):
        if not (curves := [run[name] for run in runs if name in run]):
            continue
        steps, values = aligned(curves)
        marker = "." if len(steps) < 60 else ""
        style: dict[str, Any] = {"color": colour, "label": label, "lw": 1.4, "marker": marker, "ms": 4} | look
        axes.plot(steps, np.median(values, 0), **style)
        if len(curves) > 1:
            axes.fill_between(steps, values.min(0), values.max(0), color=style["color"], alpha=0.18, lw=0)


def _blocks(runs: Sequence[Record], name: str) -> Curve:
    """:return: a share, averaged over runs, as the outline of blocks: one around each time of a generation's end"""
    steps, values = aligned([run[name] for run in runs if name in run])
    edges = np.concatenate((steps[:1], (steps[1:] + steps[:-1]) / 2, steps[-1:]))
    edges[0] -= edges[1] - edges[0] if len(steps) > 1 else steps[0] / 2
    edges[-1] += edges[-1] - edges[-2] if len(steps) > 1 else steps[0] / 2
    return np.repeat(edges, 2)[1:-1], np.repeat(values.mean(0), 2)


def _draw_returns(axes: Axes, runs: Sequence[Record], config: Mapping[str, Any]) -> None:
    names = {"best_return": "best", "mean_return": "mean", "learner_return": "learner", "evaluation": "evaluated"}
    _draw_curves(axes, runs, names)


def _draw_ranks(axes: Axes, runs: Sequence[Record], config: Mapping[str, Any]) -> None:
    _draw_curves(axes, runs, {"learner_rank": ""}, color=COLOURS[2])
    axes.set_ylim(config.get("population_size", 10) + 0.5, 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_parents(axes: Axes, runs: Sequence[Record], config: Mapping[str, Any]) -> None:
    below: Any = 0.0
    for colour, name in zip(("#000000", *COLOURS[:3]), ("elite", "screened", "random", "learner"), strict=True):
        steps, shares = _blocks(runs, f"parents_{name}")
        if shares.any():
            axes.fill_between(steps, 100 * below, 100 * (below + shares), color=colour, alpha=0.75, lw=0, label=name)
        below = below + shares
    axes.set(ylim=(0, 100), ylabel="%")


def _draw_foresight(axes: Axes, runs: Sequence[Record], config: Mapping[str, Any]) -> None:
    _draw_curves(axes, runs, {"rank_correlation": ""}, lw=0.8)
    mean = np.nanmean(np.concatenate([run["rank_correlation"][1] for run in runs if "rank_correlation" in run]))
    axes.axhline(mean, color=COLOURS[1], lw=1.4, label=f"mean {mean:+.2f}")
    axes.axhline(0, color="0.4", lw=0.8)
    axes.set_ylim(-1.05, 1.05)


def _draw_guidance(axes: Axes, runs: Sequence[Record], config: Mapping[str, Any]) -> None:
    steps, guided = _blocks(runs, "guided")
    counts = np.concatenate([count_events(run, "generation") for run in runs])
    share = np.average(np.concatenate([run["guided"][1] for run in runs]), weights=counts)
    scale = axes.get_xaxis_transform()  # 1 is the panel's height
    axes.fill_between(steps, 0, guided, transform=scale, color="0.85", lw=0, label=f"guided ({share:.0%})")
    _draw_curves(axes, runs, {"beta": "beta"})
    distances = [run["distance"] for run in runs if "distance" in run]
    if distances:
        axes.plot(*np.concatenate(distances, 1), ".", color=COLOURS[1], ms=4, label="distance")
        axes.axhline(config["target_distance"], color=COLOURS[1], lw=0.9, ls="--", label="wanted")
    axes.set_yscale("log")
    decades(axes.yaxis, *axes.get_ylim())


def _draw_width(axes: Axes, runs: Sequence[Record], config: Mapping[str, Any]) -> None:
    _draw_curves(axes, runs, {"width": ""})
    axes.set(ylim=(0, None), ylabel="standard deviation of a weight")


def _draw_evaluations(axes: Axes, runs: Sequence[Record], config: Mapping[str, Any]) -> None:
    _draw_curves(axes, runs, {"evaluation": ""})


def _draw_errors(axes: Axes, runs: Sequence[Record], config: Mapping[str, Any]) -> None:
    _draw_curves(axes, runs, {"error": "mean squared error", "spread": "spread of members"})
    axes.set_yscale("log")
    decades(axes.yaxis, *axes.get_ylim())


def _draw_calibration(axes: Axes, runs: Sequence[Record], config: Mapping[str, Any]) -> None:
    _draw_curves(axes, runs, {"calibration": ""})
    axes.axhline(1, color="0.4", lw=0.8)
    axes.set_ylim(bottom=0)


def _draw_passes(axes: Axes, runs: Sequence[Record], config: Mapping[str, Any]) -> None:
    _draw_curves(axes, runs, {"passes": "passes", "rollout_length": "steps of a rollout"})
    axes.set_ylim(bottom=0)


POPULATION = Inside(
    "population",
    "generation",
    "PGPS or CEM",
    {
        "return of an episode": ("mean_return", _draw_returns),
        "learner's rank (1: the best)": ("learner_rank", _draw_ranks),
        "parents, by origin": ("parents_elite", _draw_parents),
        "critic's foresight: rank correlation": ("rank_correlation", _draw_foresight),
        "guidance": ("guided", _draw_guidance),
        "width of the search": ("width", _draw_width),
    },
)
MODEL = Inside(
    "model",
    "training",
    "MBPO",
    {
        "return of an episode, evaluated": ("evaluation", _draw_evaluations),
        "on held-out rows": ("error", _draw_errors),
        "squared error over expected variance (1: calibrated)": ("calibration", _draw_calibration),
        "a training of the model": ("passes", _draw_passes),
    },
)
