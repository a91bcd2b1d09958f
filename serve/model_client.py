"""Asks the classifier and the explainer on behalf of the ingress. Knows nothing of HTTP.

It makes sure that all parts of an answer come from one bundle. While a new bundle is rolled out,
replicas of the old and the new bundle answer side by side. Therefore:

- a prediction comes with a description of its replica's bundle;
- an image that was prepared for the other bundle's stored shape is prepared again;
- the parts of a request are asked again until they agree.

Several images of one lesion are predicted one by one and joined here.
"""

import asyncio
import collections
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from PIL import Image, ImageOps
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from melanoma.arrays import FloatArray, Uint8Array
from melanoma.errors import OneImageOnlyError
from melanoma.explain.overlay import MAX_SIDE_PX
from melanoma.imaging.decode import SMALL_WORK
from melanoma.imaging.preprocess import Preprocess
from serve.classifier import Answer, Job
from serve.described import Described
from serve.explainer import ExplainJob
from serve.lanes import Lane, OverloadedError
from serve.metrics import request_metrics
from serve.models import Model, NotReadyError, ask_deployment
from serve.readings import LesionReading, Reading

# During a roll-out each attempt may reach either bundle. With 24 attempts the chance that all of
# them fail is one in millions.
ATTEMPTS = 24
PAUSE_SECONDS = 0.1
READY_SECONDS = 5
IMAGES_AT_ONCE = 8  # of one request, so that it does not fill the queue of all requests
# Large images are decoded one at a time, and small ones do not wait for them.
SMALL_AT_ONCE, LARGE_AT_ONCE = 3, 1
MAX_LARGE_WAITING = 16  # a longer queue would not be answered in time
# Far longer than the largest image takes. A thread that works for longer is assumed never to end.
STUCK_SECONDS = 20
T = TypeVar("T")


class Source(Protocol):
    """The source of an image.

    Both methods are called in a thread, possibly more than once. Their exceptions are passed on.
    """

    def work(self) -> int:
        """Return an estimate of the decoding work: pixels times passes, plus bytes."""

    def decode(self) -> Image.Image:
        """Return the image as upright RGB."""


class BundleChangingError(Exception):
    """Two bundles answered the parts of one request in every attempt."""


