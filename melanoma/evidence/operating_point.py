"""The threshold and the sensitivity contract; only `is_referred` compares a score with a threshold.

The contract (Wilks, Determination of Sample Sizes for Setting Tolerance Limits, 1941): with n
target units, m* misses are allowed, the largest m with P(Bin(n, 1 - target) <= m) <= 1 -
confidence. A threshold just below the (m* + 1)-th smallest target score has a true sensitivity that
follows Beta(n - m*, m* + 1), so it falls below the target with probability at most 1 - confidence.
This holds only if nothing else was chosen on the same images.
"""

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from melanoma.arrays import BoolArray, FloatArray, IntArray
from melanoma.errors import DataError
from melanoma.evidence.metrics import clopper_pearson
from melanoma.io.typed import Strict
from melanoma.task import Task

Decision = Literal["refer", "no_referral", "cannot_assess"]
CONFIDENCE = 0.95
Reason = Literal["too_few_targets", "uninformative"]
Basis = Literal["split", "out_of_fold"]
UNIT = "one image per group"


def is_referred(probabilities: FloatArray, threshold: float) -> BoolArray:
    """Return which of some calibrated target probabilities ``(N,)`` are referred."""
    referred: BoolArray = probabilities >= threshold
    return referred


def decide(probability: float, threshold: float) -> Decision:
    """Return the decision for one calibrated target probability in [0, 1]."""
    return "refer" if is_referred(np.asarray(probability), threshold) else "no_referral"


@dataclasses.dataclass(frozen=True)
class Contract(Strict):
    """The sensitivity that a bundle promises for the task's targets, and its evidence.

    Attributes:
        status: met, unmet or none.
        targets: the classes that must be referred.
        reason: why it is unmet (too_few_targets, uninformative), else None.
        target_sensitivity: the promised sensitivity, in (0, 1).
        confidence: the one-sided confidence of the promise, in (0, 1).
        sensitivity: share of target units referred.
        sensitivity_low: its one-sided lower bound.
        specificity: share of other units not referred.
        specificity_low: its one-sided lower bound.
        min_specificity: the smallest specificity_low of a met contract.
        num_target: number of target units.
        num_other: number of other units.
        misses_allowed: m*; -1 if the units are too few even with 0 misses.
        num_target_needed: the smallest number of target units for which 0 misses suffice.
        unit: what counts as one observation.
        population: what the units are drawn from.
        basis: split (a guarantee for images like these) or out_of_fold (approximate).
    """

    status: Literal["met", "unmet", "none"]
    targets: tuple[str, ...]
    reason: Reason | None
    target_sensitivity: float
    confidence: float
    sensitivity: float
    sensitivity_low: float
    specificity: float
    specificity_low: float
    min_specificity: float
    num_target: int
    num_other: int
    misses_allowed: int
    num_target_needed: int
    unit: str
    population: str
    basis: Basis

    def sentence(self, task: Task) -> str:
        """Return the contract as a sentence."""
        nouns = task.noun[1]
        if self.status == "met":
            return (
                f"On images like those used for calibration ({self.population}, {self.num_target}"
                f" {nouns}), at least {self.target_sensitivity:.0%} of {nouns} are referred, with"
                f" {self.confidence:.0%} confidence. This was not checked for your clinic or"
                " camera."
            )
        if self.reason == "too_few_targets":
            return (
                f"No promise: calibration needs at least {self.num_target_needed} {nouns}, one"
                f" image per group; there were {self.num_target}."
            )
        return (
            f"No promise: at the threshold that keeps {self.target_sensitivity:.0%} sensitivity,"
            f" specificity may be as low as {self.specificity_low:.2f}, below the"
            f" {self.min_specificity:.2f} required."
        )


@dataclasses.dataclass(frozen=True)
class OperatingPoint(Strict):
    """A threshold on the calibrated target probability and the contract it rests on."""

    threshold: float
    contract: Contract


def misses_allowed(
    num_target: int, *, target_sensitivity: float, confidence: float = CONFIDENCE
) -> int:
    """Return m*, or -1 if the units are too few even with 0 misses."""
    misses = -1
    while (
        misses + 1 < num_target
        and binom.cdf(misses + 1, num_target, 1 - target_sensitivity) <= 1 - confidence
    ):
        misses += 1
    return misses


def targets_needed(*, target_sensitivity: float, confidence: float = CONFIDENCE) -> int:
    """Return the smallest number of target units for which 0 misses suffice."""
    # 0 misses suffice if target ** n <= 1 - confidence; the 1e-9 absorbs rounding of the quotient.
    return int(np.ceil(np.log(1 - confidence) / np.log(target_sensitivity) - 1e-9))


