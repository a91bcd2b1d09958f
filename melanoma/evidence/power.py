"""How likely other data confirm or refute a promise, and how many targets that takes."""

import numpy as np
from scipy.stats import binom

from melanoma.evidence.contract import CONFIDENCE

LIKELY_SENSITIVITY, POWER = 0.95, 0.8
_SENSITIVITIES = (0.8, 0.85, 0.9, 0.95, 0.98)
_MAX_TARGETS = 5000


def chances(
    num_target: int, *, target_sensitivity: float, confidence: float = CONFIDENCE
) -> list[dict[str, float]]:
    """Return the probability of each verdict for some true sensitivities.

    Args:
        num_target: number of independent target units.
        target_sensitivity: the promise, in (0, 1).
        confidence: one-sided, of both verdicts, in (0, 1).

    Returns:
        Rows of sensitivity, confirmed and refuted.
    """
    if num_target == 0:
        return []
    confirms, refutes = _limits(np.array([num_target]), target_sensitivity, confidence)
    return [
        {
            "sensitivity": sensitivity,
            "confirmed": float(binom.sf(confirms[0] - 1, num_target, sensitivity)),
            "refuted": float(binom.cdf(refutes[0], num_target, sensitivity)),
        }
        for sensitivity in _SENSITIVITIES
    ]


def targets_to_decide(*, target_sensitivity: float, confidence: float = CONFIDENCE) -> int:
    """Return the number of target units that confirm a promise with a probability of 0.8.

    The true sensitivity is taken to be 0.95. The result is 0 if the promise is no less, or
    if more than 5,000 would be needed.
    """
    if target_sensitivity >= LIKELY_SENSITIVITY:
        return 0
    nums = np.arange(1, _MAX_TARGETS)
    confirms, _ = _limits(nums, target_sensitivity, confidence)
    enough = binom.sf(confirms - 1, nums, LIKELY_SENSITIVITY) >= POWER
    if not enough[-1]:
        return 0
    # The probability goes up and down with n; from the last n on that is not enough, all are.
    return int(nums[np.flatnonzero(~enough)[-1]] + 1) if not enough[0] else 1


def _limits(
    nums: np.ndarray, target_sensitivity: float, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the least number referred that confirms, and the largest that refutes."""
    error = 1 - confidence
    confirms = binom.isf(error, nums, target_sensitivity) + 1
    refutes = binom.ppf(error, nums, target_sensitivity) - 1
    return confirms, refutes