async def all_of(work: Sequence[Callable[[], Awaitable[T]]], *, at_once: int) -> list[T]:
    """Return the results of some calls, a few of which run at a time.

    If one fails, the others do not keep running in the background.
    """
    permits = asyncio.Semaphore(at_once)

    async def run(call: Callable[[], Awaitable[T]]) -> T:
        async with permits:
            return await call()

    tasks = [asyncio.create_task(run(call)) for call in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


class ModelClient:
    """Client of the classifier and the explainer; remembers the last bundle's description."""

    def __init__(self, classifier: Model, explainer: "DeploymentHandle[Any]") -> None:
        self._classifier, self._explainer = classifier, explainer
        self._described: Described | None = None
        self._waiting = 0
        self._small = Lane("decode-small", num_threads=SMALL_AT_ONCE)
        self._large = Lane("decode-large", num_threads=LARGE_AT_ONCE, max_waiting=MAX_LARGE_WAITING)

    async def describe(self) -> Described:
        """Ask a classifier for the description of its bundle.

        Raises:
            OverloadedError: if the queue is full, or too long for an answer within
                `READY_SECONDS`.
            NotReadyError: if no classifier answers although nothing is waiting. The question itself
                needs no computation.
        """
        try:
            described = await asyncio.wait_for(self._classifier.describe(), timeout=READY_SECONDS)
        except TimeoutError:
            raise (OverloadedError if self._waiting else NotReadyError) from None
        self._described = described
        return described

    async def read(self, source: Source, *, explain: bool = False) -> Reading:
        """Return the prediction for an image, with its Grad-CAM on request.

        Args:
            source: the source of the image; its exceptions are passed on.
            explain: whether the Grad-CAM is wanted.

        Raises:
            BundleChangingError: if every attempt reached another bundle.
            OverloadedError: if a queue is full.
            NotReadyError: if there is no classifier.
        """
        described = self._described or await self.describe()
        for attempt in range(ATTEMPTS):
            with request_metrics().stage("decode"):
                shown, image = await self._decoded(source, described.manifest.preprocessing)
            answer = await self._predict(Job(image, explain, known=described.key))
            # The replica has another bundle. Keep it in a local variable too, because other
            # requests may replace `self._described` meanwhile.
            if answer.described is not None:
                self._described = described = answer.described
            if answer.prediction is not None:
                return Reading(shown, image, answer.prediction, described)
            await asyncio.sleep(PAUSE_SECONDS if attempt else 0)
        raise BundleChangingError

    async def _decoded(
        self, source: Source, preprocess: Preprocess
    ) -> tuple[Image.Image, Uint8Array]:
        # A small image is decoded in the thread that found it small, because a hop costs time.
        prepared = await self._small.run(partial(_prepared_if_small, source, preprocess))
        if prepared is None:
            prepared = await self._large.run(partial(_prepared, source, preprocess))
        return prepared

    async def _predict(self, job: Job) -> Answer:
        self._waiting += 1
        try:
            with request_metrics().stage("predict"):
                return await self._classifier.predict(job)
        finally:
            self._waiting -= 1

    async def check_num_images(self, num: int) -> None:
        """Check that some number of images of one lesion can be judged, before they are decoded.

        Raises:
            NumImagesError: if there are too many.
            OneImageOnlyError: if the bundle judges single images only.
        """
        if num == 1:
            return
        try:
            (self._described or await self.describe()).decider.check_num_images(num)
        except OneImageOnlyError:  # a newer bundle may have answered other ingresses only
            (await self.describe()).decider.check_num_images(num)

    async def read_lesion(
        self, sources: Sequence[Source], *, explain: bool = False
    ) -> LesionReading:
        """Return the prediction for all images of one lesion together, by one bundle.

        It raises what `read`, `check_num_images` and `Decider.of_lesion` raise.

        Args:
            sources: 1 to 6 images; their exceptions are passed on.
            explain: whether the Grad-CAM of each image is wanted.
        """
        readings = (
            [await self.read(sources[0], explain=explain)]
            if len(sources) == 1
            else await self.read_all(sources, explain=explain)
        )
        decider = readings[0].described.decider
        decider.check_num_images(len(readings))  # this may be another bundle than the known one
        prediction = decider.of_lesion([reading.prediction for reading in readings])
        return LesionReading(tuple(readings), prediction)

    async def read_all(self, sources: Sequence[Source], *, explain: bool = False) -> list[Reading]:
        """Return predictions that all come from one bundle. It raises what `read` raises.

        An image is decoded only when its turn comes, because many decoded images need too much
        memory. While two bundles answer, the images of the minority are predicted again.
        """
        readings = await self._read_at_once(sources, explain=explain)
        for _ in range(ATTEMPTS):
            keys = [reading.described.key for reading in readings]
            (key, num), *_ = collections.Counter(keys).most_common()
            if num == len(readings):
                return readings
            await asyncio.sleep(PAUSE_SECONDS)
            others = [index for index, other in enumerate(keys) if other != key]
            again = await self._read_at_once([sources[index] for index in others], explain=explain)
            for index, reading in zip(others, again, strict=True):
                readings[index] = reading
        raise BundleChangingError

    async def _read_at_once(self, sources: Sequence[Source], *, explain: bool) -> list[Reading]:
        calls = [partial(self.read, source, explain=explain) for source in sources]
        return await all_of(calls, at_once=IMAGES_AT_ONCE)

    async def explain(self, reading: Reading, method: str) -> FloatArray:
        """Return a heatmap ``(H, W)`` of an image. It raises what `read` raises.

        Explainers may load a new bundle some seconds after the classifiers. In between, requests
        can fail with BundleChangingError.

        Args:
            reading: a reading that has its Grad-CAM.
            method: the kind of heatmap, one that has an explainer.
        """
        assert reading.prediction.heatmap is not None  # the caller asked for it
        job = ExplainJob(reading.image, method, reading.prediction.heatmap, version=reading.version)
        for attempt in range(ATTEMPTS):
            with request_metrics().stage("explain"):
                heatmap: FloatArray | None = await ask_deployment(self._explainer.explain, job)
            if heatmap is not None:
                return heatmap
            await asyncio.sleep(PAUSE_SECONDS * (attempt + 1))
        raise BundleChangingError

    async def check_ready(self) -> None:
        """Return if images can be decoded and a classifier with loaded weights answers or is busy.

        Raises:
            NotReadyError: if all threads of a decoding lane have been stuck for `STUCK_SECONDS`, or
                if no classifier answers.
        """
        if any(lane.is_stuck(STUCK_SECONDS) for lane in (self._small, self._large)):
            raise NotReadyError
        try:
            await asyncio.wait_for(self._classifier.ready(), timeout=READY_SECONDS)
        except OverloadedError:
            # Busy is not unready: without this ingress, the others would get its load as well.
            return
        except TimeoutError:
            if not self._waiting:  # otherwise the question waits behind images
                raise NotReadyError from None
        except (RayError, RayServeException):
            raise NotReadyError from None


def _prepared_if_small(
    source: Source, preprocess: Preprocess
) -> tuple[Image.Image, Uint8Array] | None:
    """Return what `_prepared` does, or None if that takes much work."""
    return _prepared(source, preprocess) if source.work() <= SMALL_WORK else None


def _prepared(source: Source, preprocess: Preprocess) -> tuple[Image.Image, Uint8Array]:
    """Return a small copy of an image to show, and the image in its stored shape."""
    image = source.decode()
    shown = (
        ImageOps.contain(image, (MAX_SIDE_PX, MAX_SIDE_PX))
        if max(image.size) > MAX_SIDE_PX
        else image
    )
    return shown, preprocess.stored(image)
