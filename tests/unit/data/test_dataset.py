import errno
import multiprocessing
import os
import shutil
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from melanoma.data.dataset import ACCESS_LOG, ImageDataset, PreparedData, open_prepared
from melanoma.errors import DataError, LeakageError
from melanoma.imaging.decode import decode_image
from melanoma.imaging.letterbox import letterbox
from melanoma.io.files import claim_folder, locked, new_folder, write_text


@pytest.fixture
def copied(prepared: PreparedData, tmp_path: Path) -> Path:
    """A copy that nobody has looked into: other tests log their accesses to the shared one."""
    return Path(
        shutil.copytree(
            prepared.folder, tmp_path / "dataset", ignore=shutil.ignore_patterns(ACCESS_LOG)
        )
    )


def test_images_are_those_that_were_decoded(prepared: PreparedData, phantom_source: Path) -> None:
    rows = prepared.rows("test")
    dataset = ImageDataset(prepared, rows)
    image, label, image_id = dataset.images([3])[0], int(dataset.labels[3]), dataset.image_ids[3]
    data = (phantom_source / "images" / f"{image_id}.jpg").read_bytes()
    assert np.array_equal(image.numpy(), letterbox(decode_image(data), prepared.stored_shape))
    assert label == rows["label"][3]


def test_folds_of_train_are_apart(prepared: PreparedData) -> None:
    held_out, rest = prepared.rows("train", fold=0), prepared.rows("train", without_fold=0)
    assert not set(held_out["group"]) & set(rest["group"])
    assert len(held_out) + len(rest) == len(prepared.rows("train"))


def test_a_damaged_shard_is_found(copied: Path) -> None:
    shard = next((copied / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(DataError, match="checksum"):
        open_prepared(copied, verify=True)


def test_moved_splits_are_found(copied: Path) -> None:
    records = pd.read_parquet(copied / "records.parquet")
    records.loc[records["split"] == "test", "split"] = "train"
    records.to_parquet(copied / "records.parquet")
    with pytest.raises(DataError, match="must match the hash"):
        open_prepared(copied)


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="melanoma data prepare"):
        open_prepared(tmp_path)


def test_every_look_at_test_is_logged(copied: Path) -> None:
    data = open_prepared(copied)
    data.log_access("test", {"bundle_version": "a"})
    data.log_access("calibration", {"bundle_version": "c"})
    assert [
        access["bundle_version"] for access in data.log_access("test", {"bundle_version": "b"})
    ] == ["a", "b"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("is_looked_at", [False, True])
def test_a_data_set_that_cannot_be_written_is_refused(
    code: int, is_looked_at: bool, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_prepared(copied)
    data.check_writable()
    assert not (copied / ACCESS_LOG).exists()
    if is_looked_at:
        data.log_access("test", {})
    data.check_writable()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))  # what a read-only mount says, to root too

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(DataError, match="must be writable for its access log"):
        data.check_writable()


def test_a_group_on_two_sides_is_found_when_the_data_are_opened(copied: Path) -> None:
    """The hash covers who stands where; that nobody's group stands on two sides is checked every
    time."""
    records = pd.read_parquet(copied / "records.parquet")
    trained, tested = (records.index[records["split"] == split][0] for split in ("train", "test"))
    records.loc[tested, "group"] = records.loc[trained, "group"]
    records.to_parquet(copied / "records.parquet", index=False)
    with pytest.raises(LeakageError):
        open_prepared(copied)


def test_another_run_is_told_by_what_differs(tmp_path: Path) -> None:
    described = {"config": {"loss": {"gamma": 0.0, "tau": 0.5}}, "weights": "none"}
    assert not claim_folder(tmp_path / "run", described)
    assert claim_folder(tmp_path / "run", described)
    with pytest.raises(DataError, match=r"differs in config\.loss\.gamma, weights\."):
        claim_folder(
            tmp_path / "run",
            {"config": {"loss": {"gamma": 2.0, "tau": 0.5}}, "weights": "imagenet"},
        )


def _hold(folder: Path, held: Event, done: Event) -> None:
    with locked(folder):
        held.set()
        done.wait(60)


def test_a_folder_is_worked_on_by_one_process_at_a_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "run", held, done))
    other.start()
    assert held.wait(60)
    with pytest.raises(DataError, match="is locked by another process"), locked(tmp_path / "run"):
        pass
    done.set()
    other.join()
    with locked(tmp_path / "run"):
        pass


@pytest.mark.parametrize(
    "make",
    [
        lambda path: locked(path).__enter__(),
        lambda path: new_folder(path).__enter__(),
        lambda path: claim_folder(path, {}),
    ],
    ids=["locked", "new", "claimed"],
)
@pytest.mark.parametrize("name", ["file/out", "file/runs/out"])
def test_a_folder_that_cannot_be_made_is_told_by_its_name(
    make: Callable[[Path], object], name: str, tmp_path: Path
) -> None:
    write_text(tmp_path / "file", "")
    with pytest.raises(
        DataError, match=rf"{name} must be a folder that can be made and written; it is not"
    ):
        make(tmp_path / name)


def test_a_full_disk_is_no_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OSError, match="No space"):
        claim_folder(tmp_path / "run", {})


def _write_and_stop(path: Path) -> None:
    write_text(path, "half")
    raise KeyboardInterrupt


def test_a_killed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as work:
        _write_and_stop(work / "half")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_leaves_the_old_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as work:
        write_text(work / "mark", "old")
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out", replace_if="mark") as work:
        _write_and_stop(work / "mark")
    assert (tmp_path / "out" / "mark").read_text() == "old"
    with new_folder(tmp_path / "out", replace_if="mark") as work:
        write_text(work / "mark", "new")
    assert (tmp_path / "out" / "mark").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
