"""What a sensitivity, a specificity and a probability mean where targets are rarer or commoner."""

import dataclasses

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
