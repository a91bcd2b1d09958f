"""The image that benchmarks of the service send."""

import io
from pathlib import Path

from PIL import Image

from melanoma.data.phantom.drawing import Lesion, draw
from melanoma.data.phantom.layout import CAMERAS

SIZE = (600, 450)
"""Width and height of the images of HAM10000, px."""


def image_or_phantom(path: Path | None) -> bytes:
    """Return the content of a file, or a phantom of the size of HAM10000's images as JPEG."""
    if path is not None:
        return path.read_bytes()
    pixels, _ = draw(Lesion("mel", 0.8, 0.3, 0), CAMERAS["phantom_contact"], 0)
    buffer = io.BytesIO()
    large = Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC)
    large.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
