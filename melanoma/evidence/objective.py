"""What a search maximises: one number for the out-of-fold predictions of a setting.

The networks of different folds scale their scores differently, so scores are never compared across
folds. Each fold has its own threshold. The numbers of the folds are averaged with the number of
units they rest on as weights, which pools their hits. Knows nothing of networks or searches.

scikit-learn and scipy are imported where they compute, so that a wrong name is refused at once.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from melanoma.arrays import BoolArray, FloatArray
from melanoma.errors import SettingError

WITHIN_SOURCE = ",within=source"
MIN_SENSITIVITY = 0.8  # of partial_auroc, as in the score of the ISIC 2024 challenge


@dataclasses.dataclass(frozen=True)
class FoldScores:
    """Scores of the targets in one fold, by a network that did not train on it.

    Attributes:
        is_target: ``(N,)``, one entry for each unit.
        scores: ``(N,)``, larger is likelier a target.
        groups: ``(N,)``, the groups that the bootstrap draws; each is in one fold only.
        sources: ``(N,)``, the source of each unit.
    """

    is_target: BoolArray
    scores: FloatArray
    groups: NDArray[np.str_]
    sources: NDArray[np.str_]

    def where(self, chosen: BoolArray) -> "FoldScores":
        """Return the scores of some of the units."""
        return FoldScores(
            self.is_target[chosen], self.scores[chosen], self.groups[chosen], self.sources[chosen]
        )


@dataclasses.dataclass(frozen=True)
class Objective:
    """The number that a search maximises.

    Attributes:
        kind: melanoma_recall, specificity, auroc or partial_auroc.
        at: the fixed specificity or sensitivity, in (0, 1); None for the areas.
        within_source: whether only units of the same source are compared, so that nothing is gained
            by recognising a camera. Each source has its own threshold; sources are pooled like
            folds.
    """

    kind: str
    at: float | None = None
    within_source: bool = False

    @staticmethod
    def parse(text: str) -> "Objective":
        """Parse an objective such as ``melanoma_recall@specificity=0.8`` or ``auroc``.

        Args:
            text: ``melanoma_recall@specificity=S`` or ``specificity@sensitivity=S`` with S in
                (0, 1), ``auroc`` or ``partial_auroc``; with ``,within=source`` behind it, within
                sources.

        Raises:
            SettingError: if it is none of these.
        """
        whole = text.removesuffix(WITHIN_SOURCE)
        kind, _, condition = whole.partition("@")
        name, _, number = condition.partition("=")
        try:
            at = float(number) if number else None
        except ValueError:
            at = float("nan")
        known = _KINDS.get(kind)
        if known is None or not known.takes(name, at):
            forms = ", ".join(f"{kind}{known.condition}" for kind, known in _KINDS.items())
            raise SettingError(
                f"The objective must be one of {forms}, with S in (0, 1), and may end in"
                f" {WITHIN_SOURCE}; it is {text}."
            )
        return Objective(kind, at, whole != text)

    def __str__(self) -> str:
        condition = "" if self.at is None else f"@{_KINDS[self.kind].held}={self.at:g}"
        return f"{self.kind}{condition}{WITHIN_SOURCE if self.within_source else ''}"

    def of_fold(self, fold: FoldScores, weights: FloatArray) -> tuple[float, float]:
        """Return the value of one fold and its weight among the folds.

        Args:
            fold: the scores of N units.
            weights: ``(N,)``, the weights of the units.

        Returns:
            The value in [0, 1] and its weight; both are 0 if the value is undefined.
        """
        if not self.within_source:
            return self._of_units(fold, weights)
        masks = [fold.sources == source for source in np.unique(fold.sources)]
        return _pooled([self._of_units(fold.where(mask), weights[mask]) for mask in masks])

    def _of_units(self, units: FoldScores, weights: FloatArray) -> tuple[float, float]:
        targets, others = (
            float(weights[units.is_target].sum()),
            float(weights[~units.is_target].sum()),
        )
        if targets == 0 or others == 0:
            return 0.0, 0.0
        kind = _KINDS[self.kind]
        return kind.value(units, weights, self.at or 0.0), kind.weight(targets, others)

    def score(self, folds: Sequence[FoldScores]) -> float:
        """Return the value over all folds, in [0, 1]; NaN if no fold holds targets and others."""
        return self.score_weighted(folds, [np.ones(len(fold.scores)) for fold in folds])

    def score_weighted(self, folds: Sequence[FoldScores], weights: Sequence[FloatArray]) -> float:
        """Return the value over all folds with a weight for every unit, ``(N,)`` for each fold."""
        value, total = _pooled(
            [self.of_fold(fold, weight) for fold, weight in zip(folds, weights, strict=True)]
        )
        return value if total else float("nan")


def _pooled(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the weighted mean of some values and the sum of their weights; both may be 0."""
    total = sum(weight for _, weight in parts)
    return (sum(value * weight for value, weight in parts) / total if total else 0.0), total


