"""Figures."""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np


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
    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=130, layout="constrained")
    steps, returns = read_columns(run / "progress.csv", "time/total_timesteps", "rollout/ep_rew_mean")
    axes.plot(steps, returns, color="0.6", lw=1.2, label="training episodes (mean of the last 100)")
    steps, means, stds = read_columns(run / "evaluations.csv", "step", "mean", "std")
    axes.plot(steps, means, "o-", color="C0", ms=3.5, label="evaluation, deterministic (mean ± std)")
    axes.fill_between(steps, means - stds, means + stds, color="C0", alpha=0.2, lw=0)
    axes.set(xlabel="environment steps", ylabel="return", title=title)
    axes.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    path = run / "learning_curve.png"
    figure.savefig(path)
    plt.close(figure)
    return path
