"""DICOM images on every way through this process, and that nothing of their texts comes out."""

import io
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from melanoma.data.dataset import ImageDataset, open_prepared
from melanoma.data.prepare import prepare
from melanoma.data.prepare_config import PrepareConfig
from melanoma.errors import DataError
from melanoma.evaluation import evaluate
from melanoma.predict import describe_predictions, predict_files
from melanoma.scoring import score
from tests.dicom_files import dicom_file, planted_in, rgb_file

pytestmark = pytest.mark.usefixtures("without_onnx")
SETTINGS = PrepareConfig(size=96, num_folds=2, calibration_fraction=0.2, test_fraction=0.2)


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _as_dicom(source: Path, folder: Path) -> Path:
    """Return a copy of a SOURCE folder whose images are DICOM."""
    shutil.copytree(source, folder)
    for path in sorted((folder / "images").iterdir()):
        path.with_suffix(".dcm").write_bytes(rgb_file(_pixels(path)))
        path.unlink()
    return folder


def _nothing_planted(folder: Path, text: str) -> None:
    assert not planted_in(text)
    for path in folder.rglob("*"):
        assert not path.is_file() or not planted_in(path.read_bytes()), path.name


def test_a_data_set_of_dicom_is_that_of_its_pixels(
    drawn_source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    folder = _as_dicom(drawn_source, tmp_path / "dicom")
    (folder / "images" / "IMG_000_0.dcm").write_bytes(dicom_file(b"\0" * 99))
    settings = PrepareConfig(
        size=96, num_folds=2, calibration_fraction=0.2, test_fraction=0.2, skip_bad=True
    )
    prepare(folder, tmp_path / "out", settings)
    ours = open_prepared(tmp_path / "out")
    rejected = (tmp_path / "out" / "rejected.csv").read_text()
    assert "IMG_000_0" in rejected
    assert "image_truncated" in rejected
    prepare(drawn_source, tmp_path / "jpeg", SETTINGS)
    theirs = open_prepared(tmp_path / "jpeg")
    assert len(ours.records) == len(theirs.records) - 1
    rows = ours.records.iloc[:5]
    twins = theirs.records.set_index("image_id").loc[rows["image_id"]].reset_index()
    assert np.array_equal(
        ImageDataset(ours, rows).images(range(5)), ImageDataset(theirs, twins).images(range(5))
    )
    _nothing_planted(tmp_path / "out", caplog.text)


def test_scores_and_evidence_of_dicom_are_those_of_its_pixels(
    bundle_dir: Path, drawn_source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for path in sorted((drawn_source / "images").iterdir())[8:]:
        path.unlink()
    table = pd.read_csv(drawn_source / "metadata.csv")
    table[:8].to_csv(drawn_source / "metadata.csv", index=False)
    folder = _as_dicom(drawn_source, tmp_path / "dicom")
    (folder / "images" / "broken.dcm").write_bytes(rgb_file(_pixels_of_noise())[:-99])
    ours = score(bundle_dir, folder / "images", tmp_path / "ours").set_index("path")
    theirs = score(bundle_dir, drawn_source / "images", tmp_path / "theirs")
    assert ours.loc["broken.dcm", "detail"].startswith("image_truncated")
    columns = [name for name in theirs if name.startswith("probability_")]
    np.testing.assert_allclose(
        ours.drop(index="broken.dcm")[columns].to_numpy(), theirs[columns].to_numpy(), atol=1e-6
    )
    evaluate(bundle_dir, folder, tmp_path / "evidence")
    _nothing_planted(tmp_path / "ours", caplog.text)
    _nothing_planted(tmp_path / "evidence", caplog.text)


def _pixels_of_noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_dicom_without_a_suffix_is_found_by_its_content(
    drawn_source: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    folder = _as_dicom(drawn_source, tmp_path / "dicom")
    images = sorted((folder / "images").iterdir())
    for path in images:
        path.rename(path.with_suffix(""))
    table = pd.read_csv(folder / "metadata.csv")
    table["image_id"] = table["image_id"].replace("IMG_000_0", "1.2.840.17")
    table.to_csv(folder / "metadata.csv", index=False)
    (folder / "images" / "IMG_000_0").rename(folder / "images" / "1.2.840.17")
    for other in ("LICENSE", "notes.1"):
        (folder / "images" / other).write_text("not an image" * 20)
    manifest = prepare(folder, tmp_path / "out", SETTINGS)
    assert manifest.num_images == len(images)
    scores = score(bundle_dir, folder / "images", tmp_path / "scores")
    assert len(scores) == len(images)
    assert set(scores["reason"]) == {""}
    assert "1.2.840.17" in set(scores["path"])


def test_a_prediction_is_written_as_dicom(
    bundle_dir: Path, phantom_source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """For DICOM images only, beside the usual answers; the identifiers are in the objects alone."""
    import highdicom as hd
    import pydicom
    from pydicom.pixels import pixel_array

    caplog.set_level(logging.DEBUG)
    first, second = sorted((phantom_source / "images").iterdir())[:2]
    (tmp_path / "again").mkdir()
    images = [tmp_path / "lesion.dcm", second, tmp_path / "again" / "lesion.dcm"]
    for path in (images[0], images[2]):
        path.write_bytes(rgb_file(_pixels(first)))
    found = predict_files(
        bundle_dir,
        images,
        explain="grad_cam",
        out=tmp_path / "out",
        allow_uncontracted=False,
        dicom=True,
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "lesion_grad_cam.png",
        "lesion.sr.dcm",
        "lesion.overlay.dcm",
        f"{second.stem}_grad_cam.png",
        "lesion_2_grad_cam.png",
        "lesion_2.sr.dcm",
        "lesion_2.overlay.dcm",
    }
    answer = found["results"][0]
    report = hd.sr.srread(io.BytesIO(Path(answer["report"]).read_bytes()))
    (group,) = report.content.get_image_measurement_groups()
    assert group.get_measurements()[0].value == pytest.approx(answer["score"], abs=1e-9)
    drawn = pixel_array(pydicom.dcmread(answer["overlay_dicom"]))
    assert np.array_equal(drawn, _pixels(Path(answer["overlay"])))
    said = describe_predictions(found)
    assert answer["report"] in said
    assert not planted_in(f"{said}{found}{caplog.text}")
    assert not planted_in(Path(answer["overlay"]).read_bytes())


def test_a_dicom_of_nobody_gets_no_object_and_costs_no_other_its_answer(
    bundle_dir: Path, phantom_source: Path, tmp_path: Path
) -> None:
    image = sorted((phantom_source / "images").iterdir())[0]
    (tmp_path / "a.dcm").write_bytes(rgb_file(_pixels(image), StudyInstanceUID=None))
    found = predict_files(
        bundle_dir,
        [tmp_path / "a.dcm", image],
        explain=None,
        out=tmp_path / "out",
        allow_uncontracted=True,
        dicom=True,
    )
    nobody, usual = found["results"]
    assert "no DICOM object can be derived" in nobody["error"]
    assert "decision" in usual
    assert not list((tmp_path / "out").iterdir())


def test_objects_need_a_folder(bundle_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Add --out"):
        predict_files(
            bundle_dir, [tmp_path], explain=None, out=None, allow_uncontracted=True, dicom=True
        )
