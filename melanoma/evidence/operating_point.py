"""The threshold and the sensitivity contract; every decision, served or counted, goes through `decide`.

The contract (Wilks, Determination of Sample Sizes for Setting Tolerance Limits, 1941): with n
target units, m* misses are allowed, the largest m with P(Bin(n, 1 - target) <= m) <= 1 -
confidence. A threshold just below the (m* + 1)-th smallest target score has a true sensitivity that
follows Beta(n - m*, m* + 1), so it falls below the target with probability at most 1 - confidence.
That holds only while nothing else was chosen by looking at the same images.
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


def decide(probability: float, threshold: float) -> Decision:
    """Return the decision for one calibrated target probability in [0, 1]."""
    return "refer" if probability >= threshold else "no_referral"


@dataclasses.dataclass(frozen=True)
class Contract(Strict):
    """What a bundle promises of its sensitivity to the task's targets, and what that rests on.

    Attributes:
        status: met, unmet or none.
        targets: the classes that are referred.
        reason: why it is unmet (too_few_targets, uninformative), else None.
        target_sensitivity: what is promised, in (0, 1).
        confidence: with which, one-sided.
        sensitivity: share of target units referred.
        sensitivity_low: its one-sided lower bound.
        specificity: share of other units not referred.
        specificity_low: its one-sided lower bound.
        min_specificity: what specificity_low must reach.
        num_target: target units.
        num_other: other units.
        misses_allowed: m*; -1 if not even 0 misses would do.
        num_target_needed: target units from which 0 misses suffice.
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
        """Return the contract in words for people."""
        nouns = task.noun[1]
        if self.status == "met":
            return (
                f"On images like those it was calibrated on ({self.population}, {self.num_target}"
                f" {nouns}), with {self.confidence:.0%} confidence at least"
                f" {self.target_sensitivity:.0%} of {nouns} are referred; not checked for your"
                " clinic or camera."
            )
        if self.reason == "too_few_targets":
            return (
                f"No promise: at least {self.num_target_needed} {nouns} are needed for calibration,"
                f" one image a group; there were {self.num_target}."
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
    """Return m*, or -1 where even 0 misses out of this many prove nothing."""
    misses = -1
    while (
        misses + 1 < num_target
        and binom.cdf(misses + 1, num_target, 1 - target_sensitivity) <= 1 - confidence
    ):
        misses += 1
    return misses


def targets_needed(*, target_sensitivity: float, confidence: float = CONFIDENCE) -> int:
    """Return the least number of target units from which 0 misses prove the target."""
    return int(np.ceil(np.log(1 - confidence) / np.log(target_sensitivity) - 1e-9))


def choose_units(
    is_target: BoolArray, groups: IntArray, *, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the positions of one seeded-random target image per group, and of one other image per group.

    One image a group, because the server answers one image, and because images of a lesion are not
    independent.
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
    """What is asked of a contract.

    Attributes:
        targets: the classes that must be referred.
        target_sensitivity: in (0, 1).
        min_specificity: the specificity whose lower bound a met contract must reach.
        population: words for what the units are drawn from.
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
    """Choose the threshold that keeps the sensitivity contract, and say what it promises.

    Give it scores of images that chose nothing else: no epoch, no calibrator, no setting.

    Args:
        target_scores: ``(n,)`` calibrated target probabilities, one for each target unit.
        other_scores: ``(m,)`` the same for the other units.
        promise: what the contract is asked to say.

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
            "Scores must be finite; some are not. The network is broken; train it again."
        )
    allowed = misses_allowed(
        len(targets), target_sensitivity=promise.target_sensitivity, confidence=promise.confidence
    )
    edge = targets[max(allowed, 0)]
    lower = np.concatenate([targets, others])
    lower = lower[lower < edge]
    threshold = float((edge + (lower.max() if len(lower) else 0.0)) / 2)
    referred = sum(decide(score, threshold) == "refer" for score in targets)
    spared = sum(decide(score, threshold) == "no_referral" for score in others)
    counts = _Counts(referred, len(targets), spared, len(others), allowed)
    return OperatingPoint(threshold, _contract(counts, promise))


@dataclasses.dataclass(frozen=True)
class _Counts:
    """What was counted at a threshold: target units referred, other units not referred, and m*."""

    referred: int
    num_target: int
    spared: int
    num_other: int
    misses_allowed: int


def _contract(counts: _Counts, promise: Promise) -> Contract:
    two_sided = (
        2 * promise.confidence - 1
    )  # whose lower bound is the one-sided bound at this confidence
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
    """Say what other data say of a contract: confirmed, refuted or undecided.

    Args:
        referred: target units referred at the frozen threshold.
        num: target units.
        target_sensitivity: what was promised.
        confidence: one-sided, of either finding.
    """
    low, high = clopper_pearson(referred, num, confidence=2 * confidence - 1)
    if low >= target_sensitivity:
        return "confirmed"
    return "refuted" if high < target_sensitivity else "undecided"
