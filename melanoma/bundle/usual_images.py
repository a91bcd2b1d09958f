"""What images a bundle assesses: those with light, colour and sharpness as in its training images.

Others are answered with cannot_assess. The limit is fixed on the validation fold, before the
calibration split is opened, and the contract holds for the images that are assessed.
"""

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np

from melanoma.arrays import BoolArray, FloatArray, Uint8Array
from melanoma.imaging.descriptors import NUM_DESCRIPTORS, descriptors
from melanoma.io.typed import Strict

FALSE_ALARMS = 0.05
"""Share of the validation images that are not assessed."""
_LEAST_DEVIATION = 0.01


@dataclasses.dataclass(frozen=True)
class UsualImages(Strict):
    """The distribution of the descriptors of training images.

    Attributes:
        mean: ``(K,)``.
        deviation: ``(K,)``, above 0.
        precision: ``(K, K)``, the inverse covariance of the standardised descriptors.
        limit: the largest squared Mahalanobis distance of an image that is assessed.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    limit: float

    def __post_init__(self) -> None:
        num = len(self.mean)
        shapes = (len(self.deviation), len(self.precision), *map(len, self.precision))
        if set(shapes) != {num} or not min(self.deviation, default=0) > 0:
            # Without a full stop, because `from_json` puts this text into a sentence.
            raise ValueError(
                "mean, deviation and precision must have the same length, and deviations must be"
                f" above 0; mean has {num} numbers"
            )

    def are_unusual(self, stored: Iterable[Uint8Array]) -> BoolArray:
        """Return which of N stored images are not assessed, ``(N,)``."""
        values = [descriptors(image) for image in stored]
        unusual: BoolArray = self.distances(np.reshape(values, (-1, len(self.mean)))) > self.limit
        return unusual

    def distances(self, values: FloatArray) -> FloatArray:
        """Return the squared Mahalanobis distances ``(N,)`` of descriptors ``(N, K)``."""
        mean, deviation, precision = self._arrays
        offsets = (values - mean) / deviation
        found: FloatArray = np.einsum("ni,ij,nj->n", offsets, precision, offsets)
        return found

    @functools.cached_property
    def _arrays(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        return np.array(self.mean), np.array(self.deviation), np.array(self.precision)


def every_image() -> UsualImages:
    """Return the description of a bundle that assesses every image, for tests and benchmarks."""
    num = NUM_DESCRIPTORS
    precision = tuple(tuple(row) for row in np.eye(num).tolist())
    return UsualImages((0.0,) * num, (1.0,) * num, precision, 1e300)


def fit_usual(learned: FloatArray, held_out: FloatArray) -> UsualImages:
    """Fit the distribution, and take the limit that leaves out 5 % of other images.

    Args:
        learned: ``(N, K)`` descriptors of training images.
        held_out: ``(M, K)`` descriptors of validation images.
    """
    # A server reads bundles and fits nothing; the import takes a second.
    from sklearn.covariance import LedoitWolf

    mean = learned.mean(axis=0)
    deviation = np.maximum(learned.std(axis=0), _LEAST_DEVIATION)
    precision = LedoitWolf(assume_centered=True).fit((learned - mean) / deviation).precision_
    usual = UsualImages(
        tuple(mean.tolist()),
        tuple(deviation.tolist()),
        tuple(tuple(row) for row in precision.tolist()),
        0.0,
    )
    limit = np.quantile(usual.distances(held_out), 1 - FALSE_ALARMS, method="higher")
    return dataclasses.replace(usual, limit=float(limit))
