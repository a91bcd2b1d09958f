import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from melanoma.bundle.bundle import load_bundle, verify_bundle
from melanoma.bundle.deciding import NO_CONTRACT, UNCONTRACTED, UNUSUAL, Decider
from melanoma.bundle.held_out import all_images, group_codes
from melanoma.bundle.predictor import Predictor
from melanoma.bundle.probes import probe_images
from melanoma.data.dataset import ImageDataset, PreparedData
from melanoma.errors import BundleError
from melanoma.evidence.operating_point import choose_units
from tests.bundles import sign
from tests.tasks import MELANOMA_INDEX


@pytest.fixture
def copied(bundle_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_dir, tmp_path / "bundle"))


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    if (
        "version" in manifest
    ):  # a forger would sign again; what is refused then is refused for its content
        manifest = sign(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_good_bundle_verifies(bundle_dir: Path) -> None:
    assert verify_bundle(bundle_dir) == []


@pytest.mark.parametrize(
    "name", ["model.safetensors", "calibration.parquet", "MODEL_CARD.md", "features.onnx"]
)
def test_a_changed_file_is_refused(name: str, copied: Path) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(bytes(data))
    with pytest.raises(BundleError, match=f"{name} must match its sha256"):
        load_bundle(copied)


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json", "features.onnx"])
def test_a_missing_file_is_refused(name: str, copied: Path) -> None:
    (copied / name).unlink()
    with pytest.raises(BundleError, match=name):
        load_bundle(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("operating_point"), "damaged at operating_point"),
        (lambda m: m["task"]["classes"].pop(), "about the classes|a number for each of 6 classes"),
        (lambda m: m["task"].update(targets=["wart"]), "targets of a task"),
        (lambda m: m.update(best_epochs=[]), "must describe 1 to 64 networks; it describes 0"),
        (lambda m: m.update(format_version=99), "format version of the bundle must be 6; it is 99"),
        (
            lambda m: m["operating_point"].update(threshold=0.9),
            "must follow from calibration.parquet",
        ),
        (
            lambda m: m["operating_point"]["contract"].update(specificity_low=0.99),
            "must follow from calibration.parquet",
        ),
        (
            lambda m: m["operating_point"]["contract"].pop("status"),
            "damaged at operating_point.contract.status",
        ),
        (
            lambda m: m["architecture"].update(backbone="resnet18"),
            "does not|must take the settings|complete and consistent",
        ),
        (lambda m: m.update(kind="other"), "describes something else"),
    ],
)
def test_a_wrong_manifest_is_refused_in_one_sentence(
    change: Callable[[dict[str, Any]], object], message: str, copied: Path
) -> None:
    _edit(copied, change)
    with pytest.raises(BundleError, match=message) as caught:
        load_bundle(copied)
    assert "\n" not in str(caught.value)


def test_any_changed_word_of_the_manifest_is_found(copied: Path) -> None:
    text = (copied / "manifest.json").read_text()
    (copied / "manifest.json").write_text(text.replace('"split_hash": "', '"split_hash": "0'))
    with pytest.raises(BundleError, match="changed after it was written"):
        load_bundle(copied)


def test_a_network_that_answers_otherwise_is_found(copied: Path) -> None:
    _edit(copied, lambda m: m["probes"][0]["logits"].__setitem__(0, 99.0))
    assert any("recorded outputs" in finding for finding in verify_bundle(copied))


