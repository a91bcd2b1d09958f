"""Reads lesion masks: images that are bright where the lesion is."""

import numpy as np
from PIL import Image

from melanoma.arrays import BoolArray
from melanoma.explain.measures import GRID
from melanoma.imaging.decode import decode_image
from melanoma.imaging.letterbox import letterbox_box
from melanoma.io.storage import AnyPath

MASKS = "masks"
_NAMES = ("{}.png", "{}_segmentation.png", "{}_mask.png")


def mask_name(image_id: str, names: frozenset[str]) -> str:
    """Return the file name of an image's mask among some names, or "" if there is none.

    It is the id of the image, also with ``_segmentation`` or ``_mask`` behind it.
    """
    candidates = (name.format(image_id) for name in _NAMES)
    return next((name for name in candidates if name in names), "")


def read_mask(path: AnyPath, stored_shape: tuple[int, int]) -> BoolArray:
    """Return the mask of a lesion on the grid of the heatmaps, ``(48, 64)``.

    Args:
        path: an image of the same frame as the photograph.
        stored_shape: (H, W) of the letterbox, px.

    Raises:
        InvalidImageError: if the file is no image.
    """
    grey = decode_image(path.read_bytes()).convert("L")
    left, top, right, bottom = letterbox_box(grey.size, stored_shape)
    frame = Image.new("L", (stored_shape[1], stored_shape[0]))
    frame.paste(grey.resize((right - left, bottom - top), Image.Resampling.BOX), (left, top))
    small = frame.resize((GRID[1], GRID[0]), Image.Resampling.BOX)
    return np.asarray(small) > 127
