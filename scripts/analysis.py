"""How much of the scores of a suite is arms, and how much environments, seeds and noise: linear mixed models.

After "Towards Inferential Reproducibility of Machine Learning Research" (Hagmann, Meier, Riezler, arXiv 2302.04054):
arms are compared by a likelihood-ratio test of nested models, what else makes scores vary is told by variance
components, and whether the arms could be told apart again by their reliability. Which components there are is our
choice: environments, arms within environments, and seeds within environments, since arms of one seed meet the same
starts there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import scipy.stats

REST = "rest"
"""What is left of the variance: what a run of the same arm with another seed would change."""

WITHIN = "arms within environments"
"""How arms differ between environments."""


class Scores(NamedTuple):
    """Scores of N runs, and where each comes from."""

    values: np.ndarray
    """(N)"""

    environments: Sequence[str]
    """(N)"""

    arms: Sequence[str]
    """(N)"""

    seeds: Sequence[int]
    """(N)"""


@dataclass(frozen=True)
class Analysis:
    """What a linear mixed model says of the scores of a suite.

    :param runs: how many scores
    :param effects: by arm, how much it scores above the baseline, with the ends of a 95 % interval
    :param statistic: twice the difference of the log likelihoods with and without arms; NaN where it cannot be had
    :param degrees: arms but one
    :param p: chance of a statistic as large if arms made no difference, by the chi-squared law
    :param shares: of the variance of a run's score: of arms, of each component that the design can tell apart, and of
        the rest; they sum to 1
    :param reliability: share of arms in what differs between runs in an environment: intraclass correlation of one run
    :param reliability_of_means: the same of an arm's mean over all its runs
    :param remarks: what could not be estimated, and why
    """

    runs: int
    effects: Mapping[str, tuple[float, float, float]]
    statistic: float
    degrees: int
    p: float
    shares: Mapping[str, float]
    reliability: float
    reliability_of_means: float
    remarks: tuple[str, ...]


def analyse(
    scores: Sequence[float] | np.ndarray,
    environments: Sequence[str],
    arms: Sequence[str],
    seeds: Sequence[int],
    baseline: str,
) -> Analysis:
    """Fit score = arm + environment + arm within environment + seed within environment + rest, all but arms random.

    Arms count as random too where shares and reliability are estimated (by restricted maximum likelihood); they are
    fixed where effects are (likewise) and where likelihoods are compared (by maximum likelihood).

    :param scores: (N), finite; of several environments, normalised to be comparable
    :param environments: (N), of each run
    :param arms: (N)
    :param seeds: (N)
    :param baseline: the arm with which the others are compared
    :return: what was found; what the design cannot tell is NaN or left out, and named in the remarks
    """
    data = Scores(np.asarray(scores, dtype=np.float64), environments, arms, seeds)
    parts, remarks = _components(data)
    names = sorted(set(arms), key=lambda name: (name != baseline, list(arms).index(name)))
    count, degrees = len(data.values), max(len(names) - 1, 0)
    spread = float(data.values.std()) if count else 0.0
    if reason := _obstacle(data, spread, len(parts)):
        return Analysis(count, {}, np.nan, degrees, np.nan, {}, np.nan, np.nan, (reason,))
    y = (data.values - data.values.mean()) / spread
    constant, columns = np.ones((count, 1)), _indicators(arms, names)
    contrasts = np.concatenate((constant, columns[:, 1:]), 1)
    statistic = 2 * (_fit(y, contrasts, parts, reml=False).likelihood - _fit(y, constant, parts, reml=False).likelihood)
    effects = spread * _effects(y, contrasts, parts)
    variances = _fit(y, constant, {"arms": columns, **parts}, reml=True).variances
    shares = {name: value / sum(variances.values()) for name, value in variances.items()}
    return Analysis(
        runs=count,
        effects={
            name: (float(mid), float(low), float(high))
            for name, (mid, low, high) in zip(names[1:], effects, strict=True)
        },
        statistic=max(0.0, statistic),
        degrees=degrees,
        p=float(scipy.stats.chi2.sf(max(0.0, statistic), degrees)),
        shares=shares,
        reliability=_reliability(shares, 1, 1),
        reliability_of_means=_reliability(shares, len(set(environments)), count / len(names)),
        remarks=tuple(remarks),
    )


def _obstacle(data: Scores, spread: float, components: int) -> str:
    """:return: why nothing can be estimated; "" if something can"""
    count, arms = len(data.values), len(set(data.arms))
    if not count:
        return "no run enters"
    if arms == 1:
        return "there is one arm"
    if spread <= 1e-12 * float(np.abs(data.values).max()):
        return "all scores are equal"
    return f"{count} runs are too few for {arms} arms" if count < arms + components + 2 else ""


def _components(data: Scores) -> tuple[dict[str, np.ndarray], list[str]]:
    """:return: random effects that the design can tell apart, as columns (N, levels); remarks on the others"""
    pairs = list(zip(data.environments, data.arms, strict=True))
    seeds = list(zip(data.environments, data.seeds, strict=True))
    several = len(set(data.environments)) > 1
    parts: dict[str, np.ndarray] = {}
    remarks = []
    if several:
        parts["environments"] = _indicators(data.environments)
        if len(set(data.environments)) < 5:
            remarks.append(
                f"{len(set(data.environments))} environments say little of how much others would differ: their shares, "
                "and what follows for other environments, are rough"
            )
    else:
        remarks.append("one environment: nothing is said of others")
    if several and len(pairs) > len(set(pairs)):
        parts[WITHIN] = _indicators(pairs)
    elif several:
        remarks.append("one run per arm and environment: how arms differ between environments is part of the rest")
    repeated = len(set(seeds)) < len(seeds)
    if repeated and len(set(seeds)) > len(set(data.environments)):
        parts["seeds within environments" if several else "seeds"] = _indicators(seeds)
    else:
        why = "no two arms share one" if not repeated else "there is one per environment"
        remarks.append(f"seeds cannot be told from the rest: {why}")
    if len(set(data.arms)) < 5:
        remarks.append(f"the shares are those among these {len(set(data.arms))} arms")
    return parts, remarks


def _indicators(labels: Sequence[Any], order: Sequence[Any] | None = None) -> np.ndarray:
    """:return: a column of zeros and ones for each label that occurs, (N, labels)"""
    order = list(dict.fromkeys(labels)) if order is None else order
    return np.array([[float(label == other) for other in order] for label in labels])


def _effects(y: np.ndarray, contrasts: np.ndarray, parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Generalised least squares with the variances of restricted maximum likelihood.

    :return: each contrast but the first, and the ends of its 95 % interval by Student's law, (arms - 1, 3)
    """
    variances = _fit(y, contrasts, parts, reml=True).variances
    covariance = variances[REST] * np.eye(len(y)) + sum(variances[name] * part @ part.T for name, part in parts.items())
    whitened = np.linalg.solve(covariance, contrasts)
    inverse = np.linalg.inv(contrasts.T @ whitened)
    values, errors = inverse @ (whitened.T @ y), np.sqrt(np.diag(inverse))
    # The degrees of freedom of a balanced analysis of variance: arms are compared with how they differ between
    # environments, where that is told apart, else with the rest.
    crossed = [part for name, part in parts.items() if name != WITHIN]
    if WITHIN in parts:
        levels, crossed = parts[WITHIN].shape[1], [parts["environments"]]
    else:
        levels = len(y)
    degrees = levels - int(np.linalg.matrix_rank(np.concatenate([contrasts, *crossed], 1)))
    width = scipy.stats.t.ppf(0.975, degrees) if degrees > 0 else np.nan
    return np.stack([values, values - width * errors, values + width * errors], 1)[1:]


