"""Whether images that a bundle has not seen confirm its contract."""

from typing import Any

from melanoma.evidence.evaluated import Evaluated
from melanoma.evidence.intervals import clopper_pearson
from melanoma.evidence.levels import Level
from melanoma.evidence.operating_point import check_contract, is_referred
from melanoma.evidence.power import chances, targets_to_decide


def verdict(evaluated: Evaluated, level: Level, *, num_target_unassessed: int) -> dict[str, Any]:
    """Return the contract of the report: its status with the counts and bounds behind it.

    Args:
        evaluated: what was predicted.
        level: its judged units of the contract, one per group.
        num_target_unassessed: further target units that got cannot_assess.
    """
    point, units = evaluated.operating_point, level.units
    num_target = int(units.is_target.sum())
    referred = int((is_referred(units.scores, point.threshold) & units.is_target).sum())
    target, confidence = point.contract.target_sensitivity, point.contract.confidence
    promised, unseen = point.contract.status == "met", evaluated.is_unseen
    status = (
        check_contract(referred, num_target, target_sensitivity=target)
        if promised and unseen
        else "none"
    )
    low, high = clopper_pearson(referred, num_target, confidence=2 * confidence - 1)
    were, aim = ("were", "promised") if promised else ("would be", "aimed at, not promised:")
    words = (
        f"{referred} of {num_target} {evaluated.task.noun[1]} {were} referred,"
        f" {point.contract.unit} (one-sided 95 % bounds {low:.3f} and {high:.3f}; {aim}"
        f" {target:.2f})."
    )
    if num_target_unassessed:
        words += f" {num_target_unassessed} more got cannot_assess."
    needed = targets_to_decide(target_sensitivity=target)
    if status == "undecided" and needed:
        words += (
            f" {needed} {evaluated.task.noun[1]} would confirm the promise in 8 of 10 cases if 95 %"
            " of them are referred."
        )
    return {
        "status": status,
        "bundle_status": point.contract.status,
        "target_sensitivity": target,
        "num_target": num_target,
        "num_target_unassessed": num_target_unassessed,
        "referred": referred,
        "sensitivity_low": low,
        "sensitivity_high": high,
        "access": point.contract.access,
        "power": {
            "targets_to_decide": needed,
            "chances": chances(num_target, target_sensitivity=target),
        },
        "sentence": _sentence(words, promised=promised, unseen=unseen),
    }


def _sentence(words: str, *, promised: bool, unseen: bool) -> str:
    """Return the count of a contract, with a sentence on what it can prove here."""
    if not promised:
        return f"The bundle promises nothing. {words}"
    if not unseen:
        return (
            f"No verdict: the bundle may have been trained or calibrated on these images. {words}"
        )
    return words
