"""The classifier deployment: probabilities and Grad-CAM from one batched forward pass."""

import dataclasses
import time

import numpy as np
import torch

from melanoma.arrays import Uint8Array
from melanoma.bundle.deciding import Prediction
from melanoma.bundle.predictor import Predictor
from melanoma.errors import BundleError
from serve.batcher import Batcher
from serve.described import Described
from serve.metrics import BatchMetrics
from serve.replica import load_in_replica

MAX_BATCH, BATCHES_AT_ONCE = 8, 2
"""Images in a batch; one batch is prepared while a GPU computes another."""
MAX_CPU_BATCH, CPU_BATCHES_AT_ONCE = 4, 3
"""The same on a CPU, where small batches side by side keep all cores busy."""
MAX_IMAGES = 6 * MAX_BATCH
"""Images that an ingress gives to a classifier of its own at a time: two batches and four waiting,
as serve/config.yaml has it for a deployment."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One image for the classifier.

    Attributes:
        image: ``(H, W, 3)`` uint8 in the stored shape of a bundle.
        explain: whether the heatmap is wanted.
        known: key of the description that the ingress already has and prepared the image for.
    """

    image: Uint8Array
    explain: bool
    known: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """The classifier's answer to one job.

    Attributes:
        prediction: None if the image was prepared for another bundle's stored shape.
        described: the result of `describe`; None if the ingress already has it.
    """

    prediction: Prediction | None
    described: Described | None


@dataclasses.dataclass(frozen=True)
class ClassifierArgs:
    """What a classifier is made of.

    Attributes:
        bundle_dir: folder of the bundle, or its address in object storage.
        manifest_sha256: sha256 of the only manifest that may be loaded; None allows any.
        allow_uncontracted: give decisions although the contract is not met.
    """

    bundle_dir: str
    manifest_sha256: str | None
    allow_uncontracted: bool


class Classifier:
    """Loads a bundle once and predicts in batches. It keeps nothing of a request.

    It is a deployment of its own, or an object of the ingress (serve/app.py).
    """

    def __init__(self, args: ClassifierArgs) -> None:
        bundle, device = load_in_replica(args.bundle_dir, args.manifest_sha256)
        self._predictor = Predictor(
            bundle, device=device, allow_uncontracted=args.allow_uncontracted
        )
        self._described = Described(
            dataclasses.replace(bundle.manifest, probes=()),
            bundle.model_card,
            args.allow_uncontracted,
        )
        if bundle.features_onnx is not None and device == "cpu":
            # ONNX Runtime has its own threads. What is left to torch is too small to be shared.
            torch.set_num_threads(1)
        on_cpu = device == "cpu"
        self._batch: Batcher[Job, Prediction | FloatingPointError] = Batcher(
            self._predict,
            max_batch=MAX_CPU_BATCH if on_cpu else MAX_BATCH,
            at_once=CPU_BATCHES_AT_ONCE if on_cpu else BATCHES_AT_ONCE,
        )
        self._metrics = BatchMetrics()
        blank = np.zeros((*bundle.preprocess.stored_shape, 3), dtype=np.uint8)
        # The first pass allocates memory, so it runs here and not in the first request.
        self._predictor.predict([blank], explain=True)
        if findings := self._predictor.replay_probes():
            raise BundleError(" ".join(findings))

    async def ready(self) -> None:
        """Return nothing; an answer shows that the weights are loaded."""

    async def predict(self, job: Job) -> Answer:
        """Predict one image, in one batch with the other waiting jobs.

        Raises:
            FloatingPointError: if the network's scores for the image are not finite.
        """
        described = None if job.known == self._described.key else self._described
        if job.image.shape[:2] != self._predictor.bundle.preprocess.stored_shape:
            return Answer(None, described)
        found = await self._batch(job)
        if isinstance(found, FloatingPointError):
            raise found
        return Answer(found, described)

    def _predict(self, jobs: list[Job]) -> list[Prediction | FloatingPointError]:
        started = time.perf_counter()
        try:
            predictions = self._predictor.predict(
                [job.image for job in jobs], explain=any(job.explain for job in jobs)
            )
        except FloatingPointError as error:
            # Predict the images one by one, so that only the bad one fails.
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
        return self._described
