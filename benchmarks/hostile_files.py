"""Files that try to cost a decoder much time or memory, and the largest files that are accepted.

`HOSTILE` and `LARGEST` map a description to a function that builds the file in memory.
"""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

BODY_BYTES = 20 * 2**20
SIDE_PX = 5000  # 25 megapixels


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return an image encoded by Pillow, with the options of that format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _tiles(side: int = SIDE_PX, mode: str = "RGB") -> Image.Image:
    """Return an image of 50 x 50 tiles of random colours, which compresses well."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (50, 50, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((side, side), Image.Resampling.NEAREST).convert(mode)


def _small(mode: str = "RGB") -> Image.Image:
    return _tiles(64, mode)


def _flood(whole: bytes, part: bytes, place: int) -> bytes:
    """Insert copies of a part at a place in a file until the request body is full."""
    return whole[:place] + part * ((BODY_BYTES - len(whole) - 64) // len(part)) + whole[place:]


# JPEG


def segment(code: int, body: bytes = b"") -> bytes:
    """Return a JPEG segment: marker, length and body."""
    return bytes([0xFF, code]) + struct.pack(">H", len(body) + 2) + body


def scan_bomb(num: int, *, side: int = SIDE_PX, hidden: bytes = b"") -> bytes:
    """Return a progressive JPEG with ``num`` empty scans.

    Args:
        num: number of empty scans.
        side: width and height, px.
        hidden: bytes to insert between the first two markers.
    """
    jpeg = encoded(_tiles(side), "JPEG", progressive=True, quality=30)
    start = jpeg.rindex(b"\xff\xda")
    head = jpeg[start : start + 2 + int.from_bytes(jpeg[start + 2 : start + 4])]
    return jpeg[:2] + hidden + jpeg[2:-2] + head * num + b"\xff\xd9"


def _coded(bits: str) -> bytes:
    """Return bits as entropy-coded bytes of a JPEG.

    The last byte is padded with ones, and a zero byte follows every 0xff.
    """
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")


def _end_of_bands(num_blocks: int) -> bytes:
    """Return the code for ``num_blocks`` blocks without coefficients, in runs of 2**14 or more."""
    bits = ""
    while num_blocks > 0:
        run = min(max(num_blocks, 2**14), 2**15 - 1)
        bits += f"0{run - 2**14:014b}"
        num_blocks -= run
    return _coded(bits)


def _scan(components: range, first: int, last: int, bit: int, *, refined: bool) -> bytes:
    names = b"".join(bytes([component + 1, 0]) for component in components)
    bits = (bit + 1) * 16 + bit if refined else bit
    return segment(0xDA, bytes([len(components)]) + names + bytes([first, last, bits]))


def refined_scans(num: int, *, side: int = SIDE_PX, num_components: int = 3) -> bytes:
    """Return a progressive JPEG of ``num`` scans that each refine one component by one bit.

    A decoder reports no error for up to 40 such scans.

    Args:
        num: number of scans.
        side: width and height, px.
        num_components: number of colour components.
    """
    num_blocks = (-(-side // 8)) ** 2
    frame = struct.pack(">BHHB", 8, side, side, num_components)
    frame += b"".join(bytes([component + 1, 0x11, 0]) for component in range(num_components))
    one_code = bytes([1] + [0] * 15)
    jpeg = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC2, frame)
    jpeg += segment(0xC4, b"\0" + one_code + b"\0") + segment(0xC4, b"\x10" + one_code + b"\xe0")
    jpeg += _scan(range(num_components), 0, 0, 0, refined=False) + _coded(
        "0" * num_blocks * num_components
    )
    empty = _end_of_bands(num_blocks)
    for index in range(num - 1):
        component, bit = index % num_components, max(0, 12 - index // num_components)
        jpeg += (
            _scan(range(component, component + 1), 1, 63, bit, refined=index >= num_components)
            + empty
        )
    return jpeg + b"\xff\xd9"


def _dense_jpeg() -> bytes:
    """Return a progressive JPEG that is about as large as a request body may be."""
    values = np.random.default_rng(0).integers(0, 256, (1800, 1800, 3), dtype=np.uint8)
    noise = Image.fromarray(values).resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
    for quality in range(90, 20, -3):
        jpeg = encoded(noise, "JPEG", progressive=True, quality=quality, subsampling=0)
        if len(jpeg) <= BODY_BYTES:
            return jpeg
    raise AssertionError("No quality is low enough for the body size.")


def _directory(num_entries: int, size: int) -> bytes:
    """Return an EXIF block of ``size`` bytes whose entries all claim ``size`` bytes of data."""
    entries = b"".join(
        struct.pack(">HHII", 1000 + index, 1, size, 0) for index in range(num_entries)
    )
    block = b"MM\0*" + struct.pack(">IH", 8, num_entries) + entries + bytes(4)
    return block + bytes(max(0, size - len(block)))


def _exif_jpeg() -> bytes:
    block = _directory(500, 2**20)
    parts = [block[start : start + 65_000] for start in range(0, len(block), 65_000)]
    jpeg = encoded(_small(), "JPEG")
    return jpeg[:2] + b"".join(segment(0xE1, b"Exif\0\0" + part) for part in parts) + jpeg[2:]


def _jpeg_flood(part: bytes) -> bytes:
    return _flood(encoded(_small(), "JPEG"), part, 2)


# PNG


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """Return a PNG chunk: length, kind, data and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    pixels: bytes,
    *,
    side: int = SIDE_PX,
    bits: int = 8,
    colour: int = 2,
    interlaced: bool = False,
    extra: bytes = b"",
) -> bytes:
    """Return a square PNG.

    Args:
        pixels: the compressed rows.
        side: width and height, px.
        bits: bits of each channel.
        colour: colour type: 0 grey, 2 RGB, 6 RGBA.
        interlaced: whether the rows are those of the seven Adam7 passes.
        extra: chunks between the header and the pixels.
    """
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", pixels) + chunk(b"IEND")


