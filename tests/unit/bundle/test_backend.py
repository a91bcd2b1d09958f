import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from melanoma.bundle import backend
from melanoma.bundle.backend import OnnxFeatures, export_features
from melanoma.bundle.bundle import load_bundle, verify_bundle
from melanoma.bundle.cpu_backend import MAX_DIFFERENCE, compare_backend
from melanoma.bundle.packing import pack
from melanoma.bundle.predictor import Predictor
from melanoma.config import ModelConfig, TrainConfig
from melanoma.data.dataset import ImageDataset, PreparedData
from melanoma.explain.grad_cam import explain_feature_maps
from melanoma.imaging.preprocess import Preprocess
from melanoma.imaging.tta import tta_features
from melanoma.training.networks import build_model, features
from tests.bundles import sign
from tests.tasks import CLASSES, HAM, MELANOMA_INDEX


@pytest.fixture(scope="module")
def images(prepared: PreparedData, tiny_config: TrainConfig) -> torch.Tensor:
    images = ImageDataset(prepared, prepared.rows("test")).images(range(9))
    return Preprocess(prepared.stored_shape, tiny_config.data)(images)


def test_logits_and_heatmaps_are_torchs(bundle_dir: Path, images: torch.Tensor) -> None:
    bundle = load_bundle(bundle_dir)
    assert bundle.features_onnx is not None
    extract = OnnxFeatures(bundle.features_onnx, num_threads=2)
    with torch.no_grad():
        theirs, ours = (
            explain_feature_maps(
                bundle.model, tta_features(way, images, 4), class_indices=[MELANOMA_INDEX]
            )
            for way in (partial(features, bundle.model), extract)
        )
    assert torch.allclose(theirs.logits, ours.logits, atol=1e-4)
    assert torch.allclose(theirs.heatmaps, ours.heatmaps, atol=1e-4 * float(theirs.heatmaps.max()))
    assert float(theirs.heatmaps.max()) > 0


@pytest.mark.parametrize("images_in_pass", [0, 1, 2, 100])
def test_an_image_is_the_same_in_whatever_batch(
    images_in_pass: int, bundle_dir: Path, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    height, width = images.shape[2:]
    monkeypatch.setattr(backend, "PIXELS_IN_PASS", images_in_pass * height * width)
    bundle = load_bundle(bundle_dir)
    assert bundle.features_onnx is not None
    extract = OnnxFeatures(bundle.features_onnx, num_threads=2)
    together = extract(images)
    scale = float(together.abs().max())
    for start, stop in ((0, 1), (0, 2), (3, 8), (8, 9)):
        assert torch.allclose(extract(images[start:stop]), together[start:stop], atol=1e-5 * scale)


@pytest.mark.parametrize("backbone", ["convnext_atto", "resnet18"])
def test_other_networks_can_be_exported(backbone: str) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(backbone, layer_scale=None), len(CLASSES)).eval()
    images = torch.rand(3, 3, 64, 96)
    with torch.no_grad():
        expected = features(model, images)
    found = OnnxFeatures(export_features(model, (64, 96)), num_threads=1)(images)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_the_bundle_says_how_far_the_backends_lie_apart(bundle_dir: Path) -> None:
    cpu_backend = load_bundle(bundle_dir).manifest.cpu_backend
    assert cpu_backend.name == "onnxruntime"
    assert 0 < cpu_backend.max_probability_difference <= MAX_DIFFERENCE
    assert cpu_backend.num_other_decisions == 0
    assert cpu_backend.num_images > 100


def test_a_backend_that_changes_a_decision_or_too_much_is_not_used() -> None:
    probabilities = np.full((4, 7), 0.1)
    same = compare_backend(HAM, probabilities, probabilities + 2e-5, 0.2)
    assert (same.name, same.num_other_decisions) == ("onnxruntime", 0)
    far = compare_backend(HAM, probabilities, probabilities + 2e-4, 0.2)
    assert (far.name, far.max_probability_difference) == ("torch", pytest.approx(2e-4))
    other = compare_backend(HAM, probabilities, probabilities + 2e-5, 0.1 + 1e-5)
    assert (other.name, other.num_other_decisions) == ("torch", 4)


@pytest.mark.parametrize("why", ["it cannot be expressed", "it is too large"])
def test_a_network_that_cannot_be_exported_is_served_by_torch(
    why: str,
    trained: torch.nn.Module,
    unopened: PreparedData,
    tiny_config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> bytes:
        raise torch.onnx.OnnxExporterError("no such operator")

    if why == "it is too large":
        monkeypatch.setattr("melanoma.bundle.packing.MAX_ONNX_BYTES", 1000)
    else:
        monkeypatch.setattr("melanoma.bundle.packing.export_features", fail)
    (tmp_path / "bundle").mkdir()
    pack(trained, tiny_config, unopened, tmp_path / "bundle", best_epochs=(1,))
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.features_onnx is None
    assert not (tmp_path / "bundle" / "features.onnx").exists()
    assert verify_bundle(tmp_path / "bundle") == []
    assert Predictor(bundle).replay_probes() == []


def test_another_networks_features_are_found_out(
    bundle_dir: Path, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    """Signed by a forger, so that only its answers can give it away: to the command that verifies
    and to the replica that loads it."""
    from melanoma.io.files import sha256_of

    folder = Path(shutil.copytree(bundle_dir, tmp_path / "bundle"))
    assert Predictor(load_bundle(folder)).replay_probes() == []
    torch.manual_seed(1)
    stranger = build_model(tiny_config.model, len(CLASSES)).eval()
    (folder / "features.onnx").write_bytes(
        export_features(stranger, (tiny_config.data.input_height, tiny_config.data.input_width))
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["features.onnx"] = sha256_of(folder / "features.onnx")
    (folder / "manifest.json").write_text(json.dumps(sign(manifest)))
    assert any("must repeat its recorded outputs" in finding for finding in verify_bundle(folder))
    assert Predictor(load_bundle(folder)).replay_probes() != []
