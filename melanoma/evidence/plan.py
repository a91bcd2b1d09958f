"""How many targets a promise takes: to make it, to confirm it, to notice that it is broken."""

import dataclasses
import math
from collections.abc import Sequence

from melanoma.evidence.contract import error_at, misses_allowed, targets_needed
from melanoma.evidence.power import POWER, targets_to_decide
from melanoma.evidence.sequential import chances_of_verdict

PROMISES = (0.8, 0.85, 0.9, 0.95)
NUMBERS = (36, 50, 75, 100, 150, 200, 300)
_MOST = 1500


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one promise takes, in target units.

    Attributes:
        target_sensitivity: the promise, in (0, 1).
        to_promise: the least number of targets in the calibration split, for the first, second and
            third network that is calibrated on it.
        to_confirm: number with which other data confirm the promise with a probability of 0.8, if
            the true sensitivity is 0.95; 0 if it takes more than 5,000.
        to_notice: number of outcomes after which `bundle monitor` has found the promise broken with
            a probability of 0.8, if twice as many are missed as it allows; 0 if it takes more than
            1,500.
        allowed: number of targets -> misses allowed for the first network, of `NUMBERS`.
    """

    target_sensitivity: float
    to_promise: tuple[int, int, int]
    to_confirm: int
    to_notice: int
    allowed: dict[int, int]


def plan(promises: Sequence[float] = PROMISES) -> list[Plan]:
    """Return what each promise takes.

    Args:
        promises: sensitivities in (0.5, 1).
    """
    return [_plan(promise) for promise in promises]


def _plan(promise: float) -> Plan:
    first, second, third = (
        targets_needed(target_sensitivity=promise, error=error_at(access)) for access in (1, 2, 3)
    )
    found = chances_of_verdict("broken", 1 - 2 * (1 - promise), target_sensitivity=promise)
    noticed = next(
        (num for num, chance in zip(range(1, _MOST), found, strict=False) if chance >= POWER), 0
    )
    return Plan(
        promise,
        (first, second, third),
        targets_to_decide(target_sensitivity=promise),
        noticed,
        {
            num: misses_allowed(num, target_sensitivity=promise, error=error_at(1))
            for num in NUMBERS
        },
    )


def describe_plan(plans: Sequence[Plan], share: float | None) -> str:
    """Return plans as a table for a terminal.

    Args:
        plans: one for each promise.
        share: share of targets among the units of a site, in (0, 1]; None leaves their number out.
    """
    rows = [
        (
            "at least this share of targets is referred",
            [f"{p.target_sensitivity:.0%}" for p in plans],
        ),
        ("targets in calibration to promise it, first time", [str(p.to_promise[0]) for p in plans]),
        (
            "second; third network or promise there",
            ["{}; {}".format(*p.to_promise[1:]) for p in plans],
        ),
        ("targets to confirm it elsewhere, if 95% are", [str(p.to_confirm or "-") for p in plans]),
        ("targets until a broken promise is noticed", [str(p.to_notice or "-") for p in plans]),
    ]
    if share is not None:
        units = [str(math.ceil(p.to_promise[0] / share)) for p in plans]
        rows.insert(2, (f"units that hold them, if {share:.1%} are targets", units))
    lines = [f"{name:48}{''.join(f'{cell:>12}' for cell in cells)}" for name, cells in rows]
    allowed = (f"{miss} of {num}" for num, miss in plans[-1].allowed.items() if miss >= 0)
    return "\n".join(
        (
            *lines,
            f"misses allowed for {plans[-1].target_sensitivity:.0%}: {', '.join(allowed)}",
            "A target is one image of a patient, or of a lesion, with a target class.",
        )
    )
