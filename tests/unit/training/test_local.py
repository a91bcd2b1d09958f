"""The checkpoints of a training in this process."""

from pathlib import Path

import torch

from melanoma.config import TrainConfig
from melanoma.training.checkpoints import PREFIX, STATE
from melanoma.training.job import TrainJob
from melanoma.training.local import LocalSession
from melanoma.training.selection import SELECTION


def _session(run: Path) -> LocalSession:
    return LocalSession(TrainJob(run / "dataset", run, TrainConfig()))


def _report(session: LocalSession, *scores: float) -> None:
    """Report the last epoch of a run with these validation scores."""
    history = [
        {"epoch": epoch, "loss": 1.0, SELECTION: score} for epoch, score in enumerate(scores, 1)
    ]
    session.report({"epoch": len(scores), "history": history, "model": {"w": torch.ones(2)}})


def _epochs(run: Path) -> set[int]:
    return {
        int(path.name.removeprefix(PREFIX))
        for path in (run / "checkpoints").iterdir()
        if path.is_dir()
    }


def _damage(run: Path, epoch: int) -> None:
    path = run / "checkpoints" / f"{PREFIX}{epoch:06d}" / STATE
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def test_the_latest_and_the_best_epoch_are_kept(tmp_path: Path) -> None:
    session = _session(tmp_path)
    kept = []
    for scores in ((0.7,), (0.7, 0.6), (0.7, 0.6, 0.5), (0.7, 0.6, 0.5, 0.8)):
        _report(session, *scores)
        kept.append(_epochs(tmp_path))
    assert kept == [{1}, {1, 2}, {1, 3}, {4}]


def test_nothing_is_deleted_while_the_best_epoch_is_damaged(tmp_path: Path) -> None:
    session = _session(tmp_path)
    _report(session, 0.7)
    _report(session, 0.7, 0.6)
    _damage(tmp_path, 1)
    _report(session, 0.7, 0.6, 0.5)
    assert _epochs(tmp_path) == {1, 2, 3}
    _report(session, 0.7, 0.6, 0.5, 0.8)
    assert _epochs(tmp_path) == {1, 4}
    state = _session(tmp_path).resume()
    assert state is not None
    assert state["epoch"] == 4
    assert (tmp_path / "checkpoints.damaged-1" / f"{PREFIX}000001").is_dir()


def test_the_list_of_ray_is_not_a_checkpoint(tmp_path: Path) -> None:
    _report(_session(tmp_path), 0.7)
    (tmp_path / "checkpoints" / f"{PREFIX}manager_snapshot.json").write_text("{}")
    assert _session(tmp_path).resume() is not None
    assert not (tmp_path / "checkpoints.damaged-1").exists()
