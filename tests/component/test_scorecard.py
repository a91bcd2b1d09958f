"""`evaluate --scorecard` and `bundle add-scorecard`, as they are typed."""

import copy
import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from melanoma.bundle.bundle import load_bundle, verify_bundle
from melanoma.bundle.manifest import WEIGHTS
from melanoma.data.dataset import PreparedData
from melanoma.errors import BundleError, DataError
from melanoma.evaluation import evaluate
from melanoma.explain.masks import mask_name, read_mask
from melanoma.explain.measures import GRID, Measure
from melanoma.explain.methods import METHODS
from melanoma.explain.scorecard import (
    LEAST_AUROC,
    LEAST_GAIN,
    LEAST_STABLE,
    MIN_GROUPS,
    MOST_RANDOM,
    Shown,
    _with_random_weights,
    _with_shuffled_labels,
    failed_checks,
    measure_maps,
)
from melanoma.explain.scorecard_page import _ROWS, FAILED
from melanoma.scorecard import PAGE, REPORT, check_scorecard, masks_of, write_scorecard
from ray_jobs.arguments import BAD_INPUT, DONE
from ray_jobs.cli import main
from serve.answers import explanation_of


@pytest.fixture(scope="module")
def evidence(
    bundle_dir: Path,
    prepared: PreparedData,
    phantom_source: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """An evaluation with its scorecard."""
    folder = tmp_path_factory.mktemp("scorecard")
    data = Path(shutil.copytree(str(prepared.folder), folder / "dataset"))
    evaluate(bundle_dir, data, folder / "evidence")
    write_scorecard(bundle_dir, data, folder / "evidence", masks=phantom_source / "masks")
    return folder / "evidence"


@pytest.fixture
def found(evidence: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((evidence / REPORT).read_text())
    return content


def test_every_kind_of_heatmap_has_every_measure(found: dict[str, Any], evidence: Path) -> None:
    assert set(found["methods"]) == set(METHODS)
    assert found["num_images"] == found["num_masks"] == found["num_groups"] > 50
    names = {name for name, _, _ in _ROWS}
    for method in found["methods"].values():
        assert set(method["measures"]) == names
        for measure in method["measures"].values():
            assert measure is None or measure["low"] <= measure["value"] <= measure["high"]
        assert (method["claim"] == "supported") == (method["failed"] == [])
        assert set(method["failed"]) <= set(FAILED)
    page = (evidence / PAGE).read_text()
    assert not re.search(r"(src|href)=\"?(https?:)?//", page)
    assert all(METHODS[name].title in page for name in found["methods"])


def test_the_other_image_is_of_another_group() -> None:
    groups = np.array([0, 0, 0, 1, 2, 2, 3, 4])
    shown = Shown(np.zeros((8, 1, 1, 3), np.uint8), groups, groups, None)
    assert (groups[shown.other] != groups).all()
    assert sorted(shown.other) == list(range(8))


GOOD = {
    "random_similarity": Measure(0.1, 0.05, MOST_RANDOM - 0.01),
    "shuffled_similarity": Measure(0.1, 0.05, MOST_RANDOM - 0.01),
    "inside_difference": Measure(0.2, LEAST_GAIN + 0.01, 0.3),
    "pointing_difference": Measure(0.2, LEAST_GAIN + 0.01, 0.3),
    "deletion_difference": Measure(0.2, 0.01, 0.3),
    "stability": Measure(0.9, LEAST_STABLE + 0.01, 1.0),
}


def _shown(num: int = MIN_GROUPS, *, masks: bool = True) -> Shown:
    groups = np.arange(num)
    shape = (num, *GRID)
    return Shown(
        np.zeros((num, 1, 1, 3), np.uint8), groups, groups, np.ones(shape, bool) if masks else None
    )


def test_a_claim_needs_every_check() -> None:
    enough = LEAST_AUROC + 0.01
    assert failed_checks(dict(GOOD), _shown(), enough) == []
    # Random weights and shuffled labels end in a network that ranks nothing.
    assert failed_checks(dict(GOOD), _shown(), LEAST_AUROC) == ["network"]
    assert failed_checks(dict(GOOD), _shown(MIN_GROUPS - 1), enough) == ["enough_masks"]
    assert failed_checks(dict(GOOD), _shown(masks=False), enough) == ["enough_masks"]
    for name in GOOD:
        for bad in (None, Measure(0.4, -0.01, 0.6)):
            assert len(failed_checks({**GOOD, name: bad}, _shown(), enough)) == 1, name


def test_random_weights_and_shuffled_labels_change_the_network(bundle_dir: Path) -> None:
    bundle = load_bundle(bundle_dir)
    subject = bundle.subject()
    before = copy.deepcopy(subject.model.state_dict())
    random = _with_random_weights(subject.model)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, *bundle.preprocess.stored_shape, 3), dtype=np.uint8)
    labels = rng.integers(0, 7, 60)
    shown = Shown(images, labels, np.arange(60), None)
    shuffled = _with_shuffled_labels(subject, shown)["shuffled"].model
    weights = [
        network.get_classifier().weight.detach() for network in (subject.model, random, shuffled)
    ]
    for i, ours in enumerate(weights):
        assert all(not torch.allclose(ours, theirs) for theirs in weights[:i])
    # The network itself stays as it was.
    after = subject.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # Without a target among the labels there is nothing to fit.
    assert _with_shuffled_labels(subject, dataclasses.replace(shown, labels=labels * 0)) == {}


