"""From a bundle and images to calibrated probabilities, decisions and heatmaps.

Evaluation, the server and the tests share it. Knows nothing of requests.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import numpy as np
import PIL.Image
import torch

from melanoma.arrays import BoolArray, FloatArray, Uint8Array
from melanoma.bundle.backend import OnnxFeatures
from melanoma.bundle.bundle import Bundle
from melanoma.bundle.probes import replay_probes
from melanoma.evidence.operating_point import Decision, decide
from melanoma.explain.grad_cam import explain_feature_maps
from melanoma.imaging.decode import check_content, decode_image
from melanoma.imaging.tta import FeatureExtractor, tta_features
from melanoma.io.storage import AnyPath, to_path
from melanoma.training.networks import average_logits, features

Image = str | AnyPath | PIL.Image.Image | Uint8Array
"""An image file, or an image in memory."""
NO_CONTRACT = "contract_not_met"
UNCONTRACTED = "uncontracted"
OTHER_CANCER = "other_cancer_likely"
UNUSUAL = "unusual_image"
IMAGES_IN_CACHE = 8
"""Images that are resized at a time on a CPU."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        logits: ``(C,)`` float32.
        probabilities: ``(C,)`` calibrated, float64.
        decision: refer, no_referral or cannot_assess.
        warnings: codes of what limits the prediction.
        feature_distance: distance from the validation images, of which 5 % are farther than 1
            (melanoma/bundle/drift.py); NaN from `decide`.
        heatmap: ``(h, w)`` float32 Grad-CAM of the targets, unscaled, over the whole letterbox;
            None if not requested.
    """

    logits: FloatArray
    probabilities: FloatArray
    decision: Decision
    warnings: tuple[str, ...]
    feature_distance: float
    heatmap: FloatArray | None = None


@dataclasses.dataclass(frozen=True)
class Seen:
    """What shows of N images before anything is decided.

    Attributes:
        feature_maps: ``(N, K, h, w)`` of each mirrored copy.
        unusual: ``(N,)``, which images are not assessed.
    """

    feature_maps: list[torch.Tensor]
    unusual: BoolArray


class Predictor:
    """Predicts with one bundle on one device.

    It keeps no state between calls, so threads may share it. On a CPU, ONNX Runtime computes the
    feature maps if the bundle has an exported network. It then uses as many threads as torch uses
    when the predictor is made.

    Args:
        bundle: the bundle.
        device: a torch device, such as cpu or cuda.
        allow_uncontracted: whether to decide although the contract is not met; such predictions
            carry the warning ``uncontracted``. Otherwise the decision is cannot_assess.
    """

    def __init__(
        self, bundle: Bundle, *, device: str = "cpu", allow_uncontracted: bool = False
    ) -> None:
        self.bundle = bundle
        self._device = torch.device(device)
        self._model = bundle.model.to(self._device)
        self._allow_uncontracted = allow_uncontracted
        self._extract: FeatureExtractor = partial(features, self._model)
        if self._device.type == "cpu" and bundle.features_onnx is not None:
            self._extract = OnnxFeatures(bundle.features_onnx, num_threads=torch.get_num_threads())

    def replay_probes(self) -> list[str]:
        """Compare the outputs of this predictor with those recorded in the bundle.

        Returns:
            One sentence for each deviation; empty if the outputs are repeated.
        """
        manifest = self.bundle.manifest
        return replay_probes(
            manifest.probes,
            self._model,
            manifest.preprocessing,
            manifest.tta,
            extract=self._extract,
        )

    @property
    def has_own_threads(self) -> bool:
        """Whether the network computes in threads of its own, which several calls can share."""
        return isinstance(self._extract, OnnxFeatures)

    def inputs(self, stored: Uint8Array) -> torch.Tensor:
        """Return the network's input ``(N, 3, h, w)`` of stored images ``(N, H, W, 3)``."""
        images = torch.from_numpy(stored)
        if not self.has_own_threads:
            return self.bundle.preprocess(images.to(self._device))
        # A few images at a time stay in the cache of a core.
        parts = torch.split(images, IMAGES_IN_CACHE)
        return torch.cat([self.bundle.preprocess(part, in_planes=True) for part in parts])

    def feature_maps(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        """Return the feature map ``(N, K, h, w)`` of each mirrored copy of some inputs."""
        with torch.no_grad():
            return tta_features(self._extract, inputs, self.bundle.manifest.tta)

    def logits(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        """Return the mean logits ``(N, C)`` of the feature maps of mirrored copies."""
        with torch.no_grad():
            return average_logits(self._model, feature_maps)

    def predict(self, images: Sequence[Image], *, explain: bool = False) -> list[Prediction]:
        """Predict some images as one batch, with Grad-CAM of the targets if requested.

        Example:
            >>> predictor = Predictor(load_bundle(bundle_dir))
            >>> [prediction] = predictor.predict([image_path])
            >>> prediction.decision in ("refer", "no_referral")
            True

        Args:
            images: paths of image files, PIL images, or ``(H, W, 3)`` uint8 arrays in RGB.
            explain: whether to compute heatmaps.

        Raises:
            InvalidImageError: if a file is not an image that can be judged.
            OSError: if a file cannot be read.
            FloatingPointError: if a logit is not finite.
        """
        seen, heatmaps = self.see([self._stored(image) for image in images]), None
        feature_maps = seen.feature_maps
        if explain:
            with torch.no_grad():
                explained = explain_feature_maps(
                    self._model, feature_maps, class_indices=self.bundle.task.target_indices
                )
            logits, heatmaps = explained.logits, explained.heatmaps.cpu().numpy()
        else:
            logits = self.logits(feature_maps)
        far = self.bundle.manifest.features.distance(feature_maps[0])
        return self.interpret(logits.float().cpu().numpy(), far, seen.unusual, heatmaps)

    def see(self, stored: Sequence[Uint8Array]) -> "Seen":
        """Return what the network's features and the descriptors show of some stored images.

        Threads may call it side by side. `decide` does the rest.
        """
        images = np.stack(stored)
        unusual = self.bundle.manifest.usual_images.are_unusual(images)
        return Seen(self.feature_maps(self.inputs(images)), unusual)

    def decide(self, seen: "Seen") -> list[Prediction]:
        """Return the predictions for what was seen, without heatmaps and feature distances.

        Raises:
            FloatingPointError: if a logit is not finite.
        """
        logits = self.logits(seen.feature_maps).float().cpu().numpy()
        return self.interpret(logits, np.full(len(logits), np.nan), seen.unusual)

    def _stored(self, image: Image) -> Uint8Array:
        """Return an image as a prepared data set stores it; an array of that shape is not changed.

        Only files are checked for their content.
        """
        preprocess = self.bundle.preprocess
        if isinstance(image, np.ndarray):
            is_stored = image.shape == (*preprocess.stored_shape, 3)
            return image if is_stored else preprocess.stored(PIL.Image.fromarray(image))
        if isinstance(image, PIL.Image.Image):
            return preprocess.stored(image.convert("RGB"))
        decoded = decode_image(to_path(image).read_bytes())
        check_content(decoded)
        return preprocess.stored(decoded)

    def interpret(
        self,
        logits: FloatArray,
        distances: FloatArray,
        unusual: BoolArray,
        heatmaps: FloatArray | None = None,
    ) -> list[Prediction]:
        """Turn logits into predictions with calibrated probabilities and decisions.

        Args:
            logits: ``(N, C)``.
            distances: ``(N,)``, the feature distances.
            unusual: ``(N,)``, which images are not assessed.
            heatmaps: ``(N, h, w)``, or None if not requested.

        Raises:
            FloatingPointError: if a logit is not finite.
        """
        if not np.isfinite(logits).all():
            raise FloatingPointError(
                "The network must return finite logits; it did not, so the bundle or its input is"
                " broken. Run `melanoma bundle verify`."
            )
        probabilities = self.bundle.manifest.calibrator(logits)
        decided = [self._decide(*pair) for pair in zip(probabilities, unusual, strict=True)]
        return [
            Prediction(
                logits[i],
                probabilities[i],
                *decided[i],
                feature_distance=float(distances[i]),
                heatmap=None if heatmaps is None else heatmaps[i],
            )
            for i in range(len(logits))
        ]

    def _decide(self, probabilities: FloatArray, unusual: bool) -> tuple[Decision, tuple[str, ...]]:
        point, task = self.bundle.operating_point, self.bundle.task
        if point.contract.status != "met" and not self._allow_uncontracted:
            return "cannot_assess", (NO_CONTRACT, *((UNUSUAL,) if unusual else ()))
        warnings = () if point.contract.status == "met" else (UNCONTRACTED,)
        if unusual:
            return "cannot_assess", (*warnings, UNUSUAL)
        decision = decide(float(task.target_scores(probabilities[None])[0]), point.threshold)
        likeliest = task.classes[int(probabilities.argmax())]
        if decision == "no_referral" and likeliest in task.malignant:
            warnings = (*warnings, OTHER_CANCER)
        return decision, warnings
