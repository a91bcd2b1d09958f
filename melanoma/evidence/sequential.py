"""A test of a promise that may be looked at after every outcome.

Both sides are tested by betting (Ville, 1939; Shafer, Testing by Betting, 2021). The evidence
against the promise is the mean likelihood ratio of smaller sensitivities to the promised one, over
a Beta law cut off at the promise. If the true sensitivity is the promised one or more, its
expectation is at most 1 at any time, so that it ever reaches 1 / error with a probability of at
most the error. The evidence for the promise is the same over larger sensitivities.

Outcomes must be independent given the past, and whether an outcome becomes known must not depend on
the decision.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Literal

import numpy as np
from scipy.special import betaln
from scipy.stats import beta

from melanoma.arrays import BoolArray, FloatArray, IntArray
from melanoma.evidence.contract import CONFIDENCE

Verdict = Literal["holds", "broken", "open"]
STRENGTH = 20.0
"""Of the Beta laws, in outcomes. They are centred where the misses are twice, or half, as many as
the promise allows. Smaller strengths need more outcomes there and fewer far from it."""


@dataclasses.dataclass(frozen=True)
class Watch:
    """What outcomes say of a promise so far.

    Attributes:
        verdict: broken if the evidence against the promise ever reached its limit; otherwise holds
            if the evidence for it did; otherwise open.
        num_target: number of target units.
        num_referred: number of them that were referred.
        decided_after: number of target units after which the verdict was reached; None if open.
        limit: 1 / error.
        against: the largest evidence against the promise so far.
        in_favour: the largest evidence for it so far.
    """

    verdict: Verdict
    num_target: int
    num_referred: int
    decided_after: int | None
    limit: float
    against: float
    in_favour: float


def watch(
    referred: BoolArray, *, target_sensitivity: float, confidence: float = CONFIDENCE
) -> Watch:
    """Return what outcomes say of a promise.

    Args:
        referred: ``(n,)``, of the target units in the order in which their outcomes came in.
        target_sensitivity: the promise, in (0, 1).
        confidence: one-sided, of each verdict at any time, in (0, 1).
    """
    nums = np.arange(1, len(referred) + 1)
    hits = np.cumsum(referred, dtype=np.int64)
    limit = 1 / (1 - confidence)
    against = _evidence(hits, nums - hits, target_sensitivity, below=True)
    in_favour = _evidence(hits, nums - hits, target_sensitivity, below=False)
    verdict: Verdict = "open"
    after = None
    for name, found in (("holds", in_favour), ("broken", against)):
        reached = np.flatnonzero(found >= np.log(limit))
        if len(reached):
            verdict, after = name, int(nums[reached[0]])  # type: ignore[assignment]
    return Watch(
        verdict=verdict,
        num_target=len(referred),
        num_referred=int(hits[-1]) if len(hits) else 0,
        decided_after=after,
        limit=limit,
        against=_largest(against),
        in_favour=_largest(in_favour),
    )


def _largest(evidence: FloatArray) -> float:
    return float(np.exp(min(evidence.max(initial=0.0), 700.0)))


def chances_of_verdict(
    verdict: Literal["holds", "broken"],
    sensitivity: float,
    *,
    target_sensitivity: float,
    confidence: float = CONFIDENCE,
) -> Iterator[float]:
    """Give the probability that a verdict has been reached after 1, 2, 3, ... targets.

    It is computed exactly, by following the probability of every count that has not reached it.

    Args:
        verdict: holds or broken, each tested alone.
        sensitivity: the true one, in (0, 1).
        target_sensitivity: the promise, in (0, 1).
        confidence: one-sided, in (0, 1).
    """
    limit = -np.log(1 - confidence)
    undecided, reached = np.ones(1), 0.0
    for num in itertools.count(1):
        following = np.zeros(num + 1)
        following[:-1] += undecided * (1 - sensitivity)
        following[1:] += undecided * sensitivity
        hits = np.arange(num + 1)
        found = _evidence(hits, num - hits, target_sensitivity, below=verdict == "broken")
        reached += float(following[found >= limit].sum())
        yield reached
        undecided = np.where(found >= limit, 0.0, following)


def _evidence(hits: IntArray, misses: IntArray, promise: float, *, below: bool) -> FloatArray:
    """Return the logarithm of the evidence for sensitivities below, or above, the promise."""
    centre = 1 - (1 - promise) * (2.0 if below else 0.5)
    # A promise of 1/2 or less has no sensitivity with twice as many misses.
    centre = max(centre, promise / 2)
    a, b = STRENGTH * centre, STRENGTH * (1 - centre)
    side = beta.logcdf if below else beta.logsf
    null = hits * np.log(promise) + misses * np.log1p(-promise)
    found: FloatArray = (
        betaln(hits + a, misses + b)
        + side(promise, hits + a, misses + b)
        - betaln(a, b)
        - side(promise, a, b)
        - null
    )
    return found
