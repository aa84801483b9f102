"""Figures."""

import csv
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator


def read_columns(path: Path, *names: str) -> list[np.ndarray]:
    """Read columns of a CSV file.

    :param path: the file
    :param names: columns; rows in which one is empty are left out
    :return: one float array per name
    """
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if all(row.get(name) for name in names)]
    return [np.array([float(row[name]) for row in rows]) for name in names]


def learning_curve(run: Path, title: str) -> Path:
    """Draw a run's returns against its environment steps.

    :param run: folder with ``evaluations.csv`` and ``progress.csv``
    :param title: above the figure
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
    axes.set(xlabel="environment steps", ylabel="return", xlim=(0, None))
    axes.set_title(textwrap.fill(title, 62), fontsize=11)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 500k, 1M: written out, long runs' labels would touch
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)  # where no curve can be
    path = run / "learning_curve.png"
    figure.savefig(path)
    return path
