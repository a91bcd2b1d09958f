"""Reads the orientation in an EXIF block, and nothing else of it.

A broken block is ignored, because it does not mean that the pixels are damaged.
"""

import re
import struct

_PREFIXES = re.compile(rb"(?:Exif\0\0)*+")  # Some programs write it twice.
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_ORIENTATION = 0x0112
_FORMATS = {3: "H", 4: "I"}  # SHORT, as the standard says, and LONG.
_MAX_ENTRIES = 1000


def orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8 as EXIF counts.

    It is 1, upright, if the block does not say or cannot be read.

    Source: TIFF 6.0, section 2; CIPA DC-008 (Exif 2.32), 4.6.4.
    """
    try:
        return _read(exif)
    except (struct.error, KeyError, OverflowError):
        return 1


def _read(exif: bytes) -> int:
    prefixes = _PREFIXES.match(exif)
    start = prefixes.end() if prefixes else 0
    order = _BYTE_ORDERS[exif[start : start + 4]]
    # The header points to the first directory: a count and entries of 12 bytes.
    place = start + struct.unpack_from(f"{order}I", exif, start + 4)[0]
    (num_entries,) = struct.unpack_from(f"{order}H", exif, place)
    for entry in range(place + 2, place + 2 + 12 * min(num_entries, _MAX_ENTRIES), 12):
        tag, kind, count = struct.unpack_from(f"{order}HHI", exif, entry)
        if tag == _ORIENTATION and count == 1:
            (value,) = struct.unpack_from(order + _FORMATS[kind], exif, entry + 8)
            return value if 1 <= value <= 8 else 1
    return 1
