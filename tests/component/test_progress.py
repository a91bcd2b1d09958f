"""What is shown of a training elsewhere, also while its storage is away."""

import json
import time
import uuid

import pytest

from melanoma.io.files import write_text
from melanoma.io.storage import RemotePath
from ray_jobs.progress import training_progress


def _row(epoch: int) -> str:
    numbers = (
        "loss",
        "auroc",
        "within_source_auroc",
        "specificity_at_sensitivity_90",
        "macro_f1",
        "train_seconds",
        "validation_seconds",
    )
    return json.dumps({"epoch": epoch, **dict.fromkeys(numbers, 0.5)}) + "\n"


def test_epochs_are_shown_once_though_storage_was_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ray_jobs.progress.REMOTE_SECONDS", 0.01)
    run = RemotePath(f"memory://bucket/{uuid.uuid4().hex}")
    write_text(run / "history.jsonl", _row(1))
    with training_progress(run):
        time.sleep(0.2)  # what an earlier run did is not shown again
        with monkeypatch.context() as away:
            away.setattr(RemotePath, "_kind", lambda _: (_ for _ in ()).throw(OSError("503")))
            time.sleep(0.2)
        write_text(run / "history.jsonl", _row(1) + _row(2))
        time.sleep(0.2)
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    assert [line.split()[1] for line in shown] == ["2"]
