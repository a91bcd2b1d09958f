"""What JPEG, PNG and WebP files have in common. Knows neither their layout nor what the pixels are for."""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Protocol

from PIL import Image

from melanoma.errors import InvalidImageError

# What Pillow raises for damaged input has no common base; this is what fuzzing its readers shows.
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
    """One encoded image. Each property reads only as much of the file as it needs, and raises InvalidImageError."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height that the header announces, px."""

    @property
    def num_passes(self) -> int:
        """How many passes over all pixels decoding is worth at most. Walks the whole file from part to part."""

    @property
    def exif(self) -> bytes:
        """The EXIF block; empty if there is none."""

    def decode(self) -> Image.Image:
        """Decode the first image, in the mode it is stored in; refuse what is damaged."""


def damaged() -> InvalidImageError:
    """Return the refusal of a file that is not whole."""
    return InvalidImageError(
        "The image must be complete and undamaged; export it again from its source.",
        status=422,
        code="image_truncated",
    )


def too_many_parts(part: str, limit: int) -> InvalidImageError:
    """Return the refusal of a file of more parts, for instance segments, than any camera or program writes."""
    return InvalidImageError(
        f"The file must have at most {limit} {part}, it has more; export the image again without"
        " its metadata.",
        status=422,
        code="too_many_parts",
    )


def decode_with_pillow(data: bytes, kind: str, size: tuple[int, int]) -> Image.Image:
    """Decode a file with Pillow, which must find the size (width, height; px) that was checked: else it would decode any number of pixels."""
    with damage_refused():
        image = Image.open(io.BytesIO(data), formats=[kind])
        if image.size != size:
            raise damaged()
        image.load()
        return image


@contextlib.contextmanager
def damage_refused() -> Iterator[None]:
    """Turn whatever Pillow raises for damaged input into one refusal."""
    try:
        yield
    except InvalidImageError:
        raise
    except _PILLOW_ERRORS as error:
        raise damaged() from error
