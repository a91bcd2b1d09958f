"""Decodes a file to an upright RGB image, with every limit on hostile and damaged input.

Prepare, evaluation and server decode here and nowhere else. Knows nothing of networks, data sets or
HTTP.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from melanoma.arrays import Uint8Array
from melanoma.errors import InvalidImageError
from melanoma.imaging import dicom, png
from melanoma.imaging.container import Container
from melanoma.imaging.dicom import Dicom
from melanoma.imaging.exif import orientation
from melanoma.imaging.jpeg import MAX_SCANS, Jpeg
from melanoma.imaging.png import Png
from melanoma.imaging.webp import Webp

MAX_PIXELS = 25_000_000
MIN_SIDE_PX, MAX_SIDE_PX = 32, 10_000
# Least difference between the darkest and the brightest part, in grey values of 255. The flattest
# image of HAM10000 spans 22.
MIN_CONTRAST = 4
# A scan of a JPEG of MAX_PIXELS takes about 13 ms, so 32 scans take no longer than its pixels.
MAX_SCANNED_PIXELS = 32 * MAX_PIXELS
SMALL_WORK = 4_000_000
"""Most work, in the unit of `decoding_work`, of an image that may be decoded beside others.

A progressive JPEG of 600 x 450 px has 3 million. 25 megapixels take up to two seconds and 400 MB.
"""
_BAND_ROWS = 256
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes) -> Image.Image:
    """Decode an encoded JPEG, PNG, WebP or DICOM image to upright RGB.

    The first bytes alone decide the format, not a file name or HTTP header. EXIF orientation is
    applied as cameras and browsers do; an EXIF block that cannot be read is ignored. All other
    metadata are dropped. Transparent images are put on white. 16-bit grey is scaled to 8 bits. Of
    an animation the first frame is taken. If a decoder only warns, the image is refused.

    Raises:
        InvalidImageError: with status 400 for no bytes, 413 above 25 megapixels, 415 for other
            formats and other kinds of DICOM, and 422 for sides outside 32 to 10000 px, for
            truncated or damaged images, for too many scans, segments, chunks or data elements, for
            12 bits stored in 16, and for a DICOM that has several frames or does not describe its
            pixels.
    """
    container = _open(data)
    _check_passes(container)
    rgb = _to_rgb(container.decode())
    turn = _UPRIGHT.get(orientation(container.exif))
    return rgb if turn is None else rgb.transpose(turn)


def announced_size(data: bytes) -> tuple[int, int]:
    """Return width and height, px, as the header of an encoded image announces them.

    They are within the limits of `decode_image`.

    Raises:
        InvalidImageError: as `decode_image` does for its header.
    """
    return _open(data).size


def decoding_work(data: bytes) -> int:
    """Return an estimate of the work of decoding an image, without decoding it.

    It is the number of pixels times the passes over them, plus the number of bytes.

    Raises:
        InvalidImageError: as `decode_image` does for everything that shows without decoding.
    """
    container = _open(data)
    _check_passes(container)
    width, height = container.size
    return width * height * container.num_passes + len(data)


def format_of(data: bytes) -> type[Jpeg | Png | Webp | Dicom] | None:
    """Return the class that reads an encoded image, or None if its format is not known.

    The first bytes decide.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return Jpeg
    if data.startswith(png.MAGIC):
        return Png
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return Webp
    # Before its mark a DICOM file may hold anything.
    return Dicom if data.startswith(dicom.MAGIC, dicom.MAGIC_AT) else None


def _open(data: bytes) -> Container:
    if not data:
        raise InvalidImageError(
            "The image must not be empty; it has no bytes. Send the whole file.",
            status=400,
            code="empty_image",
        )
    kind = format_of(data)
    if kind is None:
        raise InvalidImageError(
            "The image must be JPEG, PNG, WebP or DICOM; it is none of them. Convert it.",
            status=415,
            code="unsupported_format",
        )
    container = kind(data)
    check_size(*container.size)
    return container


def _check_passes(container: Container) -> None:
    width, height = container.size
    most = min(MAX_SCANS, MAX_SCANNED_PIXELS // (width * height))
    if container.num_passes > most:
        raise InvalidImageError(
            f"An image of this size must have at most {most} scans; it has more. Export it again"
            " from its source.",
            status=422,
            code="too_many_scans",
        )


def _too_large() -> InvalidImageError:
    return InvalidImageError(
        f"The image must have at most {MAX_PIXELS // 1_000_000} megapixels; it has more. Send a"
        " smaller copy.",
        status=413,
        code="image_too_large",
    )


def check_size(width: int, height: int) -> None:
    """Check the size of an image, px, before its bytes are decoded.

    Raises:
        InvalidImageError: if it is too small, too long or has too many pixels.
    """
    if width * height > MAX_PIXELS:
        raise _too_large()
    if min(width, height) < MIN_SIDE_PX or max(width, height) > MAX_SIDE_PX:
        raise InvalidImageError(
            f"The sides of the image must be {MIN_SIDE_PX} to {MAX_SIDE_PX} px; they are {width} x"
            f" {height}. Send it whole and unscaled.",
            status=422,
            code="bad_dimensions",
        )


def check_content(image: Image.Image) -> None:
    """Check that an image shows something.

    A covered lens or an empty page must not get an answer about a lesion.

    Raises:
        InvalidImageError: if its parts hardly differ in brightness.
    """
    parts = np.asarray(image.resize((32, 32), Image.Resampling.BOX, reducing_gap=1.0).convert("L"))
    if np.ptp(parts) < MIN_CONTRAST:
        raise InvalidImageError(
            f"The image must show something; its parts differ by less than {MIN_CONTRAST} of 255 in"
            " brightness. Take it again.",
            status=422,
            code="blank_image",
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as RGB without metadata."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own convert would clip to white.
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.has_transparency_data:
        return _on_white(image)
    if image.mode == "RGB" and type(image) is Image.Image:
        return image
    # A file that is RGB already is converted too, so that no EXIF, comment or profile is kept.
    rgb = image.convert("RGB")
    rgb.info = {}
    return rgb


def _on_white(image: Image.Image) -> Image.Image:
    """Put a transparent image on white.

    A few rows at a time, because the whole at once would take four copies of it.
    """
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, _BAND_ROWS):
        box = (0, top, image.width, min(top + _BAND_ROWS, image.height))
        band = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", band.size, (255, 255, 255, 255))
        rgb.paste(Image.alpha_composite(white, band).convert("RGB"), box)
    return rgb


def _to_8_bits(values: NDArray[Any]) -> Uint8Array:
    """Scale ``(H, W)`` grey values of 16 bits to 8 bits.

    A few rows at a time, because the whole would take eight times its size as floats.
    """
    scaled = np.empty(values.shape, dtype=np.uint8)
    for top in range(0, len(values), _BAND_ROWS):
        scaled[top : top + _BAND_ROWS] = (values[top : top + _BAND_ROWS] / 65535 * 255).round()
    return scaled
