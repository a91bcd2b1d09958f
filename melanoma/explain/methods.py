"""The kinds of heatmap: the one place to add another. Command line, API and page read this list.

Grad-CAM comes with the prediction, from the same feature map. Every other kind is made from the
image and its Grad-CAM by an `Explainer`, on replicas of its own.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import nn

from melanoma.arrays import FloatArray, Uint8Array
from melanoma.errors import SettingError
from melanoma.explain.guided import GuidedExplainer
from melanoma.explain.layer_cam import LayerCamExplainer
from melanoma.imaging.preprocess import Preprocess


@dataclasses.dataclass(frozen=True)
class Subject:
    """The network to explain.

    Attributes:
        model: the network in eval mode; an explainer must not change it.
        preprocess: from stored images to its input.
        tta: mirrored copies over which its logits are averaged.
        targets: indices of the classes to explain.
        device: where it computes.
    """

    model: nn.Module
    preprocess: Preprocess
    tta: int
    targets: Sequence[int]
    device: torch.device


class Explainer(Protocol):
    """Makes one kind of heatmap. Threads may share it."""

    def explain(self, images: Sequence[Uint8Array], heatmaps: Sequence[FloatArray]) -> FloatArray:
        """Return the heatmaps ``(N, H, W)`` of stored images, at least 0.

        Args:
            images: N stored images, ``(H, W, 3)`` uint8 each.
            heatmaps: their N Grad-CAMs, ``(h, w)`` each.
        """


@dataclasses.dataclass(frozen=True)
class Method:
    """One kind of heatmap.

    Attributes:
        title: its name for people.
        meaning: what it shows, and what it does not.
        make: makes its explainer; None if the prediction itself brings the heatmap.
    """

    title: str
    meaning: str
    make: Callable[[Subject], Explainer] | None


def _guided(subject: Subject) -> Explainer:
    return GuidedExplainer(
        subject.model,
        subject.preprocess,
        tta=subject.tta,
        targets=subject.targets,
        device=subject.device,
    )


def _layer_cam(subject: Subject) -> Explainer:
    return LayerCamExplainer(
        subject.model,
        subject.preprocess,
        tta=subject.tta,
        targets=subject.targets,
        device=subject.device,
    )


METHODS: dict[str, Method] = {
    "grad_cam": Method(
        "Grad-CAM",
        "Grad-CAM shows which regions raised the score. Its cells are coarse, each 32 px of the"
        " network's input.",
        None,
    ),
    "layer_cam": Method(
        "LayerCAM",
        "LayerCAM shows which regions raised the score, from an earlier layer than Grad-CAM. Its"
        " cells are half as large.",
        _layer_cam,
    ),
    "guided_grad_cam": Method(
        "Guided Grad-CAM",
        "Guided Grad-CAM shows small spots that raised the score. They can follow borders that the"
        " network does not detect.",
        _guided,
    ),
}
"""Kinds of heatmap by name; the first is the default."""
DEFAULT_METHOD = next(iter(METHODS))


def check_method(name: str) -> str:
    """Return the name of a kind of heatmap.

    Raises:
        SettingError: if there is none of that name.
    """
    if name not in METHODS:
        raise SettingError(
            f"The kind of heatmap must be one of {', '.join(METHODS)}; it is {name}."
        )
    return name
