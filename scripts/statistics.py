"""Summaries of returns: mean, spread, and the interquartile mean with a bootstrap interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


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
            f"length {self.length:.0f}   {self.episodes} episodes"
        )


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
    low, high = np.percentile(stats.trim_mean(drawn, 0.25, axis=1), [2.5, 97.5])
    iqm = float(stats.trim_mean(values, 0.25))
    mean, std = float(values.mean()), float(values.std())
    return Summary(len(values), mean, std, iqm, float(low), float(high), float(np.mean(lengths)))
