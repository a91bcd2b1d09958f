"""The explainer deployment: guided maps.

It has its own replicas because a backward pass costs more than a prediction.
"""

import asyncio
import dataclasses

import numpy as np
from ray import serve

from melanoma.arrays import FloatArray, Uint8Array
from melanoma.bundle.predictor import GuidedExplainer
from serve.replica import load_in_replica

MAX_BATCH = 4
BATCH_WAIT_SECONDS = 0.0


@dataclasses.dataclass(frozen=True)
class GuidedJob:
    """One image for the explainer.

    Attributes:
        image: ``(H, W, 3)`` uint8 in the stored shape of the bundle.
        heatmap: the image's Grad-CAM ``(h, w)`` float32, a few cells.
        version: version of the bundle that made the Grad-CAM.
    """

    image: Uint8Array
    heatmap: FloatArray
    version: str


class Explainer:
    """Loads a bundle once and explains in batches. It keeps nothing of a request."""

    def __init__(self, bundle_dir: str, *, manifest_sha256: str | None) -> None:
        bundle, device = load_in_replica(bundle_dir, manifest_sha256)
        self._version = bundle.manifest.version
        self._explainer = GuidedExplainer(bundle, device=device)
        blank = np.zeros((*bundle.preprocess.stored_shape, 3), dtype=np.uint8)
        # The first pass is slow, so it runs here and not in the first request.
        self._explainer.explain([blank], [np.ones((1, 1), dtype=np.float32)])

    async def explain(self, job: GuidedJob) -> FloatArray | None:
        """Return the Guided Grad-CAM ``(H, W)`` of the targets at the network's input size.

        Returns None if another bundle made the Grad-CAM.
        """
        return await self._batch(job) if job.version == self._version else None

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_SECONDS)  # type: ignore[untyped-decorator]
    async def _batch(self, jobs: list[GuidedJob]) -> list[FloatArray]:
        return await asyncio.to_thread(self._explain, jobs)

    def _explain(self, jobs: list[GuidedJob]) -> list[FloatArray]:
        return list(
            self._explainer.explain([job.image for job in jobs], [job.heatmap for job in jobs])
        )
