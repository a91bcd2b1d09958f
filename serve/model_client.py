"""What the ingress asks of the other deployments, so that all parts of an answer come from one bundle. Knows nothing of HTTP.

While a new bundle is taken up, replicas of the old and of the new one answer side by side. A
prediction therefore comes with what its replica says of its own bundle, an image made for the other
bundle's stored shape is made anew, and a request of several parts is asked again until they agree.
What Ray Serve raises for a full queue or a missing deployment is renamed: FastAPI handlers for
those names are Serve's own.
"""

import asyncio
import collections
import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from PIL import Image, ImageOps
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from melanoma.arrays import FloatArray, Uint8Array
from melanoma.bundle.predictor import Prediction
from melanoma.explain.overlay import MAX_SIDE_PX
from melanoma.imaging.letterbox import Preprocess
from serve.classifier import Answer, Job
from serve.described import Described
from serve.explainer import GuidedJob
from serve.lanes import Lane, OverloadedError
from serve.metrics import request_metrics

# Each may meet either bundle while one is taken up: that all fail is one chance in millions.
ATTEMPTS = 24
PAUSE_SECONDS = 0.1
READY_SECONDS = 5
IMAGES_AT_ONCE = 8  # of one request: it must not fill the queue of all
# Decoding 25 megapixels takes up to two seconds and 400 MB. Such images come one at a time, and
# small ones do not wait for them.
SMALL_WORK = 4_000_000  # pixels times passes over them, and bytes: 3 million of a progressive JPEG of 600 x 450 px
SMALL_AT_ONCE, LARGE_AT_ONCE = 3, 1
MAX_LARGE_WAITING = 16  # what comes after them would not be answered in time
STUCK_SECONDS = 20  # far above what the largest image takes; threads that work for longer never end


class Source(Protocol):
    """Where an image comes from; both functions are called in a thread, whenever they are needed, and raise as they do."""

    def work(self) -> int:
        """Return about how much work decoding will be: pixels times passes over them, and bytes."""

    def decode(self) -> Image.Image:
        """Return the image, upright RGB."""


class NotReadyError(Exception):
    """A deployment has no replica that could answer."""


