"""Metrics of a whole set of predictions, and their intervals over groups.

Add a metric to `METRICS`: reports, pages and tables list every entry. Knows nothing of networks, or
of where a threshold comes from.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence

import numpy as np
from scipy.special import softmax

from melanoma.arrays import BoolArray, FloatArray, IntArray
from melanoma.evidence.intervals import MIN_BOOTSTRAP
from melanoma.evidence.reference_models import compare_within_sources
from melanoma.task import Task


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Labels and probabilities of N units.

    Attributes:
        task: what the classes mean.
        labels: ``(N,)`` class indices.
        probabilities: ``(N, C)``.
    """

    task: Task
    labels: IntArray
    probabilities: FloatArray

    @functools.cached_property
    def is_target(self) -> BoolArray:
        """Which units must be referred, ``(N,)``."""
        return self.task.is_target(self.labels)

    @functools.cached_property
    def scores(self) -> FloatArray:
        """The probability of the targets, ``(N,)``."""
        return self.task.target_scores(self.probabilities)

    @functools.cached_property
    def likeliest(self) -> IntArray:
        """The likeliest class of each unit, ``(N,)``."""
        likeliest: IntArray = self.probabilities.argmax(axis=1)
        return likeliest

    @functools.cached_property
    def ranking(self) -> tuple[IntArray, IntArray]:
        """The order from the highest score down, and where each distinct score ends in it.

        ``(N,)`` unit indices and ``(T,)`` positions of the last unit of each score.
        """
        order = np.argsort(-self.scores, kind="stable")
        return order, np.flatnonzero(np.diff(self.scores[order], append=-np.inf))

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Metric:
    """One number for a set of predictions.

    Attributes:
        title: name for people.
        value: from units and their weights ``(N,)`` to the number; NaN if it is undefined.
        share: for a share of units under a fixed rule: from units to which of them count and which
            are right, ``(N,)`` each. Its interval is then exact; the others get a bootstrap.
    """

    title: str
    value: Callable[[Predicted, FloatArray], float]
    share: Callable[[Predicted], tuple[BoolArray, BoolArray]] | None = None


# A bootstrap takes each value a thousand times. scikit-learn would spend nearly all of that time on
# checking its arguments; the tests compare the two.
def auroc(units: Predicted, weights: FloatArray) -> float:
    """Return the area under the ROC curve of the targets, by trapezoids."""
    caught, false = _referred(units, weights)
    if not (caught[-1] and false[-1]):
        return float("nan")
    return float(np.trapezoid(caught, false) / (caught[-1] * false[-1]))


def average_precision(units: Predicted, weights: FloatArray) -> float:
    """Return the average precision of the targets (area under the precision-recall curve)."""
    caught, false = _referred(units, weights)
    if not caught[-1]:
        return float("nan")
    gained, referred = np.diff(caught), (caught + false)[1:]
    # A score of weight 0 gains nothing, and above it nothing may be referred yet.
    precision = np.divide(caught[1:], referred, out=np.zeros_like(referred), where=referred > 0)
    return float(np.sum(gained * precision) / caught[-1])


