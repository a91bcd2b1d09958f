"""The numbers at the threshold for parts of the data: classes, sources, subgroups.

Knows nothing of files.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from melanoma.arrays import BoolArray, IntArray
from melanoma.evidence.intervals import (
    MIN_TARGETS,
    auroc_interval,
    clopper_pearson,
    effective_number,
)
from melanoma.evidence.levels import Level
from melanoma.evidence.metrics import METRICS, group_bootstrap
from melanoma.evidence.operating_point import is_referred
from melanoma.imaging.skin_tone import band_of

UNKNOWN = "unknown"
AT_90 = "specificity_at_sensitivity_90"
_AGE_BANDS = {
    "under 30": (0, 30),
    "30 to 49": (30, 50),
    "50 to 69": (50, 70),
    "70 and over": (70, 200),
}


def proportion(right: BoolArray, groups: IntArray) -> dict[str, float]:
    """Return a proportion with its Clopper-Pearson interval over groups.

    Args:
        right: ``(N,)``.
        groups: ``(N,)`` integers, the group of each unit.
    """
    if len(right) == 0:
        return {"value": float("nan"), "low": 0.0, "high": 1.0}
    num, value = effective_number(groups), float(right.mean())
    low, high = clopper_pearson(value * num, num)
    return {"value": value, "low": low, "high": high}


def auroc_of(level: Level) -> dict[str, float]:
    """Return the AUROC of the targets with its interval; NaN where there is none."""
    is_target, groups = level.units.is_target, level.groups
    value = METRICS["auroc"].value(level.units, np.ones(len(level)))
    low, high = auroc_interval(
        value, effective_number(groups[is_target]), effective_number(groups[~is_target])
    )
    return {"value": value, "low": low, "high": high}


def cell(level: Level, threshold: float) -> dict[str, Any]:
    """Return the numbers of one part of the data.

    ``few_targets`` says that there are fewer than `MIN_TARGETS` targets, from which nothing can be
    concluded about sensitivity.
    """
    is_target = level.units.is_target
    referred = is_referred(level.units.scores, threshold)
    num_target = int(is_target.sum())
    return {
        "num": len(level),
        "num_target": num_target,
        "few_targets": num_target < MIN_TARGETS,
        "auroc": auroc_of(level),
        "sensitivity": proportion(referred[is_target], level.groups[is_target]),
        "specificity": proportion(~referred[~is_target], level.groups[~is_target]),
        AT_90: group_bootstrap(level.units, level.groups, metrics=[AT_90])[AT_90],
    }


def by_column(level: Level, names: pd.Series, threshold: float) -> dict[str, dict[str, Any]]:
    """Return the cell of each value of a column, the largest first; a blank is unknown.

    Args:
        level: N units.
        names: ``(N,)`` texts.
        threshold: of the bundle.
    """
    said = names.fillna("").astype(str).replace("", UNKNOWN)
    return {
        str(name): cell(level.where((said == name).to_numpy()), threshold)
        for name in said.value_counts().index
    }


def by_class(level: Level, threshold: float) -> dict[str, dict[str, Any]]:
    """Return how many units of each class are referred."""
    units = level.units
    referred = is_referred(units.scores, threshold)
    found: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(units.task.classes):
        of_class = units.labels == index
        share = proportion(referred[of_class], level.groups[of_class])
        counts = {"num": int(of_class.sum()), "referred": int(referred[of_class].sum())}
        nothing = dict.fromkeys(share, float("nan"))
        found[name] = {**counts, **(share if of_class.any() else nothing)}
    return found


def subgroups(level: Level, threshold: float) -> dict[str, Mapping[str, Any]]:
    """Return the cells of the subgroups of patients, for each column that is known at all."""
    rows = level.rows
    columns = {
        "sex": rows["sex"],
        "age": rows["age"].map(_age_band),
        "site": rows["site"],
        "skin_type": rows["skin_type"],
        "skin_tone": rows["ita"].map(band_of),
    }
    return {
        name: by_column(level, values, threshold)
        for name, values in columns.items()
        if (values.fillna("").astype(str) != "").any()
    }


def _age_band(age: float) -> str:
    return next((name for name, (low, high) in _AGE_BANDS.items() if low <= age < high), "")
