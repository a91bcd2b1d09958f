"""JPEG files: walks from marker to marker as libjpeg does, and decodes with warnings as errors.

libjpeg only warns of damaged data and goes on with grey or shifted blocks. Pillow hides those
warnings; `simplejpeg` reports them. The pixels of undamaged files are the same, bit for bit.

Source: ITU-T T.81, annex B.
"""

import functools
import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

import simplejpeg
from PIL import Image

from melanoma.errors import InvalidImageError
from melanoma.imaging.container import damaged, too_many_parts

# Of 4,000 real JPEGs none has more than 9 segments. A profile or a preview of 20 MiB takes 320.
MAX_SEGMENTS = 1000
MAX_SCANS = 100  # A progressive JPEG has about ten.
_MAX_FILL = 256
_MAX_ZEROS = 256
_DHT, _SOI, _EOI, _SOS, _APP0, _APP1, _APP14 = 0xC4, 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE
_SEQUENTIAL = {0xC0, 0xC1}
_NOTHING_FOLLOWS = (0x00, 0xF0)  # In a block, or in its next 16 coefficients.
_STANDALONE = {0x01, *range(0xD0, 0xD8)}
_HUFFMAN_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3}
_OTHER_FRAMES = {0xC5, 0xC6, 0xC7, *range(0xC9, 0xD0)} - {0xCC}
# Fill bytes 0xFF may precede a marker. Within a scan, FF 00 is a pixel byte, and D0 to D7 restart
# the coder.
_MARKER = re.compile(rb"\xff{1,%d}([^\x00\xff])" % _MAX_FILL)
_END_OF_SCAN = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")


class _Segment(NamedTuple):
    code: int
    start: int  # of its content, which follows its length
    end: int


class Jpeg:
    """One JPEG file. Of several images in it, as phones write them, the first counts."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def _walk(self) -> Iterator[_Segment]:
        """Yield every segment up to the end of the image.

        Only fill bytes may be between segments. libjpeg warns of anything else, and a warning is an
        error here.
        """
        data, place, code = self._data, 2, _SOI
        for _ in range(MAX_SEGMENTS + 1):
            found = _END_OF_SCAN.search(data, place) if code == _SOS else _MARKER.match(data, place)
            if found is None or found[1][0] == _SOI:
                raise damaged()
            code, place = found[1][0], found.end()
            if code == _EOI:
                return
            if code not in _STANDALONE:
                length = int.from_bytes(data[place : place + 2])
                if length < 2 or place + length > len(data):
                    raise damaged()
                yield _Segment(code, place + 2, place + length)
                place += length
        raise too_many_parts("segments", MAX_SEGMENTS)

    @functools.cached_property
    def _frame(self) -> tuple[int, int, int]:
        """Width and height, px, and the number of components."""
        for code, start, end in self._walk():
            # Arithmetic coding takes far longer, and no camera or browser uses it.
            if code in _OTHER_FRAMES:
                raise InvalidImageError(
                    "The JPEG must be Huffman-coded, baseline or progressive; it is not. Convert"
                    " it.",
                    status=415,
                    code="unsupported_format",
                )
            if code in _HUFFMAN_FRAMES and end - start >= 6:
                height, width = (
                    int.from_bytes(self._data[at : at + 2]) for at in (start + 1, start + 3)
                )
                return width, height, self._data[start + 5]
            if code == _SOS:
                break
        raise damaged()

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Width and height that the header announces, px."""
        return self._frame[:2]

    @functools.cached_property
    def num_passes(self) -> int:
        """The number of scans, counted up to one more than allowed.

        Each scan is a pass over all pixels and may be only 10 bytes long.
        """
        scans = (segment for segment in self._walk() if segment.code == _SOS)
        return sum(1 for _ in itertools.islice(scans, MAX_SCANS + 1))

    @functools.cached_property
    def colour(self) -> str:
        """What three components are, "RGB" or "YCbCr", as libjpeg decides it; else "".

        A JFIF header means YCbCr. Otherwise Adobe's segment says it, or else the components' ids.
        """
        has_jfif, transform, ids = False, -1, b""
        for code, start, end in self._walk():
            if code == _SOS:
                break
            if code == _APP0 and end - start >= 14:
                has_jfif |= self._data.startswith(b"JFIF\0", start)
            elif code == _APP14 and end - start >= 12 and self._data.startswith(b"Adobe", start):
                transform = self._data[start + 11]
            elif code in _HUFFMAN_FRAMES:
                ids = self._data[start + 6 : end : 3]
        if len(ids) != 3:
            return ""
        is_rgb = ids == b"RGB" if transform < 0 else transform == 0
        return "RGB" if is_rgb and not has_jfif else "YCbCr"

    @functools.cached_property
    def exif(self) -> bytes:
        """The first EXIF block; empty if there is none."""
        for code, start, end in self._walk():
            if code == _APP1 and self._data.startswith(b"Exif\0\0", start, end):
                return self._data[start:end]
        return b""

    def decode(self) -> Image.Image:
        """Decode to RGB or CMYK.

        Raises:
            InvalidImageError: if libjpeg warns of the data.
        """
        num_components = self._frame[2]
        if num_components not in (1, 3, 4) or self._has_zeroed_pixels():
            raise damaged()
        mode = "CMYK" if num_components == 4 else "RGB"
        # CMYK is stored inverted, a convention of Adobe that Pillow follows too.
        raw_mode = "CMYK;I" if mode == "CMYK" else mode
        try:
            pixels = simplejpeg.decode_jpeg(self._data, colorspace=mode, strict=True)
            return Image.frombytes(mode, self.size, pixels, "raw", raw_mode)
        except ValueError as error:
            raise damaged() from error

    def _has_zeroed_pixels(self) -> bool:
        """Return whether bytes of the only scan were lost and replaced with zeros.

        libjpeg decodes such zeros as blocks and may not notice. A code of zero bits alone is the
        first symbol of its Huffman table. Unless that symbol says that nothing follows, it stands
        for a coefficient of -1, and no image has that in every place of many blocks.
        """
        segments = tuple(self._walk())
        scans = [segment for segment in segments if segment.code == _SOS]
        tables = [segment for segment in segments if segment.code == _DHT]
        if len(scans) != 1 or not any(
            _SEQUENTIAL.intersection(segment[:1]) for segment in segments
        ):
            return False
        end = _END_OF_SCAN.search(self._data, scans[0].end)
        run = self._data.find(bytes(_MAX_ZEROS), scans[0].end, end.start() if end else None)
        return run >= 0 and any(
            first not in _NOTHING_FOLLOWS
            for table in tables
            for first in self._first_symbols(table)
        )

    def _first_symbols(self, table: _Segment) -> Iterator[int]:
        """Yield the first symbol of every Huffman table for AC coefficients."""
        place = table.start
        # A table is a byte with its class and id, 16 counts of codes by length, and the symbols.
        while place + 17 < table.end:
            if self._data[place] >> 4:
                yield self._data[place + 17]
            place += 17 + sum(self._data[place + 1 : place + 17])
