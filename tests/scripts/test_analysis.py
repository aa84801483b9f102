"""Linear mixed models of the scores of a suite, against analyses of variance, t tests, statsmodels, simulations."""

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.stats
from headway.scripts.analysis import Analysis, analyse

ARMS, SEEDS, ENVIRONMENTS = ("a", "b", "c"), range(6), ("one", "two", "three", "four")


def table(values: np.ndarray) -> Analysis:
    """:return: the analysis of scores (environments, arms, seeds); what is NaN has not been run"""
    cells = [cell for cell in itertools.product(*map(range, values.shape)) if np.isfinite(values[cell])]
    scores = [float(values[cell]) for cell in cells]
    places = [ENVIRONMENTS[e] for e, _, _ in cells]
    return analyse(scores, places, [ARMS[a] for _, a, _ in cells], [s for *_, s in cells], "a")


def drawn(seed: int, *, arms: float, seeds: float, shape: tuple[int, int, int] = (1, 3, 6)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    e, a, s = shape
    return arms * np.arange(a)[:, None] + seeds * rng.normal(size=(e, 1, s)) + rng.normal(size=shape)


def mean_squares(scores: np.ndarray) -> tuple[float, float, float]:
    """Of arms, of seeds and of the rest, of a balanced table (arms, seeds)."""
    a, s = scores.shape
    of_arms, of_seeds = scores.mean(1, keepdims=True), scores.mean(0, keepdims=True)
    rest = ((scores - of_arms - of_seeds + scores.mean()) ** 2).sum() / ((a - 1) * (s - 1))
    return s * of_arms.var(ddof=1), a * of_seeds.var(ddof=1), rest


@pytest.mark.parametrize("seed", range(4))
def test_a_balanced_table_is_an_analysis_of_variance(seed: int) -> None:
    """Restricted maximum likelihood is that, where no variance is estimated as less than nothing."""
    scores = 100 + 30 * drawn(seed, arms=1.5, seeds=1.5)
    of_arms, of_seeds, rest = mean_squares(scores[0])
    assert min(of_arms, of_seeds) > rest
    expected = np.array([(of_arms - rest) / 6, (of_seeds - rest) / 3, rest])
    found = table(scores)
    assert list(found.shares) == ["arms", "seeds", "rest"]
    np.testing.assert_allclose(list(found.shares.values()), expected / expected.sum(), rtol=1e-3)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.reliability == pytest.approx(expected[0] / expected.sum(), rel=1e-3)
    assert found.reliability_of_means == pytest.approx(expected[0] / (expected[0] + expected[1:].sum() / 6), rel=1e-3)
    for arm, (value, *_) in found.effects.items():
        assert value == pytest.approx(scores[0, ARMS.index(arm)].mean() - scores[0, 0].mean())


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_of_two_arms_is_students_for_pairs(seed: int) -> None:
    scores = drawn(seed, arms=1, seeds=2, shape=(1, 2, 6))
    expected = scipy.stats.ttest_rel(scores[0, 1], scores[0, 0]).confidence_interval()
    np.testing.assert_allclose(table(scores).effects["b"][1:], [expected.low, expected.high], rtol=1e-3)


def test_the_interval_over_environments_is_students_over_environments() -> None:
    """Where arms differ from one environment to the next, these count, however many runs each has."""
    scores = drawn(0, arms=0, seeds=0.5, shape=(4, 2, 6))
    scores[:, 1] += np.array([1.0, 4, -1, 5])[:, None]
    differences = (scores[:, 1] - scores[:, 0]).mean(1)
    expected = scipy.stats.ttest_1samp(differences, 0).confidence_interval()
    np.testing.assert_allclose(table(scores).effects["b"][1:], [expected.low, expected.high], rtol=2e-3)
    assert table(scores).p > 0.01  # 24 pairs would say less than 1e-6, had they no environment in common


@pytest.mark.parametrize(("seed", "arms"), [(3, 0.0), (1, 0.3), (2, 1.0)])
def test_the_likelihood_ratio_is_statsmodels(seed: int, arms: float) -> None:
    mixed = pytest.importorskip("statsmodels.regression.mixed_linear_model")
    scores = drawn(seed, arms=arms, seeds=1.5)[0]
    scores[2, 4] = np.nan  # not balanced
    present = np.isfinite(scores)
    y = scores[present]
    arm, seeds = (np.eye(n)[index] for n, index in zip(scores.shape, np.nonzero(present), strict=True))
    components = mixed.VCSpec(["seeds"], [[[str(i) for i in range(6)]]], [[seeds]])

    def fitted(fixed: np.ndarray, reml: bool) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return mixed.MixedLM(y, fixed, np.zeros(len(y)), exog_vc=components).fit(reml=reml, gtol=1e-9)

    found = table(scores[None])
    expected = 2 * (fitted(arm, False).llf - fitted(np.ones((len(y), 1)), False).llf)
    assert found.statistic == pytest.approx(expected, abs=1e-3)
    assert found.p == pytest.approx(scipy.stats.chi2.sf(expected, 2), abs=1e-3)
    values = fitted(arm, True).params
    assert found.effects["b"][0] == pytest.approx(values[1] - values[0], abs=2e-3)


def test_planted_shares_come_back() -> None:
    """Of many arms and seeds in many environments; their standard deviations are planted."""
    rng = np.random.default_rng(0)
    planted = {"arms": 4.0, "environments": 9.0, "arms within environments": 1.0, "seeds within environments": 2.0}
    shape = e, a, s = 10, 6, 4
    sizes = {(1, a, 1): 4.0, (e, 1, 1): 9.0, (e, a, 1): 1.0, (e, 1, s): 2.0, shape: 4.0}
    scores = sum(np.sqrt(variance) * rng.normal(size=size) for size, variance in sizes.items())
    assert isinstance(scores, np.ndarray)
    cells = list(itertools.product(range(e), range(a), range(s)))
    places, arms = ([str(cell[axis]) for cell in cells] for axis in (0, 1))
    found = analyse([scores[cell] for cell in cells], places, arms, [cell[2] for cell in cells], "0")
    assert list(found.shares) == [*planted, "rest"]
    expected = np.array([*planted.values(), 4.0]) / 20
    # The variance of ten environments is known to a half, that of six arms to two thirds.
    np.testing.assert_allclose(list(found.shares.values()), expected, atol=0.2)
    assert 1 > found.reliability_of_means > found.reliability > 0
    assert found.p < 0.01  # these six arms happen to lie close together


def test_arms_that_are_alike_are_told_apart_about_as_seldom_as_the_page_says() -> None:
    """Two arms with five seeds: 11 in 100 below 0.05 (1,000 simulations); of 60 by three standard errors at most."""
    found = [table(drawn(seed, arms=0, seeds=0.5, shape=(1, 2, 5))).p for seed in range(60)]
    assert 0 < np.mean(np.array(found) < 0.05) <= 0.23


def test_what_cannot_be_told_is_said() -> None:
    scores = drawn(0, arms=1, seeds=1)
    assert "one environment: nothing is said of others" in table(scores).remarks
    assert list(table(scores).shares) == ["arms", "seeds", "rest"]
    two = drawn(0, arms=1, seeds=1, shape=(2, 3, 6))
    assert any("2 environments say little" in remark for remark in table(two).remarks)
    assert list(table(two).shares)[1:-1] == ["environments", "arms within environments", "seeds within environments"]
    once = table(drawn(0, arms=1, seeds=1, shape=(4, 3, 1)))  # a single seed
    assert list(once.shares) == ["arms", "environments", "rest"]
    assert any("one run per arm and environment" in remark for remark in once.remarks)
    assert any("seeds cannot be told from the rest: there is one" in remark for remark in once.remarks)
    apart = analyse(list(scores[0, :2].flat), ["one"] * 12, ["a"] * 6 + ["b"] * 6, range(12), "a")
    assert any("seeds cannot be told from the rest: no two arms share one" in remark for remark in apart.remarks)
    assert list(apart.shares) == ["arms", "rest"]
    pooled = scipy.stats.ttest_ind(scores[0, 1], scores[0, 0]).confidence_interval()
    np.testing.assert_allclose(apart.effects["b"][1:], [pooled.low, pooled.high])


@pytest.mark.parametrize(
    ("values", "remark"),
    [
        (np.full((1, 3, 5), 7.0), "all scores are equal"),
        (np.arange(5.0).reshape(1, 1, 5), "there is one arm"),
        (np.arange(2.0).reshape(1, 2, 1), "2 runs are too few for 2 arms"),
        (np.full((1, 2, 2), np.nan), "no run enters"),
    ],
)
def test_nothing_to_analyse(values: np.ndarray, remark: str) -> None:
    found = table(values)
    assert found.remarks == (remark,)
    assert (found.effects, found.shares) == ({}, {})
    assert np.isnan([found.statistic, found.p, found.reliability, found.reliability_of_means]).all()


@pytest.mark.parametrize("seed", range(6))
def test_variances_that_vanish_are_no_obstacle(seed: int) -> None:
    """Seeds that do not matter, or nothing besides them: statsmodels' optimisers end in singular matrices there."""
    found = table(drawn(seed, arms=0, seeds=0))
    assert all(0 <= share <= 1 for share in found.shares.values())
    assert 0 <= found.reliability <= found.reliability_of_means <= 1
    assert 0 <= found.p <= 1
    exact = np.arange(6.0) + 10 * np.arange(3.0)[:, None]  # arms and seeds add up: no rest
    assert table(exact[None]).shares["rest"] < 1e-4
    missing = drawn(seed, arms=1, seeds=1, shape=(4, 3, 6))
    missing[np.random.default_rng(seed).random(missing.shape) < 0.4] = np.nan
    assert sum(table(missing).shares.values()) == pytest.approx(1)
