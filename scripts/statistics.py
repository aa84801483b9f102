"""Summaries of returns and comparisons of agents, with bootstrap intervals, as "Deep Reinforcement Learning at the Edge
of the Statistical Precipice" (Agarwal et al., arXiv 2108.13264) defines them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
"""Bootstrap samples behind an interval."""

COVERAGE = {2: 0.50, 3: 0.75, 4: 0.87, 5: 0.90, 6: 0.91, 7: 0.92, 8: 0.93}
"""How often a 95 % interval of an IQM holds the true one, by the number of normal values that it is drawn from; from 8
on 93 to 94 % (4,000 simulated samples each). Of up to four values it is their least and greatest, between which the
middle of any symmetric law lies with 1 - 2 ** (1 - N)."""


def coverage(count: int) -> float:
    """:return: how often an interval from so many values holds what it is of, where 95 % is meant; NaN of one value."""
    return COVERAGE[min(count, max(COVERAGE))] if count > 1 else np.nan


@dataclass(frozen=True)
class Summary:
    """Returns in a few numbers.

    :param episodes: how many returns
    :param mean: their mean
    :param std: their standard deviation
    :param iqm: mean of the middle half (arXiv 2108.13264)
    :param low: lower end of the IQM's 95 % percentile-bootstrap interval; NaN of one episode
    :param high: its upper end, or NaN
    :param length: mean episode length, in steps
    :param broken: how many returns are NaN or infinite
    """

    episodes: int
    mean: float
    std: float
    iqm: float
    low: float
    high: float
    length: float
    broken: int = 0

    def __str__(self) -> str:
        broken = f", {self.broken} of them without a finite return" if self.broken else ""
        if self.episodes == 1:
            return f"return {self.mean:.1f}   length {self.length:.0f}   1 episode"
        return f"{self.spread()}   length {self.length:.0f}   {self.episodes} episodes{broken}"

    def spread(self) -> str:
        """:return: mean, standard deviation, and IQM with its interval, and how much that holds, in words"""
        level = 0.95 if self.episodes >= max(COVERAGE) else coverage(self.episodes)
        middle = f"IQM {self.iqm:.1f} [{self.low:.1f}, {self.high:.1f}] ({100 * level:.0f} %)"
        return f"return {self.mean:.1f} ± {self.std:.1f}   {middle}"


@dataclass(frozen=True)
class Estimate:
    """A quantity with its 95 % percentile-bootstrap interval.

    :param value: the quantity
    :param low: lower end of the interval; NaN where nothing can be resampled: one run says nothing of its spread
    :param high: its upper end, or NaN
    """

    value: float
    low: float
    high: float


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of what is left when the least and the largest quarter are put aside, each rounded down.

    Of three values nothing is put aside, of five one at each end. Not scipy's ``trim_mean``, which does the same, for
    the second that it takes to import.

    :param values: (*, N)
    :return: (*)
    """
    cut = values.shape[-1] // 4
    middle = np.asarray(np.sort(values)[..., cut : values.shape[-1] - cut].mean(-1))
    return np.where(np.isnan(values).any(-1), np.nan, middle)  # sorting puts NaN last, as if it were the best


