from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from melanoma.data.records import read_source
from melanoma.data.splits import draw_splits
from melanoma.evidence.operating_point import choose_units
from melanoma.evidence.reference_models import (
    INFORMATIVE_CONFIDENCE,
    Comparison,
    compare_within_sources,
    reference_scores,
    within_source_auroc,
)
from tests.figures import keep_if_asked
from tests.tasks import HAM


def _compare(
    is_target: np.ndarray,
    scores: np.ndarray,
    *,
    reference: np.ndarray | None = None,
    sources: np.ndarray | None = None,
    confidence: float = INFORMATIVE_CONFIDENCE,
) -> Comparison:
    blind = np.zeros(len(scores)) if reference is None else reference
    named = np.full(len(scores), "A") if sources is None else sources
    return compare_within_sources(
        is_target, scores, blind, named.tolist(), columns=("source",), confidence=confidence
    )


def test_with_one_source_it_is_the_auroc() -> None:
    rng = np.random.default_rng(0)
    is_target, scores = rng.random(200) < 0.3, rng.random(200).round(1)
    found = _compare(is_target, scores)
    assert found.auroc == pytest.approx(roc_auc_score(is_target, scores))
    assert (found.reference_auroc, found.num_sources) == (0.5, 1)
    assert (found.num_target, found.num_other) == (is_target.sum(), (~is_target).sum())


def test_only_pairs_of_one_source_count() -> None:
    sources = np.array(["A", "A", "A", "B", "B", "C"])
    is_target = np.array([True, False, False, True, False, True])
    scores = np.array([0.5, 0.4, 0.6, 0.1, 0.9, 0.0])
    found = _compare(is_target, scores, sources=sources)
    assert found.auroc == pytest.approx((1 + 0) / 3)  # A: one of two pairs, B: none of one
    assert found.num_sources == 2


def test_no_pair_shows_nothing() -> None:
    found = _compare(np.array([True, False]), np.array([1.0, 0.0]), sources=np.array(["A", "B"]))
    assert not found.is_informative
    assert (found.auroc, found.difference_low) == (0.5, -1)


def test_a_handful_of_units_shows_nothing() -> None:
    assert not _compare(np.array([True, False, False]), np.array([1.0, 0.0, 0.1])).is_informative


def test_the_bound_keeps_its_confidence() -> None:
    """Two scorers of the same true AUROC: the bound is above 0 in 5 % of repeats."""
    rng, above = np.random.default_rng(0), 0
    sources = np.repeat(["A", "B"], [300, 100])
    is_target = rng.random(400) < np.where(sources == "A", 0.1, 0.4)
    shared = rng.normal(size=(600, 400))
    for row in shared:
        ours, theirs = (1.2 * is_target + row + rng.normal(size=400) for _ in range(2))
        found = _compare(is_target, ours, reference=theirs, sources=sources, confidence=0.95)
        above += found.difference_low > 0
    assert above / 600 == pytest.approx(0.05, abs=0.03)


def _covered(num_target: int, num_other: int, auroc: float, *, repeats: int) -> float:
    """Return how often the interval of the AUROC within three sources holds the true value."""
    rng, distance, held = np.random.default_rng(0), np.sqrt(2) * norm.ppf(auroc), 0
    is_target = np.arange(num_target + num_other) < num_target
    for _ in range(repeats):
        # Most others come from a source with few targets, and every source shifts the scores.
        of_target = rng.choice(3, num_target, p=[0.1, 0.45, 0.45])
        of_other = rng.choice(3, num_other, p=[0.55, 0.22, 0.23])
        sources = np.concatenate([of_target, of_other])
        scores = rng.normal(size=len(sources)) + distance * is_target + sources
        found = within_source_auroc(is_target, scores, sources.astype(str).tolist())
        held += found["low"] <= auroc <= found["high"]
    return held / repeats


@pytest.mark.parametrize("auroc", [0.8, 0.95])
def test_the_interval_within_sources_covers_the_truth(auroc: float) -> None:
    assert _covered(15, 150, auroc, repeats=300) >= 0.92


@pytest.mark.drill
def test_the_interval_within_sources_covers_the_truth_over_a_grid() -> None:
    rows = []
    for num_target, num_other in ((10, 100), (15, 150), (30, 300), (89, 990)):
        row = {"melanomas, others, in three sources": f"{num_target}, {num_other}"}
        for auroc in (0.7, 0.8, 0.9, 0.95, 0.98):
            covered = _covered(num_target, num_other, auroc, repeats=1500)
            row[f"AUROC {auroc}"] = f"{covered:.1%}"
            assert covered >= 0.93 - 2 * np.sqrt(0.93 * 0.07 / 1500), (num_target, auroc)
        rows.append(row)
    keep_if_asked("auroc-within", rows)


