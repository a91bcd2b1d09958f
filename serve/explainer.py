"""The explainer deployment: guided maps only, on replicas of its own, for a backward pass costs more than a prediction."""

import asyncio
import dataclasses
from pathlib import Path

import torch
from ray import serve

from melanoma.bundle import load_bundle
from melanoma.evidence.metrics import FloatArray
from melanoma.explain.grad_cam import Heatmap, render_heatmap
from melanoma.images import Uint8Array
from melanoma.predictor import GuidedExplainer

MAX_BATCH = 4
BATCH_WAIT_SECONDS = 0.005


@dataclasses.dataclass(frozen=True)
class GuidedJob:
    """One picture for the explainer: ``(H, W, 3)`` uint8 as stored, and its Grad-CAM ``(h, w)`` float32, a few cells."""

    picture: Uint8Array
    heatmap: FloatArray


class Explainer:
    """Loads a bundle once and explains in batches; holds nothing of any request."""

    def __init__(self, bundle_dir: str, *, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        bundle = load_bundle(Path(bundle_dir))
        self._version = bundle.version
        self._explainer = GuidedExplainer(bundle, device="cuda" if torch.cuda.is_available() else "cpu")

    async def explain(self, job: GuidedJob) -> tuple[Heatmap, str]:
        """Return the Guided Grad-CAM of melanoma at the network's input size, and the version of the bundle that gave it."""
        return await self._batch(job), self._version

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_SECONDS)  # type: ignore[untyped-decorator]
    async def _batch(self, jobs: list[GuidedJob]) -> list[Heatmap]:
        return await asyncio.to_thread(self._explain, jobs)

    def _explain(self, jobs: list[GuidedJob]) -> list[Heatmap]:
        maps = self._explainer.explain([job.picture for job in jobs], [job.heatmap for job in jobs])
        # uint8 over its peak: a quarter of the bytes on the way back.
        return [render_heatmap(torch.from_numpy(values), (values.shape[0], values.shape[1])) for values in maps]
