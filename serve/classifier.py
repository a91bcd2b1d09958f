"""The classifier deployment: batched probabilities and Grad-CAM from one forward pass, on its own replicas."""

import asyncio
import dataclasses
import time

import numpy as np
import torch
from ray import serve

from melanoma.arrays import Uint8Array
from melanoma.bundle.predictor import Prediction, Predictor
from melanoma.errors import BundleError
from serve.described import Described
from serve.metrics import BatchMetrics
from serve.replica import load_in_replica

MAX_BATCH = 8
BATCH_WAIT_SECONDS = 0.0  # what came while the last batch was computed is the next; an idle classifier keeps nobody waiting


@dataclasses.dataclass(frozen=True)
class Job:
    """One image for the classifier.

    Attributes:
        image: ``(H, W, 3)`` uint8 as stored.
        explain: whether its heatmap is wanted.
        known: version of the bundle that the asker knows already and made the image for.
    """

    image: Uint8Array
    explain: bool
    known: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one bundle says of one image.

    Attributes:
        prediction: None if the image was made for another bundle's stored shape.
        described: what `describe` returns; None if that is the bundle known already.
    """

    prediction: Prediction | None
    described: Described | None


class Classifier:
    """Loads a bundle once and predicts in batches; holds nothing of any request."""

    def __init__(
        self, bundle_dir: str, *, manifest_sha256: str | None, allow_uncontracted: bool
    ) -> None:
        bundle, device = load_in_replica(bundle_dir, manifest_sha256)
        self._predictor = Predictor(bundle, device=device, allow_uncontracted=allow_uncontracted)
        if bundle.features_onnx is not None and device == "cpu":
            torch.set_num_threads(
                1
            )  # its threads are ONNX Runtime's; what is left to torch is too small to be shared
        self._metrics = BatchMetrics()
        blank = np.zeros((*bundle.preprocess.stored_shape, 3), dtype=np.uint8)
        self._predictor.predict(
            [blank], explain=True
        )  # the first pass allocates; nobody should wait for it
        if findings := self._predictor.replay_probes():
            raise BundleError(" ".join(findings))

    async def ready(self) -> None:
        """Answer: whoever hears it knows that the weights are loaded."""

    async def predict(self, job: Job) -> Answer:
        """Predict one image, together with whatever else is waiting.

        Raises:
            FloatingPointError: if the network gives no finite scores for it.
        """
        bundle = self._predictor.bundle
        described = None if job.known == bundle.manifest.version else await self.describe()
        if job.image.shape[:2] != bundle.preprocess.stored_shape:
            return Answer(None, described)
        found = await self._batch(job)
        if isinstance(found, FloatingPointError):
            raise found
        return Answer(found, described)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_SECONDS)  # type: ignore[untyped-decorator]
    async def _batch(self, jobs: list[Job]) -> list[Prediction | FloatingPointError]:
        # A thread, so that health checks and the next batch's arrivals are answered meanwhile.
        return await asyncio.to_thread(self._predict, jobs)

    def _predict(self, jobs: list[Job]) -> list[Prediction | FloatingPointError]:
        started = time.perf_counter()
        try:
            predictions = self._predictor.predict(
                [job.image for job in jobs], explain=any(job.explain for job in jobs)
            )
        except (
            FloatingPointError
        ) as error:  # which of them it is shows one by one: the others must not fail with it
            return (
                [error]
                if len(jobs) == 1
                else [found for job in jobs for found in self._predict([job])]
            )
        self._metrics.computed(predictions, time.perf_counter() - started)
        return [
            prediction if job.explain else dataclasses.replace(prediction, heatmap=None)
            for job, prediction in zip(jobs, predictions, strict=True)
        ]

    async def describe(self) -> Described:
        """Return what the ingress needs to know of the bundle."""
        bundle = self._predictor.bundle
        return Described(dataclasses.replace(bundle.manifest, probes=()), bundle.model_card)
