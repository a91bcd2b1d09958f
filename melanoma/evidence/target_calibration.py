"""How well the probability of the targets is calibrated. Knows nothing of the calibrator."""

import numpy as np
from scipy.special import expit, logit

from melanoma.arrays import BoolArray, FloatArray, IntArray
from melanoma.evidence.intervals import MIN_BOOTSTRAP, MIN_TARGETS

MIN_UNITS = MIN_TARGETS
"""With fewer targets, or fewer others, the calibration of the targets is not estimated."""
_EDGE = 1e-6


def target_calibration(
    is_target: BoolArray,
    scores: FloatArray,
    groups: IntArray,
    *,
    num_draws: int = 500,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Return how well the probability of the targets is calibrated, with bootstrap intervals.

    The intercept is that of a logistic regression with the logit as an offset: 0 is right, and a
    positive one means that the probabilities are too low. The slope is that of a logistic
    regression on the logit: 1 is right, and a smaller one means that they are too extreme
    (Van Calster et al., A Calibration Hierarchy for Risk Models, 2016).

    Args:
        is_target: ``(N,)``.
        scores: ``(N,)`` calibrated probabilities of the targets.
        groups: ``(N,)`` integers, the group of each unit.
        num_draws: number of bootstrap draws over groups.
        seed: seed of the draws.

    Returns:
        intercept, slope and observed_expected, each with value, low and high; NaN with fewer than
        `MIN_UNITS` targets or others. There is no interval with fewer than `MIN_BOOTSTRAP`.
    """
    names = ("intercept", "slope", "observed_expected")
    nothing = dict.fromkeys(("value", "low", "high"), float("nan"))
    fewest = min(len(np.unique(groups[kind])) for kind in (is_target, ~is_target))
    if fewest < MIN_UNITS:
        return {name: dict(nothing) for name in names}
    x = logit(np.clip(scores.astype(np.float64), _EDGE, 1 - _EDGE))
    _, member = np.unique(groups, return_inverse=True)
    num, rng = int(member.max()) + 1, np.random.default_rng(seed)
    drawn = []
    for _ in range(num_draws if fewest >= MIN_BOOTSTRAP else 0):
        weights = np.bincount(rng.integers(0, num, num), minlength=num)[member].astype(np.float64)
        if weights[is_target].any() and weights[~is_target].any():
            drawn.append(_target_calibration(x, is_target, weights))
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0) if drawn else np.full((2, 3), np.nan)
    found = _target_calibration(x, is_target, np.ones(len(x)))
    return {
        name: {"value": float(found[i]), "low": float(low[i]), "high": float(high[i])}
        for i, name in enumerate(names)
    }


def _target_calibration(
    x: FloatArray, is_target: BoolArray, weights: FloatArray
) -> tuple[float, float, float]:
    alone = _logistic(np.ones((len(x), 1)), is_target, weights, offset=x)
    both = _logistic(np.column_stack([np.ones(len(x)), x]), is_target, weights)
    expected = float(weights @ expit(x))
    return float(alone[0]), float(both[1]), float(weights @ is_target) / expected


def _logistic(
    columns: FloatArray, is_target: BoolArray, weights: FloatArray, offset: FloatArray | float = 0.0
) -> FloatArray:
    """Return the coefficients of a logistic regression, by Newton's method.

    The ridge bounds the coefficients of a draw in which the classes do not overlap.
    """
    found = np.zeros(columns.shape[1])
    ridge = 1e-6 * np.eye(columns.shape[1])
    for _ in range(25):
        p = expit(columns @ found + offset)
        gradient = columns.T @ (weights * (is_target - p)) - ridge @ found
        hessian = (columns * (weights * p * (1 - p))[:, None]).T @ columns + ridge
        step = np.linalg.solve(hessian, gradient)
        found = found + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    return found
