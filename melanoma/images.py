"""From bytes to the picture the network sees: THE definition, for shards, evaluation and server alike.

Every picture takes two steps: `decode_image` and `to_canvas` give the stored uint8 picture, `Preprocess` turns a batch of
those into network input. Knows nothing of networks, data sets or HTTP.
"""

import dataclasses
import io
import re
import struct
import zlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from melanoma.config import DataConfig
from melanoma.errors import InvalidImageError

MAX_PIXELS = 25_000_000
MIN_SIDE_PX, MAX_SIDE_PX = 32, 10_000
# Grey values of 255 between the darkest and the brightest part; the flattest picture of HAM10000 spans 22.
MIN_CONTRAST = 4
# Padding is near the mean of natural pictures, so that it is close to zero after normalisation and no edge attracts the network.
PADDING_RGB = (124, 116, 104)
# A progressive JPEG has some ten scans. Each costs a pass over all pixels and may be 42 bytes long.
MAX_SCANS = 100
_SCAN, _END = 0xDA, 0xD9
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAGIC = {"JPEG": (b"\xff\xd8\xff",), "PNG": (b"\x89PNG\r\n\x1a\n",), "WEBP": (b"RIFF",)}

Uint8Array = NDArray[np.uint8]


def decode_image(data: bytes) -> Image.Image:
    """Decode an encoded JPEG, PNG or WebP picture to upright RGB.

    The first bytes decide the format, never a name or header. EXIF orientation is applied and all other metadata are
    dropped; transparency is composed on white; 16-bit grey is scaled to 8 bits; of an animation the first frame counts.

    Raises:
        InvalidImageError: 400 for no bytes, 413 above 25 megapixels, 415 for other formats, 422 for sides outside
            32..10000 px, for truncated or damaged pictures and for JPEGs of more than 100 scans.
    """
    if not data:
        raise InvalidImageError("The picture must not be empty; send its bytes.", status=400, code="empty_image")
    kind = next((name for name, magics in _MAGIC.items() if data.startswith(magics)), None)
    if kind is None or (kind == "WEBP" and data[8:12] != b"WEBP"):
        raise InvalidImageError(
            "The picture must be JPEG, PNG or WebP; convert it.",
            status=415,
            code="unsupported_format",
        )
    if kind == "JPEG" and _count_scans(data) > MAX_SCANS:
        raise InvalidImageError(
            f"The JPEG must have at most {MAX_SCANS} scans, it has more; export it again from its source.",
            status=422,
            code="too_many_scans",
        )
    if kind == "PNG" and len(data) >= 24:  # Pillow reads on to the pixels before it tells a PNG's size
        check_size(*struct.unpack(">II", data[16:24]))
    try:
        image = Image.open(io.BytesIO(data), formats=[kind])
        check_size(*image.size)
        image.load()
        return _to_upright_rgb(image)
    except InvalidImageError:
        raise
    except Image.DecompressionBombError:
        raise _too_large() from None
    # Pillow has no common base for what its decoders raise on damaged input; these are what fuzzing its readers shows.
    except (
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
    ) as error:
        raise InvalidImageError(
            "The picture must be complete and undamaged; export it again from its source.",
            status=422,
            code="image_truncated",
        ) from error


def is_image(data: bytes) -> bool:
    """Return whether some bytes begin as an image of a format that is read."""
    return any(data.startswith(magics) for magics in _MAGIC.values())


def _count_scans(data: bytes) -> int:
    """Return how many scans a JPEG announces, from marker to marker: a preview or a film inside of it does not count."""
    place, num = 2, 0
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != _END:
        is_scan = data[place + 1] == _SCAN
        num += is_scan
        place += 2 + max(2, int.from_bytes(data[place + 2 : place + 4]))
        if is_scan:  # its pixels end at the next marker
            found = _NEXT_MARKER.search(data, place)
            place = found.start() if found else len(data)
    return num


def _too_large() -> InvalidImageError:
    return InvalidImageError(
        f"The picture must have at most {MAX_PIXELS // 1_000_000} megapixels; send a smaller copy.",
        status=413,
        code="image_too_large",
    )


