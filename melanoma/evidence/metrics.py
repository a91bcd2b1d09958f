"""Metrics of a whole set of predictions, and their intervals over groups. Knows nothing of networks or thresholds' origin."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import beta
from sklearn.metrics import average_precision_score, roc_auc_score

from melanoma.arrays import FloatArray, IntArray
from melanoma.config import CLASSES, MELANOMA_INDEX

Metric = Callable[[IntArray, FloatArray, FloatArray], float]
"""Labels ``(N,)``, probabilities ``(N, C)`` and weights ``(N,)`` -> a number; NaN where it is undefined."""


def auroc(labels: IntArray, probabilities: FloatArray, weights: FloatArray) -> float:
    """Return the area under melanoma's ROC curve."""
    is_melanoma = labels == MELANOMA_INDEX
    if not (weights[is_melanoma].any() and weights[~is_melanoma].any()):
        return float("nan")
    return float(roc_auc_score(is_melanoma, probabilities[:, MELANOMA_INDEX], sample_weight=weights))


def average_precision(labels: IntArray, probabilities: FloatArray, weights: FloatArray) -> float:
    """Return the area under melanoma's precision-recall curve, as average precision."""
    is_melanoma = labels == MELANOMA_INDEX
    if not weights[is_melanoma].any():
        return float("nan")
    return float(average_precision_score(is_melanoma, probabilities[:, MELANOMA_INDEX], sample_weight=weights))


def specificity_at_sensitivity_90(labels: IntArray, probabilities: FloatArray, weights: FloatArray) -> float:
    """Return the best specificity of any threshold that refers at least 90 % of these melanomas; chosen on the data it is measured on."""
    return specificity_at_sensitivity(
        labels == MELANOMA_INDEX, probabilities[:, MELANOMA_INDEX], weights, sensitivity=0.9
    )


def specificity_at_sensitivity(
    is_melanoma: NDArray[np.bool_], scores: FloatArray, weights: FloatArray, *, sensitivity: float
) -> float:
    """Return the best specificity among thresholds whose sensitivity is at least the one given; NaN without both classes."""
    melanomas, benign = weights[is_melanoma].sum(), weights[~is_melanoma].sum()
    if melanomas == 0 or benign == 0:
        return float("nan")
    order = np.argsort(-scores[is_melanoma], kind="stable")
    caught = np.cumsum(weights[is_melanoma][order])
    last = int(np.searchsorted(caught, sensitivity * melanomas - 1e-9))
    threshold = scores[is_melanoma][order][last]
    return float(weights[~is_melanoma][scores[~is_melanoma] < threshold].sum() / benign)


def confusion(labels: IntArray, decided: IntArray, weights: FloatArray) -> FloatArray:
    """Return the ``(C, C)`` weighted confusion matrix: true classes down, decided classes across."""
    size = len(CLASSES)
    counts = np.bincount(labels * size + decided, weights=weights.astype(np.float64), minlength=size * size)
    return counts.astype(np.float64).reshape(size, size)


def _by_argmax(labels: IntArray, probabilities: FloatArray, weights: FloatArray) -> FloatArray:
    return confusion(labels, probabilities.argmax(axis=1), weights)


def melanoma_recall_argmax(labels: IntArray, probabilities: FloatArray, weights: FloatArray) -> float:
    """Return the share of melanomas whose likeliest class is melanoma."""
    row = _by_argmax(labels, probabilities, weights)[MELANOMA_INDEX]
    return float(row[MELANOMA_INDEX] / row.sum()) if row.sum() else float("nan")


def macro_f1(labels: IntArray, probabilities: FloatArray, weights: FloatArray) -> float:
    """Return the mean F1 of the classes that occur, by likeliest class."""
    matrix = _by_argmax(labels, probabilities, weights)
    present = matrix.sum(axis=1) > 0
    f1 = 2 * np.diag(matrix) / np.maximum(matrix.sum(axis=0) + matrix.sum(axis=1), 1e-12)
    return float(f1[present].mean())


def balanced_accuracy(labels: IntArray, probabilities: FloatArray, weights: FloatArray) -> float:
    """Return the mean recall of the classes that occur, by likeliest class."""
    matrix = _by_argmax(labels, probabilities, weights)
    present = matrix.sum(axis=1) > 0
    return float((np.diag(matrix)[present] / matrix.sum(axis=1)[present]).mean())


def accuracy(labels: IntArray, probabilities: FloatArray, weights: FloatArray) -> float:
    """Return the share of images whose likeliest class is right."""
    matrix = _by_argmax(labels, probabilities, weights)
    return float(np.trace(matrix) / matrix.sum())


METRICS: dict[str, Metric] = {
    "auroc": auroc,
    "average_precision": average_precision,
    "specificity_at_sensitivity_90": specificity_at_sensitivity_90,
    "melanoma_recall_argmax": melanoma_recall_argmax,
    "macro_f1": macro_f1,
    "balanced_accuracy": balanced_accuracy,
    "accuracy": accuracy,
}


def validation_scores(labels: IntArray, logits: FloatArray) -> dict[str, float]:
    """Return what a training run watches: point values without intervals, for ``(N, C)`` uncalibrated logits."""
    probabilities, ones = softmax(logits.astype(np.float64), axis=1), np.ones(len(labels))
    names = ("auroc", "specificity_at_sensitivity_90", "macro_f1", "balanced_accuracy")
    scores = {name: METRICS[name](labels, probabilities, ones) for name in names}
    return {**scores, "nll": negative_log_likelihood(labels, probabilities)}


def negative_log_likelihood(labels: IntArray, probabilities: FloatArray) -> float:
    """Return the mean negative log-likelihood, nats."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)).mean())


def group_bootstrap(
    labels: IntArray,
    probabilities: FloatArray,
    groups: IntArray,
    *,
    num_draws: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, dict[str, float]]:
    """Return every metric with a percentile interval over groups drawn with replacement.

    Args:
        labels: ``(N,)`` class indices.
        probabilities: ``(N, C)``.
        groups: ``(N,)`` integers naming the unit that is drawn.
        num_draws: bootstrap draws.
        seed: of the draws.
        confidence: of the two-sided interval.

    Returns:
        name -> {value, low, high}; NaN where undefined.
    """
    rng = np.random.default_rng(seed)
    _, member = np.unique(groups, return_inverse=True)
    num_groups = int(member.max()) + 1
    ones = np.ones(len(labels))
    drawn: dict[str, list[float]] = {name: [] for name in METRICS}
    for _ in range(num_draws):
        weights = np.bincount(rng.integers(0, num_groups, num_groups), minlength=num_groups)[member].astype(np.float64)
        for name, metric in METRICS.items():
            drawn[name].append(metric(labels, probabilities, weights))
    tail = (1 - confidence) / 2
    result = {}
    for name, metric in METRICS.items():
        values = np.array(drawn[name])
        values = values[np.isfinite(values)]
        low, high = np.quantile(values, [tail, 1 - tail]) if len(values) else (np.nan, np.nan)
        result[name] = {"value": metric(labels, probabilities, ones), "low": float(low), "high": float(high)}
    return result


def clopper_pearson(successes: float, num: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided interval of a proportion (Clopper, Pearson, 1934); (0, 1) without observations.

    Args:
        successes: in [0, num]; a fraction is allowed where one unit stands for several images.
        num: independent units.
        confidence: of the two-sided interval; its lower bound alone holds with (1 + confidence) / 2.
    """
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, successes, num - successes + 1)) if successes > 0 else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, num - successes)) if successes < num else 1.0
    return (low, high) if num else (0.0, 1.0)
