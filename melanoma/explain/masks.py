"""Reads lesion masks: images that are bright where the lesion is."""

import numpy as np
from PIL import Image

from melanoma.arrays import BoolArray
from melanoma.errors import DataError, InvalidImageError
from melanoma.explain.measures import GRID
from melanoma.imaging.decode import decode_image
from melanoma.imaging.letterbox import letterbox_box
from melanoma.io.storage import AnyPath

MASKS = "masks"
_SAME_SHAPE = 0.05
_NAMES = ("{}.png", "{}_segmentation.png", "{}_mask.png")


def mask_name(image_id: str, names: frozenset[str]) -> str:
    """Return the file name of an image's mask among some names, or "" if there is none.

    It is the id of the image, also with ``_segmentation`` or ``_mask`` behind it.
    """
    candidates = (name.format(image_id) for name in _NAMES)
    return next((name for name in candidates if name in names), "")


def read_mask(
    path: AnyPath, stored_shape: tuple[int, int], *, size: tuple[int, int] | None = None
) -> BoolArray:
    """Return the mask of a lesion on the grid of the heatmaps, ``(48, 64)``.

    Args:
        path: an image of the same frame as the photograph.
        stored_shape: (H, W) of the letterbox, px.
        size: (width, height) of the photograph, px; None if not known.

    Raises:
        DataError: if the file is no image, is empty, or has another shape than the photograph.
    """
    try:
        grey = decode_image(path.read_bytes()).convert("L")
    except InvalidImageError as error:
        raise DataError(f"The mask {path.name} must be an image; it is not ({error}).") from error
    brightest = grey.getextrema()[1]
    if not brightest:
        raise DataError(f"The mask {path.name} must mark a lesion; it is all black. Leave it out.")
    if size is not None and abs(size[0] * grey.height / (size[1] * grey.width) - 1) > _SAME_SHAPE:
        raise DataError(
            f"The mask {path.name} must have the shape of its photograph, {size[0]} x {size[1]} px;"
            f" it has {grey.width} x {grey.height}. Make it anew, or leave it out."
        )
    marked = grey.point(lambda value: 255 * (2 * value > brightest))
    left, top, right, bottom = letterbox_box(grey.size, stored_shape)
    frame = Image.new("L", (stored_shape[1], stored_shape[0]))
    frame.paste(marked.resize((right - left, bottom - top), Image.Resampling.BOX), (left, top))
    small = frame.resize((GRID[1], GRID[0]), Image.Resampling.BOX)
    return np.asarray(small) > 127
