"""Interquartile means, probabilities of improvement, and their bootstrap intervals."""

import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.stats
from headway.scripts.statistics import (
    COVERAGE,
    coverage,
    estimate_curve,
    estimate_improvement,
    estimate_iqm,
    interquartile_mean,
    summarise,
)


@pytest.mark.parametrize("count", range(1, 14))
def test_interquartile_mean_is_the_published_trimmed_mean(count: int) -> None:
    values = np.random.default_rng(count).normal(size=(4, count))
    np.testing.assert_allclose(interquartile_mean(values), scipy.stats.trim_mean(values, 0.25, axis=1), rtol=1e-12)


@pytest.mark.parametrize("count", [3, 4, 5, 9])
def test_what_is_no_number_is_never_among_the_best(count: int) -> None:
    values = np.arange(count, dtype=float)
    values[1] = np.nan
    assert np.isnan(interquartile_mean(values))  # sorting puts it last, to be put aside with the best quarter
    assert np.isnan(estimate_iqm([values]).value)
    improved = estimate_improvement([values], [np.zeros(count)])
    assert np.isnan(improved.value)
    summary = summarise(values.tolist(), [7] * count)
    assert np.isnan([summary.mean, summary.iqm, summary.low, summary.high]).all()
    assert "nan ± nan   IQM nan [nan, nan]" in str(summary)
    assert f"length 7   {count} episodes, 1 of them without a finite return" in str(summary)


def test_an_interval_of_many_episodes_is_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the same numbers: a generator gives one row after the other."""
    values = np.random.default_rng(0).normal(size=700)
    drawn = np.random.default_rng(5).choice(values, (3_001, 700))
    expected = np.percentile(interquartile_mean(drawn), [2.5, 97.5])
    found = estimate_iqm([values], seed=5, resamples=3_001)
    assert (found.low, found.high) == tuple(expected)


def test_ten_thousand_episodes_take_little_memory() -> None:
    values = np.random.default_rng(0).normal(size=10_000).tolist()
    tracemalloc.start()
    try:
        summarise(values, [1] * 10_000, resamples=300)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6  # a part is a million numbers, which are sorted in a copy


def test_iqm_pools_the_runs_of_all_environments() -> None:
    one, two = np.array([0.0, 10, 20]), np.array([1.0, 2, 3, 4, 1000])
    assert estimate_iqm([one, two]).value == np.mean([2, 3, 4, 10])  # of 8, two are put aside at each end
    assert estimate_iqm([one]).value == 10  # of 3, none


def test_iqm_interval_is_that_of_all_resamples() -> None:
    """Three runs have 27 equally likely resamples, two environments of two 16: few enough to write all of them down."""
    runs = np.array([1.0, 5.0, 100.0])
    all_means = [np.mean(drawn) for drawn in itertools.product(runs, repeat=3)]
    found = estimate_iqm([runs], resamples=20_000)
    assert (found.low, found.high) == tuple(np.percentile(all_means, [2.5, 97.5], method="inverted_cdf"))

    strata = [np.array([0.0, 1.0]), np.array([10.0, 30.0])]
    means = []
    for first in itertools.product(strata[0], repeat=2):
        for second in itertools.product(strata[1], repeat=2):
            means.append(np.mean(sorted([*first, *second])[1:3]))
    found = estimate_iqm(strata, resamples=20_000)
    assert (found.low, found.high) == (min(means), max(means)) == (5.0, 15.5)
    # Were the four resampled as one sample, the interval would reach higher: the greatest could be drawn four times.
    pooled = np.random.default_rng(0).choice([0, 1, 10, 30], (20_000, 4))
    assert np.percentile(interquartile_mean(pooled), 97.5) > 20


def test_iqm_interval_tends_to_the_normal_one() -> None:
    """Of many Gaussian runs the trimmed mean's variance is known: with a quarter cut at each end, about 1.195 / N."""
    count = 4000
    inner = scipy.stats.norm.ppf(0.75)
    density = scipy.stats.norm.pdf(inner)
    variance = (0.5 - 2 * inner * density + 2 * 0.25 * inner**2) / 0.25
    found = estimate_iqm([np.random.default_rng(1).normal(3, 2, count)], resamples=2_000)
    assert found.low < 3 < found.high
    # 2,000 resamples fix the width to about 2 %, the sample itself to about as much.
    assert found.high - found.low == pytest.approx(2 * 1.96 * 2 * np.sqrt(variance / count), rel=0.1)


