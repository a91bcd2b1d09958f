"""PNG files: checks every checksum and the number of compressed pixels, then decodes with Pillow.

Source: W3C, Portable Network Graphics (third edition).
"""

import functools
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from melanoma.errors import InvalidImageError
from melanoma.imaging.container import damaged, decode_with_pillow, too_many_parts

MAGIC = b"\x89PNG"
SIGNATURE = MAGIC + b"\r\n\x1a\n"  # Its line ends show a transfer in text mode.
MAX_CHUNKS = 10_000  # libpng cuts 20 MiB of pixels into 2,560.
_NUM_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # By colour type.
# Pillow would inflate every profile, although all metadata are dropped in the end. What texts
# inflate to it limits itself.
_HIDDEN_FROM_PILLOW = (b"iCCP", b"eXIf")
_WHOLE = ((0, 0, 1, 1),)
# Adam7: first column, first row, steps between columns and rows.
_INTERLACED = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_INPUT_BYTES, _OUTPUT_BYTES = 2**16, 2**20


class _Head(NamedTuple):
    width: int
    height: int
    num_bits: int
    colour: int
    compression: int
    filtering: int
    interlace: int


class _Chunk(NamedTuple):
    kind: bytes
    start: int
    end: int


class Png:
    """One PNG file. Of an animation the image counts that viewers without animations show."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @functools.cached_property
    def _head(self) -> _Head:
        if len(self._data) < 33 or not self._data.startswith(SIGNATURE + b"\0\0\0\x0dIHDR"):
            raise damaged()
        return _Head(*struct.unpack_from(">IIBBBBB", self._data, 16))

    @functools.cached_property
    def _chunks(self) -> tuple[_Chunk, ...]:
        chunks = tuple(self._walk())
        # Decoders differ in which of several headers they use.
        if [chunk.kind for chunk in chunks].count(b"IHDR") != 1 or chunks[0].kind != b"IHDR":
            raise damaged()
        return chunks

    def _walk(self) -> Iterator[_Chunk]:
        place = len(SIGNATURE)
        for _ in range(MAX_CHUNKS):
            if place + 12 > len(self._data):
                raise damaged()
            length, kind = struct.unpack_from(">I4s", self._data, place)
            chunk = _Chunk(kind, place + 8, place + 8 + length)
            place = chunk.end + 4
            if place > len(self._data):
                raise damaged()
            yield chunk
            if kind == b"IEND":
                return
        raise too_many_parts("chunks", MAX_CHUNKS)

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Width and height that the header announces, px."""
        return self._head.width, self._head.height

    @functools.cached_property
    def num_passes(self) -> int:
        """Four, because pixels of up to eight bytes are inflated, filtered and put in place."""
        return 4 if self._chunks else 0

    @functools.cached_property
    def exif(self) -> bytes:
        """The EXIF block; empty if there is none."""
        found = next((chunk for chunk in self._chunks if chunk.kind == b"eXIf"), None)
        return self._data[found.start : found.end] if found else b""

    def decode(self) -> Image.Image:
        """Decode in the stored mode.

        Grey values of 16 bits are kept. Of colours with 16 bits the upper 8 are.

        Raises:
            InvalidImageError: if the file is damaged, or holds 12 bits in 16.
        """
        self._check_sums()
        self._check_pixels()
        image = decode_with_pillow(self._for_pillow(), "PNG", self.size)
        if self._head.num_bits == 16:
            _check_depth(image)
        return image

    def _for_pillow(self) -> bytes:
        if not any(chunk.kind in _HIDDEN_FROM_PILLOW for chunk in self._chunks):
            return self._data
        kept = (chunk for chunk in self._chunks if chunk.kind not in _HIDDEN_FROM_PILLOW)
        return SIGNATURE + b"".join(self._data[chunk.start - 8 : chunk.end + 4] for chunk in kept)

    def _check_sums(self) -> None:
        view = memoryview(self._data)
        for kind, start, end in self._chunks:
            if zlib.crc32(view[start:end], zlib.crc32(kind)) != int.from_bytes(view[end : end + 4]):
                raise damaged()

    def _check_pixels(self) -> None:
        """Inflate the pixels, some at a time, and check their number.

        Pillow would stop at the last row and ignore what follows.
        """
        inflate, num_bytes, expected = zlib.decompressobj(), 0, self._num_raw_bytes()
        for part in self._compressed():
            if inflate.eof:
                raise damaged()
            for num in _inflated(inflate, part):
                num_bytes += num
                if num_bytes > expected:
                    raise damaged()
        if not inflate.eof or inflate.unused_data or num_bytes != expected:
            raise damaged()

    def _compressed(self) -> Iterator[memoryview]:
        """Yield the compressed pixels in small parts; their chunks must follow each other."""
        places = [index for index, chunk in enumerate(self._chunks) if chunk.kind == b"IDAT"]
        if not places or places[-1] - places[0] != len(places) - 1:
            raise damaged()
        view = memoryview(self._data)
        for index in places:
            _, start, end = self._chunks[index]
            for place in range(start, end, _INPUT_BYTES):
                yield view[place : min(place + _INPUT_BYTES, end)]

    def _num_raw_bytes(self) -> int:
        """Return how many bytes all rows take, each with one byte for its filter."""
        head = self._head
        if head.colour not in _NUM_CHANNELS or head.interlace > 1:
            raise damaged()
        bits = head.num_bits * _NUM_CHANNELS[head.colour]
        total = 0
        for left, top, step_x, step_y in _INTERLACED if head.interlace else _WHOLE:
            # -((a - b) // c) is (b - a) / c, rounded up.
            columns, rows = -((left - head.width) // step_x), -((top - head.height) // step_y)
            if columns > 0 and rows > 0:
                total += rows * (1 + (columns * bits + 7) // 8)
        return total


def _inflated(inflate: "zlib._Decompress", part: bytes | memoryview) -> Iterator[int]:
    """Yield how many bytes a part inflates to, at most a megabyte at a time."""
    try:
        while True:
            num = len(inflate.decompress(part, _OUTPUT_BYTES))
            yield num
            part = inflate.unconsumed_tail
            if not part and num < _OUTPUT_BYTES:
                return
    except zlib.error as error:
        raise damaged() from error


def _check_depth(image: Image.Image) -> None:
    """Refuse 12 bits stored in 16.

    They would come out sixteen times too dark, and nothing in the file says which value is white.

    Raises:
        InvalidImageError: if the brightest value fits into 12 bits.
    """
    if image.mode.startswith("I"):
        channels, limit = [image], 4096
    else:  # Of colours Pillow keeps the upper 8 bits.
        channels, limit = [image.getchannel(name) for name in image.getbands() if name != "A"], 16
    brightest = max(int(np.asarray(channel).max()) for channel in channels)
    if 0 < brightest < limit:
        raise InvalidImageError(
            "The image must use all of its 16 bits; it holds 12 bits in 16. Export it as 8 bits.",
            status=422,
            code="bit_depth_unclear",
        )