def test_nothing_is_ever_unpickled(copied: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    (copied / "model.safetensors").write_bytes(pickle.dumps({"weights": Bomb()}))
    import hashlib

    digest = hashlib.sha256((copied / "model.safetensors").read_bytes()).hexdigest()
    _edit(copied, lambda m: m["files"].update({"model.safetensors": digest}))
    with pytest.raises(BundleError):
        load_bundle(copied)
    assert not marker.exists()


def test_the_calibration_table_leads_back_to_nobody(bundle_dir: Path) -> None:
    table = pd.read_parquet(bundle_dir / "calibration.parquet")
    assert list(table.columns) == ["label", "score", "num_images"]
    assert table.sort_values(["label", "score"]).equals(table)  # nor does its order


def test_the_contract_counts_one_image_a_group(bundle_dir: Path, prepared: PreparedData) -> None:
    manifest = load_bundle(bundle_dir).manifest
    contract, calibration = manifest.operating_point.contract, prepared.rows("calibration")
    unusual = manifest.usual_images.are_unusual(all_images(ImageDataset(prepared, calibration)))
    assert unusual.any()
    is_target, seed = (calibration["dx"] == "mel").to_numpy(), manifest.training_config.seed
    targets, others = choose_units(is_target, group_codes(calibration), seed=seed)
    assert len(targets) == calibration.loc[is_target, "group"].nunique()
    assert contract.num_target_unassessed == unusual[targets].sum()
    assert contract.num_target == (~unusual[targets]).sum()
    assert contract.num_other == (~unusual[others]).sum()
    assert (contract.population, contract.unit) == ("phantom", "one image per patient")


def test_batches_do_not_change_an_answer(bundle_dir: Path, prepared: PreparedData) -> None:
    predictor = Predictor(load_bundle(bundle_dir))
    images = list(ImageDataset(prepared, prepared.rows("test")).images(range(9)).numpy())
    together = predictor.predict(images)
    for image, expected in zip(images, together, strict=True):
        (alone,) = predictor.predict([image])
        assert np.abs(alone.probabilities - expected.probabilities).max() < 1e-6
        assert alone.decision == expected.decision


def test_explaining_does_not_change_an_answer(bundle_dir: Path) -> None:
    predictor = Predictor(load_bundle(bundle_dir))
    images = probe_images(predictor.bundle.preprocess.stored_shape)
    plain, explained = predictor.predict(images), predictor.predict(images, explain=True)
    for a, b in zip(plain, explained, strict=True):
        assert np.abs(a.probabilities - b.probabilities).max() < 1e-6
        assert a.heatmap is None
        assert b.heatmap is not None
        assert b.heatmap.min() >= 0


def test_without_a_met_contract_nothing_is_decided(
    bundle_dir: Path, prepared: PreparedData
) -> None:
    import dataclasses

    bundle = load_bundle(bundle_dir)
    point = bundle.operating_point
    unmet = dataclasses.replace(
        point, contract=dataclasses.replace(point.contract, status="unmet", reason="uninformative")
    )
    bundle = dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, operating_point=unmet)
    )
    calibration = ImageDataset(prepared, prepared.rows("calibration"))
    usual = ~bundle.manifest.usual_images.are_unusual(all_images(calibration))
    images = [calibration.images([place])[0].numpy() for place in np.flatnonzero(usual)[:5]]
    assert {(p.decision, p.warnings) for p in Predictor(bundle).predict(images)} == {
        ("cannot_assess", (NO_CONTRACT,))
    }
    allowed = Predictor(bundle, allow_uncontracted=True).predict(images)
    assert all(p.warnings[0] == UNCONTRACTED and p.decision != "cannot_assess" for p in allowed)


def test_an_unusual_image_is_not_assessed(bundle_dir: Path) -> None:
    predictor = Predictor(load_bundle(bundle_dir))
    noise = probe_images(predictor.bundle.preprocess.stored_shape)
    assert {(p.decision, p.warnings) for p in predictor.predict(noise)} == {
        ("cannot_assess", (UNUSUAL,))
    }


def test_a_broken_network_gives_no_answer(bundle_dir: Path) -> None:
    decider = Decider(load_bundle(bundle_dir).manifest)
    with pytest.raises(FloatingPointError):
        decider.interpret(np.full((1, 7), np.nan), np.ones(1), np.zeros(1, dtype=bool))


def test_the_decision_is_the_threshold_on_the_calibrated_probability(bundle_dir: Path) -> None:
    manifest = load_bundle(bundle_dir).manifest
    logits = torch.linspace(-4, 4, 41)[:, None] * torch.eye(7)[MELANOMA_INDEX][None]
    usual = np.zeros(len(logits), dtype=bool)
    for prediction in Decider(manifest).interpret(logits.numpy(), np.ones(len(logits)), usual):
        expected = (
            "refer"
            if prediction.probabilities[MELANOMA_INDEX] >= manifest.operating_point.threshold
            else "no_referral"
        )
        assert prediction.decision == expected


def test_another_library_version_only_warns(copied: Path) -> None:
    _edit(copied, lambda m: m["versions"].update(timm="0.0.1"))
    with pytest.warns(UserWarning, match=r"made with timm 0\.0\.1"):
        load_bundle(copied)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(probes=[]),
        lambda m: m["probes"][0].pop("logits"),
        lambda m: m["probes"][0].update(image_png="bm90IGEgcGljdHVyZQ=="),
        lambda m: m["probes"][0].update(logits=[1.0]),
    ],
)
def test_broken_probes_are_a_finding(
    change: Callable[[dict[str, Any]], object], copied: Path
) -> None:
    _edit(copied, change)
    assert verify_bundle(copied) != []


def test_a_contract_is_recomputed_to_rounding(copied: Path) -> None:
    """Another scipy may differ in the last digit; anything more is a change."""
    _edit(
        copied,
        lambda m: m["operating_point"]["contract"].update(
            specificity_low=m["operating_point"]["contract"]["specificity_low"] * (1 + 1e-13)
        ),
    )
    load_bundle(copied)
    _edit(copied, lambda m: m["operating_point"]["contract"].update(specificity_low=0.95))
    with pytest.raises(BundleError, match="must follow"):
        load_bundle(copied)