def _referred(units: Predicted, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the weight of the targets and of the others at or above each score.

    ``(1 + T,)`` each: first 0, where nothing is referred, then the T distinct scores from the
    highest down.
    """
    order, ends = units.ranking
    is_target, ordered = units.is_target[order], weights[order]
    caught, false = np.cumsum(ordered * is_target)[ends], np.cumsum(ordered * ~is_target)[ends]
    return np.append(0.0, caught), np.append(0.0, false)


def specificity_at_sensitivity_90(units: Predicted, weights: FloatArray) -> float:
    """Return the best specificity of any threshold that refers at least 90 % of the targets.

    The threshold is chosen on the same data, so the number is optimistic.
    """
    return specificity_at_sensitivity(units.is_target, units.scores, weights, sensitivity=0.9)


def specificity_at_sensitivity(
    is_target: BoolArray, scores: FloatArray, weights: FloatArray, *, sensitivity: float
) -> float:
    """Return the best specificity among the thresholds with at least the given sensitivity.

    Args:
        is_target: ``(N,)``.
        scores: ``(N,)``, larger is likelier a target.
        weights: ``(N,)``, at least 0.
        sensitivity: in (0, 1).

    Returns:
        The specificity in [0, 1], or NaN if targets or others are missing.
    """
    targets, others = weights[is_target].sum(), weights[~is_target].sum()
    if targets == 0 or others == 0:
        return float("nan")
    # The threshold is the score of the target with which the targets referred, from the highest
    # score down, reach the sensitivity. The 1e-9 absorbs rounding of the cumulative sum.
    order = np.argsort(-scores[is_target], kind="stable")
    caught = np.cumsum(weights[is_target][order])
    last = int(np.searchsorted(caught, sensitivity * targets - 1e-9))
    threshold = scores[is_target][order][last]
    return float(weights[~is_target][scores[~is_target] < threshold].sum() / others)


def confusion(units: Predicted, weights: FloatArray) -> FloatArray:
    """Return the weighted confusion matrix ``(C, C)``: rows true, columns likeliest class."""
    size = units.task.num_classes
    cells = units.labels * size + units.likeliest
    counts = np.bincount(cells, weights=weights.astype(np.float64), minlength=size * size)
    return counts.astype(np.float64).reshape(size, size)


def target_recall_argmax(units: Predicted, weights: FloatArray) -> float:
    """Return the share of targets whose likeliest class is a target."""
    targets = units.task.target_indices
    rows = confusion(units, weights)[targets]
    return float(rows[:, targets].sum() / rows.sum()) if rows.sum() else float("nan")


def macro_f1(units: Predicted, weights: FloatArray) -> float:
    """Return the mean F1 of the likeliest class, over the classes that occur."""
    matrix = confusion(units, weights)
    present = matrix.sum(axis=1) > 0
    f1 = 2 * np.diag(matrix) / np.maximum(matrix.sum(axis=0) + matrix.sum(axis=1), 1e-12)
    return float(f1[present].mean())


def balanced_accuracy(units: Predicted, weights: FloatArray) -> float:
    """Return the mean recall of the likeliest class, over the classes that occur."""
    matrix = confusion(units, weights)
    present = matrix.sum(axis=1) > 0
    return float((np.diag(matrix)[present] / matrix.sum(axis=1)[present]).mean())


def accuracy(units: Predicted, weights: FloatArray) -> float:
    """Return the share of units whose likeliest class is right."""
    matrix = confusion(units, weights)
    return float(np.trace(matrix) / matrix.sum())


def _targets_likeliest(units: Predicted) -> tuple[BoolArray, BoolArray]:
    return units.is_target, units.task.is_target(units.likeliest)


def _all_right(units: Predicted) -> tuple[BoolArray, BoolArray]:
    return np.ones(len(units), dtype=bool), units.likeliest == units.labels


METRICS: dict[str, Metric] = {
    "auroc": Metric("AUROC", auroc),
    "average_precision": Metric("average precision", average_precision),
    "specificity_at_sensitivity_90": Metric(
        "specificity at 90 % sensitivity", specificity_at_sensitivity_90
    ),
    "target_recall_argmax": Metric(
        "sensitivity of the likeliest class", target_recall_argmax, _targets_likeliest
    ),
    "macro_f1": Metric("macro-F1", macro_f1),
    "balanced_accuracy": Metric("balanced accuracy", balanced_accuracy),
    "accuracy": Metric("accuracy", accuracy, _all_right),
}


def title_of(name: str) -> str:
    """Return the name for people of a metric, or of a number at the threshold."""
    return METRICS[name].title if name in METRICS else name.replace("_", " ")


def validation_scores(
    task: Task, labels: IntArray, logits: FloatArray, sources: Sequence[str]
) -> dict[str, float]:
    """Return the scores that a training run logs after each epoch, without intervals.

    The AUROC within sources is NaN where no source holds both targets and others.

    Args:
        task: what the classes mean.
        labels: ``(N,)`` class indices.
        logits: ``(N, C)``, not calibrated.
        sources: the source of each of the N images.
    """
    units = Predicted(task, labels, softmax(logits.astype(np.float64), axis=1))
    names = ("auroc", "specificity_at_sensitivity_90", "macro_f1", "balanced_accuracy")
    scores = {name: METRICS[name].value(units, np.ones(len(units))) for name in names}
    nothing = np.zeros(len(units))
    within = compare_within_sources(units.is_target, units.scores, nothing, sources, columns=())
    return {
        **scores,
        "within_source_auroc": within.auroc if within.num_sources else float("nan"),
        "nll": negative_log_likelihood(labels, units.probabilities),
    }


def negative_log_likelihood(labels: IntArray, probabilities: FloatArray) -> float:
    """Return the mean negative log-likelihood, nats, of ``(N, C)`` probabilities."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)).mean())


def group_bootstrap(
    units: Predicted,
    groups: IntArray,
    *,
    metrics: Collection[str] = tuple(METRICS),
    num_draws: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, dict[str, float]]:
    """Return metrics with a percentile interval over groups drawn with replacement.

    Args:
        units: the units to measure.
        groups: ``(N,)`` integers, the group of each unit.
        metrics: their names in `METRICS`.
        num_draws: number of bootstrap draws.
        seed: seed of the draws.
        confidence: confidence of the two-sided interval, in (0, 1).

    Returns:
        name -> {value, low, high}; NaN if undefined. There is no interval with fewer than
        `MIN_BOOTSTRAP` groups of targets, or of others.
    """
    is_target = units.is_target
    if min(len(np.unique(groups[kind])) for kind in (is_target, ~is_target)) < MIN_BOOTSTRAP:
        num_draws = 0
    rng = np.random.default_rng(seed)
    _, member = np.unique(groups, return_inverse=True)
    num_groups = int(member.max()) + 1
    drawn: dict[str, list[float]] = {name: [] for name in metrics}
    for _ in range(num_draws):
        weights = np.bincount(rng.integers(0, num_groups, num_groups), minlength=num_groups)[
            member
        ].astype(np.float64)
        for name in metrics:
            drawn[name].append(METRICS[name].value(units, weights))
    tail = (1 - confidence) / 2
    result = {}
    for name in metrics:
        values = np.array(drawn[name])
        values = values[np.isfinite(values)]
        low, high = np.quantile(values, [tail, 1 - tail]) if len(values) else (np.nan, np.nan)
        value = METRICS[name].value(units, np.ones(len(units)))
        result[name] = {"value": value, "low": float(low), "high": float(high)}
    return result
