"""Bundle and images -> calibrated probabilities, decisions and heatmaps; evaluation, the server and the tests share it."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import numpy as np
import PIL.Image
import torch

from melanoma.arrays import FloatArray, Uint8Array
from melanoma.bundle.backend import OnnxFeatures
from melanoma.bundle.bundle import Bundle
from melanoma.bundle.probes import replay_probes
from melanoma.evidence.operating_point import Decision, decide
from melanoma.explain.grad_cam import explain_feature_maps
from melanoma.explain.guided import GuidedNetwork, guided_grad_cam_map
from melanoma.imaging.decode import check_content, decode_image
from melanoma.imaging.tta import FeatureExtractor, tta_features
from melanoma.io.storage import AnyPath, to_path
from melanoma.training.networks import average_logits, features

Image = str | AnyPath | PIL.Image.Image | Uint8Array
"""An image file, or an image in memory."""
NO_CONTRACT = "contract_not_met"
UNCONTRACTED = "uncontracted"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the bundle says of one image.

    Attributes:
        logits: ``(C,)`` float32.
        probabilities: ``(C,)`` calibrated, float64.
        decision: refer, no_referral or cannot_assess.
        warnings: codes of what limits the answer.
        feature_distance: from the validation images, 1 being as far as their farthest 5 %
            (melanoma/bundle/drift.py).
        heatmap: ``(h, w)`` float32 Grad-CAM of the targets, unscaled, over the whole letterbox;
            None if not asked for.
    """

    logits: FloatArray
    probabilities: FloatArray
    decision: Decision
    warnings: tuple[str, ...]
    feature_distance: float
    heatmap: FloatArray | None = None


class Predictor:
    """Predicts with one bundle on one device. Holds no state between calls, so threads may share it.

    On a CPU ONNX Runtime gives the feature maps, with as many threads as torch has now, unless the
    bundle says that torch should.
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
        """Return what speaks against the bundle's recorded outputs, a sentence each; none if they are repeated here."""
        manifest = self.bundle.manifest
        return replay_probes(
            manifest.probes,
            self._model,
            manifest.preprocessing,
            manifest.tta,
            extract=self._extract,
        )

    def predict(self, images: Sequence[Image], *, explain: bool = False) -> list[Prediction]:
        """Predict some images as one batch, with Grad-CAM of the targets if asked.

        Example:
            >>> predictor = Predictor(load_bundle(bundle_dir))
            >>> [prediction] = predictor.predict([image_path])
            >>> prediction.decision in ("refer", "no_referral")
            True

        Args:
            images: paths of image files, or images in memory: PIL's, or ``(H, W, 3)`` uint8 arrays
                in RGB.
            explain: whether heatmaps are wanted.

        Raises:
            InvalidImageError: if a file is not an image that can be judged.
            OSError: if a file cannot be read.
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
        return self.interpret(logits.float().cpu().numpy(), distances, heatmaps)

    def _stored(self, image: Image) -> Uint8Array:
        """Return an image as the data set would have stored it; one that is stored already stays as it is."""
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
        self, logits: FloatArray, distances: FloatArray, heatmaps: FloatArray | None = None
    ) -> list[Prediction]:
        """Turn ``(N, C)`` logits into calibrated probabilities and decisions; distances ``(N,)`` and heatmaps go with them.

        Raises:
            FloatingPointError: if a logit is not finite.
        """
        if not np.isfinite(logits).all():
            raise FloatingPointError(
                "the network must give finite logits, it did not; the bundle or its input is"
                " broken."
            )
        probabilities = self.bundle.manifest.calibrator(logits)
        decided = [
            self._decide(float(score)) for score in self.bundle.task.target_scores(probabilities)
        ]
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

    def _decide(self, probability: float) -> tuple[Decision, tuple[str, ...]]:
        point = self.bundle.operating_point
        if point.contract.status == "met":
            return decide(probability, point.threshold), ()
        if self._allow_uncontracted:
            return decide(probability, point.threshold), (UNCONTRACTED,)
        return "cannot_assess", (NO_CONTRACT,)


class GuidedExplainer:
    """Guided Grad-CAM of the targets with one bundle, on a private copy of its network. Holds no state between calls.

    Raises:
        SettingError: if the network has no activation that could guide.
    """

    def __init__(self, bundle: Bundle, *, device: str = "cpu") -> None:
        self._preprocess, self._tta = bundle.preprocess, bundle.manifest.tta
        self._targets = bundle.task.target_indices
        self._device = torch.device(device)
        self._network = GuidedNetwork(bundle.model.to(self._device))

    def explain(self, images: Sequence[Uint8Array], heatmaps: Sequence[FloatArray]) -> FloatArray:
        """Return the map ``(N, H, W)`` of stored images, ``(H, W, 3)`` uint8 each, from their Grad-CAMs ``(h, w)``."""
        inputs = self._preprocess(torch.from_numpy(np.stack(images)).to(self._device))
        gradients = self._network.gradients(inputs, class_indices=self._targets, tta=self._tta)
        maps: FloatArray = (
            guided_grad_cam_map(gradients, torch.from_numpy(np.stack(heatmaps)).to(self._device))
            .cpu()
            .numpy()
        )
        return maps
