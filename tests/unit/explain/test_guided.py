import copy
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from torch import Tensor, nn

from melanoma.data.dataset import ImageDataset, PreparedData
from melanoma.errors import SettingError
from melanoma.explain.guided import GuidedNetwork, guided_grad_cam_map
from melanoma.imaging.preprocess import Preprocess
from melanoma.imaging.tta import flip
from tests.explaining import explain_batch
from tests.tasks import MELANOMA_INDEX


@pytest.fixture(scope="module")
def images(prepared: PreparedData, tiny_config) -> Tensor:  # type: ignore[no-untyped-def]
    rows = prepared.rows("test").iloc[:4].reset_index(drop=True)
    return Preprocess(prepared.stored_shape, tiny_config.data)(
        ImageDataset(prepared, rows).images(range(4))
    )


def _plain(model: nn.Module, images: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, MELANOMA_INDEX].sum(), leaf)
    return gradient


def _gelu_slope(x: Tensor, *, tanh: bool) -> Tensor:
    """The derivative of GELU by its closed form (Hendrycks, Gimpel, Gaussian Error Linear Units,
    2016)."""
    if not tanh:
        return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * torch.exp(-(x**2) / 2) / math.sqrt(
            2 * math.pi
        )
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    return 0.5 * (1 + torch.tanh(inner)) + 0.5 * x * (1 - torch.tanh(inner) ** 2) * slope


def _by_hooks(model: nn.Module, image: Tensor) -> Tensor:
    """The same rule, written another way: backward hooks and closed-form derivatives, an image at a
    time."""
    model, inputs = copy.deepcopy(model), {}
    for module in model.modules():
        if "GELU" in type(module).__name__:
            tanh = "Tanh" in type(module).__name__
            module.register_forward_hook(lambda m, x, _: inputs.__setitem__(m, x[0].detach()))
            module.register_full_backward_hook(
                lambda m, _, out, tanh=tanh: (
                    (out[0] * (out[0] > 0) * (inputs[m] > 0) * _gelu_slope(inputs[m], tanh=tanh)),
                )
            )
    assert inputs == {}
    return _plain(model, image)


@pytest.mark.parametrize("backbone", ["trained", "convnext_atto"])
def test_it_is_the_rule_on_gelu(backbone: str, trained: nn.Module, images: Tensor) -> None:
    torch.manual_seed(0)
    model = (
        trained
        if backbone == "trained"
        else timm.create_model(backbone, num_classes=7, ls_init_value=0.5).eval()
    )
    expected = torch.cat([_by_hooks(model, image[None]) for image in images])
    ours = GuidedNetwork(model).gradients(images, class_indices=[MELANOMA_INDEX])
    scale = float(expected.abs().max())
    assert scale > 0
    assert torch.allclose(ours, expected, atol=1e-5 * scale)
    plain = _plain(model, images)
    assert float((ours - plain).abs().max()) > 0.1 * float(plain.abs().max())


def test_on_relu_it_is_the_rule_of_its_paper(images: Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 7),
    )
    first, last = model[0], model[4]
    x = first(images)
    back = (
        last.weight[MELANOMA_INDEX].clamp(min=0).view(1, 4, 1, 1)
        / (x.shape[2] * x.shape[3])
        * (x > 0)
    )
    expected = nn.functional.conv_transpose2d(back, first.weight)

    class WithHead(nn.Module):
        """The seam that timm's networks have."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.top = model[:2], model[2:]

        def forward_features(self, x: Tensor) -> Tensor:
            return self.body(x)

        def forward_head(self, x: Tensor) -> Tensor:
            return self.top(x)

    ours = GuidedNetwork(WithHead()).gradients(images, class_indices=[MELANOMA_INDEX])
    assert torch.allclose(ours, expected, atol=1e-7)


@pytest.mark.parametrize("backbone", ["test_efficientnet", "resnet18", "tf_efficientnet_lite0"])
def test_other_activations_guide_too(backbone: str, images: Tensor) -> None:
    torch.manual_seed(0)
    model = timm.create_model(backbone, num_classes=7).eval()
    names = ("ReLU", "ReLU6", "SiLU", "GELU")
    wanted = sum(type(module).__name__ in names for module in model.modules())
    network = GuidedNetwork(model)
    assert (
        sum(type(module).__name__ == "_GuidedActivation" for module in network._model.modules())
        == wanted
        > 0
    )
    ours = network.gradients(images[:1], class_indices=[MELANOMA_INDEX])
    assert not torch.allclose(ours, _plain(model, images[:1]), atol=1e-9)


def test_a_network_that_nothing_rectifies_is_refused() -> None:
    with pytest.raises(SettingError, match="Ask for grad_cam"):
        GuidedNetwork(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1))
        )


def test_it_leaves_the_network_as_it_was(trained: nn.Module, images: Tensor) -> None:
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    kinds = [type(module) for module in trained.modules()]
    wanted = [parameter.requires_grad for parameter in trained.parameters()]
    GuidedNetwork(trained).gradients(images, class_indices=[MELANOMA_INDEX], tta=4)
    assert [type(module) for module in trained.modules()] == kinds
    assert [parameter.requires_grad for parameter in trained.parameters()] == wanted
    assert all(parameter.grad is None for parameter in trained.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in trained.modules())
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in before.items())


def test_alone_in_a_batch_and_in_threads_it_is_the_same(trained: nn.Module, images: Tensor) -> None:
    network = GuidedNetwork(trained)
    whole = network.gradients(images, class_indices=[MELANOMA_INDEX], tta=2)
    with ThreadPoolExecutor(4) as pool:
        alone = pool.map(
            lambda i: network.gradients(images[i : i + 1], class_indices=[MELANOMA_INDEX], tta=2),
            [0, 1, 2, 3] * 3,
        )
        for number, one in enumerate(alone):
            assert torch.allclose(one[0], whole[number % 4], atol=1e-5 * float(whole.abs().max()))


def test_a_mirrored_image_gets_the_mirrored_map(trained: nn.Module, images: Tensor) -> None:
    network = GuidedNetwork(trained)
    upright = network.gradients(images, class_indices=[MELANOMA_INDEX], tta=4)
    mirrored = network.gradients(flip(images, 3), class_indices=[MELANOMA_INDEX], tta=4)
    assert torch.allclose(flip(mirrored, 3), upright, atol=1e-5 * float(upright.abs().max()))


def test_the_map_is_empty_where_grad_cam_is(trained: nn.Module, images: Tensor) -> None:
    gradients = GuidedNetwork(trained).gradients(images, class_indices=[MELANOMA_INDEX])
    heatmaps = explain_batch(trained, images, class_indices=[MELANOMA_INDEX]).heatmaps
    product = guided_grad_cam_map(gradients, heatmaps)
    assert product.shape == (len(images), *images.shape[-2:])
    assert float(product.min()) >= 0
    assert float(product.max()) > 0
    assert float(guided_grad_cam_map(gradients, torch.zeros_like(heatmaps)).max()) == 0
