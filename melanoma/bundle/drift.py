"""The distance of an image from the validation images, in the network's own features.

A new camera or clinic shifts this distance first. Watch its distribution over many images; it
cannot judge a single image, because in tests ordinary photographs and noise were no farther away
than lesions.
"""

import dataclasses

import numpy as np
from torch import Tensor

from melanoma.arrays import FloatArray
from melanoma.io.typed import Strict

_FAR = 0.95


@dataclasses.dataclass(frozen=True)
class FeatureReference(Strict):
    """Statistics of the pooled features over the reference images.

    Attributes:
        mean: ``(K,)``, the mean of each feature, to six digits.
        deviation: ``(K,)``, the standard deviation of each feature, above 0, to six digits.
        far: the 95 % quantile of the distances of the reference images, above 0. The distance of an
            image is the root mean square of its standardised features.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    far: float

    def __post_init__(self) -> None:
        if (
            len(self.mean) != len(self.deviation)
            or not min(self.deviation, default=0) > 0
            or not self.far > 0
        ):
            # Without a full stop, because `from_json` puts this text into a sentence.
            raise ValueError(
                "mean and deviation must have the same length, and deviation and far must be above"
                f" 0; the lengths are {len(self.mean)} and {len(self.deviation)}, far is {self.far}"
            )

    def distance(self, feature_map: Tensor) -> FloatArray:
        """Return the distances ``(N,)`` of images with feature maps ``(N, K, h, w)``.

        They are in units of `far`, so 5 % of the reference images are farther than 1. Of an
        ensemble, the first channels count, those of the network that has not learnt from the
        reference images.
        """
        return self._root_mean_square(pooled(feature_map[:, : len(self.mean)])) / self.far

    def _root_mean_square(self, values: FloatArray) -> FloatArray:
        distances: FloatArray = np.sqrt(
            (((values - np.array(self.mean)) / np.array(self.deviation)) ** 2).mean(axis=1)
        )
        return distances


def pooled(feature_map: Tensor) -> FloatArray:
    """Return the mean over the cells of feature maps ``(N, K, h, w)``, ``(N, K)`` float64."""
    values: FloatArray = feature_map.mean(dim=(2, 3)).double().cpu().numpy()
    return values


def fit_reference(values: FloatArray) -> FeatureReference:
    """Fit the reference to pooled features ``(N, K)``."""
    deviation = values.std(axis=0)
    # Without a lower bound, a feature that never varies would dominate every distance.
    deviation = np.maximum(deviation, 1e-3 * max(float(deviation.mean()), 1e-6))
    mean = values.mean(axis=0)
    distances = np.sqrt((((values - mean) / deviation) ** 2).mean(axis=1))
    far = max(float(np.quantile(distances, _FAR)), 1e-6)
    return FeatureReference(
        _six_digits(mean), _six_digits(deviation), _six_digits(np.array([far]))[0]
    )


def _six_digits(values: FloatArray) -> tuple[float, ...]:
    """Return the values rounded to six digits, which keeps the manifest small."""
    return tuple(float(f"{value:.6g}") for value in values)
