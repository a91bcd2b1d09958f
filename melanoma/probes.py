"""A few made-up pictures with a network's outputs, recorded to find out elsewhere whether it still computes the same."""

import base64
import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from melanoma.images import Preprocess, Uint8Array
from melanoma.views import FeatureExtractor, predict_views

NUM_PROBES = 3
PROBE_TOLERANCE = 1e-3


def probe_pictures(canvas: tuple[int, int]) -> list[Uint8Array]:
    """Return smooth made-up pictures, ``(H, W, 3)`` uint8, that any decoder and resizer reproduces."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (NUM_PROBES, 6, 8, 3), dtype=np.uint8)
    size = (canvas[1], canvas[0])
    return [np.asarray(Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)) for cells in coarse]


def record_probes(model: nn.Module, preprocess: Preprocess, views: int) -> list[dict[str, Any]]:
    """Return the probe pictures with the logits ``(C,)`` that the network gives them, as plain values for a manifest."""
    pictures = probe_pictures(preprocess.canvas)
    logits = _probe_logits(model, preprocess, views, pictures)
    return [
        {"picture_png": _to_png(picture), "logits": [float(z) for z in row]}
        for picture, row in zip(pictures, logits, strict=True)
    ]


def _probe_logits(
    model: nn.Module,
    preprocess: Preprocess,
    views: int,
    pictures: list[Uint8Array],
    extract: FeatureExtractor | None = None,
) -> np.ndarray:
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        images = preprocess(torch.from_numpy(np.stack(pictures)).to(device))
        return predict_views(model, images, views, extract=extract).float().cpu().numpy()


def _to_png(picture: Uint8Array) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _from_png(text: str) -> Uint8Array:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def replay_probes(
    probes: list[dict[str, Any]],
    model: nn.Module,
    preprocess: Preprocess,
    views: int,
    *,
    extract: FeatureExtractor | None = None,
) -> list[str]:
    """Return what speaks against the recorded outputs, a sentence each; none if the network repeats them.

    Args:
        probes: as recorded.
        model: the network, whose head is used in any case.
        preprocess: from pictures to its input.
        views: averaged.
        extract: what gives the feature maps in place of the network.
    """
    try:
        recorded = np.array([probe["logits"] for probe in probes], dtype=np.float64)
        pictures = [_from_png(probe["picture_png"]) for probe in probes]
        logits = _probe_logits(model, preprocess, views, pictures, extract)
        gap = float(np.abs(logits - recorded).max())
    except (KeyError, TypeError, ValueError, OSError, RuntimeError) as error:
        return [f"the bundle's probes must be pictures with their logits, they are not ({type(error).__name__})."]
    if gap <= PROBE_TOLERANCE:
        return []
    return [
        f"the network must repeat its recorded outputs to {PROBE_TOLERANCE}, it differs by {gap:.3g}; another library version computes otherwise."
    ]
