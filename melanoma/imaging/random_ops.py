"""RandAugment's operations that `augmentation` lacks, a few for each image.

Source: Cubuk et al., RandAugment: Practical Automated Data Augmentation with a Reduced Search
Space, 2020. Turns, shifts, brightness, contrast and saturation are those of `augmentation`. What is
done to an image depends on its draws alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from melanoma.config import AugmentConfig

DRAWS_OF_OP = 2
_SHEAR_DEGREES = 17.0

Op = Callable[[Tensor, float], Tensor]
"""Changes a ``(3, H, W)`` uint8 image with a strength in [-1, 1]."""


def _sheared(image: Tensor, degrees: list[float]) -> Tensor:
    sheared: Tensor = F.affine(
        image, 0.0, [0, 0], 1.0, degrees, interpolation=InterpolationMode.BILINEAR
    )
    return sheared


OPS: dict[str, Op] = {
    "autocontrast": lambda image, strength: F.autocontrast(image),
    "equalize": lambda image, strength: F.equalize(image),
    "posterize": lambda image, strength: F.posterize(image, 8 - round(4 * abs(strength))),
    "solarize": lambda image, strength: F.solarize(image, 255 * (1 - abs(strength) / 2)),
    "sharpness": lambda image, strength: F.adjust_sharpness(image, 1 + 0.9 * strength),
    "shear_x": lambda image, strength: _sheared(image, [_SHEAR_DEGREES * strength, 0.0]),
    "shear_y": lambda image, strength: _sheared(image, [0.0, _SHEAR_DEGREES * strength]),
}
"""Operations by name; a strength of 0 changes as little as the operation can."""


def num_op_draws(config: AugmentConfig) -> int:
    """Return how many draws an image needs."""
    return DRAWS_OF_OP * config.random_ops


def random_ops(images: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    """Change each image by some operations drawn at random, one after another.

    Args:
        images: ``(N, H, W, 3)`` uint8.
        draws: ``(N, num_op_draws(config))`` in [0, 1).
        config: how many operations, and how strong.

    Returns:
        ``(N, H, W, 3)`` uint8.
    """
    if not config.random_ops:
        return images
    changed = []
    for image, drawn in zip(images.permute(0, 3, 1, 2), draws.tolist(), strict=True):
        for which, how in zip(drawn[::DRAWS_OF_OP], drawn[1::DRAWS_OF_OP], strict=True):
            op = list(OPS.values())[int(which * len(OPS))]
            image = op(image, (2 * how - 1) * config.op_strength)
        changed.append(image)
    return torch.stack(changed).permute(0, 2, 3, 1).contiguous()
