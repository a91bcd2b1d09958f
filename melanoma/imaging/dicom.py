"""DICOM files: checks how their pixels are stored, and decodes one frame of 8-bit colour.

Only the elements that tell how the pixels are stored are looked at. Names, dates and all others are
stepped over by their length, so that no error and no log can hold them. pydicom is not used here,
because it repeats values of the file in its log and its warnings, and because it inflates, converts
and nests as far as a file asks for. Knows nothing of patients and studies.

Source: DICOM PS3.10 (files: 7.1), PS3.3 (pixels: C.7.6.3), PS3.5 (encapsulated pixels: A.4).
"""

import functools

import numpy as np
from PIL import Image

from melanoma.errors import InvalidImageError
from melanoma.imaging.container import damage_refused, damaged
from melanoma.imaging.dicom_elements import Element, Walk
from melanoma.imaging.jpeg import Jpeg

MAGIC, MAGIC_AT = b"DICM", 128
_META_GROUP = b"\2\0"
_TRANSFER_SYNTAX, _SOP_CLASS, _FRAMES = 0x00020010, 0x00080016, 0x00280008
_PHOTOMETRIC, _PIXELS = 0x00280004, 0x7FE00010
_SAMPLES, _PLANAR, _ROWS, _COLUMNS = 0x00280002, 0x00280006, 0x00280010, 0x00280011
_ALLOCATED, _STORED, _HIGH_BIT, _SIGNED = 0x00280100, 0x00280101, 0x00280102, 0x00280103
_NAMES = {
    _TRANSFER_SYNTAX: "TransferSyntaxUID",
    _SOP_CLASS: "SOPClassUID",
    _PHOTOMETRIC: "PhotometricInterpretation",
    _SAMPLES: "SamplesPerPixel",
    _PLANAR: "PlanarConfiguration",
    _ROWS: "Rows",
    _COLUMNS: "Columns",
    _ALLOCATED: "BitsAllocated",
    _STORED: "BitsStored",
    _HIGH_BIT: "HighBit",
    _SIGNED: "PixelRepresentation",
    _PIXELS: "PixelData",
}
SOP_CLASSES = {
    b"1.2.840.10008.5.1.4.1.1.77.1.7": "Dermoscopic Photography",
    b"1.2.840.10008.5.1.4.1.1.77.1.4": "VL Photographic",
    b"1.2.840.10008.5.1.4.1.1.7": "Secondary Capture",
}
_IMPLICIT = b"1.2.840.10008.1.2"
_UNCOMPRESSED = frozenset((_IMPLICIT, b"1.2.840.10008.1.2.1"))
# JPEG baseline, and extended with 8 bits, which differs in the number of its tables.
_JPEG = frozenset((b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.51"))
_UNREAD = {
    b"1.2.840.10008.1.2.1.99": "deflated",
    b"1.2.840.10008.1.2.2": "big-endian",
    b"1.2.840.10008.1.2.4.57": "lossless JPEG",
    b"1.2.840.10008.1.2.4.70": "lossless JPEG",
    b"1.2.840.10008.1.2.4.80": "JPEG-LS",
    b"1.2.840.10008.1.2.4.81": "JPEG-LS",
    b"1.2.840.10008.1.2.4.90": "JPEG 2000",
    b"1.2.840.10008.1.2.4.91": "JPEG 2000",
    b"1.2.840.10008.1.2.5": "run-length encoded",
}
_COLOURS = frozenset((b"RGB", b"YBR_FULL", b"YBR_FULL_422"))


class Dicom:
    """One DICOM file with one frame."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @functools.cached_property
    def _elements(self) -> dict[int, Element]:
        """The elements of `_NAMES` and the number of frames, by tag.

        Raises:
            InvalidImageError: if an element is not whole, or not in the order of its tag, so that
                readers could differ in what they find.
        """
        walk = Walk(self._data)
        found: dict[int, Element] = {}
        place, last, syntax = MAGIC_AT + len(MAGIC), 0, b""
        while place < len(self._data):
            # The elements of the first group say how the others are written.
            if not syntax and self._data[place : place + 2] != _META_GROUP:
                syntax = self._text(_TRANSFER_SYNTAX, found)
                _check_syntax(syntax)
            element = walk.element(place, explicit=syntax != _IMPLICIT)
            if element.tag <= last:
                raise damaged()
            if element.tag in _NAMES or element.tag == _FRAMES:
                found[element.tag] = element
            last, place = element.tag, element.end
        return found

    def _text(self, tag: int, found: dict[int, Element]) -> bytes:
        """Return the text of an element without its padding.

        Raises:
            InvalidImageError: if there is none.
        """
        if tag not in found:
            raise _not_stated(tag)
        return self._data[found[tag].start : found[tag].end].strip(b" \0")

    def _number(self, tag: int) -> int:
        """Return the value of an element of 16 bits.

        Raises:
            InvalidImageError: if there is none.
        """
        element = self._elements.get(tag)
        if element is None or element.end - element.start != 2:
            raise _not_stated(tag)
        return int.from_bytes(self._data[element.start : element.end], "little")

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Width and height that the header announces, px, of an object that can be read."""
        if self._text(_SOP_CLASS, self._elements) not in SOP_CLASSES:
            *most, last = SOP_CLASSES.values()
            raise _unsupported(
                f"The DICOM object must be a {', '.join(most)} or {last} image; it is not. Export"
                " the photograph as one of these, or as JPEG."
            )
        if _FRAMES in self._elements and self._text(_FRAMES, self._elements) not in (b"", b"1"):
            raise InvalidImageError(
                "The DICOM object must hold one frame; it holds another number of them. Export the"
                " frames as single images.",
                status=422,
                code="several_frames",
            )
        self._check_kind_of_pixels()
        return self._number(_COLUMNS), self._number(_ROWS)

    @property
    def _colour(self) -> bytes:
        return self._text(_PHOTOMETRIC, self._elements)

    @property
    def _mode(self) -> str:
        """Pillow's name of the colour."""
        return "RGB" if self._colour == b"RGB" else "YCbCr"

    def _check_kind_of_pixels(self) -> None:
        """Refuse all but 8 bits of colour.

        Grey values would need the window of a radiologist's screen, and a palette its tables.
        """
        bits = [self._number(tag) for tag in (_ALLOCATED, _STORED, _HIGH_BIT, _SIGNED)]
        if (
            self._number(_SAMPLES) != 3
            or self._colour not in _COLOURS
            or bits != [8, 8, 7, 0]
            or self._number(_PLANAR) > 1
        ):
            raise _unsupported(
                "The pixels of the DICOM object must be RGB, YBR_FULL or YBR_FULL_422 with 8 bits a"
                " channel; they are not. Export it as 8-bit RGB."
            )

    @functools.cached_property
    def num_passes(self) -> int:
        """The scans of the JPEG; two for uncompressed pixels, which are put in place and converted.

        The JPEG must have the size that the object states.
        """
        return 2 if isinstance(self._pixel_data, Element) else self._pixel_data.num_passes

    @functools.cached_property
    def _pixel_data(self) -> "Jpeg | Element":
        """The JPEG in the object, or the place of uncompressed pixels."""
        if _PIXELS not in self._elements:
            raise _not_stated(_PIXELS)
        element = self._elements[_PIXELS]
        encapsulated = self._data[element.start - 4 : element.start] == b"\xff" * 4
        is_jpeg = self._text(_TRANSFER_SYNTAX, self._elements) in _JPEG
        if encapsulated != is_jpeg:
            raise damaged()
        if not is_jpeg:
            self._check_length(element)
            return element
        # The first item is the table of offsets.
        fragments = list(Walk(self._data).items(element))[1:]
        jpeg = Jpeg(b"".join(self._data[part.start : part.end] for part in fragments))
        if jpeg.size != self.size:
            raise damaged()
        if jpeg.colour != self._mode:
            raise InvalidImageError(
                "PhotometricInterpretation must tell the colours of the JPEG in the DICOM object;"
                " it contradicts them. Export it uncompressed as RGB.",
                status=422,
                code="invalid_dicom",
            )
        return jpeg

    def _check_length(self, element: Element) -> None:
        width, height = self.size
        if self._colour == b"YBR_FULL_422":
            if width % 2 or self._number(_PLANAR):
                raise damaged()
            num_bytes = 2 * width * height
        else:
            num_bytes = 3 * width * height
        if element.end - element.start != num_bytes + num_bytes % 2:
            raise damaged()

    @property
    def exif(self) -> bytes:
        """Empty: DICOM says itself how an image lies, and its viewers do not read EXIF."""
        return b""

    def decode(self) -> Image.Image:
        """Decode to RGB or YCbCr.

        Raises:
            InvalidImageError: if the pixels are damaged.
        """
        found = self._pixel_data
        if isinstance(found, Jpeg):
            return found.decode()
        with damage_refused():
            return self._uncompressed(memoryview(self._data)[found.start : found.end])

    def _uncompressed(self, values: memoryview) -> Image.Image:
        (width, height), num = self.size, self.size[0] * self.size[1]
        mode = self._mode
        if self._colour == b"YBR_FULL_422":
            # Two luminances, then the colour that both share.
            pairs = np.frombuffer(values, np.uint8).reshape(height, width // 2, 4)
            luminance = pairs[..., :2].reshape(height, width)
            shared = [pairs[..., channel].repeat(2, axis=1) for channel in (2, 3)]
            return Image.merge(mode, [Image.fromarray(band) for band in (luminance, *shared)])
        if self._number(_PLANAR):
            bands = (values[band * num : (band + 1) * num] for band in range(3))
            return Image.merge(mode, [Image.frombytes("L", self.size, band) for band in bands])
        return Image.frombytes(mode, self.size, values[: 3 * num])


def _check_syntax(syntax: bytes) -> None:
    if syntax not in _UNCOMPRESSED | _JPEG:
        raise _unsupported(
            "The DICOM object must be uncompressed or hold a baseline JPEG; it is"
            f" {_UNREAD.get(syntax, 'stored in another transfer syntax')}. Export it uncompressed"
            " (Explicit VR Little Endian)."
        )


def _unsupported(message: str) -> InvalidImageError:
    return InvalidImageError(message, status=415, code="unsupported_format")


def _not_stated(tag: int) -> InvalidImageError:
    return InvalidImageError(
        f"The DICOM object must state {_NAMES[tag]}; it does not. Export it again from its source.",
        status=422,
        code="invalid_dicom",
    )
