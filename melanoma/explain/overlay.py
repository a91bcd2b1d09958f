"""A heatmap drawn over the image that it explains, in the frame of that image."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from melanoma.arrays import FloatArray, Uint8Array
from melanoma.explain.grad_cam import Heatmap, render_heatmap
from melanoma.imaging.letterbox import letterbox_box
from melanoma.imaging.png_writer import to_png
from melanoma.imaging.preprocess import Preprocess, resize
from melanoma.io.files import write_bytes

OPACITY = 0.55
MAX_SIDE_PX = 1024
# Every 17th colour of matplotlib's magma, whose even steps in lightness are readable without colour
# vision. The image that serves is smaller without matplotlib. A test compares.
_MAGMA = bytes.fromhex(
    "000004 0b0924 20114b 3b0f70 57157e 721f81 8c2981 a8327d"
    " c43c75 de4968 f1605d fa7f5e fe9f6d febf84 fddea0 fcfdbf"
)
COLOURS: Uint8Array = np.stack(
    [np.interp(range(256), range(0, 256, 17), list(_MAGMA[channel::3])) for channel in range(3)],
    axis=1,
).astype(np.uint8)
_OPACITIES = [round(value * OPACITY) for value in range(256)]


def heatmap_on(
    image: Image.Image, heatmap: FloatArray, preprocess: Preprocess
) -> tuple[Image.Image, Heatmap]:
    """Return an image and its heatmap in the same frame.

    Args:
        image: the upright image.
        heatmap: ``(h, w)``, over the whole letterbox.
        preprocess: the steps that made the letterbox.

    Returns:
        The image, reduced to at most 1024 px a side, and the heatmap at its size.
    """
    framed = render_heatmap(
        torch.from_numpy(np.asarray(heatmap, dtype=np.float32)), preprocess.stored_shape
    )
    shown = image.copy()
    shown.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    left, top, right, bottom = letterbox_box(image.size, preprocess.stored_shape)
    cut = torch.from_numpy(framed.values[top:bottom, left:right])[None, None]
    # torch resizes 8 bits faster than Pillow; their values differ by at most 1.
    values = resize(cut, (shown.height, shown.width))[0, 0]
    return shown, Heatmap(framed.peak, values.numpy())


def overlay(image: Image.Image, heatmap: Heatmap) -> Image.Image:
    """Return an image with a heatmap of the same size drawn over it.

    Higher values are more opaque; an empty heatmap does not change the image.
    """
    values = Image.fromarray(heatmap.values)
    opacity = values.point(_OPACITIES)
    coloured = values.copy()
    coloured.putpalette(COLOURS.tobytes())
    return Image.composite(coloured.convert("RGB"), image, opacity)


def write_overlay(
    path: Path, image: Image.Image, heatmap: FloatArray, preprocess: Preprocess
) -> Path:
    """Write the overlay of an upright RGB image and its heatmap as PNG, and return the path.

    Args:
        path: the file to write.
        image: the upright RGB image.
        heatmap: ``(h, w)``, over the whole letterbox.
        preprocess: the steps that made the letterbox.
    """
    write_bytes(path, to_png(np.asarray(overlay(*heatmap_on(image, heatmap, preprocess)))))
    return path
