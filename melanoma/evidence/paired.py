"""The differences between two models on the same units, with intervals over groups.

Differences are B minus A. Knows nothing of files, or of where a decision comes from.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from melanoma.arrays import BoolArray, FloatArray, IntArray
from melanoma.evidence.intervals import MIN_BOOTSTRAP, MIN_TARGETS, effective_number
from melanoma.evidence.metrics import METRICS, Predicted
from melanoma.task import Task

CONFIDENCE, POWER = 0.95, 0.8
TITLES = {
    "sensitivity": "sensitivity of the decisions",
    "specificity": "specificity of the decisions",
    "brier": "Brier score of the targets (lower is better)",
}
"""Names for people of what stands in no table of metrics."""
_RANKED = Task(("other", "target"), ("target",))
"""Lets the metrics of scores be computed where nothing else than scores is known."""
_OF_SCORES = ("auroc", "average_precision", "specificity_at_sensitivity_90")
_OF_CLASSES = ("macro_f1", "balanced_accuracy")
_Value = Callable[[FloatArray], float]
"""From the weights of the units ``(N,)`` to a number."""


@dataclasses.dataclass(frozen=True)
class Truth:
    """What N units are.

    Attributes:
        is_target: ``(N,)``.
        groups: ``(N,)`` integers, the group of each unit.
        task: what the classes mean, or None if only the targets are known.
        labels: ``(N,)`` class indices, or None likewise.
    """

    is_target: BoolArray
    groups: IntArray
    task: Task | None = None
    labels: IntArray | None = None

    def where(self, chosen: BoolArray) -> "Truth":
        """Return the truth of some of the units."""
        labels = None if self.labels is None else self.labels[chosen]
        return Truth(self.is_target[chosen], self.groups[chosen], self.task, labels)


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a model says of N units.

    Attributes:
        scores: ``(N,)``, larger is likelier a target.
        probabilities: ``(N, C)`` of the classes, or None if it only scores.
        referred: ``(N,)``, or None if it does not decide.
    """

    scores: FloatArray
    probabilities: FloatArray | None = None
    referred: BoolArray | None = None

    def where(self, chosen: BoolArray) -> "Answers":
        """Return the answers for some of the units."""
        return Answers(
            self.scores[chosen],
            None if self.probabilities is None else self.probabilities[chosen],
            None if self.referred is None else self.referred[chosen],
        )


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """A number of two models on the same units. What is not defined is NaN.

    Attributes:
        a: the number of A.
        b: the number of B.
        value: b minus a.
        low: lower end of the 95 % interval of the difference over groups.
        high: upper end of that interval.
        detectable: the smallest true difference that an interval of this width excludes 0 for with
            a probability of 0.8.
    """

    a: float
    b: float
    value: float
    low: float
    high: float
    detectable: float

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def paired_differences(
    truth: Truth, a: Answers, b: Answers, *, num_draws: int = 1000, seed: int = 0
) -> dict[str, PairedDifference]:
    """Return the differences between two models in every number that both have.

    Shares under a fixed rule (sensitivity, specificity, accuracy) get Tango's interval with
    effective numbers, the others a percentile interval over groups drawn with replacement, the same
    groups for both models.

    Args:
        truth: what the units are.
        a: the answers of A.
        b: the answers of B for the same units.
        num_draws: number of bootstrap draws.
        seed: seed of the draws.

    Returns:
        metric -> difference. There is no bootstrap interval with fewer than `MIN_BOOTSTRAP` groups
        of targets, or of others, and no other one below `MIN_TARGETS`.
    """
    drawn = _bootstrapped(truth, _values(truth, a), _values(truth, b), num_draws, seed)
    shares = {
        name: _share_difference(right_a, right_b, truth.groups[counted])
        for name, (counted, right_a, right_b) in _shares(truth, a, b).items()
    }
    return {**shares, **drawn}


def _values(truth: Truth, answers: Answers) -> dict[str, _Value]:
    """Return the numbers of a model that get a bootstrap interval."""
    target, scores = truth.is_target, answers.scores
    ranked = Predicted(_RANKED, target.astype(np.int64), np.column_stack([-scores, scores]))
    found = {name: _metric(name, ranked) for name in _OF_SCORES}
    if answers.probabilities is not None and truth.labels is not None and truth.task is not None:
        units = Predicted(truth.task, truth.labels, answers.probabilities)
        found |= {name: _metric(name, units) for name in _OF_CLASSES}
    if len(scores) and scores.min() >= 0 and scores.max() <= 1:
        error = (scores - target) ** 2
        found["brier"] = lambda weights: float(weights @ error / weights.sum())
    return found


def _metric(name: str, units: Predicted) -> _Value:
    return lambda weights: METRICS[name].value(units, weights)


def _shares(
    truth: Truth, a: Answers, b: Answers
) -> dict[str, tuple[BoolArray, BoolArray, BoolArray]]:
    """Return metric -> which units count ``(N,)``, and which of these each model has right."""
    found: dict[str, tuple[BoolArray, BoolArray, BoolArray]] = {}
    if a.referred is not None and b.referred is not None:
        target = truth.is_target
        found["sensitivity"] = target, a.referred[target], b.referred[target]
        found["specificity"] = ~target, ~a.referred[~target], ~b.referred[~target]
    if (
        a.probabilities is not None
        and b.probabilities is not None
        and truth.labels is not None
        and truth.task is not None
    ):
        right = [
            model.argmax(axis=1) == truth.labels for model in (a.probabilities, b.probabilities)
        ]
        found["accuracy"] = np.ones(len(truth.labels), dtype=bool), right[0], right[1]
    return found