def _partial_auroc(fold: FoldScores, weights: FloatArray, at: float) -> float:
    """Return the area under the ROC curve above 80 % sensitivity, in [0, 0.2], as in ISIC 2024."""
    from sklearn.metrics import roc_auc_score

    # scikit-learn limits the false positive rate. With the classes exchanged and the scores
    # negated, that rate is 1 - sensitivity of the targets.
    width = 1 - MIN_SENSITIVITY
    standardised = roc_auc_score(
        ~fold.is_target, -fold.scores, sample_weight=weights, max_fpr=width
    )
    # Undo McClish's standardisation, which maps [chance, width] to [0.5, 1].
    chance = width**2 / 2
    return float(chance + (2 * standardised - 1) * (width - chance))


@dataclasses.dataclass(frozen=True)
class _Kind:
    """One kind of objective.

    Attributes:
        held: what is held fixed, such as specificity; empty for none.
        usual: where it is held by default; None if nothing is held.
        value: from a fold, the weights of its units and the fixed value to the objective.
        weight: from the weights of its targets and its others to the weight of a fold.
    """

    held: str
    usual: float | None
    value: Callable[[FoldScores, FloatArray, float], float]
    weight: Callable[[float, float], float]

    @property
    def condition(self) -> str:
        """How the condition is written behind the name of the kind."""
        return f"@{self.held}=S" if self.held else ""

    def takes(self, name: str, at: float | None) -> bool:
        """Return whether a condition is the one that this kind needs."""
        return name == self.held and (at is not None and 0 < at < 1 if self.held else at is None)


def _specificity(fold: FoldScores, weights: FloatArray, at: float) -> float:
    from melanoma.evidence.metrics import specificity_at_sensitivity

    return specificity_at_sensitivity(fold.is_target, fold.scores, weights, sensitivity=at)


def _recall(fold: FoldScores, weights: FloatArray, at: float) -> float:
    from melanoma.evidence.metrics import specificity_at_sensitivity

    # Recall at a given specificity is specificity at a given sensitivity with the two classes
    # exchanged and the order of the scores reversed.
    return specificity_at_sensitivity(~fold.is_target, -fold.scores, weights, sensitivity=at)


def _auroc(fold: FoldScores, weights: FloatArray, at: float) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(fold.is_target, fold.scores, sample_weight=weights))


_KINDS = {
    "melanoma_recall": _Kind("specificity", 0.8, _recall, lambda targets, others: targets),
    "specificity": _Kind("sensitivity", 0.9, _specificity, lambda targets, others: others),
    "auroc": _Kind("", None, _auroc, lambda targets, others: targets * others),
    "partial_auroc": _Kind("", None, _partial_auroc, lambda targets, others: targets * others),
}
"""The one place to add an objective."""
OBJECTIVES = tuple(str(Objective(name, kind.usual)) for name, kind in _KINDS.items())
"""The objectives that a search records for every trial, whichever of them it maximises."""
