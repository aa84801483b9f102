"""The figure of ``headway evaluate --missions``: scores by task and split."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .figures import COLOURS, legend_below, plain_axes
from .missions import Told, normalised_units, units
from .statistics import estimate_mean

NAMES = {
    "train": "sentences of training",
    "text_known": "new sentences, known words",
    "text_new": "new words",
    "task": "new tasks",
}


def draw_missions(found: Sequence[Sequence[Told]], title: str, path: Path) -> None:
    """Draw the mean score of each task, with its interval, in one colour per split.

    :param found: see :func:`~headway.scripts.missions.evaluate_missions`
    :param title: above the figure
    :param path: of the figure
    """
    tasks = list(dict.fromkeys(told[0].task.id for told in found))
    splits = list(dict.fromkeys(told[0].split for told in found))
    pooled = {(told[0].split, told[0].task.id): told for told in found}
    normalised = all(normalised_units(told) is not None for told in found)
    figure = Figure(figsize=(7, 1.6 + 0.24 * len(tasks)), dpi=130, layout="constrained")
    axes = figure.subplots()
    handles: dict[str, Any] = {}
    for index, split in enumerate(splits):
        shown = [(place, pooled[split, task]) for place, task in enumerate(tasks) if (split, task) in pooled]
        scores = [normalised_units(told) if normalised else units([one.scores for one in told]) for _, told in shown]
        means = [estimate_mean([values]) for values in scores if values is not None]
        places = np.array([place for place, _ in shown]) + 0.7 * ((index + 0.5) / len(splits) - 0.5)
        values = np.array([mean.value for mean in means])
        reach = np.array([[mean.value - mean.low, mean.high - mean.value] for mean in means]).T
        handles[NAMES[split]] = axes.errorbar(
            values, places, xerr=np.nan_to_num(reach).clip(0), fmt="o", ms=4, lw=1.5, color=COLOURS[index]
        )
    what = "score: 0 a random player's, 1 that of one who looks ahead" if normalised else "score of the task"
    axes.set(yticks=np.arange(len(tasks)), yticklabels=tasks, xlabel=what, xlim=(-0.03, 1.03))
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_title(textwrap.fill(title, 62), fontsize=11)
    plain_axes(axes, "both")
    policies, episodes = len(found[0]), len(found[0][0].scores)
    note = f"mean of {policies} policies, {episodes} episodes each" if policies > 1 else f"mean of {episodes} episodes"
    legend_below(figure, handles, 4, f"{note}; bar: 95 % bootstrap interval", 8)
    figure.savefig(path)
