import copy
import warnings

import numpy as np
import pytest
import torch

from melanoma.data.dataset import ImageDataset, PreparedData
from melanoma.explain.grad_cam import render_heatmap
from melanoma.imaging.preprocess import Preprocess
from melanoma.imaging.tta import flip
from melanoma.training.networks import tta_logits
from tests.explaining import explain_batch
from tests.tasks import MELANOMA_INDEX


@pytest.fixture(scope="module")
def images(prepared: PreparedData, tiny_config) -> torch.Tensor:  # type: ignore[no-untyped-def]
    rows = prepared.rows("test").iloc[:6].reset_index(drop=True)
    return Preprocess(prepared.stored_shape, tiny_config.data)(
        ImageDataset(prepared, rows).images(range(6))
    )


def test_it_is_the_map_of_pytorch_grad_cam(trained: torch.nn.Module, images: torch.Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the oracle's own dependencies
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    class Unscaled(GradCAM):  # type: ignore[misc]
        """The oracle before its rescaling: compute_cam_per_layer would stretch every map to [0,
        1]."""

        def compute_cam_per_layer(self, input_tensor, targets, eigen_smooth):  # type: ignore[no-untyped-def]
            activations = self.activations_and_grads.activations[0].cpu().data.numpy()
            gradients = self.activations_and_grads.gradients[0].cpu().data.numpy()
            cam = self.get_cam_image(
                input_tensor, self.target_layers[0], targets, activations, gradients, eigen_smooth
            )
            self.unscaled = np.maximum(cam, 0)
            return super().compute_cam_per_layer(input_tensor, targets, eigen_smooth)

    model = copy.deepcopy(trained)  # the oracle leaves gradients behind
    with Unscaled(model=model, target_layers=[model.stages[-1]]) as oracle:  # type: ignore[index]
        oracle(
            input_tensor=images.clone(),
            targets=[ClassifierOutputTarget(MELANOMA_INDEX)] * len(images),
        )
        expected = oracle.unscaled
    ours = explain_batch(trained, images, class_indices=[MELANOMA_INDEX])
    assert ours.heatmaps.shape == expected.shape
    assert expected.max() > 1e-3  # a trained net has something to show
    assert np.abs(ours.heatmaps.numpy() - expected).max() < 1e-5


def test_an_image_gets_the_same_map_alone_and_in_a_batch(
    trained: torch.nn.Module, images: torch.Tensor
) -> None:
    whole = explain_batch(trained, images, class_indices=[MELANOMA_INDEX], tta=4).heatmaps
    alone = explain_batch(trained, images[2:3], class_indices=[MELANOMA_INDEX], tta=4).heatmaps
    assert torch.allclose(whole[2], alone[0], atol=1e-5)


def test_it_leaves_no_trace_on_the_network(trained: torch.nn.Module, images: torch.Tensor) -> None:
    explain_batch(trained, images, class_indices=[MELANOMA_INDEX])
    assert all(parameter.grad is None for parameter in trained.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in trained.modules())


def test_its_logits_are_those_of_prediction(trained: torch.nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad():
        expected = tta_logits(trained, images, 4)
    assert torch.allclose(
        explain_batch(trained, images, class_indices=[0], tta=4).logits, expected, atol=1e-6
    )


@pytest.mark.parametrize("view", range(4))
def test_maps_are_mirrored_back_into_the_upright_frame(view: int) -> None:
    images = torch.arange(24.0).view(1, 4, 6)
    assert torch.equal(flip(flip(images, view), view), images)


def test_the_four_views_differ() -> None:
    images = torch.arange(24.0).view(4, 6)
    assert len({tuple(flip(images, view).flatten().tolist()) for view in range(4)}) == 4


def test_a_mirrored_image_gets_the_mirrored_map(
    trained: torch.nn.Module, images: torch.Tensor
) -> None:
    """Over all four tta the map does not depend on how the image was held."""
    upright = explain_batch(trained, images, class_indices=[MELANOMA_INDEX], tta=4).heatmaps
    mirrored = explain_batch(
        trained, flip(images, 3), class_indices=[MELANOMA_INDEX], tta=4
    ).heatmaps
    assert torch.allclose(flip(mirrored, 3), upright, atol=1e-5)


def test_an_empty_map_is_said_to_be_empty() -> None:
    empty = render_heatmap(torch.zeros(3, 4), (30, 40))
    assert empty.peak == 0
    assert empty.values.max() == 0
    faint = render_heatmap(torch.eye(3) * 1e-6, (30, 30))
    assert faint.peak == pytest.approx(1e-6)
