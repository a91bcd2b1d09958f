"""Blends images, or pastes a part of one into another, with their labels.

Mixup: Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018. CutMix: Yun et al., CutMix:
Regularization Strategy to Train Strong Classifiers, 2019. Like augmentation, it depends on the
draws of each image alone.
"""

import dataclasses

import torch
from scipy.stats import beta
from torch import Tensor

from melanoma.config import AugmentConfig

NUM_MIX_DRAWS = 4
MIXUP_ALPHA = 0.2
"""Of the Beta law of a blend, as Zhang et al. take it; CutMix draws its share evenly."""


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How N images are mixed with N others.

    Attributes:
        blend: ``(N,)``, the share of each image where it is blended, in [0, 1].
        box: ``(N, 4)``, the top, left, bottom and right of the part that is pasted, as shares of
            the sides; empty parts change nothing.
    """

    blend: Tensor
    box: Tensor

    @property
    def share(self) -> Tensor:
        """``(N,)``, the share of each image in its label."""
        top, left, bottom, right = self.box.unbind(dim=1)
        return self.blend * (1 - (bottom - top) * (right - left))

    def __getitem__(self, part: slice) -> "Mixing":
        """Return how some of the images are mixed."""
        return Mixing(self.blend[part], self.box[part])

    def to(self, device: torch.device) -> "Mixing":
        """Return the same on a device."""
        return Mixing(self.blend.to(device), self.box.to(device))


def draw_mixing(draws: Tensor, config: AugmentConfig) -> Mixing:
    """Return how N images are mixed.

    Args:
        draws: ``(N, NUM_MIX_DRAWS)`` in [0, 1).
        config: which share of the images is blended, and which gets a part pasted.
    """
    is_blended = draws[:, 0] < config.mixup
    is_pasted = ~is_blended & (draws[:, 0] < config.mixup + config.cutmix)
    drawn = torch.from_numpy(beta.ppf(draws[:, 1].double().numpy(), MIXUP_ALPHA, MIXUP_ALPHA))
    blend = torch.where(is_blended, drawn.float(), 1.0)
    side = torch.where(is_pasted, draws[:, 1].sqrt(), 0.0)
    top, left = draws[:, 2] * (1 - side), draws[:, 3] * (1 - side)
    return Mixing(blend, torch.stack([top, left, top + side, left + side], dim=1))


def mix(images: Tensor, others: Tensor, mixing: Mixing) -> Tensor:
    """Return ``(N, 3, h, w)`` images, each mixed with one of N others."""
    height, width = images.shape[-2:]
    rows = (torch.arange(height, device=images.device) + 0.5)[None, :] / height
    columns = (torch.arange(width, device=images.device) + 0.5)[None, :] / width
    top, left, bottom, right = mixing.box[:, :, None].unbind(dim=1)
    between_rows = ((rows >= top) & (rows < bottom))[:, :, None]
    between_columns = ((columns >= left) & (columns < right))[:, None, :]
    inside = between_rows & between_columns
    kept = mixing.blend[:, None, None] * (~inside)
    return others + kept[:, None] * (images - others)
