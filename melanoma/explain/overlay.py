"""A heatmap laid over the image it explains, in the image's own frame."""

import io
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image

from melanoma.arrays import FloatArray, Uint8Array
from melanoma.explain.grad_cam import Heatmap, render_heatmap
from melanoma.imaging.letterbox import Preprocess, letterbox_box
from melanoma.io.files import write_bytes

OPACITY = 0.55
MAX_SIDE_PX = 1024
# matplotlib's magma: even steps in lightness, readable without colour vision.
_COLOURS: Uint8Array = (colormaps["magma"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def heatmap_on(
    image: Image.Image, heatmap: FloatArray, preprocess: Preprocess
) -> tuple[Image.Image, Heatmap]:
    """Bring a ``(h, w)`` map of the whole letterbox into the frame of the image; return the image, at most 1024 px, and its map."""
    framed = render_heatmap(
        torch.from_numpy(np.asarray(heatmap, dtype=np.float32)), preprocess.stored_shape
    )
    shown = image.copy()
    shown.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    cut = Image.fromarray(framed.values).crop(letterbox_box(image.size, preprocess.stored_shape))
    return shown, Heatmap(
        framed.peak, np.asarray(cut.resize(shown.size, Image.Resampling.BILINEAR))
    )


def overlay(image: Image.Image, heatmap: Heatmap) -> Image.Image:
    """Lay a map over an image of the same size, the more opaque the higher it is; an empty map leaves the image as it is."""
    pixels = np.asarray(image, dtype=np.float32)
    opacity = (heatmap.values.astype(np.float32) / 255 * OPACITY)[..., None]
    return Image.fromarray(
        (pixels * (1 - opacity) + _COLOURS[heatmap.values] * opacity).round().astype(np.uint8)
    )


def to_png(image: Image.Image) -> bytes:
    """Encode an image as PNG without metadata; quickly, for it is sent once and kept by nobody."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_overlay(
    path: Path, image: Image.Image, heatmap: FloatArray, preprocess: Preprocess
) -> Path:
    """Write the overlay of an upright RGB image and its ``(h, w)`` map as a PNG; return its path."""
    write_bytes(path, to_png(overlay(*heatmap_on(image, heatmap, preprocess))))
    return path
