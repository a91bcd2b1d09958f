"""The threshold on the target probability; only `is_referred` compares a score with a threshold."""

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from melanoma.arrays import BoolArray, FloatArray, IntArray
from melanoma.errors import DataError
from melanoma.evidence.contract import (
    CONFIDENCE,
    Basis,
    Contract,
    Reason,
    error_at,
    misses_allowed,
    targets_needed,
)
from melanoma.evidence.intervals import clopper_pearson
from melanoma.evidence.reference_models import Comparison
from melanoma.io.typed import Strict

Decision = Literal["refer", "no_referral", "cannot_assess"]


def is_referred(probabilities: FloatArray, threshold: float) -> BoolArray:
    """Return which of some calibrated target probabilities ``(N,)`` are referred."""
    referred: BoolArray = probabilities >= threshold
    return referred


def decide(probability: float, threshold: float) -> Decision:
    """Return the decision for one calibrated target probability in [0, 1]."""
    return "refer" if is_referred(np.asarray(probability), threshold) else "no_referral"


@dataclasses.dataclass(frozen=True)
class OperatingPoint(Strict):
    """A threshold on the calibrated target probability and the contract it rests on."""

    threshold: float
    contract: Contract


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
        comparison: the network beside the best model that sees no image, on the validation fold.
        unit: what counts as one observation.
        population: describes what the units are drawn from.
        access: the number of this network among those calibrated on the split, from 1.
        accesses_declared: number of networks declared before the first one; 0 if none was.
        basis: split or out_of_fold.
        num_target_unassessed: further target units that are not assessed.
        target_share: share of targets among the images that the calibrator was fitted to.
        confidence: one-sided, of all contracts on the split together, in (0, 1).
    """

    targets: tuple[str, ...]
    target_sensitivity: float
    comparison: Comparison
    unit: str
    population: str
    access: int = 1
    accesses_declared: int = 0
    basis: Basis = "split"
    num_target_unassessed: int = 0
    target_share: float = 0.1
    confidence: float = CONFIDENCE

    @property
    def error(self) -> float:
        """The probability of a broken promise that this access may spend."""
        return error_at(self.access, declared=self.accesses_declared, confidence=self.confidence)

    def reason_against(self, num_target: int, allowed: int) -> Reason | None:
        """Return why nothing can be promised with some number of target units, or None."""
        if not self.comparison.is_informative:
            return "uninformative"
        if allowed >= 0:
            return None
        first = error_at(1, declared=self.accesses_declared, confidence=self.confidence)
        at_first = misses_allowed(
            num_target, target_sensitivity=self.target_sensitivity, error=first
        )
        return "too_few_targets" if at_first < 0 else "accesses_spent"


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
        len(targets), target_sensitivity=promise.target_sensitivity, error=promise.error
    )
    # The threshold lies halfway between the (m* + 1)-th smallest target score and the next smaller
    # score of any unit.
    edge = targets[max(allowed, 0)]
    lower = np.concatenate([targets, others])
    lower = lower[lower < edge]
    threshold = float((edge + (lower.max() if len(lower) else 0.0)) / 2)
    spared = int((~is_referred(others, threshold)).sum())
    counts = _Counts(len(targets), spared, len(others), allowed)
    return OperatingPoint(threshold, _contract(counts, promise))


@dataclasses.dataclass(frozen=True)
class _Counts:
    """Counts at a threshold: target units, other units not referred, other units, and m*."""

    num_target: int
    spared: int
    num_other: int
    misses_allowed: int


def _contract(counts: _Counts, promise: Promise) -> Contract:
    # The lower bound of a two-sided interval with confidence 2 c - 1 is the one-sided bound with
    # confidence c.
    specificity_low = clopper_pearson(
        counts.spared, counts.num_other, confidence=2 * promise.confidence - 1
    )[0]
    reason = promise.reason_against(counts.num_target, counts.misses_allowed)
    missed = max(counts.misses_allowed, 0)
    return Contract(
        status="met" if reason is None else "unmet",
        targets=promise.targets,
        reason=reason,
        target_sensitivity=promise.target_sensitivity,
        confidence=promise.confidence,
        access=promise.access,
        accesses_declared=promise.accesses_declared,
        error=promise.error,
        sensitivity_expected=(counts.num_target - missed) / (counts.num_target + 1),
        specificity=counts.spared / counts.num_other if counts.num_other else 0.0,
        specificity_low=specificity_low,
        num_target=counts.num_target,
        num_other=counts.num_other,
        misses_allowed=counts.misses_allowed,
        num_target_needed=targets_needed(
            target_sensitivity=promise.target_sensitivity, error=promise.error
        ),
        auroc=promise.comparison.auroc,
        reference_auroc=promise.comparison.reference_auroc,
        difference_low=promise.comparison.difference_low,
        unit=promise.unit,
        population=promise.population,
        basis=promise.basis,
        num_target_unassessed=promise.num_target_unassessed,
        target_share=promise.target_share,
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