def check_size(width: int, height: int) -> None:
    """Check the size of a picture, px, before anything is made of its bytes.

    Raises:
        InvalidImageError: if it is too small, too long or has too many pixels.
    """
    if min(width, height) < MIN_SIDE_PX or max(width, height) > MAX_SIDE_PX:
        if width * height > MAX_PIXELS:
            raise _too_large()
        raise InvalidImageError(
            f"The sides of the picture must be {MIN_SIDE_PX} to {MAX_SIDE_PX} px, got {width} x {height}; send it whole and unscaled.",
            status=422,
            code="bad_dimensions",
        )
    if width * height > MAX_PIXELS:
        raise _too_large()


def check_content(image: Image.Image) -> None:
    """Check that a picture to be judged shows anything at all: a covered lens or an empty page gets no answer about a lesion.

    Raises:
        InvalidImageError: if its parts hardly differ in brightness.
    """
    parts = np.asarray(image.resize((32, 32), Image.Resampling.BOX).convert("L"))
    if np.ptp(parts) < MIN_CONTRAST:
        raise InvalidImageError(
            f"The picture must show something, its parts differ by less than {MIN_CONTRAST} of 255 in brightness; take it again.",
            status=422,
            code="blank_picture",
        )


def _to_upright_rgb(image: Image.Image) -> Image.Image:
    # Of EXIF alone, as a camera and a browser understand it: Pillow's own would also obey an XMP packet.
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    if (turn := _UPRIGHT.get(exif.get(ExifTags.Base.Orientation, 1))) is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more: Pillow's own convert clips to white
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    rgb = image.convert("RGB")
    rgb.info = {}  # EXIF, comments and profiles would travel along
    return rgb


def _to_8_bits(values: NDArray[Any]) -> Uint8Array:
    """Scale ``(H, W)`` grey values of 16 bits or more to 8, some rows at a time: as floats the whole takes eight times its size."""
    top = max(65535.0, float(values.max()))
    scaled = np.empty(values.shape, dtype=np.uint8)
    for start in range(0, len(values), 256):
        scaled[start : start + 256] = (values[start : start + 256] / top * 255).round()
    return scaled


def canvas_shape(size: int) -> tuple[int, int]:
    """Return (height, width) in px of the stored picture whose long side is ``size``: 4:3, dermoscopy's shape."""
    return round(size * 3 / 4), size


def to_canvas(image: Image.Image, shape: tuple[int, int]) -> Uint8Array:
    """Fit a picture into a canvas, its aspect ratio kept, centred on neutral padding.

    Args:
        image: upright RGB.
        shape: (H, W) of the canvas, px.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    height, width = shape
    scale = min(width / image.width, height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = Image.new("RGB", (width, height), PADDING_RGB)
    canvas.paste(image.resize(size, Image.Resampling.BILINEAR), canvas_box(image.size, shape)[:2])
    return np.asarray(canvas)


def canvas_box(image_size: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return where (left, top, right, bottom; px) a picture of (width, height) lies on a canvas of (H, W)."""
    height, width = shape
    scale = min(width / image_size[0], height / image_size[1])
    fitted = max(1, round(image_size[0] * scale)), max(1, round(image_size[1] * scale))
    left, top = (width - fitted[0]) // 2, (height - fitted[1]) // 2
    return left, top, left + fitted[0], top + fitted[1]


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Turns stored pictures into network input.

    Attributes:
        canvas: (H, W) of the stored picture, px.
        data: input size, mean and deviation.
    """

    canvas: tuple[int, int]
    data: DataConfig

    def stored(self, image: Image.Image) -> Uint8Array:
        """Return the ``(H, W, 3)`` uint8 picture that `__call__` takes, as prepare would have stored it."""
        return to_canvas(image, self.canvas)

    def __call__(self, pictures: Tensor) -> Tensor:
        """Resize and normalise ``(N, H, W, 3)`` uint8 pictures to ``(N, 3, h, w)`` float32 network input."""
        if tuple(pictures.shape[1:]) != (*self.canvas, 3):
            raise ValueError(
                f"pictures must be (N, {self.canvas[0]}, {self.canvas[1]}, 3), got {tuple(pictures.shape)}."
            )
        return self.normalise(resize(to_float(pictures), (self.data.input_height, self.data.input_width)))

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise ``(N, 3, H, W)`` images in [0, 1]."""
        mean = torch.tensor(self.data.mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(self.data.std, device=images.device).view(1, 3, 1, 1)
        return (images - mean) / std


def to_float(pictures: Tensor) -> Tensor:
    """Turn ``(N, H, W, 3)`` uint8 into ``(N, 3, H, W)`` float32 in [0, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 255


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``(N, 3, H, W)`` images to (h, w), antialiased."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
