import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from melanoma.bundle.backend import OnnxFeatures, export_features
from melanoma.config import ModelConfig, TrainConfig
from melanoma.data.dataset import ImageDataset, PreparedData
from melanoma.explain.grad_cam import grad_cam_map
from melanoma.explain.layer_cam import LayerCamExplainer
from melanoma.explain.subject import Subject
from melanoma.imaging.preprocess import Preprocess
from melanoma.training.ensemble import Ensemble, build_networks, networks_of
from melanoma.training.networks import features, head
from tests.tasks import MELANOMA_INDEX


@pytest.fixture(scope="module")
def members(trained: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the trained network and two that differ from it."""
    found = [trained]
    for seed in range(2):
        other = copy.deepcopy(trained)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in other.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += 0.1 * parameter.std(correction=0) * noise
        found.append(other.eval())
    return found


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 72, 96, generator=torch.Generator().manual_seed(5))


def test_its_logits_are_the_mean_of_the_networks(
    members: list[torch.nn.Module], images: torch.Tensor
) -> None:
    with torch.no_grad():
        ours = Ensemble(members)(images)
        theirs = torch.stack([member(images) for member in members])
    assert torch.allclose(ours, theirs.mean(dim=0), atol=1e-5)
    assert not torch.allclose(ours, theirs[0], atol=1e-2)


def test_its_grad_cam_is_the_mean_of_their_maps(
    members: list[torch.nn.Module], images: torch.Tensor
) -> None:
    """Grad-CAM cuts off below 0 once, after the mean."""
    ensemble = Ensemble(members)
    with torch.no_grad():
        feature_map = features(ensemble, images)
    _, ours = grad_cam_map(ensemble, feature_map, [MELANOMA_INDEX])
    maps = []
    for member in members:
        with torch.no_grad():
            of_member = features(member, images)
        leaf = of_member.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(head(member, leaf)[:, MELANOMA_INDEX].sum(), leaf)
        maps.append((gradient.mean(dim=(2, 3), keepdim=True) * of_member).sum(dim=1))
    expected = F.relu(torch.stack(maps).mean(dim=0))
    assert expected.max() > 1e-3
    assert torch.allclose(ours, expected, atol=1e-5)


def test_its_layer_cam_is_the_mean_of_their_maps(
    members: list[torch.nn.Module], prepared: PreparedData, tiny_config: TrainConfig
) -> None:
    stored = list(ImageDataset(prepared, prepared.rows("test")).images(range(3)).numpy())
    preprocess = Preprocess(prepared.stored_shape, tiny_config.data)

    def maps(model: torch.nn.Module) -> np.ndarray:
        subject = Subject(model, preprocess, 2, [MELANOMA_INDEX], torch.device("cpu"))
        return LayerCamExplainer(subject).explain(stored, [])

    ours, theirs = maps(Ensemble(members)), [maps(member) for member in members]
    assert np.max(ours) > 0
    assert np.allclose(ours, np.mean(theirs, axis=0), atol=1e-5)


def test_copies_of_one_network_predict_as_it_does(
    trained: torch.nn.Module, images: torch.Tensor
) -> None:
    with torch.no_grad():
        assert torch.allclose(Ensemble([trained] * 3)(images), trained(images), atol=1e-6)


def test_onnx_runtime_computes_its_features(
    members: list[torch.nn.Module], images: torch.Tensor
) -> None:
    ensemble = Ensemble(members)
    extract = OnnxFeatures(export_features(ensemble, (72, 96)), num_threads=2)
    with torch.no_grad():
        assert np.allclose(extract(images), features(ensemble, images), atol=1e-3)


def test_one_network_is_no_ensemble() -> None:
    config = ModelConfig("test_convnext")
    alone, several = (build_networks(config, 7, num=num) for num in (1, 3))
    assert networks_of(alone) == [alone]
    assert len(networks_of(several)) == 3
