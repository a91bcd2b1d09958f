"""Recognises copies of an image: re-encoded, resized, or brighter ones. Knows nothing of lesions.

A fingerprint is a perceptual hash (Zauner, Implementation and Benchmarking of Perceptual Image Hash
Functions, 2010): the signs of the lowest frequencies of the image around their median. It does not
recognise a copy that was turned, and seldom one that was cropped.
"""

import numpy as np
from PIL import Image
from scipy.fft import dctn

from melanoma.arrays import IntArray, Uint8Array
from melanoma.imaging.descriptors import without_padding

BYTES = 32
MAX_DISTANCE = 30
"""Differing bits, of 256, up to which two images are copies of each other.

Chosen from the distances of copies and of other images of HAM10000, which `python -m
benchmarks.copies` measures (docs/benchmarks.md has the table).
"""
_SIDE, _FREQUENCIES = 64, 16


def fingerprint(image: Uint8Array) -> bytes:
    """Return the fingerprint of an image ``(H, W, 3)``, 32 bytes.

    Padding is left out and the rest squeezed to a square, so that its shape does not matter.
    """
    grey = (
        Image.fromarray(without_padding(image))
        .convert("L")
        .resize((_SIDE, _SIDE), Image.Resampling.BOX)
    )
    low = dctn(np.asarray(grey, dtype=np.float32), norm="ortho")[:_FREQUENCIES, :_FREQUENCIES]
    values = low.ravel()[1:]  # without the mean brightness
    return np.packbits(np.append(values > np.median(values), False)).tobytes()


def nearest(asked: list[bytes], known: list[bytes]) -> IntArray:
    """Return, for each of N fingerprints, the number of differing bits to the nearest known one.

    Args:
        asked: N fingerprints.
        known: M fingerprints, at least one.

    Returns:
        ``(N,)`` in [0, 256].
    """
    theirs = _signs(known)
    found = [
        (8 * BYTES - (_signs(asked[start : start + 256]) @ theirs.T).max(axis=1)) / 2
        for start in range(0, len(asked), 256)
    ]
    return np.concatenate(found).astype(np.int64) if found else np.zeros(0, dtype=np.int64)


def _signs(fingerprints: list[bytes]) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(b"".join(fingerprints), np.uint8).reshape(-1, BYTES), axis=1)
    return np.where(bits, 1, -1).astype(np.float32)
