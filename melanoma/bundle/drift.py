"""How far an image lies from those a network was chosen on, in its own features: what a change of camera or clinic moves first.

A figure to watch over many images, not a verdict on one: tried as a gate, it let photographs and
noise pass, which lie no farther than lesions do.
"""

import dataclasses

import numpy as np
from torch import Tensor

from melanoma.arrays import FloatArray
from melanoma.io.typed import Strict

_FAR = 0.95


@dataclasses.dataclass(frozen=True)
class FeatureReference(Strict):
    """Mean and deviation of each pooled feature over reference images, and how far the farthest 5 % of those lie.

    Attributes:
        mean: ``(K,)``, to six digits.
        deviation: ``(K,)``, above 0, to six digits.
        far: root mean square of the standardised features that 95 % of the reference images stay
            below, above 0.
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
            raise ValueError("features must be two lists of one length, deviations and far above 0")

    def distance(self, feature_map: Tensor) -> FloatArray:
        """Return the distance ``(N,)`` of images by their feature map ``(N, K, h, w)``, in units of `far`."""
        return self._root_mean_square(pooled(feature_map)) / self.far

    def _root_mean_square(self, values: FloatArray) -> FloatArray:
        distances: FloatArray = np.sqrt(
            (((values - np.array(self.mean)) / np.array(self.deviation)) ** 2).mean(axis=1)
        )
        return distances


def pooled(feature_map: Tensor) -> FloatArray:
    """Return the mean over the cells of a feature map ``(N, K, h, w)``: ``(N, K)`` float64."""
    values: FloatArray = feature_map.mean(dim=(2, 3)).double().cpu().numpy()
    return values


def fit_reference(values: FloatArray) -> FeatureReference:
    """Fit the reference to pooled features ``(N, K)``; one that never varies counts little, not without end."""
    deviation = values.std(axis=0)
    deviation = np.maximum(deviation, 1e-3 * max(float(deviation.mean()), 1e-6))
    mean = values.mean(axis=0)
    distances = np.sqrt((((values - mean) / deviation) ** 2).mean(axis=1))
    far = max(float(np.quantile(distances, _FAR)), 1e-6)
    return FeatureReference(
        _six_digits(mean), _six_digits(deviation), _six_digits(np.array([far]))[0]
    )


def _six_digits(values: FloatArray) -> tuple[float, ...]:
    """Round to what a manifest keeps; more digits would only make it larger."""
    return tuple(float(f"{value:.6g}") for value in values)
