"""Checkpoints: what was written is read, anything else is told from it, and what is whole is gone
on from. Ray's own reader is the oracle."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import ray
import torch
from ray.train import CheckpointConfig
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext

from melanoma.io.storage import AnyPath, to_path
from melanoma.training.checkpoints import HASH, STATE, read_state, reported, save_state
from melanoma.training.selection import SELECTION
from ray_jobs import checkpoints
from ray_jobs.checkpoints import SNAPSHOT, mend

SCORES = [0.5, 0.9, 0.7, 0.8]


def _write(folder: Path, epoch: int, scores: Sequence[float] = SCORES) -> dict[str, object]:
    """Write the checkpoint of an epoch, and return its entry in Ray's list."""
    history = [
        {"epoch": number + 1, SELECTION: score} for number, score in enumerate(scores[:epoch])
    ]
    state = {"epoch": epoch, "history": history, "model": {"weight": torch.arange(1000.0)}}
    path = folder / f"checkpoint_{epoch}"
    path.mkdir(parents=True)
    save_state(path, state)
    return {"checkpoint_dir_name": path.name, "metrics": reported(state)}


def _list(folder: Path, best: dict[str, object], latest: dict[str, object]) -> None:
    results = [latest] if best == latest else [latest, best]
    told = {name: [] for name in checkpoints._layout()} | {
        "ray_version": ray.__version__,
        "checkpoint_results": results,
        "checkpoint_report_indices": [0] * len(results),
        "latest_checkpoint_result": latest,
        "current_report_index": 4,
    }
    (folder / SNAPSHOT).write_text(json.dumps(told))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's checkpoints after four epochs as Ray keeps them: the best, the latest, and the
    list."""
    folder = tmp_path / "run" / "checkpoints"
    _list(folder, _write(folder, 2), _write(folder, 4))
    return folder


def _as_ray_reads(folder: Path) -> tuple[list[str], str | None]:
    """Return the best checkpoint that Ray's own manager finds, and the latest."""
    config = CheckpointConfig(
        num_to_keep=1, checkpoint_score_attribute=SELECTION, checkpoint_score_order="max"
    )
    storage = StorageContext(storage_path=str(folder.parent), experiment_dir_name=folder.name)
    manager = CheckpointManager(config, storage)
    latest = manager.latest_checkpoint_result
    return [
        Path(result.checkpoint.path).name for result in manager.best_checkpoint_results
    ], latest and Path(latest.checkpoint.path).name


def _aside(folder: Path, number: int = 1) -> set[str]:
    aside = folder.parent / f"checkpoints.damaged-{number}"
    return {path.name for path in aside.iterdir()} if aside.is_dir() else set()


def _flip(folder: AnyPath, epoch: int) -> None:
    """Flip a bit in a tensor, which torch would load without a word."""
    path = folder / f"checkpoint_{epoch}" / STATE
    data = bytearray(path.read_bytes())
    data[data.find(torch.arange(500.0, 504.0).numpy().tobytes())] ^= 1
    path.write_bytes(bytes(data))


def test_a_whole_checkpoint_is_read_as_it_was_written(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert mend(folder) == ""
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    state = read_state(folder / "checkpoint_4", "cpu")
    assert state["epoch"] == 4
    assert torch.equal(state["model"]["weight"], torch.arange(1000.0))


def test_no_checkpoints_are_no_damage(tmp_path: Path) -> None:
    assert mend(tmp_path / "checkpoints") == ""
    (tmp_path / "checkpoints" / "checkpoint_1").mkdir(
        parents=True
    )  # what a kill leaves before there is a list
    assert mend(tmp_path / "checkpoints") == ""


def test_a_list_that_is_missing_is_written_anew(folder: Path) -> None:
    (folder / SNAPSHOT).unlink()
    assert mend(folder) == (
        "Ray has no list of the run's checkpoints; the run continues after epoch 4"
    )
    assert _as_ray_reads(folder) == (["checkpoint_2"], "checkpoint_4")
    assert not _aside(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        '{"checkpoint_results": 3}',
        '{"checkpoints": [], "version": 2}',
        "\udc80",
    ],
)
def test_a_list_that_cannot_be_read_is_written_anew_from_what_is_whole(
    text: str, folder: Path
) -> None:
    data = text.encode(errors="surrogateescape")
    (folder / SNAPSHOT).write_bytes(data)
    assert "cannot read the run's list" in (told := mend(folder))
    assert "continues after epoch 4" in told
    assert _as_ray_reads(folder) == (["checkpoint_2"], "checkpoint_4")
    assert (folder.parent / "checkpoints.damaged-1" / SNAPSHOT).read_bytes() == data
    assert mend(folder) == ""


