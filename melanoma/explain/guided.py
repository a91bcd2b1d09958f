"""Guided backpropagation that guides whatever rectifies, GELU included, on a private copy of the network.

The rule is that of Springenberg et al., Striving for Simplicity: The All Convolutional Net, 2015:
on the way back through an activation only positive gradients pass, and only where its input was
positive. What ReLU does with them then, nothing, is for a smooth activation its own derivative.
Guided Grad-CAM (Selvaraju et al., 2017) is its product with the upscaled Grad-CAM.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from melanoma.errors import SettingError
from melanoma.training.networks import tta_logits


class GuidedNetwork:
    """A private copy whose activations guide the gradient; the network it was made from is not touched.

    Holds no state between calls, so threads may share it.

    Raises:
        SettingError: if the network has no activation module that could guide.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = copy.deepcopy(model).eval().requires_grad_(False)
        if not _guide(self._model):
            raise SettingError(
                f"guided maps need activation modules such as ReLU or GELU, {type(model).__name__}"
                " has none; ask for grad_cam."
            )

    def gradients(self, images: Tensor, *, class_indices: Sequence[int], tta: int = 1) -> Tensor:
        """Return the guided gradient ``(N, 3, H, W)`` of the sum of some classes' logits, averaged over tta, for ``(N, 3, H, W)`` images."""
        with torch.enable_grad():
            leaf = images.detach().clone().requires_grad_()
            logits = tta_logits(self._model, leaf, tta)
            # One sum over the batch: in evaluation mode images do not meet, so each gets its own
            # gradient.
            (gradient,) = torch.autograd.grad(logits[:, list(class_indices)].sum(), leaf)
        return gradient


def guided_grad_cam_map(gradients: Tensor, heatmaps: Tensor) -> Tensor:
    """Return the Guided Grad-CAM ``(N, H, W)``, at least 0, unscaled.

    Args:
        gradients: ``(N, 3, H, W)`` guided gradients; a pixel counts with the length of its three.
        heatmaps: ``(N, h, w)`` Grad-CAM, upscaled bilinearly.
    """
    large = F.interpolate(
        heatmaps[:, None], size=gradients.shape[-2:], mode="bilinear", align_corners=False
    )[:, 0]
    lengths: Tensor = torch.linalg.vector_norm(gradients, dim=1)
    return lengths * large


class _Guided(torch.autograd.Function):
    """An activation whose backward pass lets positive gradients through where the input was positive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: nn.Module) -> Tensor:
        ctx.save_for_backward(x)
        ctx.activation = activation
        return activation(x)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (local,) = torch.autograd.grad(ctx.activation(leaf), leaf, gradients[0].clamp(min=0))
        return local * (x > 0), None


class _GuidedActivation(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        if hasattr(activation, "inplace"):  # the input is needed again on the way back
            activation.inplace = False  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return _Guided.apply(x, self.activation)  # type: ignore[no-any-return, no-untyped-call]


def _guide(module: nn.Module) -> int:
    """Replace the activations below a module by guided ones and return how many there were."""
    count = 0
    for name, child in list(
        module._modules.items()
    ):  # named_children would pass over a second name of one module
        if child is None:
            continue
        if _rectifies(child):
            setattr(module, name, _GuidedActivation(child))
            count += 1
        else:
            count += _guide(child)
    return count


def _rectifies(module: nn.Module) -> bool:
    """Whether a module is a rectifier by what it does: timm's GELU is not torch's, and class names are many."""
    if any(True for _ in module.children()) or any(True for _ in module.parameters()):
        return False
    probe = torch.tensor([-20.0, 0.0, 3.0]).view(3, 1, 1, 1)
    try:
        with torch.no_grad():
            negative, zero, positive = module(probe.clone()).flatten().tolist()
    except (RuntimeError, ValueError, TypeError):  # takes or gives another shape: no activation
        return False
    return bool(abs(negative) < 0.5 and zero == 0 and positive > 2)