def test_images_without_a_target_or_a_mask_leave_measures_out(bundle_dir: Path) -> None:
    bundle = load_bundle(bundle_dir)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, *bundle.preprocess.stored_shape, 3), dtype=np.uint8)
    shown = Shown(images, np.zeros(6, int), np.arange(6), None)
    steps: list[tuple[int, int]] = []
    found = measure_maps(
        bundle.subject(), shown, auroc_low=0.9, progress=lambda *step: steps.append(step)
    )
    for method in found.values():
        assert method["claim"] == "none"
        assert {"enough_masks", "labels", "inside", "pointing"} <= set(method["failed"])
        assert set(method["measures"]) == {name for name, _, _ in _ROWS}
    assert steps[-1][0] == steps[-1][1]


def test_an_answer_carries_the_claim_of_its_bundle(bundle_dir: Path) -> None:
    manifest = load_bundle(bundle_dir).manifest
    claims = {"grad_cam": "none", "layer_cam": "supported"}
    reading: Any = SimpleNamespace(
        described=SimpleNamespace(
            manifest=dataclasses.replace(manifest, lesion_claims=claims)  # type: ignore[arg-type]
        ),
        shown=Image.new("RGB", (64, 48)),
    )
    heatmap = np.ones((3, 4), dtype=np.float32)
    for method, claim in {**claims, "guided_grad_cam": "none"}.items():
        assert explanation_of(method, reading, heatmap).lesion_claim == claim


def test_an_empty_or_misshapen_mask_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ISIC_1.png"
    Image.new("L", (200, 150)).save(path)
    with pytest.raises(DataError, match="all black"):
        read_mask(path, (96, 128))
    Image.new("L", (200, 150), 1).save(path)  # 0 and 1 are read as black and white
    assert read_mask(path, (96, 128), size=(600, 450)).all()
    with pytest.raises(DataError, match="shape of its photograph"):
        read_mask(path, (96, 128), size=(450, 600))
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"ISIC_1\.png must be an image"):
        read_mask(path, (96, 128))


def test_a_split_that_was_trained_on_is_refused(
    prepared: PreparedData, phantom_source: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="not trained on"):
        check_scorecard(prepared.folder, split="train", masks=None)
    with pytest.raises(DataError, match="holds none"):
        check_scorecard(prepared.folder, split=None, masks=tmp_path)
    check_scorecard(prepared.folder, split=None, masks=phantom_source / "masks")


