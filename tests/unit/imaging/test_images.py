import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps, PngImagePlugin

from benchmarks.hostile_files import (
    chunk,
    lossless_codes,
    png,
    png_of_two_sizes,
    png_with,
    refined_scans,
    scan_bomb,
    segment,
)
from melanoma.errors import InvalidImageError
from melanoma.imaging.decode import announced_size, check_content, decode_image, decoding_work
from melanoma.imaging.letterbox import PADDING_RGB, letterbox, letterbox_shape
from melanoma.imaging.png_writer import to_png


def _encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _image(mode: str = "RGB", size: tuple[int, int] = (80, 60)) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(
        mode
    )


def _png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )


def _riff(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


JPEG = _encode(_image(), "JPEG")
WEBP = _encode(_image(), "WEBP", exif=b"Exif\0\0")
BAD = {
    "empty": (b"", 400, "empty_image"),
    "text": (b"<svg></svg>", 415, "unsupported_format"),
    "gif": (_encode(_image("P"), "GIF"), 415, "unsupported_format"),
    "bmp": (_encode(_image(), "BMP"), 415, "unsupported_format"),
    "riff but not webp": (b"RIFF\0\0\0\0WAVE" + b"\0" * 40, 415, "unsupported_format"),
    "half a jpeg": (JPEG[: len(JPEG) // 2], 422, "image_truncated"),
    "jpeg header": (JPEG[:20], 422, "image_truncated"),
    "damaged png": (_encode(_image())[:200] + b"\0" * 99, 422, "image_truncated"),
    "bomb": (_png_header(30000, 30000), 413, "image_too_large"),
    "just too large": (_png_header(9400, 9400), 413, "image_too_large"),
    "thread": (_png_header(9000, 1), 422, "bad_dimensions"),
    "dot": (_encode(_image(size=(8, 8))), 422, "bad_dimensions"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused_with_their_status(name: str) -> None:
    data, status, code = BAD[name]
    with pytest.raises(InvalidImageError) as caught:
        decode_image(data)
    assert (caught.value.status, caught.value.code) == (status, code)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_other_modes_give_what_their_rgb_twin_gives(mode: str) -> None:
    image = _image("L").convert(mode)
    assert np.array_equal(
        np.asarray(decode_image(_encode(image))), np.asarray(image.convert("RGBA").convert("RGB"))
    )


def test_transparency_is_composed_on_white() -> None:
    image = _image("RGBA")
    image.putalpha(0)
    assert np.asarray(decode_image(_encode(image))).min() == 255


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    decoded = np.asarray(decode_image(_encode(Image.fromarray(ramp))))[:, :, 0]
    assert np.abs(decoded - ramp / 257).max() <= 1


@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    image = _image()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = decode_image(_encode(image, "PNG", exif=exif))
    assert (stored.size == image.size) == (orientation < 5)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(_encode(image, "PNG", exif=exif))))
    assert not np.array_equal(np.asarray(stored), np.asarray(image))
    assert np.array_equal(np.asarray(stored), np.asarray(upright))
    assert not stored.getexif()


def test_an_xmp_packet_turns_nothing() -> None:
    """A browser does not obey it either, and the map must lie on the image that the page shows."""
    image, text = _image(), PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta tiff:Orientation="6"/>')
    assert np.array_equal(
        np.asarray(decode_image(_encode(image, "PNG", pnginfo=text))), np.asarray(image)
    )


def _refusal(data: bytes) -> tuple[int, str]:
    with pytest.raises(InvalidImageError) as refused:
        decode_image(data)
    return refused.value.status, refused.value.code


HIDING = {
    "nothing": b"",
    "fill byte": b"\xff",
    "fill bytes": b"\xff" * 9,
    "restart marker": b"\xff\xd3",
    "marker without a length": b"\xff\x01",
    "comment": segment(0xFE, b"words"),
}


@pytest.mark.parametrize("name", HIDING)
def test_scans_are_counted_whatever_stands_before_them(name: str) -> None:
    hidden = HIDING[name]
    assert decode_image(scan_bomb(0, side=64, hidden=hidden)).size == (64, 64)
    assert _refusal(scan_bomb(1000, side=64, hidden=hidden)) == (422, "too_many_scans")


def test_scans_behind_the_end_do_not_count() -> None:
    film = b"\xff\xda" * 5000  # as phones put one there
    assert decode_image(JPEG + film).size == _image().size


def test_the_larger_the_image_the_fewer_scans() -> None:
    """Scans cost a pass over all pixels each. Both files are without error, and one flat colour."""
    assert decode_image(refined_scans(36, side=64)).size == (64, 64)
    assert _refusal(refined_scans(36)) == (422, "too_many_scans")
    assert decoding_work(refined_scans(32)) > 800_000_000
    assert decoding_work(JPEG) < 10_000


FLOODS = {
    "empty segments": (lambda n: JPEG[:2] + segment(0xE5) * n + JPEG[2:], 1000, "too_many_parts"),
    "comments": (lambda n: JPEG[:2] + segment(0xFE, b"x") * n + JPEG[2:], 1000, "too_many_parts"),
    "restart markers": (lambda n: JPEG[:2] + b"\xff\xd0" * n + JPEG[2:], 1000, "too_many_parts"),
    "fill bytes": (lambda n: JPEG[:2] + b"\xff" * n + JPEG[2:], 300, "image_truncated"),
    "PNG chunks": (lambda n: png_with(chunk(b"aaAa") * n), 10_000, "too_many_parts"),
    "PNG texts": (lambda n: png_with(chunk(b"tEXt", b"a\0b") * n), 10_000, "too_many_parts"),
    "WebP chunks": (lambda n: _riff(WEBP[12:] + b"aaaa\0\0\0\0" * n), 10_000, "too_many_parts"),
}


@pytest.mark.parametrize("name", FLOODS)
def test_files_of_many_parts_are_refused(name: str) -> None:
    make, num, code = FLOODS[name]
    assert decode_image(make(40)).size
    assert _refusal(make(num)) == (422, code)


def test_no_profile_of_a_png_is_looked_at() -> None:
    """Each may inflate to a megabyte, and there may be thousands. This one is not even
    compressed."""
    data = png_with(chunk(b"iCCP", b"name\0\0words") * 3)
    assert decode_image(data).tobytes() == decode_image(png_with(b"")).tobytes()


def test_work_counts_what_pixels_cost_in_each_format() -> None:
    """Codes of their own for every 4 x 4 pixels cost a lossless WebP of a megapixel more than most
    JPEGs of 25 megapixels."""
    codes = lossless_codes(1024)
    assert decode_image(codes).size == (1024, 1024)
    assert decoding_work(codes) > 32 * 2**20
    for kind, options in (("WEBP", {"lossless": True}), ("WEBP", {}), ("PNG", {})):
        assert decoding_work(_encode(_smooth(), kind, **options)) > decoding_work(
            _encode(_smooth(), "JPEG")
        )


def test_stray_bytes_between_segments_hide_nothing() -> None:
    assert _refusal(JPEG[:2] + segment(0xFE) + b"\0" + JPEG[2:]) == (422, "image_truncated")


def test_coders_that_no_camera_uses_are_refused() -> None:
    frame = JPEG.index(b"\xff\xc0")
    assert _refusal(JPEG[: frame + 1] + b"\xc9" + JPEG[frame + 2 :]) == (415, "unsupported_format")


def test_announced_sizes_are_read_without_the_pixels() -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        for options in ({}, {"lossless": True}, {"exif": Image.Exif()}):
            assert announced_size(_encode(_image(), kind, **options)[:600]) == (80, 60)
    frames = _encode(_image(), "WEBP", save_all=True, append_images=[_image("L")])
    assert announced_size(frames) == (80, 60)


def _smooth(size: tuple[int, int] = (400, 300)) -> Image.Image:
    """Return what compresses as a photograph does."""
    return _image(size=(size[0] // 8, size[1] // 8)).resize(size, Image.Resampling.BICUBIC)


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _without(data: bytes, num: int) -> bytes:
    return data[: len(data) // 3] + data[len(data) // 3 + num :]


# As files are damaged on their way: in text mode, by unread sectors, by a lost packet, by a channel
# of 7 bits.
DAMAGE = {
    "cut and closed": lambda data: _half(data) + b"\xff\xd9",
    "cut": _half,
    "end missing": lambda data: data[:-2],
    "LF became CRLF": lambda data: data.replace(b"\n", b"\r\n"),
    "a packet lost": lambda data: _without(data, 1460),
    "a block of zeros": lambda data: (
        data[: len(data) // 3] + bytes(2048) + data[len(data) // 3 + 2048 :]
    ),
    "zeros to the end": lambda data: _half(data) + bytes(len(data) - len(_half(data))),
    "zeros to the end, closed": lambda data: (
        _half(data) + bytes(len(data) - len(_half(data)) - 2) + data[-2:]
    ),
    "seven bits": lambda data: data[:700] + bytes(value & 0x7F for value in data[700:]),
}
WHOLE = {
    "JPEG": _encode(_smooth(), "JPEG", quality=90),
    "progressive JPEG": _encode(_smooth(), "JPEG", quality=90, progressive=True),
    "grey JPEG": _encode(_smooth((800, 600)).convert("L"), "JPEG", quality=95),
    "CMYK JPEG": _encode(_smooth().convert("CMYK"), "JPEG", quality=90),
    "PNG": _encode(_smooth()),
    "WebP": _encode(_smooth(), "WEBP", quality=90),
    "lossless WebP": _encode(_smooth((160, 120)), "WEBP", lossless=True),
    "WebP with EXIF": _encode(_smooth(), "WEBP", quality=90, exif=b"Exif\0\0"),
    "animated WebP": _encode(
        _smooth(),
        "WEBP",
        quality=90,
        save_all=True,
        append_images=[_smooth((400, 300)).convert("L")],
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", WHOLE)
def test_damaged_files_are_refused(name: str, damage: str) -> None:
    whole = WHOLE[name]
    assert decode_image(whole).size
    data = DAMAGE[damage](whole)
    assert data != whole
    assert _refusal(data)[1] in (
        "image_truncated",
        "image_too_large",
    )  # a damaged header may announce anything


def test_zeros_in_place_of_pixels_are_damage_though_their_number_be_right() -> None:
    """Ten blocks of 63 coefficients each, all -1: without a warning of libjpeg."""
    whole = _encode(Image.new("L", (80, 64), 128), "JPEG")
    scan = whole.rindex(b"\xff\xda") + 10
    num_bits = 2 + 63 * 3  # no difference, and 63 times the shortest code with its sign
    data = whole[:scan] + bytes(80 * num_bits // 8) + b"\xff\xd9"
    assert simplejpeg.decode_jpeg(data, strict=True).shape == (64, 80, 3)
    assert _refusal(data) == (422, "image_truncated")


def test_an_even_part_may_be_coded_in_zeros() -> None:
    page = Image.new("RGB", (4000, 3000))
    page.paste(_smooth(), (1800, 1400))
    data = _encode(page, "JPEG", optimize=True)
    assert bytes(256) in data[data.rindex(b"\xff\xda") :]
    assert decode_image(data).tobytes() == _pillow(data).tobytes()


def test_what_stands_behind_the_end_is_no_damage() -> None:
    for whole in (JPEG, _encode(_image())):
        for behind in (b"\r\n", b"\0" * 4096, b"PK\3\4 and more"):
            assert np.array_equal(
                np.asarray(decode_image(whole + behind)), np.asarray(decode_image(whole))
            )


def _of_several(jpeg: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(jpeg)) as image:
        image.save(buffer, "MPO", quality=90, save_all=True, append_images=[image.resize((40, 30))])
    return buffer.getvalue()


def _pillow(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


@pytest.mark.parametrize("sampling", [0, 1, 2, "4:1:1"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_pixels_are_those_of_pillow(mode: str, sampling: object, progressive: bool) -> None:
    for size in ((400, 300), (333, 77)):
        options = {"subsampling": sampling} if mode == "RGB" else {}
        data = _encode(
            _smooth(size).convert(mode), "JPEG", quality=75, progressive=progressive, **options
        )
        assert decode_image(data).tobytes() == _pillow(data).tobytes()


def test_of_several_jpegs_in_one_the_first_counts() -> None:
    data = _of_several(JPEG)
    assert decode_image(data).tobytes() == _pillow(data).tobytes()


def test_no_real_image_is_refused_and_none_looks_different(shared: Path) -> None:
    files = sorted((shared / "data").rglob("*.jpg"))
    for path in files[::20] + sorted((shared / "data" / "upload_samples").iterdir()):
        data = path.read_bytes()
        assert decode_image(data).tobytes() == _pillow(data).tobytes(), path.name


def test_no_phantom_is_refused(phantom_source: Path) -> None:
    for path in sorted((phantom_source / "images").iterdir())[:100]:
        data = path.read_bytes()
        assert decode_image(data).tobytes() == _pillow(data).tobytes(), path.name


def _tiff(*, tag: int = 0x112, kind: int = 3, count: int = 1, value: bytes = b"\6\0\0\0") -> bytes:
    return b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHI4s", tag, kind, count, value) + bytes(4)


# Broken blocks turn nothing; the pixels are whole, and browsers show them.
EXIF = {
    "whole": (_tiff(), 6),
    "big-endian": (b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", 0x112, 3, 1, 8, 0) + bytes(4), 8),
    "long": (_tiff(kind=4), 6),
    "twice begun": (b"Exif\0\0" + _tiff(), 6),
    "empty": (b"", 1),
    "words": (b"This is not valid EXIF", 1),
    "wrong magic": (b"II\0\0" + _tiff()[4:], 1),
    "of another field": (bytes([0, 8, 0, 2, 1, 0x12, 0, 3]), 1),
    "cut": (_tiff()[:14], 1),
    "offset beyond the end": (b"II*\0\xff\xff\xff\xff", 1),
    "more entries than there are": (b"II*\0\x08\0\0\0\xff\xff" + _tiff(tag=0x10F)[10:22], 1),
    "orientation as a word": (_tiff(kind=2, value=b"6\0\0\0"), 1),
    "orientation as a list": (_tiff(count=2), 1),
    "orientation 0": (_tiff(value=bytes(4)), 1),
    "orientation 9": (_tiff(value=b"\x09\0\0\0"), 1),
    "no orientation": (_tiff(count=0), 1),
    "begun without end": (b"Exif\0\0" * 9000, 1),
}


@pytest.mark.parametrize("name", EXIF)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_that_cannot_be_read_turns_nothing(kind: str, name: str) -> None:
    block, turned = EXIF[name]
    whole = _encode(_image(), kind)
    if kind == "JPEG":
        data = whole[:2] + segment(0xE1, b"Exif\0\0" + block) + whole[2:]
    elif kind == "PNG":
        data = whole[:33] + chunk(b"eXIf", block) + whole[33:]
    else:
        data = _encode(_image(), kind, exif=b"Exif\0\0" + block)
    expected = decode_image(whole)
    turn = {6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}.get(turned)
    expected = expected if turn is None else expected.transpose(turn)
    assert np.array_equal(np.asarray(decode_image(data)), np.asarray(expected))


def _replaced(data: bytes, kind: bytes, *chunks: bytes) -> bytes:
    """Return a PNG whose chunk of a kind is replaced by others."""
    place = data.index(kind) - 4
    return (
        data[:place]
        + b"".join(chunks)
        + data[place + 12 + int.from_bytes(data[place : place + 4]) :]
    )


def _pixels_of(data: bytes) -> bytes:
    place = data.index(b"IDAT") - 4
    return data[place + 8 : place + 8 + int.from_bytes(data[place : place + 4])]


BAD_PNG = {
    "a row too few": lambda raw: zlib.compress(raw[:-241]),
    "a row too many": lambda raw: zlib.compress(raw + bytes(241)),
    "a byte too many": lambda raw: zlib.compress(raw + b"\0"),
    "bytes behind the pixels": lambda raw: zlib.compress(raw) + b"\0",
    "no sum of the pixels": lambda raw: zlib.compress(raw)[:-4],
    "a wrong sum of the pixels": lambda raw: zlib.compress(raw)[:-4] + b"\0\0\0\0",
    "ten times the pixels": lambda raw: zlib.compress(raw * 10),
}


def test_a_size_that_is_told_twice_must_be_the_same() -> None:
    """Else the limit on pixels would be that of the one, and the decoder's work that of the
    other."""
    assert _refusal(png_of_two_sizes(64, 100)) == (422, "image_truncated")
    assert _refusal(png_of_two_sizes(100, 64)) == (422, "image_truncated")
    inner = _encode(_image(size=(200, 150)), "WEBP")[12:]
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (63).to_bytes(3, "little") * 2
    assert _refusal(_riff(canvas + inner)) == (422, "image_truncated")


@pytest.mark.parametrize("name", BAD_PNG)
def test_png_pixels_must_be_as_many_as_announced(name: str) -> None:
    whole = _encode(_image())
    raw = zlib.decompress(_pixels_of(whole))
    assert decode_image(_replaced(whole, b"IDAT", chunk(b"IDAT", zlib.compress(raw)))).size == (
        80,
        60,
    )
    assert _refusal(_replaced(whole, b"IDAT", chunk(b"IDAT", BAD_PNG[name](raw)))) == (
        422,
        "image_truncated",
    )


def test_every_sum_of_a_png_counts() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "words")
    whole = _encode(_image(), pnginfo=text)
    place = whole.index(b"words")
    assert _refusal(whole[:place] + b"WORDS" + whole[place + 5 :]) == (422, "image_truncated")
    assert _refusal(whole[: whole.index(b"IEND") - 4]) == (422, "image_truncated")
    pixels = _pixels_of(whole)
    parted = chunk(b"IDAT", pixels[:50]), chunk(b"tEXt", b"a\0b"), chunk(b"IDAT", pixels[50:])
    assert _refusal(_replaced(whole, b"IDAT", *parted)) == (422, "image_truncated")
    assert decode_image(_replaced(whole, b"IDAT", parted[0], chunk(b"IDAT", pixels[50:]))).size == (
        80,
        60,
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_interlaced_pngs_are_counted_right(bits: int) -> None:
    for side in (33, 37, 64):
        passes = (
            (0, 0, 8, 8),
            (4, 0, 8, 8),
            (0, 4, 4, 8),
            (2, 0, 4, 4),
            (0, 2, 2, 4),
            (1, 0, 2, 2),
            (0, 1, 1, 2),
        )
        raw = b"".join(
            (b"\0" + b"\x5a" * ((len(range(left, side, across)) * bits + 7) // 8))
            * len(range(top, side, down))
            for left, top, across, down in passes
        )
        data = png(zlib.compress(raw), side=side, bits=bits, colour=0, interlaced=True)
        assert decode_image(data).tobytes() == _pillow_grey(data).tobytes()
        assert (
            _refusal(png(zlib.compress(raw[:-1]), side=side, bits=bits, colour=0, interlaced=True))[
                0
            ]
            == 422
        )


def _pillow_grey(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        if image.mode.startswith("I"):
            return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert(
                "RGB"
            )
        return image.convert("RGB")


def _deep(colour: int, values: np.ndarray) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(zlib.compress(rows), side=len(values), bits=16, colour=colour)


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_twelve_bits_in_sixteen_are_refused(colour: int, channels: int) -> None:
    """They would come out nearly black: nothing tells how bright white is."""
    ramp = np.linspace(0, 1, 64 * 64 * channels).reshape(64, 64, channels)
    if channels in (2, 4):
        ramp[..., -1] = 16
    assert _refusal(_deep(colour, np.minimum(ramp * 4095, 65535))) == (422, "bit_depth_unclear")
    assert decode_image(_deep(colour, np.minimum(ramp * 65535, 65535))).size == (64, 64)
    assert not np.asarray(decode_image(_deep(0, np.zeros((64, 64, 1))))).any()


def test_a_wholly_transparent_image_shows_nothing() -> None:
    image = _image("RGBA")
    image.putalpha(0)
    for kind in ("PNG", "WEBP"):
        with pytest.raises(InvalidImageError, match="show something"):
            check_content(
                decode_image(_encode(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
            )


@pytest.mark.parametrize("size", [(80, 60), (60, 80), (90, 90), (200, 50)])
def test_the_canvas_keeps_the_aspect_ratio(size: tuple[int, int]) -> None:
    white = Image.new("RGB", size, (255, 255, 255))
    canvas = letterbox(white, letterbox_shape(128))
    assert canvas.shape == (96, 128, 3)
    inside = (canvas == 255).all(axis=2)
    height, width = inside.any(axis=1).sum(), inside.any(axis=0).sum()
    assert width / height == pytest.approx(size[0] / size[1], rel=0.03)
    assert (canvas[~inside] == PADDING_RGB).all()


@pytest.mark.parametrize("shape", [(600, 800), (1025, 993), (481, 481)])
def test_an_image_of_nothing_is_told_from_a_faint_one(shape: tuple[int, int]) -> None:
    """Also if its sides are a pixel longer than equal parts are."""
    rng = np.random.default_rng(0)
    noise = rng.integers(-20, 21, (*shape, 3))
    covered = Image.fromarray((120 + noise).astype(np.uint8))
    with pytest.raises(InvalidImageError) as refused:
        check_content(covered)
    assert (refused.value.status, refused.value.code) == (422, "blank_image")
    faint = np.asarray(covered).astype(int)
    faint[200:400, 300:500] += 12
    check_content(Image.fromarray(faint.astype(np.uint8)))


@pytest.mark.parametrize("shape", [(1, 1), (37, 53), (37, 53, 3), (450, 600, 3)])
def test_a_written_png_is_read_as_it_was(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(to_png(pixels))) as read:
        read.load()
        assert read.format == "PNG"
        assert not read.info
        np.testing.assert_array_equal(np.asarray(read), pixels)
