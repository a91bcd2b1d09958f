"""Probes: synthetic images with the network's outputs, recorded in the bundle.

Another machine replays them to check that the network still computes the same.
"""

import base64
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn

from melanoma.arrays import Uint8Array
from melanoma.imaging.preprocess import Preprocess
from melanoma.imaging.tta import FeatureExtractor
from melanoma.io.typed import Strict
from melanoma.training.embedded import EmbeddingHead
from melanoma.training.networks import tta_logits

NUM_PROBES = 3
PROBE_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Probe(Strict):
    """A synthetic image and the network's output for it.

    Attributes:
        image_png: the image as PNG, in base64.
        logits: ``(C,)``.
    """

    image_png: str
    logits: tuple[float, ...]


def probe_images(stored_shape: tuple[int, int]) -> list[Uint8Array]:
    """Return synthetic images, ``(H, W, 3)`` uint8, of a stored shape ``(H, W)``.

    They are smooth, so that every decoder and resizer reproduces them.
    """
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (NUM_PROBES, 6, 8, 3), dtype=np.uint8)
    size = (stored_shape[1], stored_shape[0])
    return [
        np.asarray(Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC))
        for cells in coarse
    ]


def record_probes(model: nn.Module, preprocess: Preprocess, tta: int) -> tuple[Probe, ...]:
    """Return the probe images with the network's logits for them, for a manifest.

    A head on embeddings has none.
    """
    if isinstance(model, EmbeddingHead):  # it has no outputs for images
        return ()
    images = probe_images(preprocess.stored_shape)
    logits = _probe_logits(model, preprocess, tta, images)
    return tuple(
        Probe(_to_png(image), tuple(float(z) for z in row))
        for image, row in zip(images, logits, strict=True)
    )


def _probe_logits(
    model: nn.Module,
    preprocess: Preprocess,
    tta: int,
    images: list[Uint8Array],
    extract: FeatureExtractor | None = None,
) -> np.ndarray:
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        inputs = preprocess(torch.from_numpy(np.stack(images)).to(device))
        return tta_logits(model, inputs, tta, extract=extract).float().cpu().numpy()


def _to_png(image: Uint8Array) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _from_png(text: str) -> Uint8Array:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def replay_probes(
    probes: Sequence[Probe],
    model: nn.Module,
    preprocess: Preprocess,
    tta: int,
    *,
    extract: FeatureExtractor | None = None,
) -> list[str]:
    """Compare a network's outputs with the recorded ones.

    Args:
        probes: the recorded probes.
        model: the network; its head is used even if ``extract`` is given.
        preprocess: from stored images to the network's input.
        tta: number of mirrored copies to average.
        extract: computes the feature maps in place of the network.

    Returns:
        One sentence for each deviation; empty if the network repeats its outputs.
    """
    if isinstance(model, EmbeddingHead):
        return []
    try:
        recorded = np.array([probe.logits for probe in probes], dtype=np.float64)
        images = [_from_png(probe.image_png) for probe in probes]
        logits = _probe_logits(model, preprocess, tta, images, extract)
        gap = float(np.abs(logits - recorded).max())
    except (ValueError, OSError, RuntimeError) as error:
        return [
            "The bundle's probes must be images with their logits; they are not"
            f" ({type(error).__name__}). Take the bundle from its source again."
        ]
    if gap <= PROBE_TOLERANCE:
        return []
    return [
        f"The network must repeat its recorded outputs within {PROBE_TOLERANCE}; it differs by"
        f" {gap:.3g}. Install the library versions that made the bundle."
    ]
