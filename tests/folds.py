"""Out-of-fold scores for tests."""

import numpy as np

from melanoma.evidence.objective import FoldScores, Objective

RECALL = Objective("melanoma_recall", 0.8)


def make_fold(seed: int, *, lift: float = 1.2, num: int = 120, rounded: bool = False) -> FoldScores:
    """Return random scores, those of targets higher by `lift`; each unit is a group."""
    rng = np.random.default_rng(seed)
    is_target = rng.random(num) < 0.3
    scores = rng.normal(size=num) + lift * is_target
    return FoldScores(
        is_target,
        scores.round(1) if rounded else scores,
        np.array([f"{seed}-{i}" for i in range(num)]),
        np.full(num, "a"),
    )
