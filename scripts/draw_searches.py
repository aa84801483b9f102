"""``headway plot --search``: what trees of several sizes bring, by how well their policies were trained."""

import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from ..agents.core.logging import read_csv
from ..agents.tpo import Search
from ..agents.tpo.tree import TreeConfig
from .figures import COLOURS, legend_below, panel_grid, plain_axes
from .search import ALONE
from .statistics import Estimate, estimate_iqm

NEEDED = ("policy", "steps", "search", "mean")
"""Columns of the files that are drawn."""


@dataclass
class Sizes:
    """Mean returns of policies that were trained equally long.

    :param alone: of the policies alone, one each
    :param trees: of the policies with trees of K candidates, by K and by simulations
    """

    alone: list[float] = field(default_factory=list)
    trees: defaultdict[int, defaultdict[int, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )


def read_sizes(files: Sequence[Path]) -> dict[int, Sizes]:
    """Read what ``headway evaluate --search tree:… --csv`` wrote.

    :param files: of policies in one environment
    :return: by the steps that policies were trained for; searches that are no trees with two plain numbers are left out
    :raises ValueError: a file has other columns, or there is no tree in them
    """
    found: defaultdict[int, Sizes] = defaultdict(Sizes)
    for path in files:
        rows = read_csv(path)
        if not rows or any(name not in rows[0] for name in NEEDED):
            raise ValueError(
                f"{path} has no columns {', '.join(NEEDED)}: it is not of headway evaluate --search … --csv"
            )
        for row in rows:
            sizes, mean = found[int(row["steps"])], float(row["mean"])
            if row["search"] == ALONE:
                sizes.alone.append(mean)
                continue
            search = Search.of(row["search"])
            plain = not search.reuse and search.settings.keys() == {"simulations", "candidates"}
            if search.planner == "tree" and plain:
                config = TreeConfig.from_dict(search.settings)
                sizes.trees[config.candidates][config.simulations].append(mean)
    if not any(sizes.trees for sizes in found.values()):
        raise ValueError("there is no tree of so many simulations and candidates (tree:32,8) in these files")
    return dict(sorted(found.items()))


def tree_sizes(found: Mapping[int, Sizes], title: str, path: Path) -> None:
    """Draw returns against simulations, a line for each number of candidates and a panel for each length of training.

    :param found: see :func:`read_sizes`
    :param title: above the figure
    :param path: the figure to write
    """
    figure, panels = panel_grid(
        len(found), min(3, len(found)), (3.7, 3.3), 0.9, "simulations per decision (N)", "return"
    )
    handles: dict[str, Any] = {}
    most = max(len(sizes.alone) for sizes in found.values())
    candidates = sorted({k for sizes in found.values() for k in sizes.trees})
    for axes, (steps, sizes) in zip(panels, found.items(), strict=True):
        handles[ALONE] = _draw_alone(axes, estimate_iqm([np.array(sizes.alone)]))
        for k, colour in zip(candidates, COLOURS, strict=False):
            if sizes.trees[k]:
                handles[f"tree, K = {k}"] = _draw_trees(axes, sizes.trees[k], colour)
        counts = sorted({n for by_count in sizes.trees.values() for n in by_count})
        axes.set(xscale="log", xticks=counts, title="untrained" if steps == 0 else f"after {steps:,} steps of training")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:,g}")
        plain_axes(axes)
    figure.suptitle(textwrap.fill(title, 90), fontsize=12)
    note = f"interquartile mean of {most} policies each; bars and band: 95 % bootstrap interval" if most > 1 else ""
    legend_below(figure, handles, 5, note, 9)
    figure.savefig(path)


def _draw_alone(axes: Axes, alone: Estimate) -> Any:
    axes.axhspan(alone.low, alone.high, color="0.5", alpha=0.18, lw=0)
    return axes.axhline(alone.value, color="0.3", ls="--", lw=1.4)


def _draw_trees(axes: Axes, by_count: Mapping[int, Sequence[float]], colour: str) -> Any:
    counts = sorted(by_count)
    found = [estimate_iqm([np.array(by_count[n])]) for n in counts]
    values = [one.value for one in found]
    reach = [[one.value - one.low for one in found], [one.high - one.value for one in found]]
    return axes.errorbar(counts, values, reach, color=colour, marker="o", ms=4, lw=1.6, capsize=2)
