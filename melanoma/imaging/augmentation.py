"""Batched augmentation on the device, with randomness from (seed, epoch, image_id) alone.

So an image is changed in the same way in any worker and any batch, and after any restart. Between
a CPU and a GPU, pixels may differ by rounding.
"""

import hashlib
import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from melanoma.config import AugmentConfig
from melanoma.imaging.preprocess import resize

NUM_DRAWS = 12
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def image_keys(image_ids: list[str]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each image_id, ``(N,)``, the same in every process."""
    digests = [hashlib.blake2b(image_id.encode(), digest_size=8).digest() for image_id in image_ids]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the output of SplitMix64 for some states.

    Source: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, 2014.
    """
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def repeated_keys(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return other keys where a key occurs again, so that a repeated image is changed anew.

    Args:
        keys: ``(N,)``, those of the images in the order in which an epoch shows them. The first
            time, a key stays what it is.
    """
    by_key = np.argsort(keys, kind="stable")
    same = np.concatenate([[False], keys[by_key][1:] == keys[by_key][:-1]])
    starts = np.maximum.accumulate(np.where(same, 0, np.arange(len(keys))))
    times = np.empty(len(keys), np.uint64)
    times[by_key] = np.arange(len(keys)) - starts
    with np.errstate(over="ignore"):  # Arithmetic modulo 2^64 is intended.
        return np.where(times > 0, _mix(keys + _GOLDEN * times), keys)


def uniform_draws(
    keys: NDArray[np.uint64], *, seed: int, epoch: int, num: int = NUM_DRAWS
) -> Tensor:
    """Return ``(N, num)`` float32 draws in [0, 1).

    Each is a pure function of (seed, epoch, key, column).
    """
    with np.errstate(over="ignore"):  # Arithmetic modulo 2^64 is intended.
        stream = _mix(np.array([seed], np.uint64) + _GOLDEN * np.uint64(epoch + 1))
        start = _mix(keys ^ stream)[:, None]
        states = _mix(start + _GOLDEN * np.arange(1, num + 1, dtype=np.uint64)[None, :])
    # 24 bits, as many as a float32 holds. With 53 bits some draws would round up to 1.0.
    return torch.from_numpy(
        ((states >> np.uint64(40)).astype(np.float64) / 2**24).astype(np.float32)
    )


def augment(images: Tensor, draws: Tensor, config: AugmentConfig, size: tuple[int, int]) -> Tensor:
    """Turn, flip, zoom, shift and recolour a batch.

    Args:
        images: ``(N, H, W, 3)`` uint8.
        draws: ``(N, NUM_DRAWS)`` or more columns, in [0, 1).
        config: how far images may be changed.
        size: (h, w) of the result, px.

    Returns:
        ``(N, 3, h, w)`` float32 in [0, 1].
    """
    pixels = images.permute(0, 3, 1, 2)
    if pixels.device.type != "cpu":  # a GPU resizes floats only; a CPU is faster with 8 bits
        pixels = pixels.float()
    height, width = pixels.shape[-2:]
    if height > 2 * size[0]:
        # A bilinear sample covers two pixels, so a larger image would alias. Shrink it first.
        pixels = resize(pixels, (2 * size[0], 2 * size[1]))
    pixels = pixels.float()  # `_recolour` scales it to [0, 1]
    draws = draws.to(pixels.device)
    grid = F.affine_grid(
        _affine(draws, config, aspect=width / height), [len(pixels), 3, *size], align_corners=False
    )
    pixels = F.grid_sample(
        pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return _recolour(pixels, draws, config)


def _affine(draws: Tensor, config: AugmentConfig, *, aspect: float) -> Tensor:
    """Return ``(N, 2, 3)`` maps from output to input in grid_sample's [-1, 1] coordinates.

    These coordinates stretch pixels unless the image is square. ``aspect``, width / height, makes
    up for that, so that a turn is a turn.
    """
    angle = 2 * math.pi * draws[:, 0]
    zoom = torch.exp((2 * draws[:, 1] - 1) * math.log(config.zoom))
    flip = torch.where(draws[:, 2] < 0.5, 1.0, -1.0)
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    shift = (2 * draws[:, 3:5] - 1) * 2 * config.shift
    rows = torch.stack(
        [flip * cos, -sin / aspect, shift[:, 0], flip * sin * aspect, cos, shift[:, 1]], dim=1
    )
    return rows.view(-1, 2, 3)


def _recolour(images: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    """Change tint, brightness, contrast and saturation, in this order.

    Contrast c moves each value towards the mean m of the image, and saturation s towards the mean
    of the channels. With the gain g of each channel, all of it is one matrix and one offset:
    y_i = c s g_i x_i + c (1 - s) / 3 sum_j g_j x_j + (1 - c) m. So the pixels are read and written
    once, and not for each step.

    Args:
        images: ``(N, 3, h, w)`` in [0, 255].
        draws: as for `augment`.
        config: how far images may be changed.

    Returns:
        ``(N, 3, h, w)`` in [0, 1].
    """

    def factor(columns: slice, amount: float) -> Tensor:
        return 1 + (2 * draws[:, columns] - 1) * amount

    gains = factor(slice(8, 11), config.tint) * factor(slice(5, 6), config.brightness) / 255
    contrast = factor(slice(6, 7), config.contrast)
    saturation = factor(slice(7, 8), config.saturation)
    mean = (gains * images.mean(dim=(2, 3))).mean(dim=1, keepdim=True)
    matrix = torch.diag_embed(contrast * saturation * gains)
    matrix = matrix + (contrast * (1 - saturation) / 3 * gains)[:, None, :]
    offset = ((1 - contrast) * mean)[:, :, None]
    return torch.baddbmm(offset, matrix, images.flatten(2)).clamp_(0, 1).view_as(images)
