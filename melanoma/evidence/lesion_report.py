"""Several images of one lesion beside one image of the same lesions, for a report."""

import dataclasses
from typing import Any

import numpy as np

from melanoma.evidence.calibration import Calibrator, calibration_scores
from melanoma.evidence.evaluated import Evaluated
from melanoma.evidence.levels import UNIT_SEED, Level
from melanoma.evidence.metrics import Predicted
from melanoma.evidence.numbers import numbers_of
from melanoma.evidence.operating_point import choose_units
from melanoma.evidence.several_images import Units, lesion_units
from melanoma.evidence.verdict import verdict


def several_images_report(evaluated: Evaluated) -> dict[str, Any] | None:
    """Return the numbers of lesions with several images, judged together and by one image.

    Both are of the same lesions: one target and one other of each group, as far as all their images
    are assessed.

    Returns:
        ``mean_images``, ``together`` and ``one_image`` (the numbers of a level and its
        calibration) and ``contract`` (the verdict on the contract for several images); None if the
        bundle has none, or if no such lesion is a target or none is another.
    """
    point, calibrator = evaluated.several_images, evaluated.calibrator
    if point is None or calibrator is None:
        return None
    task, table = evaluated.task, evaluated.new
    logits = table[[f"logit_{name}" for name in task.classes]].to_numpy(dtype=np.float64)
    unusual = (table["decision"] == "cannot_assess").to_numpy()
    units = lesion_units(table, logits, unusual, task, seed=UNIT_SEED)
    is_target = task.is_target(units.labels)
    drawn, others = choose_units(is_target, units.groups, seed=UNIT_SEED)
    targets, others = (each[~units.unusual[each]] for each in (drawn, others))
    if not len(targets) or not len(others):
        return None
    kept = np.concatenate([targets, others])
    together, alone = (
        _level(evaluated, units, kept, of_units, calibrator)
        for of_units in (units.logits, logits[units.first])
    )
    asked = dataclasses.replace(evaluated, operating_point=point)
    return {
        "mean_images": float(units.num_images[kept].mean()),
        "together": _numbers(together, point.threshold),
        "one_image": _numbers(alone, evaluated.operating_point.threshold),
        "contract": verdict(asked, together, num_target_unassessed=len(drawn) - len(targets)),
    }


def _level(
    evaluated: Evaluated,
    units: Units,
    kept: np.ndarray,
    logits: np.ndarray,
    calibrator: Calibrator,
) -> Level:
    predicted = Predicted(evaluated.task, units.labels[kept], calibrator(logits[kept]))
    return Level(
        predicted, units.groups[kept], evaluated.new.iloc[units.first[kept]].reset_index(drop=True)
    )


def _numbers(level: Level, threshold: float) -> dict[str, Any]:
    units = level.units
    calibration = calibration_scores(units.labels, units.probabilities)
    return {**numbers_of(level, threshold), "threshold": threshold, "calibration": calibration}
