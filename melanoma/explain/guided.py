"""Guided backpropagation through all rectifiers, GELU included, on a copy of the network.

The rule is that of Springenberg et al., Striving for Simplicity: The All Convolutional Net, 2015:
an activation passes only positive gradients back, and only where its input was positive. The
gradients that pass are multiplied by the derivative of the activation, which is 1 for ReLU. Guided
Grad-CAM (Selvaraju et al., 2017) is the result times the upscaled Grad-CAM.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from melanoma.arrays import FloatArray, Uint8Array
from melanoma.errors import SettingError
from melanoma.explain.subject import Subject
from melanoma.training.networks import tta_logits

_SPREAD_PX = 5


class GuidedNetwork:
    """A copy of a network whose activations guide the gradient. The original is not changed.

    It keeps no state between calls, so threads may share it.

    Raises:
        SettingError: if the network has no activation modules such as ReLU or GELU.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = copy.deepcopy(model).eval().requires_grad_(False)
        if not _guide(self._model):
            raise SettingError(
                f"Guided maps need activation modules such as ReLU or GELU; {type(model).__name__}"
                " has none. Ask for grad_cam."
            )

    def gradients(self, images: Tensor, *, class_indices: Sequence[int], tta: int = 1) -> Tensor:
        """Return the guided gradient ``(N, 3, H, W)`` of the sum of some classes' logits.

        Args:
            images: ``(N, 3, H, W)``, normalised.
            class_indices: the classes to explain.
            tta: number of mirrored copies over which the logits are averaged.
        """
        with torch.enable_grad():
            leaf = images.detach().clone().requires_grad_()
            logits = tta_logits(self._model, leaf, tta)
            # One sum over the batch is enough: in evaluation mode the images do not interact, so
            # each gets its own gradient.
            (gradient,) = torch.autograd.grad(logits[:, list(class_indices)].sum(), leaf)
        return gradient


class GuidedExplainer:
    """Computes Guided Grad-CAM of the targets, on a private copy of a network.

    It keeps no state between calls.

    Raises:
        SettingError: if the network has no activation modules such as ReLU or GELU.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._network = GuidedNetwork(subject.model.to(subject.device))

    def explain(self, images: Sequence[Uint8Array], heatmaps: Sequence[FloatArray]) -> FloatArray:
        """Return the Guided Grad-CAM of stored images, averaged over 5 x 5 px, ``(N, H, W)``.

        Args:
            images: N stored images, ``(H, W, 3)`` uint8 each.
            heatmaps: their N Grad-CAMs, ``(h, w)`` each.
        """
        subject = self._subject
        inputs = subject.preprocess(torch.from_numpy(np.stack(images)).to(subject.device))
        gradients = self._network.gradients(inputs, class_indices=subject.targets, tta=subject.tta)
        stacked = torch.from_numpy(np.stack(heatmaps)).to(subject.device)
        found = guided_grad_cam_map(gradients, stacked)
        # Single pixels cannot be seen over an image.
        spread = F.avg_pool2d(
            found[:, None], _SPREAD_PX, stride=1, padding=_SPREAD_PX // 2, count_include_pad=False
        )[:, 0]
        maps: FloatArray = spread.cpu().numpy()
        return maps


def guided_grad_cam_map(gradients: Tensor, heatmaps: Tensor) -> Tensor:
    """Return the Guided Grad-CAM ``(N, H, W)``, at least 0, unscaled.

    Args:
        gradients: ``(N, 3, H, W)`` guided gradients; each pixel contributes the Euclidean norm over
            its three channels.
        heatmaps: ``(N, h, w)`` Grad-CAMs, which are upscaled bilinearly.
    """
    large = F.interpolate(
        heatmaps[:, None], size=gradients.shape[-2:], mode="bilinear", align_corners=False
    )[:, 0]
    lengths: Tensor = torch.linalg.vector_norm(gradients, dim=1)
    return lengths * large


class _Guided(torch.autograd.Function):
    """An activation that passes back positive gradients only, where its input was positive."""

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
        if hasattr(activation, "inplace"):  # the backward pass needs the input
            activation.inplace = False  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return _Guided.apply(x, self.activation)  # type: ignore[no-any-return, no-untyped-call]


def _guide(module: nn.Module) -> int:
    """Replace the activations below a module by guided ones, and return their number."""
    count = 0
    # named_children would skip the second name of a module that is used twice.
    for name, child in list(module._modules.items()):
        if child is None:
            continue
        if _rectifies(child):
            setattr(module, name, _GuidedActivation(child))
            count += 1
        else:
            count += _guide(child)
    return count


def _rectifies(module: nn.Module) -> bool:
    """Return whether a module behaves like a rectifier.

    The values decide, because there are many classes: timm's GELU, for example, is not torch's.
    """
    if any(True for _ in module.children()) or any(True for _ in module.parameters()):
        return False
    probe = torch.tensor([-20.0, 0.0, 3.0]).view(3, 1, 1, 1)
    try:
        with torch.no_grad():
            negative, zero, positive = module(probe.clone()).flatten().tolist()
    except (RuntimeError, ValueError, TypeError):  # not an activation: its shapes differ
        return False
    return bool(abs(negative) < 0.5 and zero == 0 and positive > 2)
