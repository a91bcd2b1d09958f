import dataclasses

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from melanoma.errors import SettingError
from melanoma.evidence.objective import FoldScores, Objective
from tests.folds import RECALL, make_fold


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
    fold = make_fold(0, rounded=rounded)
    thresholds = np.append(np.unique(fold.scores), np.inf)
    allowed = [t for t in thresholds if (fold.scores[~fold.is_target] < t).mean() >= 0.8]
    best = max((fold.scores[fold.is_target] >= t).mean() for t in allowed)
    assert RECALL.score([fold]) == pytest.approx(best)


def test_hits_are_pooled_over_folds() -> None:
    folds = [make_fold(0), make_fold(1, num=200)]
    hits = [RECALL.score([fold]) * fold.is_target.sum() for fold in folds]
    assert RECALL.score(folds) == pytest.approx(
        sum(hits) / sum(fold.is_target.sum() for fold in folds)
    )


@pytest.mark.parametrize(
    "text",
    ["melanoma_recall@specificity=0.8", "specificity@sensitivity=0.9", "auroc", "partial_auroc"],
)
def test_the_scale_of_a_fold_does_not_matter(text: str) -> None:
    folds = [make_fold(0), make_fold(1)]
    stretched = dataclasses.replace(folds[1], scores=5 + 100 * folds[1].scores)
    objective = Objective.parse(text)
    assert objective.score([folds[0], stretched]) == pytest.approx(objective.score(folds))


def test_areas_are_those_of_scikit_learn() -> None:
    fold = make_fold(2)
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
    fold = make_fold(0)
    constant = dataclasses.replace(fold, scores=np.ones(len(fold.scores)))
    assert RECALL.score([constant]) == 0


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