def _resampled(scores: Sequence[np.ndarray], seed: int, resamples: int) -> np.ndarray:
    """Interquartile means of bootstrap samples, (resamples), drawn within each group; some at a time, since all of
    10,000 episodes would take gigabytes.
    """
    rng, total = np.random.default_rng(seed), sum(map(len, scores))
    if len(scores) > 1:  # group by group, each all at once, so that figures stay as they were
        return interquartile_mean(np.concatenate([rng.choice(runs, (resamples, len(runs))) for runs in scores], 1))
    size = max(1, 2**20 // total)
    sizes = [min(size, resamples - done) for done in range(0, resamples, size)]
    return np.concatenate([interquartile_mean(rng.choice(scores[0], (n, total))) for n in sizes])


def summarise(
    returns: Sequence[float], lengths: Sequence[int], *, seed: int = 0, resamples: int = RESAMPLES
) -> Summary:
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
    iqm = estimate_iqm([values], seed=seed, resamples=resamples)
    mean, std = float(values.mean()), float(values.std())
    return Summary(
        len(values), mean, std, iqm.value, iqm.low, iqm.high, float(np.mean(lengths)), int((~np.isfinite(values)).sum())
    )


def estimate_iqm(scores: Sequence[np.ndarray], *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Interquartile mean over all runs in all environments, with a stratified bootstrap interval.

    Runs are resampled within their environment, so every sample has as many runs of each as there are.

    :param scores: per environment, one score per run; of several environments, normalised to be comparable
    :param seed: of the bootstrap
    :param resamples: bootstrap samples
    :return: the estimate
    """
    value = float(interquartile_mean(np.concatenate(scores)))
    if _too_few(scores):
        return Estimate(value, np.nan, np.nan)
    return Estimate(value, *map(float, _interval(_resampled(scores, seed, resamples))))


def estimate_mean(scores: Sequence[np.ndarray], *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Mean over environments of the mean over runs, with a stratified bootstrap interval.

    It is for scores of which many are 0 or 1, whose middle half may all be the same.

    :param scores: per environment, one score per run
    :param seed: of the bootstrap
    :param resamples: bootstrap samples
    :return: the estimate
    """
    value = float(np.mean([runs.mean() for runs in scores]))
    if _too_few(scores):
        return Estimate(value, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    means = np.mean([rng.choice(runs, (resamples, len(runs))).mean(1) for runs in scores], 0)
    return Estimate(value, *map(float, _interval(means)))


def estimate_improvement(
    scores: Sequence[np.ndarray], baseline: Sequence[np.ndarray], *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Probability that a run scores higher than one of the baseline in the same environment; a tie counts half.

    In each environment it is Mann and Whitney's U over the number of pairs, and these are averaged. For the interval,
    the runs of both sides are resampled independently within each environment.

    :param scores: per environment, one score per run
    :param baseline: the same of the baseline; numbers of runs may differ
    :param seed: of the bootstrap
    :param resamples: bootstrap samples
    :return: the estimate; 0.5 is no difference
    """
    rng = np.random.default_rng(seed)
    few = _too_few([*scores, *baseline])
    values, drawn = [], np.zeros(resamples)
    for ours, theirs in zip(scores, baseline, strict=True):
        wins = np.heaviside(ours[:, None] - theirs, 0.5)  # (N, M)
        values.append(wins.mean())
        # How often each run is drawn is all that a sample's mean depends on.
        weights = [rng.multinomial(n, np.full(n, 1 / n), resamples) / n for n in wins.shape]
        drawn += np.einsum("bn,nm,bm->b", weights[0], wins, weights[1], optimize=True)
    low, high = (np.nan, np.nan) if few else _interval(drawn / len(values))
    return Estimate(float(np.mean(values)), float(low), float(high))


def estimate_curve(curves: np.ndarray, *, seed: int = 0, resamples: int = 2_000) -> np.ndarray:
    """Interquartile mean over runs at each point of their learning curves, with a pointwise 95 % interval.

    :param curves: (N runs, T points)
    :param seed: of the bootstrap, which draws whole runs
    :param resamples: bootstrap samples
    :return: (3, T): value, lower and upper end; the ends are NaN where there is but one run
    """
    value = interquartile_mean(curves.T)
    if _too_few([curves]):
        return np.stack([value, *np.full((2, len(value)), np.nan)])
    runs = np.random.default_rng(seed).integers(len(curves), size=(resamples, len(curves)))
    ends = [_interval(interquartile_mean(point[runs])) for point in curves.T]  # all at once would be gigabytes
    return np.stack([value, *np.array(ends).T])


def _too_few(scores: Sequence[np.ndarray]) -> bool:
    return min(map(len, scores)) < 2


def _interval(drawn: np.ndarray) -> np.ndarray:
    """:return: (2), the middle 95 % of bootstrap samples."""
    return np.asarray(np.percentile(drawn, [2.5, 97.5]))