@pytest.mark.parametrize("name", [STATE, HASH])
def test_a_checkpoint_without_a_file_is_put_aside(name: str, folder: Path) -> None:
    (folder / "checkpoint_4" / name).unlink()
    assert "continues after epoch 2" in mend(folder)
    assert _as_ray_reads(folder) == (["checkpoint_2"], "checkpoint_2")
    assert _aside(folder) == {SNAPSHOT, "checkpoint_4"}


def test_of_a_damaged_latest_one_the_run_goes_on_from_the_best(folder: Path) -> None:
    _flip(folder, 4)
    torch.load(folder / "checkpoint_4" / STATE, weights_only=True)  # without a word
    with pytest.raises(OSError, match="must match its hash"):
        read_state(folder / "checkpoint_4", "cpu")
    assert "a checkpoint is damaged" in (told := mend(folder))
    assert "continues after epoch 2" in told
    assert _as_ray_reads(folder) == (["checkpoint_2"], "checkpoint_2")
    assert mend(folder) == ""


def test_of_a_damaged_best_one_the_run_does_not_go_on_from_a_later_one(folder: Path) -> None:
    """The bundle would be another network: the best so far is lost, and only training it again
    brings it back."""
    _flip(folder, 2)
    assert "starts again" in mend(folder)
    assert not folder.exists()
    assert _aside(folder) == {SNAPSHOT, "checkpoint_2", "checkpoint_4"}


def test_of_equal_scores_the_later_one_is_the_best(tmp_path: Path) -> None:
    """As Ray keeps them: the first need not be there."""
    folder = tmp_path / "checkpoints"
    latest = _write(folder, 2, [0.7, 0.7])
    _list(folder, latest, latest)
    (folder / SNAPSHOT).write_text("{")
    assert "continues after epoch 2" in mend(folder)


def test_damage_is_never_deleted(folder: Path) -> None:
    for number in (1, 2):
        _flip(folder, 4)
        _flip(folder, 2)
        assert f"kept in checkpoints.damaged-{number}" in mend(folder)
        assert _aside(folder, number) == {SNAPSHOT, "checkpoint_2", "checkpoint_4"}
        shutil.copytree(folder.parent / "checkpoints.damaged-1", folder)


def test_another_version_of_ray_costs_time_and_no_data(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the layout of the list is not known, it is neither trusted nor written."""
    monkeypatch.setattr(checkpoints, "_layout", dict)
    assert "starts again" in mend(folder)
    assert _aside(folder) == {SNAPSHOT, "checkpoint_2", "checkpoint_4"}


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: _flip(folder, 4), "continues after epoch 2"),
        (lambda folder: (folder / SNAPSHOT).write_bytes(b"{"), "continues after epoch 4"),
        (lambda folder: _flip(folder, 2), "starts again"),
    ],
)
def test_in_object_storage_it_is_the_same(
    damage: Callable[[AnyPath], object], told: str, folder: Path
) -> None:
    from melanoma.io.storage import RemotePath, publish, remove_folder

    remote = to_path("memory://bucket/mend/checkpoints")
    assert isinstance(remote, RemotePath)
    remove_folder(remote.parent)
    publish(folder, remote)
    files = sum(1 for _ in remote.files())
    damage(remote)
    assert told in mend(remote)
    assert mend(remote) == ""
    goes_on = "continues" in told
    assert sum(1 for _ in remote.parent.files()) == files + goes_on  # the list is there twice
