"""Finds images that show one lesion although no id says so.

Two embeddings propose pairs: the details of an image (its local features as words) and its layout
(a thumbnail in grey). The local features then confirm a pair if enough of them agree on one
rotation, scale and shift. Knows nothing of splits and labels.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import scipy.sparse as sparse
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from melanoma.arrays import BoolArray, FloatArray, IntArray, Uint8Array
from melanoma.audit.local_features import (
    LocalFeatures,
    agreeing_features,
    local_features,
    rooted,
)
from melanoma.executor import Progress
from melanoma.imaging.descriptors import without_padding
from melanoma.judging import in_threads

CONFIRMED, POSSIBLE = 10, 6
"""Agreeing features from which two images show one lesion, and from which they may. In sets
of the phantom, images of different lesions reached 6."""
BY_DETAILS, BY_LAYOUT = 20, 10
"""Pairs that each embedding proposes for an image."""
_TABLES, _BITS, _COMPONENTS = 16, 24, 32
_SAMPLE, _CHUNK, _THUMBNAIL = 60_000, 256, (16, 12)
_COMMON = 20
"""A word in more than every 20th image says nothing of a lesion."""
_T = TypeVar("_T")
_Result = TypeVar("_Result")


def find_features(
    images: Callable[[int], Uint8Array], num: int, progress: Progress
) -> tuple[list[LocalFeatures], FloatArray]:
    """Return the local features and the layout of N stored images.

    Args:
        images: gives the image ``(H, W, 3)`` at an index.
        num: N.
        progress: called with (images done, N).

    Returns:
        N local features, and ``(N, 192)`` thumbnails of mean 0 and length 1.
    """

    def one(index: int) -> tuple[LocalFeatures, FloatArray]:
        image = images(index)
        return local_features(image), _layout(image)

    found = in_chunks(one, range(num), progress)
    return [features for features, _ in found], np.stack([layout for _, layout in found])


def _layout(stored: Uint8Array) -> FloatArray:
    small = Image.fromarray(without_padding(stored)).convert("L")
    values = np.array(small.resize(_THUMBNAIL, Image.Resampling.BOX), np.float32).ravel()
    values -= values.mean()
    layout: FloatArray = values / max(float(np.linalg.norm(values)), 1e-6)
    return layout


def proposed_pairs(
    features: Sequence[LocalFeatures], layouts: FloatArray, progress: Progress
) -> IntArray:
    """Return the pairs of images that may show one lesion, ``(M, 2)``, each once, first < second.

    Args:
        features: of N images.
        layouts: ``(N, D)`` of the same images.
        progress: called with (images done, N).
    """
    num = len(features)
    if num <= BY_DETAILS + BY_LAYOUT:
        return np.stack(np.triu_indices(num, 1), axis=1)
    words = _words(features)
    transposed = words.T.tocsr()
    pairs = []
    for start in range(0, num, _CHUNK):
        rows = slice(start, min(start + _CHUNK, num))
        near = [
            _nearest((words[rows] @ transposed).toarray(), start, BY_DETAILS),
            _nearest(layouts[rows] @ layouts.T, start, BY_LAYOUT),
        ]
        pairs.append(np.concatenate(near))
        progress(rows.stop, num)
    return np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)


def confirmed_pairs(
    features: Sequence[LocalFeatures], pairs: IntArray, progress: Progress
) -> IntArray:
    """Return the number of agreeing features of some pairs, ``(M,)``.

    Args:
        features: of N images.
        pairs: ``(M, 2)`` indices.
        progress: called with (pairs done, M).
    """

    def one(pair: IntArray) -> int:
        return agreeing_features(features[pair[0]], features[pair[1]])

    return np.array(in_chunks(one, pairs, progress), dtype=np.int64)


def _nearest(similarity: FloatArray, start: int, num: int) -> IntArray:
    """Return the pairs ``(K, 2)`` of each row with its most similar others, if there are any.

    Args:
        similarity: ``(n, N)`` of the images from `start` on to all images.
        start: index of the first row.
        num: largest number of pairs for a row.
    """
    rows = np.arange(len(similarity))
    similarity[rows, start + rows] = -1
    found = np.argpartition(-similarity, num, axis=1)[:, :num]
    pairs = np.stack([np.repeat(start + rows, num), found.ravel()], axis=1)
    likely: BoolArray = np.take_along_axis(similarity, found, axis=1).ravel() > 0
    return pairs[likely]


def _words(features: Sequence[LocalFeatures]) -> sparse.csr_array:
    """Return how much of each word is in each image, ``(N, W)``, as rows of length 1.

    A word is a region of the space of descriptors: the signs along some random axes after a
    whitening (locality-sensitive hashing; Charikar, Similarity Estimation Techniques from Rounding
    Algorithms, 2002). Each of several tables has its own axes, so that two descriptors that a
    border separates in one table share a word in another. Rare words weigh more (tf-idf).
    """
    num, rng = len(features), np.random.default_rng(0)
    sizes = [len(each.places) for each in features]
    owners, firsts = np.repeat(np.arange(num), sizes), np.cumsum([0, *sizes])
    if len(owners) <= _COMPONENTS:
        return sparse.csr_array((num, 1), dtype=np.float32)
    each_gives = -(-_SAMPLE // num)
    sample = [each.descriptors[rng.permutation(len(each.places))[:each_gives]] for each in features]
    whiten = PCA(_COMPONENTS, whiten=True, random_state=0).fit(rooted(np.concatenate(sample)))
    axes = [
        np.linalg.qr(rng.standard_normal((_COMPONENTS, _COMPONENTS)))[0][:, :_BITS]
        for _ in range(_TABLES)
    ]
    bits = 1 << np.arange(_BITS)
    codes = np.empty((_TABLES, len(owners)), dtype=np.int32)
    for start in range(0, num, _CHUNK):
        part = np.concatenate([each.descriptors for each in features[start : start + _CHUNK]])
        first = firsts[start]
        whitened = whiten.transform(rooted(part)) if len(part) else np.zeros((0, _COMPONENTS))
        for table in range(_TABLES):
            codes[table, first : first + len(part)] = (whitened @ axes[table] > 0) @ bits
    tables = [_table(codes[table], owners, num) for table in range(_TABLES)]
    del codes
    words: sparse.csr_array = sparse.hstack(tables, format="csr")
    return normalize(words, copy=False)


def _table(codes: IntArray, owners: IntArray, num: int) -> sparse.csr_array:
    """Return the weights ``(N, W)`` of one table's words, without those that link no images."""
    distinct, words = np.unique(codes, return_inverse=True)
    ones = np.ones(len(codes), dtype=np.float32)
    counts = sparse.csr_array((ones, (owners, words)), shape=(num, len(distinct)))
    counts.sum_duplicates()
    found_in = np.bincount(counts.indices, minlength=len(distinct))
    useful = np.flatnonzero((found_in > 1) & (found_in <= max(num // _COMMON, 2)))
    kept = counts[:, useful].sqrt().astype(np.float32)
    kept.data *= np.log(num / found_in[useful]).astype(np.float32)[kept.indices]
    return kept


def in_chunks(
    work: Callable[[_T], _Result], items: Sequence[_T] | IntArray, progress: Progress
) -> list[_Result]:
    """Return the results of some work for each item, in order, and report the progress."""
    results: list[_Result] = []
    with threadpool_limits(1):  # the threads are ours
        for start in range(0, len(items), _CHUNK):
            results += in_threads(work, items[start : start + _CHUNK])
            progress(len(results), len(items))
    return results
