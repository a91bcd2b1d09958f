"""What a heatmap is worth, as numbers: each for N images, beside the map of another image.

A map that only knows that lesions lie in the middle is as good on one image as on the next.
Therefore each measure is also taken with the map of another image, and the difference counts.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import norm, rankdata

from melanoma.arrays import BoolArray, FloatArray, IntArray

GRID = (48, 64)
"""(rows, columns) on which maps and masks are compared."""
DELETED = 0.15
"""Share of the image that is deleted to see what the score loses."""
CONFIDENCE = 0.99
"""One-sided, of each bound."""
_TINY = 1e-12


@dataclasses.dataclass(frozen=True)
class Measure:
    """A mean over groups of images, with one-sided bounds of 99 % confidence each.

    Attributes:
        value: the mean.
        low: lower bound.
        high: upper bound.
    """

    value: float
    low: float
    high: float


def mean_over_groups(values: FloatArray, groups: IntArray) -> Measure:
    """Return the mean of the groups' means, with normal bounds.

    Args:
        values: ``(N,)``.
        groups: ``(N,)``; the images of a group are not independent.
    """
    sums, counts = np.bincount(groups, values), np.bincount(groups)
    means = sums[counts > 0] / counts[counts > 0]
    value = float(means.mean())
    if len(means) < 2:
        return Measure(value, float("-inf"), float("inf"))
    away = float(norm.ppf(CONFIDENCE) * means.std(ddof=1) / np.sqrt(len(means)))
    return Measure(value, value - away, value + away)


def on_grid(maps: FloatArray) -> FloatArray:
    """Return maps ``(N, h, w)`` on the grid of all comparisons, ``(N, 48, 64)``."""
    images = torch.from_numpy(np.asarray(maps, dtype=np.float32))[:, None]
    found: FloatArray = F.interpolate(
        images, size=GRID, mode="bilinear", align_corners=False, antialias=True
    )[:, 0].numpy()
    return found


def share_inside(maps: FloatArray, masks: BoolArray) -> FloatArray:
    """Return the share of each map's sum that lies inside the lesion, ``(N,)``; 0 if it is empty.

    Args:
        maps: ``(N, 48, 64)``, at least 0.
        masks: ``(N, 48, 64)``, the lesions.
    """
    total = maps.sum(axis=(1, 2))
    inside: FloatArray = (maps * masks).sum(axis=(1, 2)) / np.maximum(total, _TINY)
    return inside


def points_inside(maps: FloatArray, masks: BoolArray) -> FloatArray:
    """Return 1 if the peak of a map lies inside the lesion, else 0: the pointing game, ``(N,)``.

    Zhang et al., Top-down Neural Attention by Excitation Backprop, 2016. An empty map has no peak.
    """
    flat = maps.reshape(len(maps), -1)
    hit = masks.reshape(len(masks), -1)[np.arange(len(flat)), flat.argmax(axis=1)]
    points: FloatArray = (hit & (flat.max(axis=1) > 0)).astype(np.float64)
    return points


def similarity(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return the rank correlation (Spearman) of each pair of maps ``(N, 48, 64)``, ``(N,)``.

    It is NaN if one of the two is constant, as an empty map is.
    """
    ranks = [rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (first, second)]
    ours, theirs = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    with np.errstate(invalid="ignore"):
        found: FloatArray = (ours * theirs).sum(axis=1) / lengths
    return found


def score_lost(
    maps: FloatArray, inputs: torch.Tensor, score: Callable[[torch.Tensor], FloatArray]
) -> FloatArray:
    """Return what the score loses when the highest 15 % of a map are blurred away, ``(N,)``.

    One step of the deletion game (Petsiuk, Das and Saenko, RISE, 2018).

    Args:
        maps: ``(N, 48, 64)``.
        inputs: ``(N, 3, H, W)``, normalised.
        score: from inputs to the logit of the targets, ``(N,)``.
    """
    flat = maps.reshape(len(maps), -1)
    # Ties, as in an empty map, are broken at random.
    noise = np.random.default_rng(0).random(flat.shape)
    order = np.lexsort((noise, -flat), axis=1)
    deleted = np.zeros(flat.shape, dtype=np.float32)
    np.put_along_axis(deleted, order[:, : int(DELETED * flat.shape[1])], 1.0, axis=1)
    gone = torch.from_numpy(deleted.reshape(-1, 1, *GRID))
    size = list(inputs.shape[-2:])
    gone = F.interpolate(gone, size=size, mode="nearest")
    few = F.interpolate(inputs, size=[3, 4], mode="area")
    blurred = F.interpolate(few, size=size, mode="bilinear", align_corners=False)
    return score(inputs) - score(inputs * (1 - gone) + blurred * gone)
