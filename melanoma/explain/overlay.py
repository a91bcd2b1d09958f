"""A heatmap drawn over the image that it explains, in the frame of that image."""

import numpy as np
import torch
from PIL import Image

from melanoma.arrays import FloatArray, Uint8Array
from melanoma.explain.grad_cam import Heatmap, render_heatmap
from melanoma.imaging.letterbox import letterbox_box
from melanoma.imaging.preprocess import Preprocess, resize

FLOOR, OPACITY = 1 / 3, 0.5
"""Share of the peak up to which the image stays as it is, and the opacity of the peak itself."""
MAX_SIDE_PX = 1024
# Every 17th colour of matplotlib's viridis, whose even steps in lightness are readable without
# colour vision, and whose hues are not those of skin. The image that serves is smaller without
# matplotlib. A test compares.
_VIRIDIS = bytes.fromhex(
    "440154 481a6c 472f7d 414487 39568c 31688e 2a788e 23888e"
    " 1f988b 22a884 35b779 54c568 7ad151 a5db36 d2e21b fde725"
)


def _colours() -> Uint8Array:
    """Return red, green, blue and opacity of each value from 0 to the peak, ``(256, 4)``.

    The colours start where the values become visible, so that all of them are used.
    """
    above = np.clip((np.arange(256) / 255 - FLOOR) / (1 - FLOOR), 0, 1)
    stops = np.linspace(0, 1, len(_VIRIDIS) // 3)
    channels = [np.interp(above, stops, list(_VIRIDIS[channel::3])) for channel in range(3)]
    return np.stack([*channels, 255 * OPACITY * above], axis=1).round().astype(np.uint8)


COLOURS = _colours()
"""The one rule of how a heatmap is drawn. The page has a copy (serve/page/map.json)."""


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

    Values up to a third of the peak leave the image as it is; higher ones are more opaque.
    """
    coloured = Image.fromarray(heatmap.values)
    opacity = coloured.point(COLOURS[:, 3].tolist())
    coloured.putpalette(COLOURS[:, :3].tobytes())
    return Image.composite(coloured.convert("RGB"), image, opacity)
