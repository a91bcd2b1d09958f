"""The explainer deployment: heatmaps that do not come with the prediction.

It has its own replicas because a backward pass costs more than a prediction.
"""

import dataclasses

import numpy as np

from melanoma.arrays import FloatArray, Uint8Array
from melanoma.explain.methods import METHODS
from serve.batcher import Batcher
from serve.replica import load_in_replica

MAX_BATCH, BATCHES_AT_ONCE = 4, 1


@dataclasses.dataclass(frozen=True)
class ExplainJob:
    """One image for the explainer.

    Attributes:
        image: ``(H, W, 3)`` uint8 in the stored shape of the bundle.
        method: the kind of heatmap, a key of `METHODS`.
        heatmap: the image's Grad-CAM ``(h, w)`` float32, a few cells.
        version: version of the bundle that made the Grad-CAM.
    """

    image: Uint8Array
    method: str
    heatmap: FloatArray
    version: str


class Explainer:
    """Loads a bundle once and explains in batches. It keeps nothing of a request."""

    def __init__(self, bundle_dir: str, *, manifest_sha256: str | None) -> None:
        bundle, device = load_in_replica(bundle_dir, manifest_sha256)
        self._version = bundle.manifest.version
        subject = bundle.subject(device)
        self._explainers = {
            name: method.make(subject) for name, method in METHODS.items() if method.make
        }
        self._batch: Batcher[ExplainJob, FloatArray] = Batcher(
            self._explain, max_batch=MAX_BATCH, at_once=BATCHES_AT_ONCE
        )
        blank = np.zeros((*bundle.preprocess.stored_shape, 3), dtype=np.uint8)
        for explainer in self._explainers.values():
            # The first pass is slow, so it runs here and not in the first request.
            explainer.explain([blank], [np.ones((1, 1), dtype=np.float32)])

    async def explain(self, job: ExplainJob) -> FloatArray | None:
        """Return the heatmap ``(H, W)`` of the targets at the network's input size.

        Returns None if another bundle made the Grad-CAM.
        """
        return await self._batch(job) if job.version == self._version else None

    def _explain(self, jobs: list[ExplainJob]) -> list[FloatArray]:
        maps: dict[int, FloatArray] = {}
        for name, explainer in self._explainers.items():
            chosen = [index for index, job in enumerate(jobs) if job.method == name]
            if chosen:
                found = explainer.explain(
                    [jobs[index].image for index in chosen],
                    [jobs[index].heatmap for index in chosen],
                )
                maps |= dict(zip(chosen, found, strict=True))
        return [maps[index] for index in range(len(jobs))]
