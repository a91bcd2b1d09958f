"""LayerCAM comes from an earlier stage, and from the network's own path to its logits."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from melanoma.errors import SettingError
from melanoma.explain.layer_cam import earlier_stage, layer_cam_map


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "resnet10t"])
def test_it_is_the_definition_computed_with_a_hook(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).eval()
    images, stage, kept = torch.randn(3, 3, 96, 128), earlier_stage(model), {}
    module = dict(model.named_modules())[model.feature_info[stage]["module"]]

    def keep(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        kept["map"] = output.detach().requires_grad_()
        return kept["map"]

    hook = module.register_forward_hook(keep)
    logits = model(images)
    (gradient,) = torch.autograd.grad(logits[:, [4, 5]].sum(), kept["map"])
    hook.remove()
    expected = (gradient.clamp(min=0) * kept["map"].detach()).sum(dim=1).clamp(min=0)
    found = layer_cam_map(model, images, stage, [4, 5])
    assert found.shape == (3, 6, 8)  # half the stride of the last feature map
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_network_without_stages_is_refused() -> None:
    with pytest.raises(SettingError, match="Ask for grad_cam"):
        earlier_stage(nn.Linear(3, 2))
