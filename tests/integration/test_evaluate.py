"""Evaluation on folders as they come: what cannot be judged is refused, or left out and said
everywhere."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ray_jobs.arguments import BAD_INPUT, DONE
from ray_jobs.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def _spoil(source: Path) -> None:
    """A melanoma that is all black, one that is all grey, a nevus that is cut off."""
    Image.new("RGB", (80, 60)).save(source / "images" / "IMG_000_0.jpg")
    Image.new("RGB", (80, 60), (128, 128, 128)).save(source / "images" / "IMG_002_0.jpg")
    cut = source / "images" / "IMG_001_0.jpg"
    cut.write_bytes(cut.read_bytes()[:900])


def test_images_that_the_server_refuses_are_refused_without_a_report(
    bundle_dir: Path, drawn_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _spoil(drawn_source)
    assert (
        main(["evaluate", str(bundle_dir), str(drawn_source), str(tmp_path / "out")]) == BAD_INPUT
    )
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "3 are not: 2 blank_image (2 mel); 1 image_unreadable (1 nv)" in told
    assert "pass --skip-bad" in told
    assert not (tmp_path / "out").exists()


def test_what_is_left_out_is_said_everywhere(
    bundle_dir: Path, drawn_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _spoil(drawn_source)
    (drawn_source / "images" / "IMG_004_0.jpg").unlink()
    out = tmp_path / "out"
    assert main(
        ["evaluate", str(bundle_dir), str(drawn_source), str(out), "--skip-bad", "--json"]
    ) in (
        DONE,
        1,
    )
    shown = capsys.readouterr()
    left_out = {
        "blank_image": {"mel": 2},
        "image_missing": {"mel": 1},
        "image_unreadable": {"nv": 1},
    }
    sentence = "4 images were left out, 3 of them labelled as melanoma"
    assert (
        json.loads(shown.out)["left_out"]
        == json.loads((out / "report.json").read_text())["left_out"]
        == left_out
    )
    assert sentence in shown.err
    assert sentence in (out / "report.html").read_text()
    predictions = pd.read_parquet(out / "predictions.parquet")
    assert len(predictions) == 44
    assert np.isfinite(predictions.filter(like="probability_")).all(axis=None)
    assert len(pd.read_csv(out / "rejected.csv")) == 4
