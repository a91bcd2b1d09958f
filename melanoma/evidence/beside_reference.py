"""A network beside reference models that see no image, on the units of the contract."""

from typing import Any

import numpy as np
import pandas as pd

from melanoma.arrays import FloatArray
from melanoma.evidence.intervals import MIN_TARGETS
from melanoma.evidence.levels import Level
from melanoma.evidence.metrics import METRICS, Predicted
from melanoma.evidence.reference_models import (
    SOURCE,
    compare_within_sources,
    known_columns,
    reference_scores,
)


def beside_reference(level: Level, train: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Return what a network and each reference model reach, pooled and within sources.

    Args:
        level: predictions of the network, one image per group.
        train: records to fit the reference models to; without them there is nothing to compare.
    """
    if train is None or not level.units.is_target.any():
        return []
    known = known_columns(train)
    asked = [columns for columns in ((SOURCE,), known) if columns and set(columns) <= set(known)]
    found = []
    for columns in dict.fromkeys(asked):
        seen = train.assign(
            **{name: "" for name in known if name not in columns and name != "age"},
            **({"age": float("nan")} if "age" not in columns else {}),
        )
        is_target = level.units.task.is_target(seen["label"].to_numpy())
        reference = reference_scores(seen, is_target, level.rows)
        found.append({"columns": list(columns), **_beside(level, reference)})
    return found


def _beside(level: Level, reference: FloatArray) -> dict[str, Any]:
    """Return what a network and a reference model reach, pooled and within sources."""
    units, task = level.units, level.units.task
    other = np.zeros((len(level), task.num_classes))
    other[:, task.target_indices[0]] = reference
    by_records = Level(Predicted(task, units.labels, other), level.groups, level.rows)
    ones, at = np.ones(len(level)), METRICS["specificity_at_sensitivity_90"]
    places = {"pooled": [""] * len(level), "within_source": level.rows[SOURCE].tolist()}
    compared = {}
    for name, sources in places.items():
        found = compare_within_sources(
            units.is_target, units.scores, reference, sources, columns=(), confidence=0.975
        )
        lead, low = found.auroc - found.reference_auroc, found.difference_low
        enough = min(found.num_target, found.num_other) >= MIN_TARGETS
        nothing = float("nan")
        compared[name] = {
            "auroc": found.auroc if found.num_sources else nothing,
            "reference_auroc": found.reference_auroc if found.num_sources else nothing,
            "difference": {
                "value": lead if found.num_sources else nothing,
                "low": low if enough else nothing,
                "high": 2 * lead - low if enough else nothing,
            },
        }
    return {
        **compared,
        "specificity_at_sensitivity_90": at.value(units, ones),
        "reference_specificity_at_sensitivity_90": at.value(by_records.units, ones),
    }