@pytest.mark.drill
@pytest.mark.parametrize("spoilt", ["random weights", "shuffled labels"])
def test_a_network_that_knows_nothing_gets_no_claim(
    spoilt: str,
    prepared: PreparedData,
    phantom_source: Path,
    tiny_config: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from melanoma.bundle.packing import pack
    from melanoma.training.engine import fit, start_state
    from melanoma.training.networks import build_model
    from melanoma.training.plan import Training

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = Path(shutil.copytree(str(prepared.folder), tmp_path / "dataset"))
    (folder / "access_log.jsonl").unlink(missing_ok=True)
    data = dataclasses.replace(prepared, folder=folder)
    torch.manual_seed(1)
    model = build_model(tiny_config.model, 7).eval()
    if spoilt == "shuffled labels":
        labels = np.random.default_rng(0).permutation(data.records["label"])
        shuffled = dataclasses.replace(data, records=data.records.assign(label=labels))
        state = start_state(model, tiny_config)
        fit(Training.on(tiny_config, shuffled), model, state, lambda _: None)
        model = state.evaluated.eval()
    (tmp_path / "bundle").mkdir()
    pack(model, tiny_config, data, tmp_path / "bundle", best_epochs=(1,))
    evaluate(tmp_path / "bundle", folder, tmp_path / "evidence")
    found = write_scorecard(
        tmp_path / "bundle", folder, tmp_path / "evidence", masks=phantom_source / "masks"
    )
    print(spoilt, {name: method["failed"] for name, method in found["methods"].items()})
    assert {method["claim"] for method in found["methods"].values()} == {"none"}
    assert all("network" in method["failed"] for method in found["methods"].values())


def test_a_bundle_takes_up_the_claims(evidence: Path, bundle_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "claimed"
    assert main(["bundle", "add-scorecard", str(bundle_dir), str(evidence / REPORT), str(out)]) == (
        DONE
    )
    before, after = load_bundle(bundle_dir).manifest, load_bundle(out).manifest
    claims = json.loads((evidence / REPORT).read_text())["methods"]
    assert after.lesion_claims == {name: claims[name]["claim"] for name in METHODS}
    assert before.lesion_claims == {}
    assert after.files[WEIGHTS] == before.files[WEIGHTS]
    assert after.operating_point == before.operating_point
    assert after.version != before.version
    assert verify_bundle(out) == []
    assert load_bundle(out).model_card.count("## Heatmaps") == 1


def test_a_scorecard_of_another_network_is_refused(
    evidence: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    from melanoma.bundle.claims import add_scorecard

    content = json.loads((evidence / REPORT).read_text())
    content["bundle"]["weights_sha256"] = "0" * 64
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    with pytest.raises(BundleError, match="it is of another"):
        add_scorecard(bundle_dir, other, tmp_path / "out")
    other.write_text("{}")
    with pytest.raises(DataError, match="must be a scorecard"):
        add_scorecard(bundle_dir, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_masks_are_read_in_the_frame_of_the_heatmaps(tmp_path: Path) -> None:
    mask = Image.new("L", (200, 150))
    mask.paste(255, (0, 0, 100, 150))
    mask.save(tmp_path / "ISIC_1_segmentation.png")
    assert mask_name("ISIC_1", frozenset({"ISIC_1_segmentation.png"})) == "ISIC_1_segmentation.png"
    assert mask_name("ISIC_2", frozenset({"ISIC_1_segmentation.png"})) == ""
    found = read_mask(tmp_path / "ISIC_1_segmentation.png", (96, 128))
    assert found.shape == GRID
    assert found[:, :32].all()
    assert not found[:, 32:].any()


def test_masks_beside_a_folder_of_images_are_taken(phantom_source: Path, tmp_path: Path) -> None:
    assert masks_of(phantom_source, None) == phantom_source / "masks"
    assert masks_of(tmp_path, None) is None
    with pytest.raises(DataError, match="must be a folder"):
        masks_of(tmp_path, tmp_path / "nowhere")


def test_masks_need_a_scorecard(
    bundle_dir: Path, prepared: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(bundle_dir), str(prepared.folder), str(tmp_path / "out")]
    assert main([*words, "--masks", str(tmp_path)]) == BAD_INPUT
    assert "Add --scorecard" in capsys.readouterr().err
    assert main([*words, "--scorecard", "--masks", str(tmp_path / "nowhere")]) == BAD_INPUT
    assert not (tmp_path / "out").exists()  # refused before the access