def _rows(row_bytes: int, *, num: int = SIDE_PX) -> bytes:
    """Return compressed rows in four bands, alternately dark and bright, with the Paeth filter."""
    squeeze = zlib.compressobj(6)
    row, other = b"\4" + bytes(row_bytes), b"\4" + b"\x55" * row_bytes
    return (
        b"".join(squeeze.compress(other if y // (num // 4) % 2 else row) for y in range(num))
        + squeeze.flush()
    )


def _interlaced_rows(pixel_bytes: int) -> bytes:
    """Return the compressed rows of the seven passes of an interlaced PNG (Adam7)."""
    squeeze, parts = zlib.compressobj(6), []
    for left, top, step_x, step_y in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        columns, rows = -((left - SIDE_PX) // step_x), -((top - SIDE_PX) // step_y)
        for y in range(rows):
            parts.append(
                squeeze.compress(
                    b"\4" + bytes([y * 4 // rows % 2 * 0x55]) * (columns * pixel_bytes)
                )
            )
    return b"".join(parts) + squeeze.flush()


def _empty_tables() -> bytes:
    """Return a zlib stream of empty deflate blocks, each with its code tables, then the pixels."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY)
    row = b"\0" + bytes(range(192))
    raw = b"".join(row[: 1 + 192] for _ in range(64))
    whole = squeeze.compress(raw) + squeeze.flush()
    block = _dynamic_block()
    num = (BODY_BYTES - 2**16) // len(block)
    return b"\x78\x9c" + block * num + whole + struct.pack(">I", zlib.adler32(raw))


def _dynamic_block() -> bytes:
    """Return an empty deflate block with code lengths up to 15, which is costly to decode.

    An empty stored block follows it, so that the bytes can be repeated.
    """
    bits: list[int] = []

    def put(value: int, num: int) -> None:
        bits.extend(value >> index & 1 for index in range(num))

    def put_code(code: int, num: int) -> None:
        bits.extend(code >> (num - 1 - index) & 1 for index in range(num))

    # The header: not the last block, dynamic codes, 257 symbols, 30 distances, 19 code lengths.
    for value, num in ((0, 1), (2, 2), (257 - 257, 5), (30 - 1, 5), (19 - 4, 4)):
        put(value, num)
    order = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
    for symbol in order:  # the symbols 0 to 15 get codes of four bits
        put(4 if symbol < 16 else 0, 3)
    # A complete code of lengths 1, 2, ..., 14, 15, 15. Symbol 256, the end of the block, has one of
    # the two longest codes.
    lengths = [*range(1, 15), 15] + [0] * 241 + [15]
    distances = [*range(1, 15), 15, 15] + [0] * 14
    for length in lengths + distances:
        put_code(length, 4)
    put_code(2**15 - 1, 15)
    put(0, 3)  # the header of a stored block, whose length of 0 bytes is appended below
    bits.extend([0] * (-len(bits) % 8))
    whole = bytes(
        sum(bit << index for index, bit in enumerate(bits[at : at + 8]))
        for at in range(0, len(bits), 8)
    )
    return whole + b"\0\0\xff\xff"


def _png_flood(part: bytes) -> bytes:
    return _flood(encoded(_small(), "PNG"), part, 33)


def _profile() -> bytes:
    return chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**6), 9))


def _png_of_endless_pixels() -> bytes:
    squeeze = zlib.compressobj(9)
    # After a full flush a block no longer refers to earlier ones, so its bytes can be repeated.
    first, block = (
        squeeze.compress(bytes(2**24)) + squeeze.flush(zlib.Z_FULL_FLUSH) for _ in range(2)
    )
    return png(first + block * 599 + squeeze.flush(), side=64)


# WebP


def _webp(width: int, height: int, *, num_frames: int) -> bytes:
    pixels = encoded(Image.new("RGB", (64, 64)), "WEBP", lossless=True)[12:]
    head = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + _three(width - 1) + _three(height - 1)
    frame = bytes(6) + _three(63) * 2 + _three(100) + b"\0" + pixels
    frames = (b"ANMF" + struct.pack("<I", len(frame)) + frame) * num_frames
    body = b"WEBP" + head + b"ANIM" + struct.pack("<IIH", 6, 0, 0) + frames
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _three(value: int) -> bytes:
    """Return an integer as three little-endian bytes."""
    return struct.pack("<I", value)[:3]


class _Bits:
    """Collects bits into bytes, lowest bit first."""

    def __init__(self) -> None:
        self._value, self._num, self._done = 0, 0, bytearray()

    def put(self, *fields: tuple[int, int]) -> None:
        """Append fields, each a value and its number of bits."""
        for value, num in fields:
            self._value |= value << self._num
            self._num += num
        whole = self._num // 8
        self._done += (self._value & (1 << 8 * whole) - 1).to_bytes(whole, "little")
        self._value >>= 8 * whole
        self._num -= 8 * whole

    def all(self) -> bytes:
        return bytes(self._done) + bytes([self._value])


def lossless_codes(side: int) -> bytes:
    """Return a lossless WebP of one colour in which every 4 x 4 pixels have their own five codes.

    There are at most 65,536 groups of codes. Source: RFC 9649, section 3.7. The entropy image holds
    one group number for each tile, in its red and green channels. The groups follow it.
    """
    bits, one_symbol = _Bits(), ((1, 1), (0, 3))
    # A code in which each of 256 symbols has eight bits.
    eight_bits = (
        (0, 1),
        (8, 4),
        *[(0, 3)] * 11,
        (1, 3),
        (1, 1),
        (3, 3),
        (254, 8),
    )
    bits.put(
        (0x2F, 8), (side - 1, 14), (side - 1, 14), (0, 4), (0, 1), (0, 1), (1, 1), (0, 3), (0, 1)
    )
    bits.put(*eight_bits, *eight_bits, *one_symbol * 3)
    reverse = [int(f"{value:08b}"[::-1], 2) for value in range(256)]
    num_tiles = (-(-side // 4)) ** 2
    for tile in range(num_tiles):
        bits.put((reverse[tile & 255], 8), (reverse[tile >> 8 & 255], 8))
    for _ in range(min(num_tiles, 2**16)):
        bits.put(*one_symbol * 5)
    pixels = bits.all()
    pixels += bytes(len(pixels) % 2)
    body = b"WEBPVP8L" + struct.pack("<I", len(pixels)) + pixels
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _riff_flood() -> bytes:
    whole = encoded(_small(), "WEBP", exif=b"Exif\0\0")
    flooded = _flood(whole, b"aaaa\0\0\0\0", len(whole))
    return b"RIFF" + struct.pack("<I", len(flooded) - 8) + flooded[8:]


def _noisy(side: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (side, side, 4), dtype=np.uint8)
    return Image.fromarray(values)


def _webp_of_two_sizes() -> bytes:
    """Return a WebP with a canvas of 64 x 64 px and an image of 13,300 x 13,300 px."""
    pixels = encoded(Image.new("RGB", (13_300, 13_300)), "WEBP", quality=0, method=0)[12:]
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + _three(63) + _three(63)
    return b"RIFF" + struct.pack("<I", 4 + len(canvas) + len(pixels)) + b"WEBP" + canvas + pixels


# DICOM


def dicom_element(tag: int, kind: bytes, value: bytes, *, length: int | None = None) -> bytes:
    """Return a data element in Explicit VR Little Endian.

    Args:
        tag: group and number.
        kind: its value representation.
        value: its value, padded here.
        length: what it says of its length; None for the truth.
    """
    value += b"\0" * (len(value) % 2)
    num = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + kind
    if kind in (b"OB", b"OW", b"SQ", b"UN"):
        return head + bytes(2) + struct.pack("<I", num) + value
    return head + struct.pack("<H", num) + value


DICOM_ITEM, DICOM_ITEM_END, DICOM_SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
DICOM_UNDEFINED = 0xFFFFFFFF


def dicom_item(tag: int, value: bytes = b"", *, length: int | None = None) -> bytes:
    """Return an item of a sequence, or the end of one."""
    num = len(value) if length is None else length
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, num) + value


def dicom(
    *more: bytes, side: int = 64, colour: bytes = b"RGB", pixels: bytes | None = None
) -> bytes:
    """Return an uncompressed DICOM file of a square image.

    Args:
        *more: further data elements, between those of the pixels and the pixels.
        side: width and height, px.
        colour: how the pixels are stored, 8 bits each.
        pixels: the pixels; None for tiles of random colours.
    """
    small = [(0x00280002, 3), (0x00280006, 0), (0x00280010, side), (0x00280011, side)]
    small += [(0x00280100, 8), (0x00280101, 8), (0x00280102, 7), (0x00280103, 0)]
    numbers = {tag: dicom_element(tag, b"US", struct.pack("<H", value)) for tag, value in small}
    numbers[0x00280004] = dicom_element(0x00280004, b"CS", colour)
    pixels = _tiles(side).tobytes() if pixels is None else pixels
    parts = [
        dicom_element(0x00020010, b"UI", b"1.2.840.10008.1.2.1"),
        dicom_element(0x00080016, b"UI", b"1.2.840.10008.5.1.4.1.1.77.1.7"),
        *(numbers[tag] for tag in sorted(numbers)),
        *more,
        dicom_element(0x7FE00010, b"OB", pixels),
    ]
    return bytes(128) + b"DICM" + b"".join(parts)


def _nested_dicom(depth: int) -> bytes:
    """Return a DICOM file with sequences of undefined length in one another."""
    begin = dicom_element(0x00400555, b"SQ", b"", length=DICOM_UNDEFINED)
    begin += dicom_item(DICOM_ITEM, length=DICOM_UNDEFINED)
    end = dicom_item(DICOM_ITEM_END) + dicom_item(DICOM_SEQUENCE_END)
    return dicom(begin * depth + end * depth)


def _dicom_flood() -> bytes:
    """Return a DICOM file with a sequence of empty items that fills the request body."""
    items = dicom_item(DICOM_ITEM) * (BODY_BYTES // 8 - 4096)
    return dicom(
        dicom_element(0x00400555, b"SQ", b"", length=DICOM_UNDEFINED)
        + items
        + dicom_item(DICOM_SEQUENCE_END)
    )


def png_of_two_sizes(first: int, second: int) -> bytes:
    """Return a PNG with two headers, for square images of ``first`` and of ``second`` px.

    The pixels, of one bit each, are those of the second.
    """
    row = bytes(1 + (second + 7) // 8)
    heads = [
        chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
        for side in (first, second)
    ]
    return (
        b"\x89PNG\r\n\x1a\n"
        + b"".join(heads)
        + chunk(b"IDAT", zlib.compress(row * second, 9))
        + chunk(b"IEND")
    )


HOSTILE: dict[str, Callable[[], bytes]] = {
    "JPEG, 1,000 scans": lambda: scan_bomb(1000),
    "JPEG, 1,000 scans behind a fill byte": lambda: scan_bomb(1000, hidden=b"\xff"),
    "JPEG, 5,000 scans behind a fill byte": lambda: scan_bomb(5000, hidden=b"\xff"),
    "JPEG, 1,000 scans behind a restart marker": lambda: scan_bomb(1000, hidden=b"\xff\xd0"),
    "JPEG, 1,000 scans behind a marker without length": lambda: scan_bomb(1000, hidden=b"\xff\x01"),
    "JPEG, 1,000 scans behind stray bytes": lambda: scan_bomb(1000, hidden=b"\xff\xfe\0\2\0\0"),
    "JPEG, 100 scans over 25 megapixels": lambda: refined_scans(100),
    "JPEG, 100 scans over 8 megapixels": lambda: refined_scans(100, side=2828),
    "JPEG, empty segments, 20 MB": lambda: _jpeg_flood(segment(0xE5)),
    "JPEG, comments, 20 MB": lambda: _jpeg_flood(segment(0xFE)),
    "JPEG, tables, 20 MB": lambda: _jpeg_flood(segment(0xDB)),
    "JPEG, fill bytes, 20 MB": lambda: _jpeg_flood(b"\xff"),
    "JPEG, restart markers, 20 MB": lambda: _jpeg_flood(b"\xff\xd0"),
    "JPEG, stray zeros, 20 MB": (
        lambda: _jpeg_flood(b"\0").replace(b"\xff\xd8\0", b"\xff\xd8\xff\xfe\0\2\0", 1)
    ),
    "JPEG, EXIF that names 500 MB": _exif_jpeg,
    "PNG, empty chunks, 20 MB": lambda: _png_flood(chunk(b"aaAa")),
    "PNG, texts, 20 MB": lambda: _png_flood(chunk(b"tEXt", b"a\0b")),
    "PNG, empty IDAT chunks, 20 MB": lambda: _png_flood(chunk(b"IDAT")),
    "PNG, EXIF that begins again and again, 2 MB": lambda: png_with(
        chunk(b"eXIf", b"Exif\0\0" * 350_000)
    ),
    "PNG, EXIF that names 1.5 GB": lambda: png_with(chunk(b"eXIf", _directory(1500, 2**20))),
    "PNG, text of 100 MB compressed": lambda: png_with(
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8), 9))
    ),
    "PNG, 9,000 colour profiles of 1 MB": lambda: png_with(_profile() * 9000),
    "PNG, 64 x 64 with 10 GB of pixels": _png_of_endless_pixels,
    "PNG, empty deflate blocks, 20 MB": lambda: png(_empty_tables(), side=64),
    "PNG of 64 x 64 px, then of 169 megapixels": lambda: png_of_two_sizes(64, 13_000),
    "DICOM, empty items, 20 MB": _dicom_flood,
    "DICOM, 500,000 sequences in one another": lambda: _nested_dicom(500_000),
    "WebP of 64 x 64 px, of 177 megapixels within": _webp_of_two_sizes,
    "WebP, 250,000 frames": lambda: _webp(SIDE_PX, SIDE_PX, num_frames=250_000),
    "WebP, canvas of 268 megapixels": lambda: _webp(2**14, 2**14, num_frames=1),
    "WebP, empty chunks, 20 MB": _riff_flood,
    "WebP, EXIF that names 500 MB": lambda: encoded(
        _small(), "WEBP", exif=b"Exif\0\0" + _directory(500, 2**20)
    ),
}
LARGEST: dict[str, Callable[[], bytes]] = {
    "JPEG, 32 scans over 25 megapixels": lambda: refined_scans(32),
    "JPEG, 32 scans over 25 megapixels, four inks": lambda: refined_scans(32, num_components=4),
    "JPEG, 25 megapixels in 20 MB, progressive": _dense_jpeg,
    "JPEG, 25 megapixels, CMYK": lambda: encoded(
        _tiles(mode="CMYK"), "JPEG", progressive=True, quality=90
    ),
    "PNG, 25 megapixels, 16 bits, transparent": lambda: png(_rows(SIDE_PX * 8), bits=16, colour=6),
    "PNG, the same, interlaced": lambda: png(
        _interlaced_rows(8), bits=16, colour=6, interlaced=True
    ),
    "PNG, 25 megapixels, 8 bits, transparent": lambda: png(_rows(SIDE_PX * 4), colour=6),
    "PNG, 25 megapixels, 16 bits of grey": lambda: png(_rows(SIDE_PX * 2), bits=16, colour=0),
    "WebP, 25 megapixels, lossless, transparent": lambda: encoded(
        _noisy(200).resize((SIDE_PX, SIDE_PX), Image.Resampling.NEAREST),
        "WEBP",
        lossless=True,
        quality=0,
        method=0,
    ),
    "WebP, 5 megapixels of noise, 20 MB": lambda: encoded(
        _noisy(2200), "WEBP", lossless=True, quality=0, method=0
    ),
    "WebP, 25 megapixels, 65,536 groups of codes": lambda: lossless_codes(SIDE_PX),
    "WebP, 1 megapixel, 65,536 groups of codes": lambda: lossless_codes(1024),
    "WebP that is small, codes for every 4 x 4 px": lambda: lossless_codes(350),
    "PNG that is small, 16 bits, transparent": lambda: png(
        _rows(990 * 8, num=990), side=990, bits=16, colour=6
    ),
    "DICOM, 25 megapixels, half the colour": lambda: dicom(
        side=SIDE_PX, colour=b"YBR_FULL_422", pixels=bytes(SIDE_PX**2) + b"\x55" * SIDE_PX**2
    ),
    "WebP, 25 megapixels, lossy": lambda: encoded(_tiles(), "WEBP", quality=90, method=0),
}


def png_with(part: bytes) -> bytes:
    """Return a small PNG with additional chunks after its header."""
    whole = encoded(_small(), "PNG")
    return whole[:33] + part + whole[33:]
