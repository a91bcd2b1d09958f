"""Whether a network knows more than the camera and the patient's data say without an image.

In many collections one source has few targets, so that recognising the camera ranks images well.
Therefore only pairs of units of the same source are compared, and the network must rank them better
than a reference model that sees no image.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from statistics import NormalDist

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from melanoma.arrays import BoolArray, FloatArray
from melanoma.evidence.intervals import MIN_TARGETS, auroc_interval
from melanoma.io.typed import Strict

INFORMATIVE_CONFIDENCE = 0.99
"""One-sided, of the comparison that a contract needs. It is more than that of the contract, because
the fold on which the two are compared also chose the epoch."""
MARGIN = 0.02
"""Least difference that counts: another model of the same records differs by less."""
SOURCE = "source"
CATEGORIES, AGE = (SOURCE, "sex", "site"), "age"
"""The columns of records that a reference model may see."""


def reference_scores(train: pd.DataFrame, is_target: BoolArray, rows: pd.DataFrame) -> FloatArray:
    """Return the scores of a model that sees no image: a logistic regression on the records.

    It sees the `known_columns` of the training rows.

    Args:
        train: records to fit it to.
        is_target: ``(len(train),)``.
        rows: N records to score.

    Returns:
        ``(N,)`` in [0, 1]. All are equal if there is nothing to fit.
    """
    known = known_columns(train)
    if not known or is_target.all() or not is_target.any():
        return np.full(len(rows), float(np.mean(is_target)) if len(is_target) else 0.0)
    # A server reads bundles and fits nothing; the import takes a second.
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, SplineTransformer

    categories = [name for name in known if name != AGE]
    steps: list[tuple[str, object, list[str]]] = []
    if categories:
        steps.append(("categories", OneHotEncoder(handle_unknown="ignore"), categories))
    if AGE in known:
        age = make_pipeline(
            SimpleImputer(strategy="median", add_indicator=True), SplineTransformer(n_knots=4)
        )
        steps.append((AGE, age, [AGE]))
    model = make_pipeline(ColumnTransformer(steps), LogisticRegression(max_iter=1000))
    model.fit(train, is_target)
    scores: FloatArray = model.predict_proba(rows)[:, 1]
    return scores


def known_columns(train: pd.DataFrame) -> tuple[str, ...]:
    """Return the columns that a reference model can use: those that vary among some records."""
    return tuple(name for name in (*CATEGORIES, AGE) if train[name].nunique(dropna=True) > 1)


def compare_with_references(
    is_target: BoolArray,
    scores: FloatArray,
    reference: FloatArray,
    sources: Sequence[str],
    *,
    columns: tuple[str, ...],
) -> tuple["Comparison", ...]:
    """Compare a network with models that see no image, within sources.

    The first knows the source alone, so that it ranks within a source at random. The second also
    knows what else is recorded.

    Args:
        is_target: ``(N,)`` of independent units.
        scores: ``(N,)`` of the network.
        reference: ``(N,)``, the `reference_scores` of the units.
        sources: the source of each of the N units.
        columns: what the reference model saw; if it is the source alone, the first suffices.
    """
    blind = compare_within_sources(
        is_target, scores, np.zeros(len(scores)), sources, columns=(SOURCE,)
    )
    if set(columns) <= {SOURCE}:
        return (blind,)
    return blind, compare_within_sources(is_target, scores, reference, sources, columns=columns)


@dataclasses.dataclass(frozen=True)
class Comparison(Strict):
    """A network beside a reference model, both ranking units within each source.

    Attributes:
        auroc: of the network: the share of pairs of a target and another unit of the same source
            in which the target has the higher score; ties count half.
        reference_auroc: the same of the reference model.
        difference_low: one-sided lower bound of auroc minus reference_auroc.
        confidence: of that bound, in (0, 1).
        columns: what the reference model saw.
        num_sources: number of sources that hold both targets and others.
        num_target: number of target units in those sources.
        num_other: number of other units in those sources.
    """

    auroc: float
    reference_auroc: float
    difference_low: float
    confidence: float
    columns: tuple[str, ...]
    num_sources: int
    num_target: int
    num_other: int

    @property
    def is_informative(self) -> bool:
        """Whether the network knows more than the reference model, with that confidence."""
        return self.difference_low > MARGIN


def hardest(comparisons: Iterable[Comparison]) -> Comparison:
    """Return the comparison in which the network leads least; it decides the contract."""
    return min(comparisons, key=lambda comparison: comparison.difference_low)


def compare_within_sources(
    is_target: BoolArray,
    scores: FloatArray,
    reference: FloatArray,
    sources: Sequence[str],
    *,
    columns: tuple[str, ...],
    confidence: float = INFORMATIVE_CONFIDENCE,
) -> Comparison:
    """Compare two scores of the same independent units within sources.

    The variance is that of DeLong, DeLong and Clarke-Pearson (Comparing the Areas under Two or More
    Correlated Receiver Operating Characteristic Curves, 1988) for each source; sources are weighted
    by their pairs.

    Args:
        is_target: ``(N,)``.
        scores: ``(N,)`` of the network.
        reference: ``(N,)`` of the reference model.
        sources: the source of each of the N units.
        columns: what the reference model saw.
        confidence: of the lower bound, in (0, 1).

    Returns:
        The comparison. Without a source that holds both, both AUROCs are 0.5. With fewer than
        `MIN_TARGETS` targets or others in such sources nothing is shown, and the bound is -1.
    """
    both = np.stack([scores, reference]).astype(np.float64)
    aurocs, pairs, variances, targets, others = [], [], [], 0, 0
    codes = pd.factorize(np.asarray(sources))[0]
    for code in range(codes.max() + 1 if len(codes) else 0):
        inside = codes == code
        of_target, of_other = both[:, inside & is_target], both[:, inside & ~is_target]
        if of_target.shape[1] == 0 or of_other.shape[1] == 0:
            continue
        by_target, by_other = _placements(of_target, of_other)
        aurocs.append(by_target.mean(axis=1))
        pairs.append(of_target.shape[1] * of_other.shape[1])
        variances.append(
            _variance_of_mean(by_target[0] - by_target[1])
            + _variance_of_mean(by_other[0] - by_other[1])
        )
        targets, others = targets + of_target.shape[1], others + of_other.shape[1]
    if not pairs:
        return Comparison(0.5, 0.5, -1.0, confidence, columns, 0, 0, 0)
    weights = np.array(pairs) / sum(pairs)
    network, blind = (float(value) for value in weights @ np.array(aurocs))
    deviation = float(np.sqrt(weights**2 @ np.array(variances)))
    low = network - blind - NormalDist().inv_cdf(confidence) * deviation
    if min(targets, others) < MIN_TARGETS:
        low = -1.0
    return Comparison(network, blind, low, confidence, columns, len(pairs), targets, others)


def _placements(of_target: FloatArray, of_other: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return, for each unit, the share of the other kind's units that it is ranked right against.

    Args:
        of_target: ``(K, n)`` scores of the target units, by K scorers.
        of_other: ``(K, m)`` scores of the other units.

    Returns:
        ``(K, n)`` and ``(K, m)``; ties count half.
    """
    num_target, num_other = of_target.shape[1], of_other.shape[1]
    among_all = rankdata(np.concatenate([of_target, of_other], axis=1), axis=1)
    by_target = (among_all[:, :num_target] - rankdata(of_target, axis=1)) / num_other
    by_other = 1 - (among_all[:, num_target:] - rankdata(of_other, axis=1)) / num_target
    return by_target, by_other


def _variance_of_mean(values: FloatArray) -> float:
    # One unit does not show the spread: take the largest that values in [-1, 1] can have.
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else 1.0


def within_source_auroc(
    is_target: BoolArray, scores: FloatArray, sources: Sequence[str]
) -> dict[str, float]:
    """Return the AUROC among units of the same source, with its two-sided 95 % interval.

    The interval is NaN where `auroc_interval` has none.
    """
    found = compare_within_sources(is_target, scores, np.zeros(len(scores)), sources, columns=())
    if not found.num_sources:
        return dict.fromkeys(("value", "low", "high"), float("nan"))
    codes = pd.factorize(np.asarray(sources))[0]
    targets, others = (
        np.bincount(codes[kind], minlength=codes.max() + 1).astype(np.float64)
        for kind in (is_target, ~is_target)
    )
    both = (targets > 0) & (others > 0)
    low, high = auroc_interval(found.auroc, targets[both], others[both])
    return {"value": found.auroc, "low": low, "high": high, "num_sources": found.num_sources}
