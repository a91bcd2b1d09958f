"""Images together with what one bundle predicts for them. Knows nothing of deployments."""

import dataclasses

from PIL import Image

from melanoma.arrays import Uint8Array
from melanoma.bundle.deciding import LesionPrediction, Prediction
from melanoma.imaging.preprocess import Preprocess
from serve.described import Described


@dataclasses.dataclass(frozen=True)
class Reading:
    """An image and one bundle's prediction for it.

    Attributes:
        shown: the upright image, at most 1024 px on its long side. The full image is freed before
            the classifier is asked.
        image: ``(H, W, 3)`` uint8 in the bundle's stored shape.
        prediction: the prediction for the image.
        described: the description of the bundle.
    """

    shown: Image.Image
    image: Uint8Array
    prediction: Prediction
    described: Described

    @property
    def version(self) -> str:
        """The bundle's version."""
        return self.described.manifest.version

    @property
    def preprocess(self) -> Preprocess:
        """The bundle's preprocessing."""
        return self.described.manifest.preprocessing


@dataclasses.dataclass(frozen=True)
class LesionReading:
    """The images of one lesion, and one bundle's prediction for all of them together.

    Attributes:
        images: the reading of each image, in the order of the request.
        prediction: the prediction for the lesion.
    """

    images: tuple[Reading, ...]
    prediction: LesionPrediction

    @property
    def described(self) -> Described:
        """The description of the bundle."""
        return self.images[0].described