class Fit(NamedTuple):
    """A fitted model."""

    likelihood: float
    """Its logarithm, restricted or not, less what is constant."""

    variances: dict[str, float]
    """Of every component, and of the rest."""


def _fit(y: np.ndarray, fixed: np.ndarray, parts: Mapping[str, np.ndarray], *, reml: bool) -> Fit:
    """Fit a mixed model with crossed random effects by maximising its likelihood over ratios of variances.

    Where a variance should be 0, statsmodels' optimisers end in singular matrices; here that is a bound. Where they
    converge, a test holds both against each other.
    """
    squares = [part @ part.T for part in parts.values()]
    count, rank = len(y), fixed.shape[1] if reml else 0

    def solved(x: np.ndarray) -> tuple[float, np.ndarray, float]:
        """For x = ratio / (1 + ratio), where zero is not stationary as it is of a root.

        :return: minus the log likelihood, less what is constant; its gradient; the variance of the rest
        """
        covariance = np.eye(count) + sum(v / (1 - v) * square for v, square in zip(x, squares, strict=True))
        inverse = np.linalg.inv(covariance)
        weighted = inverse @ fixed
        information = fixed.T @ weighted
        projection = inverse - weighted @ np.linalg.solve(information, weighted.T)  # of residuals
        residuals = projection @ y
        rest = max(float(y @ residuals), 1e-12) / (count - rank)
        loss = (count - rank) / 2 * np.log(rest) + np.linalg.slogdet(covariance)[1] / 2
        loss += np.linalg.slogdet(information)[1] / 2 if reml else 0.0
        traced = projection if reml else inverse
        slopes = [(traced * square).sum() - residuals @ square @ residuals / rest for square in squares]
        return float(loss), np.array(slopes) / 2 / (1 - x) ** 2, rest

    # From two beginnings, since the likelihood may have two maxima.
    ends = [np.full(len(parts), start) for start in (0.1, 0.8)]
    if parts:
        bounds = [(0.0, 1 - 1e-6)] * len(parts)
        minimise: Any = scipy.optimize.minimize
        ends = [minimise(lambda x: solved(x)[:2], x, jac=True, bounds=bounds).x for x in ends]
    best = min(ends, key=lambda x: solved(x)[0])
    loss, _, rest = solved(best)
    variances = {name: float(rest * v / (1 - v)) for name, v in zip(parts, best, strict=True)}
    return Fit(-loss, {**variances, REST: rest})


def _reliability(shares: Mapping[str, float], environments: int, runs: float) -> float:
    """Intraclass correlation of means of so many runs; environments are the same for all arms, and cancel."""
    noise = shares.get("seeds", 0.0) + shares.get("seeds within environments", 0.0) + shares[REST]
    rest = shares.get(WITHIN, 0.0) / environments + noise / runs
    return shares["arms"] / (shares["arms"] + rest) if shares["arms"] + rest > 0 else np.nan
