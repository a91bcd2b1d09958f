"""What a sensitivity, a specificity and a probability mean where targets are rarer or commoner."""

import dataclasses
from typing import Any

from melanoma.arrays import BoolArray
from melanoma.evidence.intervals import clopper_pearson

PREVALENCES = (0.01, 0.03, 0.1)
"""The shares of targets that reports show."""


@dataclasses.dataclass(frozen=True)
class PerThousand:
    """What happens to 1,000 lesions at some prevalence, if every target is missed that may be.

    Attributes:
        found: targets referred, at least.
        alarms: other lesions referred.
        missed: targets not referred, at most.
        cleared: other lesions not referred.
    """

    found: float
    alarms: float
    missed: float
    cleared: float

    @property
    def referred(self) -> float:
        """Number of lesions referred."""
        return self.found + self.alarms

    @property
    def not_referred(self) -> float:
        """Number of lesions not referred."""
        return self.missed + self.cleared

    @property
    def target_if_referred(self) -> float:
        """Share of targets among those referred (positive predictive value); 0 without any."""
        return self.found / self.referred if self.referred else 0.0

    @property
    def target_if_not_referred(self) -> float:
        """Share of targets among those not referred (1 - negative predictive value)."""
        return self.missed / self.not_referred if self.not_referred else 0.0


def per_thousand(prevalence: float, *, sensitivity: float, specificity: float) -> PerThousand:
    """Return what happens to 1,000 lesions.

    Args:
        prevalence: share of targets among them, in [0, 1].
        sensitivity: share of targets referred, in [0, 1].
        specificity: share of other lesions not referred, in [0, 1].
    """
    targets, others = 1000 * prevalence, 1000 * (1 - prevalence)
    return PerThousand(
        found=targets * sensitivity,
        alarms=others * (1 - specificity),
        missed=targets * (1 - sensitivity),
        cleared=others * specificity,
    )


def shifted(probability: float, *, calibrated_at: float, prevalence: float) -> float:
    """Return a calibrated probability of a target as it is at another prevalence.

    The odds change with the prior odds (Saerens, Latinne, Decaestecker, Adjusting the Outputs of a
    Classifier to New a Priori Probabilities, 2002).

    Args:
        probability: in [0, 1].
        calibrated_at: share of targets in the data for which it is calibrated, in (0, 1).
        prevalence: share of targets elsewhere, in [0, 1].
    """
    target = probability * prevalence / calibrated_at
    other = (1 - probability) * (1 - prevalence) / (1 - calibrated_at)
    return target / (target + other) if target + other else probability


def at_prevalences(is_target: BoolArray, referred: BoolArray) -> list[dict[str, Any]]:
    """Return predictive values and referrals per 1,000 at each of `PREVALENCES`.

    An interval takes the bounds of sensitivity and of specificity that hold together with 95 %
    confidence.

    Args:
        is_target: ``(N,)`` independent units.
        referred: ``(N,)``.

    Returns:
        One row for each prevalence; none without targets or without others.
    """
    right, num = (
        ((referred & is_target).sum(), (~referred & ~is_target).sum()),
        (is_target.sum(), (~is_target).sum()),
    )
    if not all(num):
        return []
    sensitivity, specificity = (
        (count / total, *clopper_pearson(count, total, confidence=0.975))
        for count, total in zip(right, num, strict=True)
    )
    rows = []
    for prevalence in PREVALENCES:
        value, low, high, fewest, most = (
            per_thousand(prevalence, sensitivity=float(hits), specificity=float(spared))
            for hits, spared in (
                *zip(sensitivity, specificity, strict=True),
                (sensitivity[1], specificity[2]),
                (sensitivity[2], specificity[1]),
            )
        )
        rows.append(
            {
                "prevalence": prevalence,
                "positive_predictive_value": {
                    "value": value.target_if_referred,
                    "low": low.target_if_referred,
                    "high": high.target_if_referred,
                },
                "negative_predictive_value": {
                    "value": 1 - value.target_if_not_referred,
                    "low": 1 - low.target_if_not_referred,
                    "high": 1 - high.target_if_not_referred,
                },
                "referred_per_1000": {
                    "value": value.referred,
                    "low": fewest.referred,
                    "high": most.referred,
                },
            }
        )
    return rows
