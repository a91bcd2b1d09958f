import dataclasses

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from melanoma.errors import SettingError
from melanoma.evidence.metrics import Predicted
from melanoma.evidence.objective import FoldScores, Objective
from melanoma.evidence.out_of_fold import choose_fold_scores, paired_difference
from tests.tasks import HAM

RECALL = Objective("melanoma_recall", 0.8)


def _fold(seed: int, *, lift: float = 1.2, num: int = 120, rounded: bool = False) -> FoldScores:
    rng = np.random.default_rng(seed)
    is_target = rng.random(num) < 0.3
    scores = rng.normal(size=num) + lift * is_target
    return FoldScores(
        is_target,
        scores.round(1) if rounded else scores,
        np.array([f"{seed}-{i}" for i in range(num)]),
        np.full(num, "a"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "melanoma_recall@specificity=0.8",
        "specificity@sensitivity=0.9",
        "auroc",
        "partial_auroc",
        "auroc,within=source",
        "melanoma_recall@specificity=0.8,within=source",
    ],
)
def test_objectives_are_read_as_they_are_written(text: str) -> None:
    assert str(Objective.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "loss",
        "melanoma_recall",
        "melanoma_recall@sensitivity=0.8",
        "melanoma_recall@specificity=1",
        "auroc@specificity=0.5",
        "specificity@sensitivity=x",
        "auroc,within=site",
    ],
)
def test_other_objectives_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match="objective"):
        Objective.parse(text)


@pytest.mark.parametrize("rounded", [False, True])
def test_recall_at_a_specificity_is_the_best_over_all_thresholds(rounded: bool) -> None:
    fold = _fold(0, rounded=rounded)
    thresholds = np.append(np.unique(fold.scores), np.inf)
    allowed = [t for t in thresholds if (fold.scores[~fold.is_target] < t).mean() >= 0.8]
    best = max((fold.scores[fold.is_target] >= t).mean() for t in allowed)
    assert RECALL.score([fold]) == pytest.approx(best)


def test_hits_are_pooled_over_folds() -> None:
    folds = [_fold(0), _fold(1, num=200)]
    hits = [RECALL.score([fold]) * fold.is_target.sum() for fold in folds]
    assert RECALL.score(folds) == pytest.approx(
        sum(hits) / sum(fold.is_target.sum() for fold in folds)
    )


@pytest.mark.parametrize(
    "text",
    ["melanoma_recall@specificity=0.8", "specificity@sensitivity=0.9", "auroc", "partial_auroc"],
)
def test_the_scale_of_a_fold_does_not_matter(text: str) -> None:
    folds = [_fold(0), _fold(1)]
    stretched = dataclasses.replace(folds[1], scores=5 + 100 * folds[1].scores)
    objective = Objective.parse(text)
    assert objective.score([folds[0], stretched]) == pytest.approx(objective.score(folds))


def test_areas_are_those_of_scikit_learn() -> None:
    fold = _fold(2)
    assert Objective("auroc").score([fold]) == pytest.approx(
        roc_auc_score(fold.is_target, fold.scores)
    )
    false_positive, sensitivity, _ = roc_curve(fold.is_target, fold.scores, drop_intermediate=False)
    fine = np.linspace(0, 1, 200_001)
    above = np.clip(np.interp(fine, false_positive, sensitivity) - 0.8, 0, None)
    assert Objective("partial_auroc").score([fold]) == pytest.approx(
        np.trapezoid(above, fine), abs=2e-3
    )


def test_always_saying_melanoma_gains_nothing() -> None:
    fold = _fold(0)
    constant = dataclasses.replace(fold, scores=np.ones(len(fold.scores)))
    assert RECALL.score([constant]) == 0


def test_a_group_counts_once_a_side() -> None:
    labels, groups = np.array([4, 4, 5, 5, 4]), np.array(["a", "a", "a", "b", "c"])
    fold = choose_fold_scores(Predicted(HAM, labels, np.full((5, 7), 1 / 7)), groups, groups)
    assert sorted(fold.groups[fold.is_target]) == ["a", "c"]
    assert sorted(fold.groups[~fold.is_target]) == ["a", "b"]


def test_a_real_difference_is_shown_and_none_is_not() -> None:
    base = [_fold(seed, num=400) for seed in range(3)]
    better = [dataclasses.replace(f, scores=f.scores + 1.0 * f.is_target) for f in base]
    found = paired_difference(RECALL, [better], [base], num_draws=200)
    assert found.shown
    assert found.low > 0
    rng = np.random.default_rng(0)
    alike = [
        dataclasses.replace(f, scores=f.scores + 0.3 * rng.normal(size=len(f.scores))) for f in base
    ]
    assert not paired_difference(RECALL, [alike], [base], num_draws=200).shown


def test_within_sources_a_camera_gains_nothing() -> None:
    """One source has nearly all targets, and the scores say which source it is."""
    rng = np.random.default_rng(0)
    of_a = rng.random(4000) < 0.5
    is_target = rng.random(4000) < np.where(of_a, 0.4, 0.02)
    groups = np.arange(4000).astype(str)
    sources = np.where(of_a, "a", "b")
    camera = FoldScores(is_target, of_a + 0.01 * rng.random(4000), groups, sources)
    assert Objective("auroc").score([camera]) > 0.75
    assert Objective("auroc", within_source=True).score([camera]) == pytest.approx(0.5, abs=0.03)
    recall = Objective("melanoma_recall", 0.8, within_source=True)
    assert recall.score([camera]) == pytest.approx(0.2, abs=0.04)
    parts = [camera.where(sources == name) for name in "ab"]
    assert recall.score([camera]) == pytest.approx(Objective("melanoma_recall", 0.8).score(parts))


def test_seeds_that_differ_widen_the_interval() -> None:
    base = [_fold(seed, num=400) for seed in range(3)]
    lifted = [
        [dataclasses.replace(f, scores=f.scores + lift * f.is_target) for f in base]
        for lift in (-0.5, 0.0, 0.5)
    ]
    wide = paired_difference(RECALL, lifted, [base] * 3, num_draws=300)
    narrow = paired_difference(RECALL, [base] * 3, [base] * 3, num_draws=300)
    assert (narrow.low, narrow.high) == (0, 0)
    assert wide.low < min(wide.by_seed) / 2 < 0 < max(wide.by_seed) / 2 < wide.high


def test_other_units_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="same units"):
        paired_difference(RECALL, [[_fold(0)]], [[_fold(1)]])
