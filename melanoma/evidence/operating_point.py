"""The threshold and the sensitivity contract; every decision, served or counted, goes through `decide`.

The contract (Wilks, Determination of Sample Sizes for Setting Tolerance Limits, 1941): with n melanoma units, m* misses are
allowed, the largest m with P(Bin(n, 1 - target) <= m) <= 1 - confidence. A threshold just below the (m* + 1)-th smallest
melanoma score has a true sensitivity that follows Beta(n - m*, m* + 1), so it falls below the target with probability at
most 1 - confidence. That holds only while nothing else was chosen by looking at the same images.
"""

import dataclasses
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from melanoma.arrays import FloatArray, IntArray
from melanoma.config import MELANOMA_INDEX
from melanoma.errors import DataError
from melanoma.evidence.metrics import clopper_pearson

Decision = Literal["refer", "no_referral", "cannot_assess"]
CONFIDENCE = 0.95
UNIT = "one image per group"


def decide(probability: float, threshold: float) -> Decision:
    """Return the decision for one calibrated melanoma probability in [0, 1]."""
    return "refer" if probability >= threshold else "no_referral"


@dataclasses.dataclass(frozen=True)
class Contract:
    """What a bundle promises of its sensitivity, and what that rests on.

    Attributes:
        status: met, unmet or none.
        reason: why it is unmet (too_few_melanomas, uninformative), else None.
        target_sensitivity: what is promised, in (0, 1).
        confidence: with which, one-sided.
        sensitivity: share of melanoma units referred.
        sensitivity_low: its one-sided lower bound.
        specificity: share of other units not referred.
        specificity_low: its one-sided lower bound.
        min_specificity: what specificity_low must reach.
        num_melanoma: melanoma units.
        num_other: other units.
        misses_allowed: m*; -1 if not even 0 misses would do.
        num_melanoma_needed: melanoma units from which 0 misses suffice.
        unit: what counts as one observation.
        population: what the units are drawn from.
        basis: split (a guarantee for images like these) or out_of_fold (approximate).
    """

    status: str
    reason: str | None
    target_sensitivity: float
    confidence: float
    sensitivity: float
    sensitivity_low: float
    specificity: float
    specificity_low: float
    min_specificity: float
    num_melanoma: int
    num_other: int
    misses_allowed: int
    num_melanoma_needed: int
    unit: str
    population: str
    basis: str

    def sentence(self) -> str:
        """Return the contract in words for people."""
        if self.status == "met":
            return (
                f"On images like those it was calibrated on ({self.population}, {self.num_melanoma} melanomas), with "
                f"{self.confidence:.0%} confidence at least {self.target_sensitivity:.0%} of melanomas are referred; "
                "not checked for your clinic or camera."
            )
        if self.reason == "too_few_melanomas":
            return (
                f"No promise: at least {self.num_melanoma_needed} melanomas are needed for calibration, one image a group; "
                f"there were {self.num_melanoma}."
            )
        return (
            f"No promise: at the threshold that keeps {self.target_sensitivity:.0%} sensitivity, specificity may be as low as "
            f"{self.specificity_low:.2f}, below the {self.min_specificity:.2f} required."
        )


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """A threshold on the calibrated melanoma probability and the contract it rests on."""

    threshold: float
    contract: Contract

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a manifest."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "OperatingPoint":
        """Read what `as_dict` wrote; raises TypeError or KeyError on other fields."""
        return OperatingPoint(float(values["threshold"]), Contract(**values["contract"]))


def misses_allowed(num_melanoma: int, *, target_sensitivity: float, confidence: float = CONFIDENCE) -> int:
    """Return m*, or -1 where even 0 misses out of this many prove nothing."""
    misses = -1
    while misses + 1 < num_melanoma and binom.cdf(misses + 1, num_melanoma, 1 - target_sensitivity) <= 1 - confidence:
        misses += 1
    return misses


def melanomas_needed(*, target_sensitivity: float, confidence: float = CONFIDENCE) -> int:
    """Return the least number of melanoma units from which 0 misses prove the target."""
    return int(np.ceil(np.log(1 - confidence) / np.log(target_sensitivity) - 1e-9))