def test_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    found = [estimate_iqm([rng.normal(5, 2, 20), rng.normal(5, 2, 20)], resamples=400) for _ in range(300)]
    held = np.mean([estimate.low <= 5 <= estimate.high for estimate in found])
    assert 0.90 < held < 0.98  # a binomial of 300 spreads by 0.013; the bootstrap of 40 runs is a little narrow


@pytest.mark.parametrize("count", sorted(COVERAGE))
def test_few_runs_are_said_to_cover_what_they_do(count: int) -> None:
    """600 samples spread by at most 0.02; of up to four the interval is their least and greatest."""
    rng = np.random.default_rng(count)
    samples = rng.normal(size=(600, count))
    found = [estimate_iqm([sample], resamples=400) for sample in samples]
    assert np.mean([e.low <= 0 <= e.high for e in found]) == pytest.approx(coverage(count), abs=0.05)
    if count <= 3:  # of four, one in twenty resamples has the least in its middle, which 400 may miss
        ends = np.array([[e.low, e.high] for e in found])
        np.testing.assert_allclose(ends, np.stack([samples.min(1), samples.max(1)], 1), atol=1e-12)
    assert np.isnan(coverage(1))
    assert coverage(1000) == COVERAGE[8]


def test_improvement_by_hand() -> None:
    ours, theirs = np.array([1.0, 3.0, 3.0]), np.array([0.0, 3.0])
    assert estimate_improvement([ours], [theirs]).value == pytest.approx((1 + 0 + 1 + 0.5 + 1 + 0.5) / 6)
    assert estimate_improvement([theirs], [ours]).value == pytest.approx(1 - 4 / 6)
    better, alike = np.array([7.0, 8.0]), np.array([2.0, 2.0])
    both = estimate_improvement([ours, better], [theirs, alike])
    assert both.value == pytest.approx((4 / 6 + 1) / 2)  # environments weigh alike, whatever their numbers of runs
    certain = estimate_improvement([better], [alike])
    assert (certain.value, certain.low, certain.high) == (1, 1, 1)
    same = estimate_improvement([alike], [alike])
    assert (same.value, same.low, same.high) == (0.5, 0.5, 0.5)


def test_improvement_is_mann_and_whitneys() -> None:
    rng = np.random.default_rng(3)
    ours, theirs = rng.integers(0, 6, 9).astype(float), rng.integers(0, 6, 7).astype(float)
    statistic = scipy.stats.mannwhitneyu(ours, theirs, alternative="greater").statistic
    assert estimate_improvement([ours], [theirs]).value == pytest.approx(statistic / 63)


def test_improvement_interval_is_that_of_all_resamples() -> None:
    """Both sides are resampled independently: 27 times 4 resamples, all written down."""
    ours, theirs = np.array([1.0, 3.0, 5.0]), np.array([0.0, 4.0])
    every = [
        np.mean([[np.heaviside(a - b, 0.5) for b in second] for a in first])
        for first in itertools.product(ours, repeat=3)
        for second in itertools.product(theirs, repeat=2)
    ]
    found = estimate_improvement([ours], [theirs], resamples=20_000)
    expected = np.percentile(every, [2.5, 97.5], method="inverted_cdf")
    np.testing.assert_allclose((found.low, found.high), expected, atol=1e-12)
    assert 0 <= found.low < found.value < found.high <= 1


def test_one_run_has_no_interval() -> None:
    one, more = np.array([2.0]), np.array([1.0, 3.0])
    for estimate in (estimate_iqm([one]), estimate_iqm([more, one]), estimate_improvement([more], [one])):
        assert np.isfinite(estimate.value)
        assert np.isnan([estimate.low, estimate.high]).all()
    assert np.isfinite(estimate_iqm([more, more]).low)


