"""Summaries of returns: mean, spread, and the interquartile mean with a bootstrap interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Summary:
    """Returns in a few numbers.

    :param episodes: how many returns
    :param mean: their mean
    :param std: their standard deviation
    :param iqm: mean of the middle half (arXiv 2108.13264)
    :param low: lower end of the IQM's 95 % percentile-bootstrap interval
    :param high: its upper end
    :param length: mean episode length, in steps
    """

    episodes: int
    mean: float
    std: float
    iqm: float
    low: float
    high: float
    length: float

    def __str__(self) -> str:
        return (
            f"return {self.mean:.1f} ± {self.std:.1f}   IQM {self.iqm:.1f} [{self.low:.1f}, {self.high:.1f}] (95 %)   "
            f"length {self.length:.0f}   {self.episodes} episode{'' if self.episodes == 1 else 's'}"
        )


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of what is left when the least and the largest quarter are put aside, each rounded down.

    Not scipy's ``trim_mean``, for the second that it takes to import.

    :param values: (*, N)
    :return: (*)
    """
    cut = values.shape[-1] // 4
    return np.asarray(np.sort(values)[..., cut : values.shape[-1] - cut].mean(-1))


def summarise(returns: Sequence[float], lengths: Sequence[int], *, seed: int = 0, resamples: int = 10_000) -> Summary:
    """Summarise the returns of some episodes.

    :param returns: one per episode
    :param lengths: one per episode, in steps
    :param seed: of the bootstrap
    :param resamples: bootstrap samples
    :return: the summary
    :raises ValueError: no episodes
    """
    values = np.asarray(returns, dtype=np.float64)
    if not len(values):
        raise ValueError("no episodes to summarise: at least one must finish")
    drawn = np.random.default_rng(seed).choice(values, (resamples, len(values)))
    low, high = np.percentile(interquartile_mean(drawn), [2.5, 97.5])
    iqm = float(interquartile_mean(values))
    mean, std = float(values.mean()), float(values.std())
    return Summary(len(values), mean, std, iqm, float(low), float(high), float(np.mean(lengths)))
