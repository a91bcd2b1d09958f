"""Whether referring by the network does more good than referring everyone or no one."""

from typing import Any

import numpy as np

from melanoma.arrays import BoolArray, FloatArray
from melanoma.evidence.operating_point import is_referred

THRESHOLDS = np.round(np.arange(0.01, 0.51, 0.01), 2)


def decision_curve(is_target: BoolArray, scores: FloatArray) -> list[dict[str, Any]]:
    """Return the net benefit at thresholds from 0.01 to 0.50.

    Net benefit is the share of true referrals minus the share of false ones times the odds of the
    threshold (Vickers, Elkin, Decision Curve Analysis, 2006). Referring no one has 0.

    Args:
        is_target: ``(N,)``.
        scores: ``(N,)`` calibrated probabilities of the targets.

    Returns:
        Rows of threshold, network and refer_all.
    """
    share = float(np.mean(is_target)) if len(is_target) else 0.0
    rows = []
    for threshold in THRESHOLDS:
        odds = threshold / (1 - threshold)
        referred = is_referred(scores, threshold)
        right, false = (referred & is_target).mean(), (referred & ~is_target).mean()
        rows.append(
            {
                "threshold": float(threshold),
                "network": float(right - false * odds),
                "refer_all": float(share - (1 - share) * odds),
            }
        )
    return rows