class BundleChangingError(Exception):
    """The parts of one request were answered by two bundles, again and again."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one bundle says of one image.

    Attributes:
        shown: the upright image, at most 1024 px: the whole one is let go before the classifier is
            asked.
        image: ``(H, W, 3)`` uint8 as stored for that bundle.
        prediction: of it.
        described: the bundle.
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


class ModelClient:
    """The two deployments behind the ingress; remembers what the last classifier said of its bundle."""

    def __init__(
        self, classifier: "DeploymentHandle[Any]", explainer: "DeploymentHandle[Any]"
    ) -> None:
        self._classifier, self._explainer = classifier, explainer
        self._described: Described | None = None
        self._waiting = 0
        self._small = Lane("decode-small", num_threads=SMALL_AT_ONCE)
        self._large = Lane("decode-large", num_threads=LARGE_AT_ONCE, max_waiting=MAX_LARGE_WAITING)

    async def describe(self) -> Described:
        """Return what a classifier says of its bundle, now.

        Raises:
            OverloadedError: if the queue is full, or so long that no answer comes within seconds.
            NotReadyError: if none answers although nothing is waiting, for this question computes
                nothing.
        """
        try:
            described: Described = await asyncio.wait_for(
                _ask(self._classifier.describe), timeout=READY_SECONDS
            )
        except TimeoutError:
            raise (OverloadedError if self._waiting else NotReadyError) from None
        self._described = described
        return described

    async def read(self, source: Source, *, explain: bool = False) -> Reading:
        """Return the prediction for an image, with its Grad-CAM if asked.

        Args:
            source: where the image comes from; raises as it does.
            explain: whether the Grad-CAM is wanted.

        Raises:
            BundleChangingError: if every attempt met another bundle.
            OverloadedError: if a queue is full.
            NotReadyError: if no classifier is there.
        """
        described = self._described or await self.describe()
        for attempt in range(ATTEMPTS):
            with request_metrics().stage("decode"):
                shown, image = await self._decoded(source, described.manifest.preprocessing)
            answer = await self._predict(Job(image, explain, known=described.manifest.version))
            if (
                answer.described is not None
            ):  # another bundle than the one known; only this request's own, for all share the last
                self._described = described = answer.described
            if answer.prediction is not None:
                return Reading(shown, image, answer.prediction, described)
            await asyncio.sleep(PAUSE_SECONDS if attempt else 0)
        raise BundleChangingError

    async def _decoded(
        self, source: Source, preprocess: Preprocess
    ) -> tuple[Image.Image, Uint8Array]:
        lane = self._small if await self._small.run(source.work) <= SMALL_WORK else self._large
        return await lane.run(partial(_prepared, source, preprocess))

    async def _predict(self, job: Job) -> Answer:
        self._waiting += 1
        try:
            with request_metrics().stage("predict"):
                answer: Answer = await _ask(self._classifier.predict, job)
        finally:
            self._waiting -= 1
        return answer

    async def read_all(self, sources: Sequence[Source]) -> list[Reading]:
        """Return predictions that all come from one bundle; raises as `read` does.

        An image is decoded when its turn comes, because many decoded images are too large to be
        kept. While two bundles answer, those that fewer images met are asked again.
        """
        readings = await self._read_at_once(sources)
        for _ in range(ATTEMPTS):
            (version, num), *_ = collections.Counter(
                reading.version for reading in readings
            ).most_common()
            if num == len(readings):
                return readings
            await asyncio.sleep(PAUSE_SECONDS)
            others = [index for index, reading in enumerate(readings) if reading.version != version]
            again = await self._read_at_once([sources[index] for index in others])
            for index, reading in zip(others, again, strict=True):
                readings[index] = reading
        raise BundleChangingError

    async def _read_at_once(self, sources: Sequence[Source]) -> list[Reading]:
        at_once = asyncio.Semaphore(IMAGES_AT_ONCE)

        async def read(source: Source) -> Reading:
            async with at_once:
                return await self.read(source)

        tasks = [asyncio.create_task(read(source)) for source in sources]
        try:
            return await asyncio.gather(*tasks)
        finally:  # the others of a request that is refused must not go on unseen
            for task in tasks:
                task.cancel()

    async def guided(self, reading: Reading) -> FloatArray:
        """Return the guided map ``(H, W)`` of an image that was read with its Grad-CAM; raises as `read` does.

        Explainers may take up a new bundle seconds after the classifiers, so that an update can
        refuse guided maps meanwhile.
        """
        assert reading.prediction.heatmap is not None  # of the caller: it was asked for
        job = GuidedJob(reading.image, reading.prediction.heatmap, version=reading.version)
        for attempt in range(ATTEMPTS):
            with request_metrics().stage("explain"):
                heatmap: FloatArray | None = await _ask(self._explainer.explain, job)
            if heatmap is not None:
                return heatmap
            await asyncio.sleep(PAUSE_SECONDS * (attempt + 1))
        raise BundleChangingError

    async def check_ready(self) -> None:
        """Return if images can be decoded and a classifier with loaded weights answers, or is too busy to.

        Raises:
            NotReadyError: if no thread that decodes has ended its work for many seconds, or if no
                classifier answers.
        """
        if any(lane.is_stuck(STUCK_SECONDS) for lane in (self._small, self._large)):
            raise NotReadyError
        try:
            await asyncio.wait_for(_ask(self._classifier.ready), timeout=READY_SECONDS)
        except OverloadedError:
            return  # busy, which is not the same: taken out of service it would leave its share to the others
        except TimeoutError:
            if not self._waiting:  # else the question waits behind images
                raise NotReadyError from None
        except (RayError, RayServeException):
            raise NotReadyError from None


async def _ask(method: Any, *arguments: Any) -> Any:
    try:
        return await method.remote(*arguments)
    except BackPressureError:
        raise OverloadedError from None
    except DeploymentUnavailableError:
        raise NotReadyError from None


def _prepared(source: Source, preprocess: Preprocess) -> tuple[Image.Image, Uint8Array]:
    """Return a small copy of an image to show, and the image as stored; the whole one is let go."""
    image = source.decode()
    shown = (
        ImageOps.contain(image, (MAX_SIDE_PX, MAX_SIDE_PX))
        if max(image.size) > MAX_SIDE_PX
        else image
    )
    return shown, preprocess.stored(image)