def choose_units(
    is_target: BoolArray, groups: IntArray, *, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Draw one target image of each group and one other image of each group.

    There is one image per group, because the server judges single images, and because images of one
    lesion are not independent.

    Args:
        is_target: ``(N,)``.
        groups: ``(N,)`` integers.
        seed: seed of the draw.

    Returns:
        The positions of the target images and of the other images, each in rising order.
    """
    order = np.random.default_rng(seed).permutation(len(is_target))
    chosen = []
    for wanted in (is_target[order], ~is_target[order]):
        candidates = order[wanted]
        _, first = np.unique(groups[candidates], return_index=True)
        chosen.append(np.sort(candidates[first]))
    return chosen[0], chosen[1]


@dataclasses.dataclass(frozen=True)
class Promise:
    """The requirements of a contract.

    Attributes:
        targets: the classes that must be referred.
        target_sensitivity: the sensitivity to promise, in (0, 1).
        min_specificity: the smallest lower bound of specificity for a met contract, in [0, 1].
        population: describes what the units are drawn from.
        basis: split or out_of_fold.
        confidence: one-sided, in (0, 1).
    """

    targets: tuple[str, ...]
    target_sensitivity: float
    min_specificity: float
    population: str
    basis: Basis = "split"
    confidence: float = CONFIDENCE


def select_operating_point(
    target_scores: FloatArray, other_scores: FloatArray, promise: Promise
) -> OperatingPoint:
    """Choose the threshold that keeps the sensitivity contract, and return both.

    Pass scores of images that were used for no other choice: of no epoch, calibrator or setting.

    Args:
        target_scores: ``(n,)`` calibrated target probabilities, one for each target unit.
        other_scores: ``(m,)``, the same for the other units.
        promise: the requirements of the contract.

    Raises:
        DataError: if there is no target, because sensitivity is then undefined.
        FloatingPointError: if a score is not finite.
    """
    targets, others = (
        np.sort(target_scores.astype(np.float64)),
        np.asarray(other_scores, dtype=np.float64),
    )
    if len(targets) == 0:
        raise DataError(
            "The calibration split must hold targets; it has none. Prepare the data set with a"
            " larger calibration fraction."
        )
    if not (np.isfinite(targets).all() and np.isfinite(others).all()):
        raise FloatingPointError(
            "Scores must be finite; some are not, so the network is broken. Train it again."
        )
    allowed = misses_allowed(
        len(targets), target_sensitivity=promise.target_sensitivity, confidence=promise.confidence
    )
    # The threshold lies halfway between the (m* + 1)-th smallest target score and the next smaller
    # score of any unit.
    edge = targets[max(allowed, 0)]
    lower = np.concatenate([targets, others])
    lower = lower[lower < edge]
    threshold = float((edge + (lower.max() if len(lower) else 0.0)) / 2)
    referred = int(is_referred(targets, threshold).sum())
    spared = int((~is_referred(others, threshold)).sum())
    counts = _Counts(referred, len(targets), spared, len(others), allowed)
    return OperatingPoint(threshold, _contract(counts, promise))


@dataclasses.dataclass(frozen=True)
class _Counts:
    """Counts at a threshold: target units referred, other units not referred, and m*."""

    referred: int
    num_target: int
    spared: int
    num_other: int
    misses_allowed: int


def _contract(counts: _Counts, promise: Promise) -> Contract:
    # The lower bound of a two-sided interval with confidence 2 c - 1 is the one-sided bound with
    # confidence c.
    two_sided = 2 * promise.confidence - 1
    # m* depends on n alone, so the bound of the order statistic is the one-sided Clopper-Pearson
    # bound at m* misses.
    most_missed = max(counts.misses_allowed, 0)
    sensitivity_low = clopper_pearson(
        counts.num_target - most_missed, counts.num_target, confidence=two_sided
    )[0]
    specificity_low = clopper_pearson(counts.spared, counts.num_other, confidence=two_sided)[0]
    reason: Reason | None = None
    if counts.misses_allowed < 0:
        reason = "too_few_targets"
    elif specificity_low < promise.min_specificity:
        reason = "uninformative"
    return Contract(
        status="met" if reason is None else "unmet",
        reason=reason,
        **dataclasses.asdict(promise),
        sensitivity=counts.referred / counts.num_target,
        sensitivity_low=sensitivity_low,
        specificity=counts.spared / counts.num_other if counts.num_other else 0.0,
        specificity_low=specificity_low,
        num_target=counts.num_target,
        num_other=counts.num_other,
        misses_allowed=counts.misses_allowed,
        num_target_needed=targets_needed(
            target_sensitivity=promise.target_sensitivity, confidence=promise.confidence
        ),
        unit=UNIT,
    )


def check_contract(
    referred: int, num: int, *, target_sensitivity: float, confidence: float = CONFIDENCE
) -> str:
    """Return whether other data confirm a contract: confirmed, refuted or undecided.

    Args:
        referred: number of target units referred at the bundle's threshold.
        num: number of target units.
        target_sensitivity: the promised sensitivity, in (0, 1).
        confidence: the one-sided confidence of confirmed and of refuted, in (0, 1).
    """
    low, high = clopper_pearson(referred, num, confidence=2 * confidence - 1)
    if low >= target_sensitivity:
        return "confirmed"
    return "refuted" if high < target_sensitivity else "undecided"
