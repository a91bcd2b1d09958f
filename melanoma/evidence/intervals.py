"""Confidence intervals of proportions and of AUROCs, over independent units."""

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, norm

from melanoma.arrays import FloatArray, IntArray

MIN_TARGETS = 10
"""With fewer independent targets an AUROC gets no interval."""
MIN_BOOTSTRAP = 30
"""With fewer independent targets a bootstrap interval holds the true value too seldom."""


def effective_number(groups: IntArray) -> float:
    """Return the number of independent units that some units are worth (Kish, 1965).

    The units of a group are treated as fully dependent: (sum n)^2 / sum n^2, where n is the size of
    a group (Survey Sampling). It equals the number of groups if all have the same size.

    Args:
        groups: ``(N,)`` integers, the group of each unit.
    """
    sizes = np.unique(groups, return_counts=True)[1].astype(float)
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0


def auroc_interval(
    auroc: float,
    num_target: float | FloatArray,
    num_other: float | FloatArray,
    *,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the two-sided score interval of an AUROC.

    This is method 5 of Newcombe (Confidence intervals for an effect size measure based on the
    Mann-Whitney statistic, part 2, 2006): the variance of Hanley and McNeil (1982) at the bound,
    not at the estimate. It keeps its confidence from `MIN_TARGETS` targets on, close to 1 too,
    where intervals from the estimate's own variance or from a bootstrap are too narrow.

    Args:
        auroc: the estimate, in [0, 1].
        num_target: number of independent target units; may be fractional. For an AUROC within
            strata, which weights each by its pairs, the number in each of K strata, ``(K,)``.
        num_other: number of other independent units, likewise.
        confidence: in (0, 1).

    Returns:
        (low, high), or NaN for both with fewer than `MIN_TARGETS` targets or others.
    """
    targets, others = np.atleast_1d(num_target), np.atleast_1d(num_other)
    if not (min(targets.sum(), others.sum()) >= MIN_TARGETS and np.isfinite(auroc)):
        return float("nan"), float("nan")
    z = float(norm.ppf((1 + confidence) / 2))
    more, pairs = (targets + others) / 2 - 1, targets * others

    def deviation(at: float) -> float:
        spread = 1 + more * (1 - at) / (2 - at) + more * at / (1 + at)
        # The weight of a stratum is its share of the pairs, and its variance falls with them.
        return z * float(np.sqrt(at * (1 - at) * (pairs * spread).sum()) / pairs.sum())

    # At 0 and 1 the variance is 0, so that the ends themselves would pass for bounds.
    tiny = 1e-9
    low = brentq(lambda at: at + deviation(at) - auroc, 0, min(auroc, 1 - tiny))
    high = brentq(lambda at: at - deviation(at) - auroc, max(auroc, tiny), 1)
    return float(low), float(high)


def clopper_pearson(
    successes: float, num: float, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the exact two-sided interval of a proportion (Clopper and Pearson, 1934).

    Args:
        successes: in [0, num]; may be fractional if a unit stands for several images.
        num: number of independent units; may be fractional too.
        confidence: confidence of the two-sided interval, in (0, 1). One bound alone holds with
            confidence (1 + confidence) / 2.

    Returns:
        (low, high), or (0, 1) without units.
    """
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, successes, num - successes + 1)) if successes > 0 else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, num - successes)) if successes < num else 1.0
    return (low, high) if num else (0.0, 1.0)
