import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from melanoma.errors import InvalidImageError
from melanoma.images import PADDING_RGB, canvas_shape, check_content, decode_image, to_canvas


def _encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _picture(mode: str = "RGB", size: tuple[int, int] = (80, 60)) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def _png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


JPEG = _encode(_picture(), "JPEG")
BAD = {
    "empty": (b"", 400, "empty_image"),
    "text": (b"<svg></svg>", 415, "unsupported_format"),
    "gif": (_encode(_picture("P"), "GIF"), 415, "unsupported_format"),
    "bmp": (_encode(_picture(), "BMP"), 415, "unsupported_format"),
    "riff but not webp": (b"RIFF\0\0\0\0WAVE" + b"\0" * 40, 415, "unsupported_format"),
    "half a jpeg": (JPEG[: len(JPEG) // 2], 422, "image_truncated"),
    "jpeg header": (JPEG[:20], 422, "image_truncated"),
    "damaged png": (_encode(_picture())[:200] + b"\0" * 99, 422, "image_truncated"),
    "bomb": (_png_header(30000, 30000), 413, "image_too_large"),
    "just too large": (_png_header(9400, 9400), 413, "image_too_large"),
    "thread": (_png_header(9000, 1), 422, "bad_dimensions"),
    "dot": (_encode(_picture(size=(8, 8))), 422, "bad_dimensions"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_refused_with_their_status(name: str) -> None:
    data, status, code = BAD[name]
    with pytest.raises(InvalidImageError) as caught:
        decode_image(data)
    assert (caught.value.status, caught.value.code) == (status, code)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_other_modes_give_what_their_rgb_twin_gives(mode: str) -> None:
    image = _picture("L").convert(mode)
    assert np.array_equal(np.asarray(decode_image(_encode(image))), np.asarray(image.convert("RGBA").convert("RGB")))


def test_transparency_is_composed_on_white() -> None:
    image = _picture("RGBA")
    image.putalpha(0)
    assert np.asarray(decode_image(_encode(image))).min() == 255


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    decoded = np.asarray(decode_image(_encode(Image.fromarray(ramp))))[:, :, 0]
    assert np.abs(decoded - ramp / 257).max() <= 1


@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    image = _picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = decode_image(_encode(image, "PNG", exif=exif))
    assert (stored.size == image.size) == (orientation < 5)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(_encode(image, "PNG", exif=exif))))
    assert not np.array_equal(np.asarray(stored), np.asarray(image))
    assert np.array_equal(np.asarray(stored), np.asarray(upright))
    assert not stored.getexif()


def test_an_xmp_packet_turns_nothing() -> None:
    """A browser does not obey it either, and the map must lie on the picture that the page shows."""
    image, text = _picture(), PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta tiff:Orientation="6"/>')
    assert np.array_equal(np.asarray(decode_image(_encode(image, "PNG", pnginfo=text))), np.asarray(image))


def _scans(jpeg: bytes, num: int) -> bytes:
    """Return a progressive JPEG whose last scan stands there so many times more."""
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * num + b"\xff\xd9"


def test_scans_without_end_are_refused_before_any_is_decoded() -> None:
    jpeg = _encode(_picture(), "JPEG", progressive=True)
    assert decode_image(_scans(jpeg, 20)).size == _picture().size
    with pytest.raises(InvalidImageError) as refused:
        decode_image(_scans(jpeg, 5000))
    assert (refused.value.status, refused.value.code) == (422, "too_many_scans")
    film = b"\xff\xda" * 5000  # behind the end, as phones put one there
    assert decode_image(jpeg + film).size == _picture().size


@pytest.mark.parametrize("size", [(80, 60), (60, 80), (90, 90), (200, 50)])
def test_the_canvas_keeps_the_aspect_ratio(size: tuple[int, int]) -> None:
    white = Image.new("RGB", size, (255, 255, 255))
    canvas = to_canvas(white, canvas_shape(128))
    assert canvas.shape == (96, 128, 3)
    inside = (canvas == 255).all(axis=2)
    height, width = inside.any(axis=1).sum(), inside.any(axis=0).sum()
    assert width / height == pytest.approx(size[0] / size[1], rel=0.03)
    assert (canvas[~inside] == PADDING_RGB).all()


def test_a_picture_of_nothing_is_told_from_a_faint_one() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(-20, 21, (600, 800, 3))
    covered = Image.fromarray((120 + noise).astype(np.uint8))
    with pytest.raises(InvalidImageError) as refused:
        check_content(covered)
    assert (refused.value.status, refused.value.code) == (422, "blank_picture")
    faint = np.asarray(covered).astype(int)
    faint[200:400, 300:500] += 12
    check_content(Image.fromarray(faint.astype(np.uint8)))