def _informative(epochs: int, alike: float, *, repeats: int) -> float:
    """Return how often the best epoch of a network seems informative that knows as much as the
    records say.

    Args:
        epochs: number of epochs to choose from, on the units of the comparison itself.
        alike: correlation of the noise of two epochs, in [0, 1).
        repeats: number of simulated validation folds of HAM10000's size.
    """
    rng, found = np.random.default_rng(0), 0
    is_target = np.arange(1085) < 85
    distance = np.sqrt(2) * norm.ppf(0.6) * is_target
    for _ in range(repeats):
        sources = rng.choice(3, len(is_target), p=[0.55, 0.22, 0.23])
        reference = distance + rng.normal(size=len(is_target))
        common = rng.normal(size=len(is_target))
        scores = max(
            (
                distance
                + np.sqrt(alike) * common
                + np.sqrt(1 - alike) * rng.normal(size=len(is_target))
                for _ in range(epochs)
            ),
            key=lambda scores: _compare(is_target, scores, sources=sources).auroc,
        )
        compared = _compare(is_target, scores, reference=reference, sources=sources)
        found += compared.is_informative
    return found / repeats


def test_the_best_of_many_epochs_seldom_seems_informative() -> None:
    assert _informative(8, 0.5, repeats=100) <= 0.05


@pytest.mark.drill
def test_the_best_of_many_epochs_seldom_seems_informative_over_a_grid() -> None:
    rows = []
    for epochs in (1, 8, 26):
        shares = {alike: _informative(epochs, alike, repeats=400) for alike in (0.0, 0.5, 0.9)}
        # Epochs of one training are alike; independent ones are shown as the worst case.
        assert max(shares[0.5], shares[0.9]) <= 0.05, (epochs, shares)
        named = {f"correlation {alike}": f"{share:.1%}" for alike, share in shares.items()}
        rows.append({"best of epochs": str(epochs), **named})
    keep_if_asked("epochs", rows)


def test_fewer_than_ten_targets_show_nothing() -> None:
    """Even where each ranks right: one in six such draws does by chance."""
    is_target, sources = np.array([True, True, False, False]), np.full(4, "A")
    scores = np.array([0.9, 0.8, 0.2, 0.1])
    assert not _compare(is_target, scores, sources=sources).is_informative
    assert np.isnan(within_source_auroc(is_target, scores, sources.tolist())["low"])


def test_a_reference_model_sees_what_varies() -> None:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "source": "one",
            "sex": rng.choice(["male", "female", ""], 400),
            "site": "",
            "age": rng.integers(20, 80, 400),
        }
    ).astype({"age": float})
    rows.loc[::7, "age"] = np.nan
    is_target = (rows["age"] > 60).to_numpy()
    scores = reference_scores(rows, is_target, rows)
    assert roc_auc_score(is_target, scores) > 0.9
    nothing = rows.assign(sex="", age=np.nan)
    assert len(set(reference_scores(nothing, is_target, nothing))) == 1
    unseen = rows.assign(source="two", sex="unknown")
    assert np.isfinite(reference_scores(rows, is_target, unseen)).all()


def test_on_ham10000_the_camera_is_not_informative_and_a_network_is(shared: Path) -> None:
    """Twenty draws of splits and units. The audit's camera got its contract met here."""
    records = read_source(shared / "data" / "ham10000", HAM).records
    labels = records["dx"].map(HAM.classes.index).to_numpy()
    is_target = HAM.is_target(labels)
    groups = pd.factorize(records["lesion_id"])[0]
    found: dict[str, list[bool]] = {"camera": [], "records": [], "network": []}
    for seed in range(20):
        drawn = draw_splits(
            records["lesion_id"].tolist(),
            labels.tolist(),
            test_fraction=0.15,
            calibration_fraction=0.15,
            num_folds=5,
            seed=seed,
        )
        train, validation = ((drawn["fold"] > 0).to_numpy(), (drawn["fold"] == 0).to_numpy())
        rows, truth = records[validation], is_target[validation]
        units = np.concatenate(choose_units(truth, groups[validation], seed=seed))
        blind = reference_scores(records[train], is_target[train], rows)
        rng = np.random.default_rng(seed)
        part = rng.random(train.sum()) < 0.7
        share = pd.Series(is_target[train]).groupby(records["source"][train].to_numpy()).mean()
        scorers = {
            "camera": rows["source"].map(share).to_numpy() + rng.normal(0, 0.02, len(rows)),
            "records": reference_scores(records[train][part], is_target[train][part], rows),
            "network": np.sqrt(2) * norm.ppf(0.8) * truth + rng.normal(size=len(rows)),
        }
        for name, scores in scorers.items():
            compared = _compare(
                truth[units],
                scores[units],
                reference=blind[units],
                sources=rows["source"].to_numpy()[units],
            )
            found[name].append(compared.is_informative)
    assert sum(found["camera"]) == 0
    assert sum(found["records"]) <= 1
    assert sum(found["network"]) >= 16
