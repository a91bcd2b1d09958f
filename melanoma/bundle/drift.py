"""How far an image lies from those a network was chosen on, in its own features: what a change of camera or clinic moves first.

A figure to watch over many images, not a verdict on one: tried as a gate, it let photographs and noise pass, which lie no farther than
lesions do.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from melanoma.arrays import FloatArray
from melanoma.data.dataset import ImageDataset
from melanoma.imaging.letterbox import Preprocess
from melanoma.training.networks import features

MAX_IMAGES = 1024
_BATCH = 64
_FAR = 0.95


@dataclasses.dataclass(frozen=True)
class FeatureReference:
    """Mean and deviation of each pooled feature over reference images, and how far the farthest 5 % of those lie.

    Attributes:
        mean: ``(K,)`` float64.
        deviation: ``(K,)`` float64, above 0.
        far: root mean square of the standardised features that 95 % of the reference images stay below.
    """

    mean: FloatArray
    deviation: FloatArray
    far: float

    def distance(self, feature_map: Tensor) -> FloatArray:
        """Return the distance ``(N,)`` of images by their feature map ``(N, K, h, w)``, in units of `far`."""
        return self._root_mean_square(pooled(feature_map)) / self.far

    def _root_mean_square(self, values: FloatArray) -> FloatArray:
        distances: FloatArray = np.sqrt((((values - self.mean) / self.deviation) ** 2).mean(axis=1))
        return distances

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a manifest, to six digits."""
        return {
            name: np.char.mod("%.6g", np.asarray(value)).astype(float).tolist() for name, value in vars(self).items()
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "FeatureReference":
        """Read what `as_dict` wrote.

        Raises:
            ValueError: if the figures are no reference.
        """
        mean, deviation, far = np.array(values["mean"]), np.array(values["deviation"]), float(values["far"])
        if mean.ndim != 1 or mean.shape != deviation.shape or not (deviation > 0).all() or not far > 0:
            raise ValueError("features must be two lists of one length, deviations and far above 0")
        return FeatureReference(mean, deviation, far)


def pooled(feature_map: Tensor) -> FloatArray:
    """Return the mean over the cells of a feature map ``(N, K, h, w)``: ``(N, K)`` float64."""
    values: FloatArray = feature_map.mean(dim=(2, 3)).double().cpu().numpy()
    return values


def fit_reference(values: FloatArray) -> FeatureReference:
    """Fit the reference to pooled features ``(N, K)``; one that never varies counts little, not without end."""
    deviation = values.std(axis=0)
    deviation = np.maximum(deviation, 1e-3 * max(float(deviation.mean()), 1e-6))
    reference = FeatureReference(values.mean(axis=0), deviation, 1.0)
    distances = reference._root_mean_square(values)
    return dataclasses.replace(reference, far=max(float(np.quantile(distances, _FAR)), 1e-6))


def reference_of(model: nn.Module, dataset: ImageDataset, preprocess: Preprocess, *, seed: int) -> FeatureReference:
    """Fit the reference to at most 1,024 images of a data set, drawn by a seed; on the device of the network."""
    device = next(model.parameters()).device
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:MAX_IMAGES].tolist()
    model.eval()
    with torch.no_grad():
        values = [
            pooled(features(model, preprocess(dataset.images(chosen[start : start + _BATCH]).to(device))))
            for start in range(0, len(chosen), _BATCH)
        ]
    return fit_reference(np.concatenate(values))
