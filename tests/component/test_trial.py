"""What a trial reports: what would fail in the same way again is not raised, so not tried again."""

from pathlib import Path
from typing import Any

import pytest

from melanoma.errors import DataError
from melanoma.evidence.objective import Objective
from melanoma.presets import smoke
from melanoma.task import TASKS
from tune import trial
from tune.trial import Study, run_trial

CONFIG = {"gamma": 0.0, "tau": 0.5, "target_factor": 1.0, "fold": 2}


def _reported(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> list[dict[str, Any]]:
    def fails(study: Study, config: object, fold: int) -> None:
        assert fold == 2
        raise error

    reported: list[dict[str, Any]] = []
    monkeypatch.setattr(trial, "fold_scores", fails)
    monkeypatch.setattr("ray.tune.report", reported.append)
    study = Study(tmp_path, TASKS["ham10000"], tmp_path / "folds", smoke(), num_folds=5)
    run_trial(CONFIG, study, Objective("auroc"))
    return reported


@pytest.mark.parametrize(
    "error", [DataError("no such fold."), FloatingPointError("nan"), ValueError("shape")]
)
def test_what_would_happen_again_is_reported(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    [reported] = _reported(error, monkeypatch, tmp_path)
    assert reported["error"] == f"{type(error).__name__}: {error}"
    assert reported["objective"] != reported["objective"]


def test_what_may_succeed_when_tried_again_is_raised(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lost = ConnectionResetError("Connection reset by peer")
    with pytest.raises(ConnectionResetError):
        _reported(lost, monkeypatch, tmp_path)
