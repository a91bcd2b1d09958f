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
from melanoma.bundle.deciding import Decider, LesionPrediction, Prediction
from melanoma.bundle.probes import replay_probes
from melanoma.explain.grad_cam import explain_feature_maps
from melanoma.imaging.decode import check_content, decode_image
from melanoma.imaging.tta import FeatureExtractor, tta_features
from melanoma.io.storage import AnyPath, to_path
from melanoma.training.networks import average_logits, features

Image = str | AnyPath | PIL.Image.Image | Uint8Array
"""An image file, or an image in memory."""
IMAGES_IN_CACHE = 8
"""Images that are resized at a time on a CPU."""


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
        self.decider = Decider(bundle.manifest, allow_uncontracted=allow_uncontracted)
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
        return self.decider.interpret(logits.float().cpu().numpy(), far, seen.unusual, heatmaps)

    def see(self, stored: Sequence[Uint8Array], embeddings: FloatArray | None = None) -> "Seen":
        """Return what the network's features and the descriptors show of some stored images.

        Threads may call it side by side. `decide` does the rest.

        Args:
            stored: N stored images, ``(H, W, 3)`` uint8 each.
            embeddings: ``(N, F)``, in place of the network's features if the bundle takes them.
        """
        images = np.stack(stored)
        unusual = self.bundle.manifest.usual_images.are_unusual(images)
        if embeddings is None:
            return Seen(self.feature_maps(self.inputs(images)), unusual)
        vectors = torch.from_numpy(embeddings).to(self._device)
        return Seen([vectors[:, :, None, None]], unusual)

    def decide(self, seen: "Seen") -> list[Prediction]:
        """Return the predictions for what was seen, without heatmaps and feature distances.

        Raises:
            FloatingPointError: if a logit is not finite.
        """
        logits = self.logits(seen.feature_maps).float().cpu().numpy()
        return self.decider.interpret(logits, np.full(len(logits), np.nan), seen.unusual)

    def predict_lesion(self, images: Sequence[Image], *, explain: bool = False) -> LesionPrediction:
        """Predict several images of one lesion: each, and all together.

        Args:
            images: 1 to 6 images, as `predict` takes them.
            explain: whether to compute heatmaps.

        Raises:
            DataError: if there are more than six, two are the same, or the bundle has no contract
                for several.
            InvalidImageError: if a file is not an image that can be judged.
            OSError: if a file cannot be read.
            FloatingPointError: if a logit is not finite.
        """
        self.decider.check_num_images(len(images))
        return self.decider.of_lesion(self.predict(images, explain=explain))

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
