from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from melanoma.evidence.out_of_fold import Difference, FoldScores
from melanoma.presets import smoke
from tune.compare import verdict
from tune.report import Findings, write_report
from tune.search import make_searcher
from tune.space import SearchSpace

SPACE = SearchSpace()
BASE = smoke()


def _folds(seed: int) -> list[FoldScores]:
    rng = np.random.default_rng(seed)
    is_melanoma = rng.random(80) < 0.3
    groups = np.array([f"g{number}" for number in range(80)])
    return [
        FoldScores(is_melanoma, rng.normal(size=80) + is_melanoma, groups, np.full(80, "a"))
        for _ in range(3)
    ]


def _trials() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(9):
        gamma, value = (0.0 if number < 2 else 1 + number / 3), 0.6 + 0.02 * number
        rows.append(
            {
                "trial": ("base", "plain")[number] if number < 2 else f"run_{number}",
                "gamma": gamma,
                "gamma_drawn": gamma,
                "tau": rng.random(),
                "target_factor": 1 + 7 * rng.random(),
                "status": "finished" if number % 3 < 2 else "pruned",
                "error": "",
                "folds": 3,
                "epochs": 6,
                "objective": value,
                "lead": value - 0.6,
            }
        )
    failed = {
        "status": "failed",
        "error": "the loss was <nan>",
        "folds": 0,
        "objective": np.nan,
        "lead": np.nan,
    }
    return pd.DataFrame([*rows, {**rows[-1], **failed, "trial": "run_broken"}])


def _findings() -> Findings:
    trials = _trials()
    difference = {"value": 0.02, "low": -0.01, "high": 0.05, "by_seed": [0.01, 0.03]}
    loss = {"gamma": 2.0, "tau": 0.5, "target_factor": 2.0}
    result = {
        "objective": "auroc",
        "by_status": trials["status"].value_counts().to_dict(),
        "winner_is_base": False,
        "num_test_accesses": 2,
        "verdict": "No difference shown",
        "loss": {"winner": loss, "base": loss},
        "arms": {
            name: {"by_seed": [0.6, 0.7], "by_fold": [0.5, 0.6, 0.7]} for name in ("winner", "base")
        },
        "out_of_fold_difference": difference,
        "test_difference": difference,
        "epochs_of_search": 54,
        "epochs_of_comparison": 12,
        "contract": {"status": "unmet"},
        "contract_sentence": "No promise.",
    }
    anchors = {"base": _folds(0), "plain": _folds(1), "winner": _folds(2)}
    space = SPACE.distributions(BASE)
    return Findings(
        trials,
        result,
        space,
        99,
        [_folds(3), _folds(4)],
        anchors,
        commonest="nv",
        others_per_target=6.0,
    )


def test_the_page_shows_what_failed_and_what_it_found(tmp_path: Path) -> None:
    write_report(_findings(), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "the loss was &lt;nan&gt;" in page
    assert "No difference shown" in page
    assert "+0.020 [-0.010, +0.050]" in page
    assert page.count("<img") == 4
    assert "focal loss wins by" in page
    assert (
        "may come from the class weights alone" in page
    )  # no other setting with gamma 0 saw all folds


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.01, 0.1, "The winner's network is better than the base's"),
        (-0.1, -0.01, "The winner's network is worse than the base's"),
        (-0.01, 0.1, "No difference shown"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(low: float, high: float, expected: str) -> None:
    assert verdict(Difference((low + high) / 2, low, high, [])) == expected


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_a_search_played_again_draws_the_same(kind: str) -> None:
    """Cut after nine trials: the samples drawn so far come first, and what follows is what would
    have followed."""

    def play(first: list[dict[str, float]], num: int) -> list[dict[str, float]]:
        searcher = make_searcher(
            SPACE, BASE, kind=kind, known=[(SPACE.sample_of(BASE), 0.0)], first=first
        )
        drawn = []
        for number in range(num):
            sample = searcher.suggest(str(number))
            assert sample is not None
            drawn.append(dict(sample))
            searcher.on_trial_complete(
                str(number),
                {"lead": -abs(sample["gamma"] - 2) - sample["tau"], "training_iteration": 1},
            )
        return drawn

    whole = play([], 14)
    assert play(whole[:9], 14) == whole
    assert len({sample["gamma"] for sample in whole}) == 14
    assert all(sample["tau"] != sample["gamma"] / 5 for sample in whole)


def test_tpe_goes_where_the_lead_is() -> None:
    searcher = make_searcher(SPACE, BASE, kind="tpe", known=[], first=[])
    drawn = []
    for number in range(40):
        sample = searcher.suggest(str(number))
        assert sample is not None
        drawn.append(sample["gamma"])
        searcher.on_trial_complete(
            str(number), {"lead": -abs(sample["gamma"] - 3), "training_iteration": 1}
        )
    assert np.abs(np.array(drawn[-10:]) - 3).mean() < np.abs(np.array(drawn[:6]) - 3).mean()
