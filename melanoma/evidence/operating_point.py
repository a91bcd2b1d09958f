"""The threshold and the sensitivity contract; only `is_referred` compares a score with a threshold.

The contract (Wilks, Determination of Sample Sizes for Setting Tolerance Limits, 1941): with n
target units and an error alpha, m* misses are allowed, the largest m with P(Bin(n, 1 - target) <=
m) <= alpha. A threshold just below the (m* + 1)-th smallest target score has a true sensitivity
that follows Beta(n - m*, m* + 1), so it falls below the target with probability at most alpha. This
holds only if nothing else was chosen on the same images. Whether the network is informative is
therefore decided elsewhere, before the calibration split is opened.

Every network that is calibrated on one split is another chance to be wrong. The k-th has alpha_k =
0.05 / (k (k + 1)), which sums to 0.05 over all of them.
"""

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from melanoma.arrays import BoolArray, FloatArray, IntArray
from melanoma.errors import DataError
from melanoma.evidence.metrics import MIN_TARGETS, clopper_pearson
from melanoma.evidence.reference_models import CONFIDENCE, MARGIN, Comparison
from melanoma.io.typed import Strict
from melanoma.task import Task

Decision = Literal["refer", "no_referral", "cannot_assess"]
Reason = Literal["too_few_targets", "uninformative", "accesses_spent"]
Basis = Literal["split", "out_of_fold"]
PATIENT = "patient_id"
"""The column that decides where images are grouped by several."""


def error_at(access: int, *, declared: int = 0, confidence: float = CONFIDENCE) -> float:
    """Return the error that an access to a calibration split may spend.

    Over all accesses the errors sum to 1 - confidence.

    Args:
        access: its number, from 1.
        declared: number of accesses that was declared before the first one; each of them spends the
            same. 0 means that none was declared; the later ones then spend less.
        confidence: of all contracts on the split together, in (0, 1).
    """
    if declared:
        return (1 - confidence) / declared if access <= declared else 0.0
    return (1 - confidence) / (access * (access + 1))


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
        reason: why it is unmet (too_few_targets, uninformative, accesses_spent), else None.
        target_sensitivity: the promised sensitivity, in (0, 1).
        confidence: the one-sided confidence of all contracts on the split together, in (0, 1).
        access: the number of this network among those calibrated on the split, from 1.
        accesses_declared: number of networks declared before the first one; 0 if none was.
        error: the probability of a broken promise that this access may spend.
        sensitivity_expected: the mean of the Beta law of the true sensitivity, (n - m*) / (n + 1).
        specificity: share of the other units that are not referred.
        specificity_low: its one-sided lower bound.
        num_target: n, the number of target units.
        num_other: number of other units.
        misses_allowed: m*; -1 if the units are too few even with 0 misses.
        num_target_needed: the smallest n for which 0 misses suffice at this access.
        auroc: of the network on the validation fold, among units of the same source.
        reference_auroc: of the best model that sees no image, there.
        difference_low: one-sided lower bound of the difference of the two.
        unit: what counts as one observation.
        population: what the units are drawn from.
        basis: split (a guarantee for images like these) or out_of_fold (approximate).
        num_target_unassessed: further target units whose images all get cannot_assess; they are
            counted in nothing else.
        target_share: share of targets among the images that the calibrator was fitted to, in
            (0, 1]; the probabilities are for that mix.
    """

    status: Literal["met", "unmet", "none"]
    targets: tuple[str, ...]
    reason: Reason | None
    target_sensitivity: float
    confidence: float
    access: int
    accesses_declared: int
    error: float
    sensitivity_expected: float
    specificity: float
    specificity_low: float
    num_target: int
    num_other: int
    misses_allowed: int
    num_target_needed: int
    auroc: float
    reference_auroc: float
    difference_low: float
    unit: str
    population: str
    basis: Basis
    num_target_unassessed: int
    target_share: float

    def sentence(self, task: Task) -> str:
        """Return the contract as sentences for people."""
        nouns = task.noun[1]
        if self.status == "met":
            others = " Other cancers are not looked for." if task.malignant else ""
            units = _units_with_targets(self.unit, task)
            if self.num_target_unassessed:
                others = (
                    f" {self.num_target_unassessed} more {units} got cannot_assess and are not"
                    f" counted.{others}"
                )
            return (
                f"On images like those it was calibrated on ({self.population},"
                f" {self.num_target} {units}), with"
                f" {self.confidence:.0%} confidence at least {self.target_sensitivity:.0%} of"
                f" {nouns} are referred.{others} Not checked for your clinic or camera."
            )
        if self.reason == "uninformative" and self.difference_low <= -1:
            return (
                f"No promise: the validation fold has fewer than {MIN_TARGETS} {nouns}, or other"
                " lesions, in sources that hold both, so it cannot be told whether the network"
                " looks at lesions. Prepare a data set whose sources hold both."
            )
        if self.reason == "uninformative":
            return (
                "No promise: among images of the same source the network ranks"
                f" {nouns} little better than a model that sees no image (AUROC {self.auroc:.2f}"
                f" and {self.reference_auroc:.2f}; the difference may be as low as"
                f" {self.difference_low:.2f} and must exceed {MARGIN}). Train longer, on larger"
                " images or on more data."
            )
        if self.reason == "too_few_targets":
            return (
                f"No promise: calibration needs at least {self.num_target_needed} {nouns},"
                f" {self.unit}; there were {self.num_target}. Prepare the data set with a larger"
                " calibration fraction, or with more lesions."
            )
        needed = f"needs {self.num_target_needed} {nouns}" if self.error else "has no error left"
        return (
            f"No promise: {self.access - 1} other networks were calibrated on these images before."
            f" Number {self.access} {needed}; there are {self.num_target}. Prepare a data set with"
            " new lesions."
        )


def unit_of(group_columns: tuple[str, ...]) -> str:
    """Return what counts as one observation, if images are grouped by some columns."""
    if group_columns == ("image_id",):
        return "one image"
    coarsest = group_columns[0] if len(group_columns) == 1 else PATIENT
    word = coarsest.removesuffix("_id") if coarsest in group_columns else "group"
    return f"one image per {word.replace('_', ' ')}"


def _units_with_targets(unit: str, task: Task) -> str:
    """Return the plural for units of a contract that are targets, such as lesions with melanoma."""
    one, many = task.noun
    word = unit.rpartition(" ")[2]
    return many if word in one else f"{word}s with {one}"


@dataclasses.dataclass(frozen=True)
class OperatingPoint(Strict):
    """A threshold on the calibrated target probability and the contract it rests on."""

    threshold: float
    contract: Contract


def misses_allowed(num_target: int, *, target_sensitivity: float, error: float) -> int:
    """Return m*, or -1 if the units are too few even with 0 misses."""
    misses = -1
    while (
        misses + 1 < num_target
        and binom.cdf(misses + 1, num_target, 1 - target_sensitivity) <= error
    ):
        misses += 1
    return misses


def targets_needed(*, target_sensitivity: float, error: float) -> int:
    """Return the smallest number of target units for which 0 misses suffice; 0 if none do."""
    if error <= 0:
        return 0
    # 0 misses suffice if target ** n <= error; the 1e-9 absorbs rounding of the quotient.
    return int(np.ceil(np.log(error) / np.log(target_sensitivity) - 1e-9))


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
