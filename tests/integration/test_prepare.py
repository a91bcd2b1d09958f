import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray.data

from melanoma.data.dataset import open_prepared
from melanoma.data.prepare_config import PrepareConfig
from melanoma.errors import DataError
from ray_jobs.arguments import BAD_INPUT, DONE, FAILED
from ray_jobs.cli import main
from ray_jobs.cluster import collect

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
CONFIG = PrepareConfig(size=64, num_folds=2, test_fraction=0.2, calibration_fraction=0.2)


def _spoil(source: Path) -> None:
    """Plant one fault of every kind that only decoding shows, and one of the metadata."""
    data = (source / "images" / "IMG_000_0.jpg").read_bytes()
    (source / "images" / "IMG_000_0.jpg").write_bytes(data[: len(data) // 2])
    (source / "images" / "IMG_002_0.jpg").write_bytes(b"not an image")
    (source / "images" / "IMG_005_1.jpg").unlink()
    # The same pixels under two names and two labels.
    (source / "images" / "IMG_007_0.jpg").write_bytes(
        (source / "images" / "IMG_008_0.jpg").read_bytes()
    )


def test_all_bad_rows_are_found_in_one_pass(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _spoil(source)
    out = tmp_path / "out"
    assert (
        main(["data", "prepare", str(source), str(out), "--size", "64", "--folds", "2"])
        == BAD_INPUT
    )
    assert "2 image_unreadable" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["rejected.csv"]
    rejected = pd.read_csv(out / "rejected.csv")
    assert set(zip(rejected["image_id"], rejected["reason"], strict=True)) == {
        ("IMG_000_0", "image_unreadable"),
        ("IMG_002_0", "image_unreadable"),
        ("IMG_005_1", "image_missing"),
        ("IMG_007_0", "image_with_two_labels"),
        ("IMG_008_0", "image_with_two_labels"),
    }
    # The command that the message proposes takes the same folder.
    words = ["data", "prepare", str(source), str(out), "--size", "64", "--folds", "2"]
    assert main([*words, "--skip-bad"]) == DONE
    assert open_prepared(out).manifest.num_images == 43


def test_a_large_group_and_what_was_left_out_are_said(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _spoil(source)
    table = pd.read_csv(source / "metadata.csv")
    table["patient_id"] = ["P0"] * 12 + ["nan"] * 12 + [f"P{i // 2}" for i in range(24)]
    table.to_csv(source / "metadata.csv", index=False)
    words = [
        "data",
        "prepare",
        str(source),
        str(tmp_path / "out"),
        "--size",
        "64",
        "--folds",
        "2",
        "--skip-bad",
        "--json",
    ]
    assert main(words) == DONE
    shown = capsys.readouterr()
    manifest = json.loads(shown.out)
    assert manifest["left_out"] == {
        "image_missing": {"nv": 1},
        "image_unreadable": {"mel": 2},
        "image_with_two_labels": {"mel": 1, "nv": 1},
    }
    assert "5 images were left out, 3 of them labelled as melanoma" in shown.err
    assert "12 images have patient_id 'nan', which is read as not known" in shown.err
    assert re.search(r"one group holds \d+ of 43 images \(\d+%; patient_id P0", shown.err)
    assert manifest["largest_groups"][0]["num_images"] > 8


def test_a_full_disk_is_told_as_such_and_leaves_nothing(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Full:
        def __init__(self, *_: object) -> None:
            pass

        def __call__(self, item: object) -> list[dict[str, Any]]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("melanoma.data.decoding.DecodeChunk", Full)
    assert main(["data", "prepare", str(source), str(tmp_path / "out"), "--size", "64"]) == FAILED
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("melanoma: [Errno 28] No space left on device. Correct that, then run")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("kind", ["task", "actor"])
@pytest.mark.parametrize(
    "error", [DataError("shapes differ."), OSError(errno.EIO, "Input/output error"), KeyError("x")]
)
def test_what_fails_in_ray_data_is_raised_as_it_was(
    kind: str, error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    class Actor:
        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            raise error

    def task(row: dict[str, Any]) -> list[dict[str, Any]]:
        raise error

    items = ray.data.from_items([{"a": 1}])
    dataset = (
        items.flat_map(task)
        if kind == "task"
        else items.map_batches(Actor, batch_size=1, compute=ray.data.ActorPoolStrategy(size=1))
    )
    with pytest.raises(type(error)) as caught:
        collect(dataset, 1, None)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    told = capfd.readouterr().err
    assert "Traceback" not in told
    assert "open an issue" not in told
