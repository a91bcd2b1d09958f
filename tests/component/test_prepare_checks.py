"""What prepare and evaluate find out before they read an image or open test; none of it needs a Ray
cluster."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from melanoma.data.dataset import ACCESS_LOG, PreparedData
from melanoma.data.decoding import DecodeChunk
from melanoma.data.prepare import prepare
from melanoma.data.prepare_config import PrepareConfig
from melanoma.errors import DataError, LeakageError, UserError
from melanoma.evaluation import evaluate
from melanoma.executor import LocalExecutor
from ray_jobs.arguments import BAD_INPUT, FAILED
from ray_jobs.cli import main
from tests.sources import draw, rows, write_source, write_table


@pytest.fixture(autouse=True)
def _no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        pytest.fail("an image was read")

    monkeypatch.setattr("melanoma.data.prepare.decode_images", decode)


def _splits(path: Path, names: Callable[[int], str]) -> Path:
    write_table(
        path, [{"image_id": row["image_id"], "split": names(i)} for i, row in enumerate(rows())]
    )
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_folds": 1}, "folds must be at least 2"),
        ({"test_fraction": 0.6, "calibration_fraction": 0.4}, "below 1 together"),
        ({"size": 32}, "--size"),
        ({"group_by": ("ward",)}, "they lack ward"),
        ({"same_lesion": "pairs.csv"}, "--same-lesion must name images"),
        ({"splits": "typo.csv"}, "it is tset"),
        ({"splits": "short.csv"}, "12 of 24 are missing"),
    ],
)
def test_arguments_are_checked_before_any_image_is_read(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    source = write_source(tmp_path / "source", rows())
    (tmp_path / "pairs.csv").write_text("X,Y\n")
    _splits(tmp_path / "typo.csv", lambda i: ("train", "tset")[i % 2])
    (tmp_path / "short.csv").write_text(
        "\n".join(_splits(tmp_path / "ok.csv", lambda _: "train").read_text().splitlines()[:13])
    )
    files = {
        name: tmp_path / value if str(value).endswith(".csv") else value
        for name, value in changes.items()
    }
    with pytest.raises(UserError, match=message):
        prepare(source, tmp_path / "out", PrepareConfig(**files))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_given_splits_that_part_a_known_group_are_refused_before_any_image_is_read(
    tmp_path: Path,
) -> None:
    table = [{**row, "patient_id": f"P{i // 2}"} for i, row in enumerate(rows())]
    source = write_source(tmp_path / "source", table)
    with pytest.raises(LeakageError, match="12 are"):
        prepare(
            source,
            tmp_path / "out",
            PrepareConfig(splits=_splits(tmp_path / "s.csv", lambda i: ("train", "test")[i % 2])),
        )


def test_a_dead_ray_address_is_told_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    source = write_source(tmp_path / "source", rows())
    assert main(["data", "prepare", str(source), str(tmp_path / "out")]) == FAILED
    told = capsys.readouterr().err
    assert "Ray does not answer at 127.0.0.1:1" in told
    assert told.count("\n") == 1
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{'x' * 120}")
    assert main(["data", "prepare", str(source), str(tmp_path / "out")]) == BAD_INPUT
    assert "Set RAY_TMPDIR to a shorter folder" in capsys.readouterr().err


@pytest.mark.parametrize("colour", [(0, 0, 0), (128, 128, 128), (255, 255, 255)])
def test_blank_images_are_rejected_as_the_server_refuses_them(
    colour: tuple[int, int, int], tmp_path: Path
) -> None:
    good, blank = draw(tmp_path / "good.jpg"), tmp_path / "blank.jpg"
    Image.new("RGB", (64, 48), colour).save(blank)
    chunk = {
        "shard": "s.arrow",
        "image_ids": ["good", "blank"],
        "paths": [os.fsencode(good), os.fsencode(blank)],
    }
    found = DecodeChunk(str(tmp_path), 64, frozenset())(chunk)
    assert [(row["image_id"], row["reason"], row["row"]) for row in found] == [
        ("good", "", 0),
        ("blank", "blank_image", -1),
    ]


@pytest.fixture
def copied(prepared: PreparedData, tmp_path: Path) -> Path:
    return Path(
        shutil.copytree(
            prepared.folder, tmp_path / "dataset", ignore=shutil.ignore_patterns(ACCESS_LOG)
        )
    )


def test_a_data_set_of_another_size_costs_no_look_at_test(
    bundle_dir: Path, copied: Path, tmp_path: Path
) -> None:
    manifest = json.loads((copied / "manifest.json").read_text()) | {
        "image_height_px": 96,
        "image_width_px": 128,
    }
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        DataError,
        match=(
            r"must hold images of 96 x 72 px for this bundle; it holds 128 x 96\. Prepare it"
            r" again with --size 96"
        ),
    ):
        evaluate(bundle_dir, copied, tmp_path / "out")
    assert not (copied / ACCESS_LOG).exists()


def test_a_shard_that_is_away_costs_no_look_at_test(
    bundle_dir: Path, copied: Path, tmp_path: Path
) -> None:
    (copied / "shards" / "test-00000.arrow").unlink()
    with pytest.raises(DataError, match=r"must hold shards/test-00000\.arrow"):
        evaluate(bundle_dir, copied, tmp_path / "out")
    assert not (copied / ACCESS_LOG).exists()


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "BUNDLE", "DATA", "OUT"],
        ["train", "DATA", "OUT", "--preset", "smoke"],
        ["tune", "DATA", "OUT", "--preset", "smoke"],
    ],
)
def test_a_read_only_data_set_is_found_out_before_anything_starts(
    words: list[str],
    bundle_dir: Path,
    copied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(_: PreparedData) -> None:
        raise DataError("the data set must be writable for its access log")

    monkeypatch.setattr(PreparedData, "check_writable", refuse)
    # The cluster comes last: the others import from it, and would keep what is put there now.
    for module in ("ray_jobs.executor", "ray_jobs.trainer", "ray_jobs.cluster"):
        monkeypatch.setattr(f"{module}.connect", lambda **_: pytest.fail("Ray was started"))
    places = {"BUNDLE": bundle_dir, "DATA": copied, "OUT": tmp_path / "out"}
    assert main([str(places.get(word, word)) for word in words]) == BAD_INPUT
    assert "must be writable" in capsys.readouterr().err


def test_a_dead_cluster_costs_no_look_at_test(
    bundle_dir: Path, copied: Path, tmp_path: Path
) -> None:
    class Gone(LocalExecutor):
        def start(self, num_workers: int = 1) -> None:
            raise ConnectionError("no Ray answers")

    with pytest.raises(ConnectionError):
        evaluate(bundle_dir, copied, tmp_path / "out", executor=Gone())
    assert not (copied / ACCESS_LOG).exists()


def test_describe_shows_the_largest_groups_and_what_was_left_out(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest |= {"left_out": {"unknown_dx": {"unknown": 7}}}
    (copied / "notes.txt").write_text(
        "60 images have patient_id 'nan', which is read as not known\n"
    )
    (copied / "manifest.json").write_text(json.dumps(manifest))
    assert main(["data", "describe", str(copied)]) == 0
    shown = capsys.readouterr().out
    assert "largest groups: " in shown
    assert (
        "7 images were left out, 0 of them labelled as melanoma: 7 unknown_dx (7 unknown)." in shown
    )
    assert "60 images have patient_id 'nan'" in shown
    assert main(["data", "describe", str(copied), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    records = pd.read_parquet(copied / "records.parquet")
    assert described["largest_groups"][0]["num_images"] == records["group"].value_counts().max()
    assert described["left_out"] == {"unknown_dx": {"unknown": 7}}