def test_estimates_depend_on_the_seed_alone() -> None:
    runs = np.random.default_rng(4).normal(size=15)
    assert estimate_iqm([runs], seed=1) == estimate_iqm([runs], seed=1)
    assert estimate_iqm([runs], seed=1, resamples=100) != estimate_iqm([runs], seed=2, resamples=100)
    assert estimate_improvement([runs], [runs + 0.2]) == estimate_improvement([runs], [runs + 0.2])


def test_curve_is_the_iqm_at_every_point() -> None:
    curves = np.random.default_rng(5).normal(size=(5, 7))
    middle, low, high = estimate_curve(curves)
    every = np.array(list(itertools.product(range(5), repeat=5)))  # all 3,125 resamples
    for point in range(7):
        assert middle[point] == estimate_iqm([curves[:, point]]).value
        drawn = interquartile_mean(curves[every, point])
        # 2,000 samples place a bound of 2.5 % between 1.5 % and 3.5 % (three standard deviations of 0.35 %).
        low_least, low_most, high_least, high_most = np.percentile(drawn, [1.5, 3.5, 96.5, 98.5])
        assert low_least <= low[point] <= low_most
        assert high_least <= high[point] <= high_most
    middle, low, high = estimate_curve(curves[:1])
    np.testing.assert_array_equal(middle, curves[0])
    assert np.isnan([low, high]).all()


# -- rliable, the package of arXiv 2108.13264's authors ----------------------------------------------------------------

RLIABLE = {"iqm": (0.5780011, 0.0699502, 1.0587342), "improvement": (0.6, 0.3666667, 0.8166667)}
"""Value and interval of :func:`scores` by rliable 1.2.0: ``get_interval_estimates`` with 50,000 resamples, once, after
``np.random.seed(0)``. It wants arch < 8, which does not go with pandas 3: in an environment of its own, without torch,
the last test holds these numbers against 2,000 new resamples::

    python3 -m venv rliable && rliable/bin/pip install --no-deps . \
        && rliable/bin/pip install rliable==1.2.0 "pandas<3" pytest pytest-timeout pytest-xdist \
        && rliable/bin/python -m pytest --noconftest -k rliable tests/scripts/test_statistics.py
"""


def scores() -> tuple[np.ndarray, np.ndarray]:
    """:return: of two agents, five and four runs in three environments"""
    rng = np.random.default_rng(6)
    return rng.normal(0.2, 1, (5, 3)), rng.normal(0, 1, (4, 3))


def test_agrees_with_rliable() -> None:
    """The same values, and intervals up to resamples: with as many, other seeds move a bound by 0.005."""
    ours, theirs = (list(side.T) for side in scores())
    found = {
        "iqm": estimate_iqm(ours, resamples=50_000),
        "improvement": estimate_improvement(ours, theirs, resamples=50_000),
    }
    for name, estimate in found.items():
        assert estimate.value == pytest.approx(RLIABLE[name][0], abs=1e-6), name
        np.testing.assert_allclose([estimate.low, estimate.high], RLIABLE[name][1:], atol=0.01, err_msg=name)


def test_rliable_says_what_is_recorded_of_it() -> None:
    """It draws from NumPy's global stream, whatever ``random_state`` it is given, and takes minutes for 50,000; 2,000
    place a bound within 0.06, four standard deviations."""
    library = pytest.importorskip("rliable.library")
    metrics = pytest.importorskip("rliable.metrics")
    ours, theirs = scores()
    np.random.seed(0)  # noqa: NPY002
    runs = {
        "iqm": (ours, lambda scores: np.array([metrics.aggregate_iqm(scores)])),
        "improvement": ((ours, theirs), metrics.probability_of_improvement),
    }
    for name, (data, function) in runs.items():
        values, intervals = library.get_interval_estimates({name: data}, function, reps=2_000)
        found = [float(np.squeeze(values[name])), *np.squeeze(intervals[name])]
        assert found[0] == pytest.approx(RLIABLE[name][0], abs=1e-6)
        np.testing.assert_allclose(found, RLIABLE[name], atol=0.06, err_msg=name)
