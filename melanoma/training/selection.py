"""Which epoch of a run is shipped."""

import math
from collections.abc import Mapping

SELECTION = "within_source_auroc"
"""What chooses the epoch. Among sources, recognising the camera would be rewarded."""


def selection_score(row: Mapping[str, float]) -> float:
    """Return the score of an epoch by which the best one is chosen.

    Args:
        row: the scores of the epoch. Where no source holds both targets and others, the AUROC over
            all images counts; an epoch without any finite score counts as 0, because comparisons
            with NaN are always false.
    """
    score = row[SELECTION] if math.isfinite(row[SELECTION]) else row.get("auroc", 0.0)
    return score if math.isfinite(score) else 0.0
