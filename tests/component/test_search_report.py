from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from melanoma.evidence.objective import FoldScores
from melanoma.evidence.out_of_fold import Difference
from tune.compare import verdict
from tune.report import Findings, write_report


def _folds(seed: int) -> list[FoldScores]:
    rng = np.random.default_rng(seed)
    is_melanoma = rng.random(80) < 0.3
    groups = np.array([f"g{number}" for number in range(80)])
    return [
        FoldScores(is_melanoma, rng.normal(size=80) + is_melanoma, groups, np.full(80, "a"))
        for _ in range(3)
    ]


def _trials() -> pd.DataFrame:
    """Return all folds of base and plain cross-entropy, one of every other setting, a failure."""
    rng = np.random.default_rng(0)
    names = ["base"] * 3 + ["plain"] * 3 + [f"setting {number}" for number in range(3, 9)]
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        lead = 0.0 if name == "base" else 0.02 * number - 0.1
        rows.append(
            {
                "setting": name,
                "fold": number % 3,
                "gamma": 0.0 if number < 6 else number / 3,
                "tau": 0.5 if name == "base" else rng.random(),
                "target_factor": 1 + 7 * rng.random(),
                "status": "finished",
                "error": "",
                "epochs": 2,
                "objective": 0.6 + lead,
                "lead": lead,
                "expected_lead": lead / 2,
                "expected_lead_sd": 0.01,
            }
        )
    failed = {
        "status": "failed",
        "error": "the loss was <nan>",
        "objective": np.nan,
        "lead": np.nan,
    }
    return pd.DataFrame([*rows, {**rows[-1], **failed, "setting": "setting 9"}])


def _findings(trials: pd.DataFrame) -> Findings:
    difference = {"value": 0.02, "low": -0.01, "high": 0.05, "by_seed": [0.01, 0.03]}
    loss = {"gamma": 2.0, "tau": 0.5, "target_factor": 2.0}
    result = {
        "objective": "auroc",
        "num_settings": 9,
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
    slices = {
        name: pd.DataFrame({"value": [0.0, 1.0, 2.0], "lead": [0.0, 0.1, 0.2], "sd": 0.02})
        for name in ("gamma", "tau", "target_factor")
    }
    folds = {"base": _folds(0), "plain": _folds(1), "winner": _folds(2)}
    return Findings(trials, result, slices, folds)


def _page(trials: pd.DataFrame, folder: Path) -> str:
    write_report(_findings(trials), folder / "report.html")
    return (folder / "report.html").read_text()


def test_the_page_shows_what_failed_and_what_it_found(tmp_path: Path) -> None:
    page = _page(_trials(), tmp_path)
    assert "setting 9, fold 2: the loss was &lt;nan&gt;" in page
    assert "No difference shown" in page
    assert "+0.020 [-0.010, +0.050]" in page
    assert page.count("<img") == 4  # recall, and one for each searched setting
    assert "13 trials, each one fold of one of 9 settings: 12 finished, 1 failed" in page


def test_the_page_compares_focal_loss_with_the_best_without(tmp_path: Path) -> None:
    trials = _trials()
    assert (
        "+0.060 &plusmn; 0.010 for the best focal setting, +0.000 &plusmn; 0.010 for the best"
        " with gamma 0 (plain, unweighted cross-entropy: +0.000 &plusmn; 0.010)"
    ) in _page(trials, tmp_path)
    assert "No focal setting was tried" in _page(trials[trials["gamma"] == 0], tmp_path)


def test_the_page_lists_each_setting_once_the_best_first(tmp_path: Path) -> None:
    page = _page(_trials(), tmp_path)
    table = page[page.index("<h2>Settings</h2>") :]
    assert table.index("setting 8") < table.index("base")
    assert table.count("setting 8") == 1
    assert "nan" not in table
    assert "-0.020" in table  # the mean lead of plain cross-entropy over its three folds


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
