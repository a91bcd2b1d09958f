"""What an explainer gets, and what it gives. `methods` lists the explainers."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from melanoma.arrays import FloatArray, Uint8Array
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
