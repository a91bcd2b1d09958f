"""Data elements of a DICOM file: where each begins and ends, without a look at its value.

Limits how many there are and how deep they are nested. Knows nothing of their meaning.

Source: DICOM PS3.5 (data elements: 7.1; sequences: 7.5; encapsulated pixels: A.4).
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from melanoma.imaging.container import damaged, too_many_parts

# A photograph has about a hundred elements, and less than twenty fragments.
MAX_ELEMENTS, MAX_DEPTH = 10_000, 16
_UNDEFINED, _DELIMITERS_GROUP = 0xFFFFFFFF, 0xFFFE
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_SHORT_LENGTH = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
"""Value representations with a length of 16 bits; all others have one of 32."""
_MAY_BE_UNDEFINED = frozenset((b"SQ", b"UN", b"OB", b"OW"))


class Element(NamedTuple):
    """A data element, or an item of encapsulated pixels."""

    tag: int
    start: int  # of its value
    end: int


class Walk:
    """Finds where elements of a file begin and end, and counts them, items included."""

    def __init__(self, data: bytes) -> None:
        self._data, self._num = data, 0

    def element(self, place: int, *, explicit: bool, depth: int = 0) -> Element:
        """Return the element at a place.

        Args:
            place: of its tag.
            explicit: whether a value representation follows the tag.
            depth: how many sequences the element is in.

        Raises:
            InvalidImageError: if it is not whole, or there are too many or too deep elements.
        """
        tag, kind, length, start = self._head(place, explicit)
        if length != _UNDEFINED:
            return self._whole(tag, start, start + length)
        if kind not in _MAY_BE_UNDEFINED:
            raise damaged()
        # What is in an element of unknown kind has no value representations (PS3.5, 6.2.2).
        return Element(tag, start, self._end(start, explicit and kind != b"UN", depth + 1))

    def _head(self, place: int, explicit: bool) -> tuple[int, bytes, int, int]:
        """Count an element; return its tag, value representation, length and place of the value."""
        self._num += 1
        if self._num > MAX_ELEMENTS:
            raise too_many_parts("data elements", MAX_ELEMENTS)
        try:
            group, number = struct.unpack_from("<HH", self._data, place)
            tag, kind = group << 16 | number, self._data[place + 4 : place + 6]
            if not explicit or group == _DELIMITERS_GROUP:
                return tag, b"SQ", *struct.unpack_from("<I", self._data, place + 4), place + 8
            if kind in _SHORT_LENGTH:
                return tag, kind, *struct.unpack_from("<H", self._data, place + 6), place + 8
            if not (kind.isalpha() and kind.isupper()):
                raise damaged()
            return tag, kind, *struct.unpack_from("<I", self._data, place + 8), place + 12
        except struct.error as error:
            raise damaged() from error

    def _whole(self, tag: int, start: int, end: int) -> Element:
        if end > len(self._data):
            raise damaged()
        return Element(tag, start, end)

    def _end(self, place: int, explicit: bool, depth: int) -> int:
        """Return the place behind a sequence of undefined length.

        Args:
            place: of its first item.
            explicit: whether the elements of its items have a value representation.
            depth: how many sequences its items are in.
        """
        if depth > MAX_DEPTH:
            raise too_many_parts("sequences in one another", MAX_DEPTH)
        while True:
            tag, length, place = self._item_head(place)
            if tag == _SEQUENCE_END:
                return place
            if length != _UNDEFINED:
                place = self._whole(tag, place, place + length).end
                continue
            while (element := self.element(place, explicit=explicit, depth=depth)).tag != _ITEM_END:
                place = element.end
            place = element.end

    def _item_head(self, place: int) -> tuple[int, int, int]:
        """Return tag, length and content of an item, or of the end of its sequence."""
        tag, _, length, start = self._head(place, explicit=False)
        if tag not in (_ITEM, _SEQUENCE_END) or (tag == _SEQUENCE_END and length):
            raise damaged()
        return tag, length, start

    def items(self, sequence: Element) -> Iterator[Element]:
        """Yield the items of encapsulated pixels.

        Raises:
            InvalidImageError: if one has no length.
        """
        place = sequence.start
        while True:
            tag, length, start = self._item_head(place)
            if tag == _SEQUENCE_END:
                return
            item = self._whole(tag, start, start + length)
            yield item
            place = item.end
