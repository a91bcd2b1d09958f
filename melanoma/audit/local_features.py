"""Local features of an image, and how many of two images' features agree on one geometry.

Features are SIFT (Lowe, Distinctive Image Features from Scale-Invariant Keypoints, 2004), which
survive another rotation, scale and light, and RootSIFT (Arandjelovic and Zisserman, Three Things
Everyone Should Know to Improve Object Retrieval, 2012). Knows nothing of data sets.
"""

import dataclasses

import cv2
import numpy as np

from melanoma.arrays import FloatArray, IntArray, Uint8Array
from melanoma.imaging.descriptors import without_padding

LONG_SIDE_PX, MAX_FEATURES = 256, 400
# Far below OpenCV's 0.04: many lesions are smooth, and their faint features still match.
_CONTRAST = 0.003
_RATIO = 0.9
"""Largest distance to a feature's best match, as a share of that to its second best."""
_MAX_SCALE, _CELL_PX = 2.5, 8
_ERROR_PX, _ERROR_DEGREES, _ERROR_OCTAVES = 4.0, 30.0, 0.75
# The features of a ruler lie along one line, and agree between images that share nothing else.
_LINE_PX, _MAX_ENDS = 8.0, 40
_LEAST = 4


@dataclasses.dataclass(frozen=True)
class LocalFeatures:
    """The local features of an image.

    Attributes:
        places: ``(N, 2)`` float32, x and y, px at a long side of 256 px.
        turns: ``(N, 2)`` float32, size (px) and orientation (degrees).
        descriptors: ``(N, 128)`` uint8.
    """

    places: FloatArray
    turns: FloatArray
    descriptors: Uint8Array


def local_features(stored: Uint8Array) -> LocalFeatures:
    """Return the strongest features of a stored image ``(H, W, 3)``, at most 400.

    The image is taken at a long side of 256 px, so that lengths and numbers of features mean the
    same in every data set.
    """
    grey = cv2.cvtColor(np.ascontiguousarray(without_padding(stored)), cv2.COLOR_RGB2GRAY)
    scale = LONG_SIDE_PX / max(grey.shape)
    smaller = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=smaller)
    sift = cv2.SIFT.create(nfeatures=MAX_FEATURES, contrastThreshold=_CONTRAST)
    found, descriptors = sift.detectAndCompute(grey, None)
    if descriptors is None:
        nowhere = np.zeros((0, 2), np.float32)
        return LocalFeatures(nowhere, nowhere, np.zeros((0, 128), np.uint8))
    places = np.array([point.pt for point in found], dtype=np.float32)
    turns = np.array([(point.size, point.angle) for point in found], dtype=np.float32)
    return LocalFeatures(places, turns, descriptors.astype(np.uint8))


def rooted(descriptors: Uint8Array) -> FloatArray:
    """Return descriptors ``(N, 128)`` as RootSIFT: float32 vectors of length 1."""
    values = descriptors.astype(np.float32)
    roots: FloatArray = np.sqrt(values / np.maximum(values.sum(axis=1, keepdims=True), 1))
    return roots


def agreeing_features(first: LocalFeatures, second: LocalFeatures) -> int:
    """Return how many features of two images agree on one rotation, scale and shift.

    Their own sizes and orientations must have changed in the same way. Features of one place count
    once: those in the same square of 8 px. Those along one line, as of a ruler, count no more than
    the others. A scale beyond 2.5 does not count.
    """
    ours, theirs = _matches(first, second)
    if len(ours) < _LEAST:
        return 0
    transform, inside = cv2.estimateAffinePartial2D(
        first.places[ours],
        second.places[theirs],
        method=cv2.RANSAC,
        ransacReprojThreshold=_ERROR_PX,
        confidence=0.99,
    )
    if transform is None:
        return 0
    scale = float(np.hypot(transform[0, 0], transform[1, 0]))
    if not 1 / _MAX_SCALE < scale < _MAX_SCALE:
        return 0
    angle = float(np.degrees(np.arctan2(transform[1, 0], transform[0, 0])))
    (sizes, angles), (sizes2, angles2) = first.turns[ours].T, second.turns[theirs].T
    turned = np.abs((angles2 - angles - angle + 180) % 360 - 180) < _ERROR_DEGREES
    grown = np.abs(np.log2(sizes2 / sizes / scale)) < _ERROR_OCTAVES
    kept = inside.ravel().astype(bool) & turned & grown
    return min(_num_places(first.places[ours[kept]]), _num_places(second.places[theirs[kept]]))


def _matches(first: LocalFeatures, second: LocalFeatures) -> tuple[IntArray, IntArray]:
    """Return the features ``(M,)`` of both that are clearly each other's best match."""
    if min(len(first.places), len(second.places)) < _LEAST:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    similarity = rooted(first.descriptors) @ rooted(second.descriptors).T
    best = similarity.argmax(axis=1)
    mutual = np.flatnonzero(similarity.argmax(axis=0)[best] == np.arange(len(best)))
    partners, rows = best[mutual], similarity[mutual]
    nearest = rows[np.arange(len(rows)), partners]
    rows[np.arange(len(rows)), partners] = -1
    # Distances of vectors of length 1.
    clear = np.sqrt(np.maximum(1 - nearest, 0)) < _RATIO * np.sqrt(1 - rows.max(axis=1))
    return mutual[clear], partners[clear]


def _num_places(points: FloatArray) -> int:
    """Return how many squares hold a point; of those along one line, no more than of the others."""
    _, first = np.unique(points.astype(int) // _CELL_PX, axis=0, return_index=True)
    places = points[first]
    if len(places) < _LEAST:
        return 0
    ends = np.stack(np.triu_indices(min(len(places), _MAX_ENDS), 1), axis=1)
    along = places[ends[:, 1]] - places[ends[:, 0]]
    normals = np.stack([-along[:, 1], along[:, 0]]) / np.maximum(np.hypot(*along.T), 1e-6)
    distances = np.abs(places @ normals - (places[ends[:, 0]] * normals.T).sum(axis=1))
    off = int((distances > _LINE_PX).sum(axis=0).min())
    return min(len(places), 2 * off)
