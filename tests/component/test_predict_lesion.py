"""`predict --one-lesion`: several images, one decision."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from melanoma.bundle.bundle import load_bundle
from melanoma.bundle.deciding import UNUSUAL, Decider
from melanoma.bundle.predictor import Predictor
from melanoma.errors import DataError
from ray_jobs.arguments import BAD_INPUT, DONE
from ray_jobs.cli import main


@pytest.fixture(scope="module")
def images(phantom_source: Path) -> list[Path]:
    return sorted((phantom_source / "images").glob("*.jpg"))


def test_the_lesion_is_decided_by_the_mean_of_the_logits(
    bundle_dir: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    three = images[:3]
    command = [
        "predict",
        str(bundle_dir),
        *map(str, three),
        "--one-lesion",
        "--json",
        "--allow-uncontracted",
    ]
    assert main(command) == DONE
    found = json.loads(capsys.readouterr().out)
    predictor = Predictor(load_bundle(bundle_dir))
    manifest = predictor.bundle.manifest
    alone = predictor.predict(three)
    mean = np.mean([each.logits for each in alone], axis=0)
    expected = manifest.calibrator(mean[None])[0]
    assert manifest.several_images is not None
    assert found["lesion"]["num_images"] == 3
    assert list(found["lesion"]["probabilities"].values()) == pytest.approx(expected, abs=1e-6)
    assert found["threshold"] == manifest.several_images.threshold
    assert found["contract"]["unit"] == "up to 6 images of one lesion"
    assert all("decision" not in result for result in found["results"])
    score = found["lesion"]["score"]
    unusual = any(UNUSUAL in each.warnings for each in alone)
    assert found["lesion"]["decision"] == (
        "cannot_assess" if unusual else "refer" if score >= found["threshold"] else "no_referral"
    )


def test_one_image_is_decided_as_ever(
    bundle_dir: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    decisions = []
    for option in ([], ["--one-lesion"]):
        assert main(["predict", str(bundle_dir), str(images[0]), "--json", *option]) == DONE
        found = json.loads(capsys.readouterr().out)
        answer = found["lesion"] if option else found["results"][0]
        decisions.append((answer["decision"], answer["score"], found["threshold"]))
    assert decisions[0] == decisions[1]


def test_an_unusual_image_leaves_the_lesion_unassessed(bundle_dir: Path) -> None:
    predictor = Predictor(load_bundle(bundle_dir), allow_uncontracted=True)
    height, width = predictor.bundle.preprocess.stored_shape
    noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    found = predictor.predict_lesion(list(noise))
    assert found.together.decision == "cannot_assess"
    assert UNUSUAL in found.together.warnings


def test_a_bad_image_leaves_the_lesion_without_an_answer(
    bundle_dir: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    paths = [str(images[0]), str(tmp_path / "bad.jpg")]
    assert main(["predict", str(bundle_dir), *paths, "--one-lesion", "--json"]) == BAD_INPUT
    assert json.loads(capsys.readouterr().out)["lesion"] is None
    assert main(["predict", str(bundle_dir), *paths, "--one-lesion"]) == BAD_INPUT
    told = capsys.readouterr().out
    assert "the lesion is not judged, because 1 of 2 images cannot be used" in told


def test_an_image_does_not_count_twice(
    bundle_dir: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again.jpg"
    again.write_bytes(images[0].read_bytes())
    command = ["predict", str(bundle_dir), str(images[0]), str(again), "--one-lesion"]
    assert main(command) == BAD_INPUT
    assert "again.jpg are the same" in capsys.readouterr().err


def test_more_than_six_images_are_refused(
    bundle_dir: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(bundle_dir), *map(str, images[:7]), "--one-lesion"]
    assert main(command) == BAD_INPUT
    assert "must have 1 to 6 images; there are 7" in capsys.readouterr().err


def test_without_a_contract_for_several_images_they_are_refused(bundle_dir: Path) -> None:
    manifest = dataclasses.replace(load_bundle(bundle_dir).manifest, several_images=None)
    Decider(manifest).check_num_images(1)
    with pytest.raises(DataError, match="Send one image"):
        Decider(manifest).check_num_images(2)
