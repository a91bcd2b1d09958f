"""From logits to calibrated probabilities, decisions and warnings, for one image or one lesion.

Predictor and server share it. Knows nothing of networks or requests.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from melanoma.arrays import BoolArray, FloatArray
from melanoma.bundle.manifest import BundleManifest
from melanoma.errors import NumImagesError, OneImageOnlyError, RepeatedImageError
from melanoma.evidence.operating_point import Decision, OperatingPoint, decide
from melanoma.evidence.several_images import MAX_IMAGES, same_image

NO_CONTRACT = "contract_not_met"
UNCONTRACTED = "uncontracted"
OTHER_CANCER = "other_cancer_likely"
UNUSUAL = "unusual_image"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        logits: ``(C,)`` float32.
        probabilities: ``(C,)`` calibrated, float64.
        decision: refer, no_referral or cannot_assess.
        warnings: codes of what limits the prediction.
        feature_distance: distance from the validation images, of which 5 % are farther than 1
            (melanoma/bundle/drift.py).
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
class LesionPrediction:
    """The prediction for several images of one lesion.

    Attributes:
        together: from the averaged logits, decided by the contract for several images; it has no
            heatmap. Of one image, the prediction for it.
        images: the prediction for each image, whose own decisions count for nothing.
        operating_point: the threshold and the contract that decided.
    """

    together: Prediction
    images: tuple[Prediction, ...]
    operating_point: OperatingPoint


@dataclasses.dataclass(frozen=True)
class Decider:
    """Interprets the logits of one bundle.

    Attributes:
        manifest: of the bundle.
        allow_uncontracted: whether to decide although a contract is not met.
    """

    manifest: BundleManifest
    allow_uncontracted: bool = False

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
        probabilities = self.manifest.calibrator(logits)
        point = self.manifest.operating_point
        decided = [self._decide(*pair, point) for pair in zip(probabilities, unusual, strict=True)]
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

    def check_num_images(self, num: int) -> None:
        """Check that some number of images of one lesion can be judged.

        Raises:
            NumImagesError: if it is none, or more than six.
            OneImageOnlyError: if it is more than one and there is no contract for several.
        """
        if not 1 <= num <= MAX_IMAGES:
            raise NumImagesError(
                f"A lesion must have 1 to {MAX_IMAGES} images; there are {num}. Send 1 to"
                f" {MAX_IMAGES}."
            )
        if num > 1 and self.manifest.several_images is None:
            raise OneImageOnlyError(
                "This model has no threshold for several images of one lesion, because it was"
                " calibrated on lesions with one image each. Send one image."
            )

    def of_lesion(self, predictions: Sequence[Prediction]) -> LesionPrediction:
        """Return the prediction for the images of one lesion together.

        Args:
            predictions: those of its images.

        Raises:
            NumImagesError: if there are none, or more than six.
            OneImageOnlyError: if there are several and no contract for several.
            RepeatedImageError: if two of them are of the same image.
        """
        self.check_num_images(len(predictions))
        _check_different([prediction.logits for prediction in predictions])
        images, point = tuple(predictions), self.manifest.several_images
        if len(images) == 1 or point is None:
            return LesionPrediction(images[0], images, self.manifest.operating_point)
        logits = np.mean([image.logits.astype(np.float64) for image in images], axis=0)
        probabilities = self.manifest.calibrator(logits[None])[0]
        unusual = any(UNUSUAL in image.warnings for image in images)
        decision, warnings = self._decide(probabilities, unusual, point)
        distance = float(np.mean([image.feature_distance for image in images]))
        together = Prediction(logits, probabilities, decision, warnings, distance)
        return LesionPrediction(together, images, point)

    def _decide(
        self, probabilities: FloatArray, unusual: bool, point: OperatingPoint
    ) -> tuple[Decision, tuple[str, ...]]:
        task = self.manifest.task
        if point.contract.status != "met" and not self.allow_uncontracted:
            return "cannot_assess", (NO_CONTRACT, *((UNUSUAL,) if unusual else ()))
        warnings = () if point.contract.status == "met" else (UNCONTRACTED,)
        if unusual:
            return "cannot_assess", (*warnings, UNUSUAL)
        decision = decide(float(task.target_scores(probabilities[None])[0]), point.threshold)
        likeliest = task.classes[int(probabilities.argmax())]
        if decision == "no_referral" and likeliest in task.malignant:
            warnings = (*warnings, OTHER_CANCER)
        return decision, warnings


def _check_different(logits: Sequence[FloatArray]) -> None:
    """Check that no two logits come from one image."""
    for (one, first), (other, second) in itertools.combinations(enumerate(logits, 1), 2):
        if same_image(first, second):
            raise RepeatedImageError(
                f"The images of one lesion must differ; images {one} and {other} are the same. Give"
                " each once."
            )