def _bootstrapped(
    truth: Truth, of_a: dict[str, _Value], of_b: dict[str, _Value], num_draws: int, seed: int
) -> dict[str, PairedDifference]:
    names = [name for name in of_a if name in of_b]
    kinds = (truth.is_target, ~truth.is_target)
    if min(len(np.unique(truth.groups[kind])) for kind in kinds) < MIN_BOOTSTRAP:
        num_draws = 0
    rng = np.random.default_rng(seed)
    _, member = np.unique(truth.groups, return_inverse=True)
    num_groups = int(member.max()) + 1 if len(member) else 0
    differences: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(num_draws):
        drawn = np.bincount(rng.integers(0, num_groups, num_groups), minlength=num_groups)
        weights = drawn[member].astype(np.float64)
        for name in names:
            differences[name].append(of_b[name](weights) - of_a[name](weights))
    ones, tail = np.ones(len(member)), (1 - CONFIDENCE) / 2
    found = {}
    for name in names:
        values = np.array(differences[name])
        values = values[np.isfinite(values)]
        low, high = np.quantile(values, [tail, 1 - tail]) if len(values) else (np.nan, np.nan)
        found[name] = _difference(of_a[name](ones), of_b[name](ones), float(low), float(high))
    return found


def _share_difference(right_a: BoolArray, right_b: BoolArray, groups: IntArray) -> PairedDifference:
    """Return the difference of two shares of the same N units."""
    if not len(groups):
        nothing = float("nan")
        return _difference(nothing, nothing, nothing, nothing)
    num = effective_number(groups)
    low, high = float("nan"), float("nan")
    if num >= MIN_TARGETS:
        gained = float((right_b & ~right_a).mean()) * num
        lost = float((right_a & ~right_b).mean()) * num
        low, high = tango_interval(gained, lost, num, confidence=CONFIDENCE)
    return _difference(float(right_a.mean()), float(right_b.mean()), low, high)


def _difference(a: float, b: float, low: float, high: float) -> PairedDifference:
    z, more = norm.ppf((1 + CONFIDENCE) / 2), norm.ppf(POWER)
    # A width of 0 comes from models that answer alike; it does not say what could be seen.
    width = high - low if high > low else float("nan")
    return PairedDifference(a, b, b - a, low, high, float(width / 2 * (z + more) / z))


def tango_interval(
    gained: float, lost: float, num: float, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the two-sided score interval of a difference of two paired proportions.

    Tango (Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design, 1998). It has a width even if the two never differ.

    Args:
        gained: number of units that only the second has right; may be fractional.
        lost: number of units that only the first has right, likewise.
        num: number of independent units, at least gained + lost.
        confidence: in (0, 1).

    Returns:
        (low, high) of the second's share minus the first's, in [-1, 1].
    """
    z = float(norm.ppf((1 + confidence) / 2))

    def deviations(at: float) -> float:
        linear = (2 * num - gained + lost) * at - gained - lost
        root = np.sqrt(max(linear**2 + 8 * num * lost * at * (1 - at), 0.0))
        only_first = (root - linear) / (4 * num)
        variance = num * (2 * only_first + at * (1 - at))
        return float((gained - lost - num * at) / np.sqrt(max(variance, 1e-300)))

    value, edge = (gained - lost) / num, 1 - 1e-9
    low, high = -1.0, 1.0
    if deviations(-edge) > z and value > -edge:
        low = float(brentq(lambda at: deviations(at) - z, -edge, value - 1e-12))
    if deviations(edge) < -z and value < edge:
        high = float(brentq(lambda at: deviations(at) + z, value + 1e-12, edge))
    return low, high


def swap_test(right_a: BoolArray, right_b: BoolArray, groups: IntArray) -> float:
    """Return the exact two-sided p-value of "both models are right equally often".

    If they are, the answers of A and B for a whole group may be swapped. The p-value is the share
    of all swaps that give a net difference at least as large. With one unit in each group this is
    McNemar's exact test, which would be wrong for several: they are not independent.

    Args:
        right_a: ``(N,)``, which units A has right.
        right_b: the same of B.
        groups: ``(N,)`` integers, the group of each unit.
    """
    if not len(groups):
        return float("nan")
    _, member = np.unique(groups, return_inverse=True)
    net = np.zeros(int(member.max()) + 1, dtype=np.int64)
    np.add.at(net, member, right_b.astype(np.int64) - right_a.astype(np.int64))
    chances = np.ones(1)
    for size in np.abs(net[net != 0]):
        swapped = np.zeros(len(chances) + 2 * size)
        swapped[: len(chances)] += chances / 2
        swapped[2 * size :] += chances / 2
        chances = swapped
    reached = len(chances) // 2
    sums = np.arange(-reached, reached + 1)
    return float(min(1.0, chances[np.abs(sums) >= abs(int(net.sum()))].sum()))


def swap_tests(truth: Truth, a: Answers, b: Answers) -> dict[str, float]:
    """Return metric -> p-value of `swap_test` for every share that both models have."""
    return {
        name: swap_test(right_a, right_b, truth.groups[counted])
        for name, (counted, right_a, right_b) in _shares(truth, a, b).items()
    }


def paired_title(name: str) -> str:
    """Return the name for people of a number that two models are compared in."""
    return TITLES.get(name) or METRICS[name].title
