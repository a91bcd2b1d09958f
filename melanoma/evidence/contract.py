"""The sensitivity contract: what a bundle promises, the law behind it, and its sentence.

The law (Wilks, Determination of Sample Sizes for Setting Tolerance Limits, 1941): with n target
units and an error alpha, m* misses are allowed, the largest m with P(Bin(n, 1 - target) <= m) <=
alpha. A threshold just below the (m* + 1)-th smallest target score has a true sensitivity that
follows Beta(n - m*, m* + 1), so it falls below the target with probability at most alpha. This
holds only if nothing else was chosen on the same images. Whether the network is informative is
therefore decided elsewhere, before the calibration split is opened.

Every network that is calibrated on one split is another chance to be wrong. The k-th has alpha_k =
0.05 / (k (k + 1)), which sums to 0.05 over all of them.
"""

import dataclasses
from typing import Literal

import numpy as np
from scipy.stats import binom

from melanoma.evidence.intervals import MIN_TARGETS
from melanoma.evidence.reference_models import MARGIN
from melanoma.io.typed import Strict
from melanoma.task import Task

Reason = Literal["too_few_targets", "uninformative", "accesses_spent"]
Basis = Literal["split", "out_of_fold"]
CONFIDENCE = 0.95
"""One-sided, of all contracts for one kind of unit on one calibration split together."""
SEVERAL_IMAGES = "up to 6 images of one lesion"
"""The unit of a contract for several images of one lesion."""
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


@dataclasses.dataclass(frozen=True)
class Contract(Strict):
    """The sensitivity that a bundle promises for the task's targets, and its evidence.

    Attributes:
        status: met, unmet or none.
        targets: the classes that must be referred.
        reason: why it is unmet (too_few_targets, uninformative, accesses_spent), else None.
        target_sensitivity: the promised sensitivity, in (0, 1).
        confidence: the one-sided confidence of all contracts for this unit on the split together,
            in (0, 1).
        access: the number of this network among those calibrated on the split, from 1; 1 if the
            basis is out_of_fold, where the split is not opened.
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
        num_target_unassessed: further target units whose drawn image got cannot_assess; they are
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
        if self.status == "met":
            return self._promise(task)
        nouns = task.noun[1]
        if self.reason == "uninformative":
            return f"No promise: {self._why_uninformative(nouns)}"
        if self.reason == "too_few_targets":
            return f"No promise: {self._why_too_few(nouns)}"
        needed = f"needs {self.num_target_needed} {nouns}" if self.error else "has no error left"
        return (
            f"No promise: {self._calibrated_before} Number {self.access} {needed}; there are"
            f" {self.num_target}. Prepare a data set with new lesions."
        )

    def _promise(self, task: Task) -> str:
        units = _units_with_targets(self.unit, task)
        limits = ""
        if self.basis == "out_of_fold":
            limits += (
                " This is approximate: each image was scored by a network trained without it, not"
                " by all of them, and the same images chose the epochs and fitted the calibrator."
            )
        if self.num_target_unassessed:
            limits += (
                f" {self.num_target_unassessed} more {units} got cannot_assess and are not counted."
            )
        if task.malignant:
            limits += " Other cancers are not looked for."
        several = self.unit == SEVERAL_IMAGES
        where = (
            "On several images of one lesion, judged together, like those"
            if several
            else "On images like those"
        )
        return (
            f"{where} it was calibrated on ({self.population}, {self.num_target}"
            f" {units}), with {self.confidence:.0%} confidence at least"
            f" {self.target_sensitivity:.0%} of {task.noun[1]} are referred.{limits} Not checked"
            " for your clinic or camera."
        )

    def _why_too_few(self, nouns: str) -> str:
        if self.error:
            return (
                f"calibration needs at least {self.num_target_needed} {nouns}, {self.unit}; there"
                f" were {self.num_target}. Prepare the data set with a larger calibration"
                " fraction, or with more lesions."
            )
        first = targets_needed(
            target_sensitivity=self.target_sensitivity,
            error=error_at(1, declared=self.accesses_declared, confidence=self.confidence),
        )
        return (
            f"{self._calibrated_before} Number {self.access} has no error left. Each declared"
            f" network needs at least {first} {nouns}, {self.unit}; there were {self.num_target}."
            " Prepare a data set with new lesions, more of them for calibration."
        )

    @property
    def _calibrated_before(self) -> str:
        num = self.access - 1
        others = "1 other network was" if num == 1 else f"{num} other networks were"
        return f"{others} calibrated on these images before."

    def _why_uninformative(self, nouns: str) -> str:
        if self.difference_low <= -1:
            return (
                f"the validation fold has fewer than {MIN_TARGETS} {nouns}, or other lesions, in"
                " sources that hold both, so it cannot be told whether the network looks at"
                " lesions. Prepare a data set whose sources hold both."
            )
        return (
            f"among images of the same source the network ranks {nouns} little better than a model"
            f" that sees no image (AUROC {self.auroc:.2f} and {self.reference_auroc:.2f}; the"
            f" difference may be as low as {self.difference_low:.2f} and must exceed {MARGIN})."
            " Train longer, on larger images or on more data."
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
