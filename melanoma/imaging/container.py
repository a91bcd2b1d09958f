"""What JPEG, PNG and WebP files have in common.

Knows neither their layout nor what the pixels are for.
"""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Protocol

from PIL import Image

from melanoma.errors import InvalidImageError

# Pillow's errors for damaged input have no common base class. Fuzzing its readers raised these.
_PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    TypeError,
    OverflowError,
    MemoryError,
    KeyError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class Container(Protocol):
    """One encoded image.

    Each property reads only as much of the file as it needs.

    Raises:
        InvalidImageError: from each property, if the file is damaged.
    """

    @property
    def size(self) -> tuple[int, int]:
        """Width and height that the header announces, px."""

    @property
    def num_passes(self) -> int:
        """The work of decoding, as a number of passes over all pixels; an upper bound.

        Counting may walk through all parts of the file.
        """

    @property
    def exif(self) -> bytes:
        """The EXIF block; empty if there is none."""

    def decode(self) -> Image.Image:
        """Decode the first image in the mode in which it is stored.

        Raises:
            InvalidImageError: if it is damaged.
        """


def damaged() -> InvalidImageError:
    """Return the error for a damaged or incomplete file."""
    return InvalidImageError(
        "The image must be complete and undamaged; it is not. Export it again from its source.",
        status=422,
        code="image_truncated",
    )


def too_many_parts(part: str, limit: int) -> InvalidImageError:
    """Return the error for a file with more parts than any camera or program writes.

    Args:
        part: the kind of parts in the plural, such as segments.
        limit: the largest number allowed.
    """
    return InvalidImageError(
        f"The file must have at most {limit} {part}; it has more. Export the image again without"
        " its metadata.",
        status=422,
        code="too_many_parts",
    )


def decode_with_pillow(data: bytes, kind: str, size: tuple[int, int]) -> Image.Image:
    """Decode a file with Pillow.

    Args:
        data: the file.
        kind: Pillow's name of its format.
        size: (width, height), px, as it was checked. If Pillow found another size, it could decode
            any number of pixels.

    Raises:
        InvalidImageError: if the file is damaged or Pillow finds another size.
    """
    with damage_refused():
        image = Image.open(io.BytesIO(data), formats=[kind])
        if image.size != size:
            raise damaged()
        image.load()
        return image


@contextlib.contextmanager
def damage_refused() -> Iterator[None]:
    """Turn every error that Pillow raises for damaged input into one InvalidImageError."""
    try:
        yield
    except InvalidImageError:
        raise
    except _PILLOW_ERRORS as error:
        raise damaged() from error
