"""Every number of some units at a threshold, with its interval. Knows nothing of reports."""

from typing import Any

import numpy as np

from melanoma.evidence.intervals import effective_number
from melanoma.evidence.levels import Level
from melanoma.evidence.metrics import METRICS, group_bootstrap
from melanoma.evidence.operating_point import is_referred
from melanoma.evidence.strata import auroc_of, proportion

BOOTSTRAP_DRAWS, BOOTSTRAP_SEED = 1000, 0


def numbers_of(level: Level, threshold: float) -> dict[str, Any]:
    """Return every number of some units, those with an interval as {value, low, high}.

    Args:
        level: the units.
        threshold: of the bundle.
    """
    units, groups = level.units, level.groups
    is_target, referred = units.is_target, is_referred(units.scores, threshold)
    numbers = {
        "num": len(units),
        "num_target": int(is_target.sum()),
        "num_groups": len(np.unique(groups)),
        "effective_num_target": effective_number(groups[is_target]),
        "effective_num_other": effective_number(groups[~is_target]),
        "table": {
            "referred_target": int((referred & is_target).sum()),
            "missed_target": int((~referred & is_target).sum()),
            "referred_other": int((referred & ~is_target).sum()),
            "spared_other": int((~referred & ~is_target).sum()),
        },
        "sensitivity": proportion(referred[is_target], groups[is_target]),
        "specificity": proportion(~referred[~is_target], groups[~is_target]),
        **group_bootstrap(units, groups, num_draws=BOOTSTRAP_DRAWS, seed=BOOTSTRAP_SEED),
    }
    for name, metric in METRICS.items():
        if metric.share is not None:
            # Exact bounds hold even if all units are right; a bootstrap interval has no width then.
            counted, right = metric.share(units)
            numbers[name] = proportion(right[counted], groups[counted])
    return {**numbers, "auroc": auroc_of(level)}
