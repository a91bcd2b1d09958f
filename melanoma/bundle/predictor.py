"""From a bundle and images to calibrated probabilities, decisions and heatmaps.

Evaluation, the server and the tests share it. Knows nothing of requests.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import PIL.Image
import torch

from melanoma.arrays import Uint8Array
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
        stored = np.stack([self._stored(image) for image in images])
        inputs = self.bundle.preprocess(torch.from_numpy(stored).to(self._device))
        with torch.no_grad():
            feature_maps = tta_features(self._extract, inputs, self.bundle.manifest.tta)
            if explain:
                explained = explain_feature_maps(
                    self._model, feature_maps, class_indices=self.bundle.task.target_indices
                )
                logits, heatmaps = explained.logits, explained.heatmaps.cpu().numpy()
            else:
                logits, heatmaps = average_logits(self._model, feature_maps), None
        distances = self.bundle.manifest.features.distance(feature_maps[0])
        unusual = self.bundle.manifest.usual_images.are_unusual(stored)
        return self.decider.interpret(logits.float().cpu().numpy(), distances, unusual, heatmaps)

    def predict_lesion(self, images: Sequence[Image], *, explain: bool = False) -> LesionPrediction:
        """Predict several images of one lesion: each, and all together.

        Args:
            images: 1 to 6 images, as `predict` takes them.
            explain: whether to compute heatmaps.

        Raises:
            DataError: if there are more than six, or the bundle has no contract for several.
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