def choose_units(labels: IntArray, groups: IntArray, *, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the positions of one seeded-random melanoma image per group, and of one other image per group.

    One image a group, because the server answers one image, and because images of a lesion are not independent.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = []
    for wanted in (labels[order] == MELANOMA_INDEX, labels[order] != MELANOMA_INDEX):
        candidates = order[wanted]
        _, first = np.unique(groups[candidates], return_index=True)
        chosen.append(np.sort(candidates[first]))
    return chosen[0], chosen[1]


def select_operating_point(
    melanoma_scores: FloatArray,
    other_scores: FloatArray,
    *,
    target_sensitivity: float,
    min_specificity: float,
    population: str,
    basis: str = "split",
    confidence: float = CONFIDENCE,
) -> OperatingPoint:
    """Choose the threshold that keeps the sensitivity contract, and say what it promises.

    Give it scores of images that chose nothing else: no epoch, no calibrator, no setting.

    Args:
        melanoma_scores: ``(n,)`` calibrated melanoma probabilities, one for each melanoma unit.
        other_scores: ``(m,)`` the same for the other units.
        target_sensitivity: in (0, 1).
        min_specificity: the specificity whose lower bound a met contract must reach.
        population: words for what the units are drawn from.
        basis: split or out_of_fold.
        confidence: one-sided, in (0, 1).

    Raises:
        DataError: if there is no melanoma, because sensitivity is then undefined.
        FloatingPointError: if a score is not finite.
    """
    melanomas, others = np.sort(melanoma_scores.astype(np.float64)), np.asarray(other_scores, dtype=np.float64)
    if len(melanomas) == 0:
        raise DataError(
            "the calibration split must hold melanomas, it has none; prepare the data set with a larger calibration fraction."
        )
    if not (np.isfinite(melanomas).all() and np.isfinite(others).all()):
        raise FloatingPointError("scores must be finite, some are not; the network is broken, train it again.")
    allowed = misses_allowed(len(melanomas), target_sensitivity=target_sensitivity, confidence=confidence)
    edge = melanomas[max(allowed, 0)]
    lower = np.concatenate([melanomas, others])
    lower = lower[lower < edge]
    threshold = float((edge + (lower.max() if len(lower) else 0.0)) / 2)
    return OperatingPoint(
        threshold,
        _contract(
            melanomas,
            others,
            threshold,
            allowed,
            target=target_sensitivity,
            min_specificity=min_specificity,
            population=population,
            basis=basis,
            confidence=confidence,
        ),
    )


def _contract(
    melanomas: FloatArray,
    others: FloatArray,
    threshold: float,
    allowed: int,
    *,
    target: float,
    min_specificity: float,
    population: str,
    basis: str,
    confidence: float,
) -> Contract:
    referred = sum(decide(score, threshold) == "refer" for score in melanomas)
    spared = sum(decide(score, threshold) == "no_referral" for score in others)
    two_sided = 2 * confidence - 1  # whose lower bound is the one-sided bound at this confidence
    # m* depends on n alone, so the bound of the order statistic is the one-sided Clopper-Pearson bound at m* misses.
    sensitivity_low = clopper_pearson(len(melanomas) - max(allowed, 0), len(melanomas), confidence=two_sided)[0]
    specificity_low = clopper_pearson(spared, len(others), confidence=two_sided)[0]
    reason = "too_few_melanomas" if allowed < 0 else "uninformative" if specificity_low < min_specificity else None
    return Contract(
        status="met" if reason is None else "unmet",
        reason=reason,
        target_sensitivity=target,
        confidence=confidence,
        sensitivity=referred / len(melanomas),
        sensitivity_low=sensitivity_low,
        specificity=spared / len(others) if len(others) else 0.0,
        specificity_low=specificity_low,
        min_specificity=min_specificity,
        num_melanoma=len(melanomas),
        num_other=len(others),
        misses_allowed=allowed,
        num_melanoma_needed=melanomas_needed(target_sensitivity=target, confidence=confidence),
        unit=UNIT,
        population=population,
        basis=basis,
    )


def check_contract(referred: int, num: int, *, target_sensitivity: float, confidence: float = CONFIDENCE) -> str:
    """Say what other data say of a contract: confirmed, refuted or undecided.

    Args:
        referred: melanoma units referred at the frozen threshold.
        num: melanoma units.
        target_sensitivity: what was promised.
        confidence: one-sided, of either finding.
    """
    low, high = clopper_pearson(referred, num, confidence=2 * confidence - 1)
    if low >= target_sensitivity:
        return "confirmed"
    return "refuted" if high < target_sensitivity else "undecided"
