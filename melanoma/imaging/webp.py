"""WebP files: checks every length and that the last bytes are needed, then decodes with Pillow.

The format has no checksums, so damage only shows if it moves something. Changed entropy-coded data
are read at another pace: the decoder runs out of them, or stops before their end.

Source: RFC 9649.
"""

import functools
import struct
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from melanoma.errors import InvalidImageError
from melanoma.imaging.container import damaged, decode_with_pillow, too_many_parts

MAX_CHUNKS = 10_000
# Encoders leave a byte or two unused, so the tail that must be needed is longer. Pixels of fewer
# than _LEAST_BYTES are too short to have such a tail.
_TAIL_BYTES, _LEAST_BYTES = 32, 256
_BITSTREAMS = (b"VP8 ", b"VP8L")


class _Chunk(NamedTuple):
    kind: bytes
    start: int
    end: int


class Webp:
    """One WebP file. Of an animation the first frame counts."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Width and height that the header announces, px."""
        kind, head = self._data[12:16], self._data[20:30]
        if kind == b"VP8X" and len(head) == 10:
            return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
        return _bitstream_size(kind, head)

    @functools.cached_property
    def _chunks(self) -> tuple[_Chunk, ...]:
        """The chunks of the file, and those inside the first frame of an animation."""
        if int.from_bytes(self._data[4:8], "little") + 8 != len(self._data):
            raise damaged()
        chunks = tuple(self._walk(12, len(self._data)))
        frame = next((chunk for chunk in chunks if chunk.kind == b"ANMF"), None)
        return chunks if frame is None else (*chunks, *self._walk(frame.start + 16, frame.end))

    def _walk(self, place: int, end: int) -> Iterator[_Chunk]:
        for _ in range(MAX_CHUNKS):
            if place == end:
                return
            if place + 8 > end:
                raise damaged()
            kind, length = struct.unpack_from("<4sI", self._data, place)
            chunk = _Chunk(kind, place + 8, place + 8 + length)
            place = chunk.end + length % 2
            if place > end:
                raise damaged()
            yield chunk
        raise too_many_parts("chunks", MAX_CHUNKS)

    def _find(self, *kinds: bytes) -> _Chunk | None:
        return next((chunk for chunk in self._chunks if chunk.kind in kinds), None)

    @functools.cached_property
    def num_passes(self) -> int:
        """Two, or 32 if the pixels or their transparency are lossless.

        In lossless data each block of 4 x 4 pixels may bring its own set of codes.
        """
        return 32 if self._find(b"VP8L", b"ALPH") else 2

    @functools.cached_property
    def exif(self) -> bytes:
        """The EXIF block; empty if there is none."""
        found = self._find(b"EXIF")
        return self._data[found.start : found.end] if found else b""

    def decode(self) -> Image.Image:
        """Decode to RGB or RGBA.

        Raises:
            InvalidImageError: if the file is damaged.
        """
        pixels = self._find(*_BITSTREAMS)
        if pixels is None:
            raise damaged()
        # The pixels state their size again. Only a frame of an animation may be smaller than the
        # whole.
        size = _bitstream_size(pixels.kind, self._data[pixels.start : pixels.start + 10])
        fits = (
            size[0] <= self.size[0] and size[1] <= self.size[1]
            if self._find(b"ANMF")
            else size == self.size
        )
        if not fits or self._decodes_without_its_tail(pixels, size):
            raise damaged()
        return decode_with_pillow(self._data, "WEBP", self.size)

    def _decodes_without_its_tail(self, pixels: _Chunk, size: tuple[int, int]) -> bool:
        if pixels.end - pixels.start < _LEAST_BYTES:
            return False
        rest = self._data[pixels.start : pixels.end - _TAIL_BYTES]
        rest += bytes(len(rest) % 2)
        chunk = pixels.kind + struct.pack("<I", len(rest)) + rest
        try:
            decode_with_pillow(
                b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk, "WEBP", size
            )
        except InvalidImageError:
            return False
        return True


def _bitstream_size(kind: bytes, head: bytes) -> tuple[int, int]:
    """Return width and height, px, from the first ten bytes of the pixels."""
    if len(head) == 10 and kind == b"VP8 " and head[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", head, 6)
        return width & 0x3FFF, height & 0x3FFF
    if len(head) == 10 and kind == b"VP8L" and head[0] == 0x2F:
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    raise damaged()
