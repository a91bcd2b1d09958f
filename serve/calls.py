"""What the ingress asks of the other deployments, so that all parts of an answer come from one bundle. Knows nothing of HTTP.

While a new bundle is taken up, replicas of the old and of the new one answer side by side. A prediction therefore comes with what its replica
says of its own bundle, a picture made for the other bundle's canvas is made anew, and a request of several parts is asked again
until they agree. What Ray Serve raises for a full queue or a missing deployment is renamed: FastAPI handlers for those names are Serve's own.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from melanoma.config import DataConfig
from melanoma.evidence.metrics import FloatArray
from melanoma.images import Preprocess, Uint8Array
from melanoma.predictor import Prediction
from serve.classifier import Answer, Job
from serve.explainer import GuidedJob
from serve.metrics import request_metrics

ATTEMPTS = 4
PAUSE_SECONDS = 0.25
READY_SECONDS = 5
PICTURES_AT_ONCE = 8  # of one request: it must not fill the queue of all


class OverloadedError(Exception):
    """A queue is full."""


class NotReadyError(Exception):
    """A deployment has no replica that could answer."""


class BundleChangingError(Exception):
    """The parts of one request were answered by two bundles, again and again."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one bundle says of one picture.

    Attributes:
        picture: ``(H, W, 3)`` uint8 as stored for that bundle.
        prediction: of it.
        described: of the bundle: manifest, model card and the sentence of its contract.
    """

    picture: Uint8Array
    prediction: Prediction
    described: dict[str, Any]

    @property
    def version(self) -> str:
        """The bundle's version."""
        return str(self.described["manifest"]["version"])

    @property
    def preprocess(self) -> Preprocess:
        """The bundle's preprocessing."""
        return _preprocess_of(self.described["manifest"])


class Calls:
    """The two deployments behind the ingress; remembers what the last classifier said of its bundle."""

    def __init__(self, classifier: "DeploymentHandle[Any]", explainer: "DeploymentHandle[Any]") -> None:
        self._classifier, self._explainer = classifier, explainer
        self._described: dict[str, Any] | None = None

    async def describe(self) -> dict[str, Any]:
        """Return what a classifier says of its bundle, now.

        Raises:
            OverloadedError: if the queue is full.
            NotReadyError: if none answers within seconds, for this question computes nothing.
        """
        try:
            described: dict[str, Any] = await asyncio.wait_for(_ask(self._classifier.describe), timeout=READY_SECONDS)
        except TimeoutError:
            raise NotReadyError from None
        self._described = described
        return described

    async def read(self, image: Image.Image, *, explain: bool = False) -> Reading:
        """Return the prediction for an upright picture, with its Grad-CAM if asked.

        Raises:
            BundleChangingError: if every attempt met another bundle.
            OverloadedError: if the queue is full.
            NotReadyError: if no classifier is there.
        """
        for _ in range(ATTEMPTS):
            described = self._described or await self.describe()
            picture = await asyncio.to_thread(_preprocess_of(described["manifest"]).stored, image)
            with request_metrics().stage("predict"):
                job = Job(picture, explain, known=described["manifest"]["version"])
                answer: Answer = await _ask(self._classifier.predict, job)
            if answer.described is not None:  # another bundle than the one known
                self._described = described = answer.described
            if answer.prediction is not None:
                request_metrics().decided(answer.prediction.decision)
                return Reading(picture, answer.prediction, described)
        raise BundleChangingError

    async def read_all(self, decoders: Sequence[Callable[[], Image.Image]]) -> list[Reading]:
        """Return predictions that all come from one bundle; raises as `read` and the decoders do.

        A decoder is called when its picture's turn comes, for many decoded pictures are too large to be kept.
        """
        for _ in range(ATTEMPTS):
            readings = await self._read_at_once(decoders)
            if len({reading.version for reading in readings}) == 1:
                return readings
            await asyncio.sleep(PAUSE_SECONDS)
        raise BundleChangingError

    async def _read_at_once(self, decoders: Sequence[Callable[[], Image.Image]]) -> list[Reading]:
        at_once = asyncio.Semaphore(PICTURES_AT_ONCE)

        async def read(decoder: Callable[[], Image.Image]) -> Reading:
            async with at_once:
                return await self.read(await asyncio.to_thread(decoder))

        tasks = [asyncio.create_task(read(decoder)) for decoder in decoders]
        try:
            return await asyncio.gather(*tasks)
        finally:  # the others of a request that is refused must not go on unseen
            for task in tasks:
                task.cancel()

    async def guided(self, reading: Reading) -> FloatArray:
        """Return the guided map ``(H, W)`` of a picture that was read with its Grad-CAM; raises as `read` does.

        Explainers may take up a new bundle seconds after the classifiers, so that an update can refuse guided maps meanwhile.
        """
        assert reading.prediction.heatmap is not None  # of the caller: it was asked for
        job = GuidedJob(reading.picture, reading.prediction.heatmap, version=reading.version)
        for attempt in range(ATTEMPTS):
            with request_metrics().stage("explain"):
                guided = await _ask(self._explainer.explain, job)
            if guided is not None:
                values: FloatArray = guided.peak / 255 * guided.values.astype(np.float32)
                return values
            await asyncio.sleep(PAUSE_SECONDS * (attempt + 1))
        raise BundleChangingError

    async def check_ready(self) -> None:
        """Return if a classifier with loaded weights answers, or is too busy to.

        Raises:
            NotReadyError: if none does.
        """
        try:
            await asyncio.wait_for(_ask(self._classifier.ready), timeout=READY_SECONDS)
        except OverloadedError:
            return  # busy, which is not the same: taken out of service it would leave its share to the others
        except (TimeoutError, RayError, RayServeException):
            raise NotReadyError from None


async def _ask(method: Any, *arguments: Any) -> Any:
    try:
        return await method.remote(*arguments)
    except BackPressureError:
        raise OverloadedError from None
    except DeploymentUnavailableError:
        raise NotReadyError from None


def _preprocess_of(manifest: dict[str, Any]) -> Preprocess:
    """Return the preprocessing a bundle's manifest names."""
    settings = dict(manifest["preprocessing"])
    height, width = settings.pop("canvas")
    return Preprocess((height, width), DataConfig.from_dict(settings))
