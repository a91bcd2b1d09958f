"""A heatmap laid over the picture it explains, in the picture's own frame."""

import io
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image

from melanoma.evidence.metrics import FloatArray
from melanoma.explain.grad_cam import Heatmap, render_heatmap
from melanoma.files import write_bytes
from melanoma.images import Preprocess, Uint8Array, canvas_box

OPACITY = 0.55
MAX_SIDE_PX = 1024
# matplotlib's magma: even steps in lightness, readable without colour vision.
_COLOURS: Uint8Array = (colormaps["magma"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def heatmap_on(image: Image.Image, heatmap: FloatArray, preprocess: Preprocess) -> tuple[Image.Image, Heatmap]:
    """Bring a ``(h, w)`` map of the whole canvas into the frame of the picture; return the picture, at most 1024 px, and its map."""
    canvas = render_heatmap(torch.from_numpy(np.asarray(heatmap, dtype=np.float32)), preprocess.canvas)
    shown = image.copy()
    shown.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    cut = Image.fromarray(canvas.values).crop(canvas_box(image.size, preprocess.canvas))
    return shown, Heatmap(canvas.peak, np.asarray(cut.resize(shown.size, Image.Resampling.BILINEAR)))


def overlay(image: Image.Image, heatmap: Heatmap) -> Image.Image:
    """Lay a map over a picture of the same size, the more opaque the higher it is; an empty map leaves the picture as it is."""
    pixels = np.asarray(image, dtype=np.float32)
    opacity = (heatmap.values.astype(np.float32) / 255 * OPACITY)[..., None]
    return Image.fromarray((pixels * (1 - opacity) + _COLOURS[heatmap.values] * opacity).round().astype(np.uint8))


def to_png(image: Image.Image) -> bytes:
    """Encode a picture as PNG without metadata; quickly, for it is sent once and kept by nobody."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_overlay(path: Path, image: Image.Image, heatmap: FloatArray, preprocess: Preprocess) -> Path:
    """Write the overlay of an upright RGB picture and its ``(h, w)`` map as a PNG; return its path."""
    write_bytes(path, to_png(overlay(*heatmap_on(image, heatmap, preprocess))))
    return path
