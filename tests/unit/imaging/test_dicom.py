import io
import logging
import random
import struct
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate, fragment_frame
from pydicom.pixels import pixel_array
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit

from benchmarks.hostile_files import (
    DICOM_ITEM,
    DICOM_ITEM_END,
    DICOM_SEQUENCE_END,
    DICOM_UNDEFINED,
    dicom,
    dicom_element,
    dicom_item,
)
from melanoma.errors import InvalidImageError
from melanoma.imaging.decode import announced_size, check_content, decode_image, decoding_work
from melanoma.imaging.dicom_elements import MAX_DEPTH, MAX_ELEMENTS
from tests.dicom_files import dicom_file, planted_in, rgb_file, smooth

PIXELS = smooth()
VL, SECONDARY = "1.2.840.10008.5.1.4.1.1.77.1.4", "1.2.840.10008.5.1.4.1.1.7"


def _jpeg(pixels: np.ndarray = PIXELS, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


JPEG = _jpeg()


def _jpeg_file(jpeg: bytes = JPEG, colour: str = "YBR_FULL_422", **changes: object) -> bytes:
    return dicom_file(
        encapsulate([jpeg]),
        syntax=JPEGBaseline8Bit,
        encapsulated=True,
        PhotometricInterpretation=colour,
        **changes,
    )


def _refusal(data: bytes) -> tuple[int, str]:
    with pytest.raises(InvalidImageError) as refused:
        decode_image(data)
    assert not planted_in(str(refused.value))
    return refused.value.status, refused.value.code


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("colour", ["RGB", "YBR_FULL"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_uncompressed_pixels_are_those_of_pydicom(syntax: str, colour: str, planar: int) -> None:
    """YCbCr is turned into RGB with other rounding, so that values may differ by one."""
    stored = PIXELS.transpose(2, 0, 1) if planar else PIXELS
    data = dicom_file(
        stored.tobytes(),
        syntax=syntax,
        PhotometricInterpretation=colour,
        PlanarConfiguration=planar,
    )
    ours, theirs = np.asarray(decode_image(data)), pixel_array(io.BytesIO(data))
    assert np.abs(ours.astype(int) - theirs).max() <= (colour != "RGB")
    assert announced_size(data) == (80, 60)


def test_pixels_that_share_their_colour_are_those_of_pydicom() -> None:
    shared = np.concatenate(
        [PIXELS[..., 0].reshape(60, 40, 2), PIXELS[:, ::2, 1:].reshape(60, 40, 2)], axis=2
    )
    data = dicom_file(shared.tobytes(), PhotometricInterpretation="YBR_FULL_422")
    ours, theirs = np.asarray(decode_image(data)), pixel_array(io.BytesIO(data))
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("sop_class", [VL, SECONDARY])
def test_other_photographs_are_read_too(sop_class: str) -> None:
    data = rgb_file(PIXELS, SOPClassUID=sop_class)
    assert np.array_equal(np.asarray(decode_image(data)), PIXELS)


def test_a_jpeg_in_a_dicom_is_decoded_as_the_jpeg_alone() -> None:
    alone = decode_image(JPEG).tobytes()
    assert decode_image(_jpeg_file()).tobytes() == alone
    parts = list(fragment_frame(JPEG, 5))
    items = dicom_item(DICOM_ITEM) + b"".join(dicom_item(DICOM_ITEM, part) for part in parts)
    whole = dicom_file(
        items, syntax=JPEGBaseline8Bit, encapsulated=True, PhotometricInterpretation="YBR_FULL"
    )
    assert decode_image(whole).tobytes() == alone
    assert decoding_work(_jpeg_file(_jpeg(progressive=True))) > decoding_work(_jpeg_file())


def test_an_exif_block_within_turns_nothing() -> None:
    """Rows and Columns say how the image lies."""
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(_jpeg_file(_jpeg(exif=exif))).size == (80, 60)


def test_the_colours_of_the_jpeg_must_be_those_that_are_stated() -> None:
    """Whoever believed the wrong one would see a green or violet lesion."""
    red_green_blue = _jpeg(keep_rgb=True)
    assert np.array_equal(
        np.asarray(decode_image(_jpeg_file(red_green_blue, "RGB"))),
        np.asarray(decode_image(red_green_blue)),
    )
    assert _refusal(_jpeg_file(red_green_blue, "YBR_FULL_422")) == (422, "invalid_dicom")
    assert _refusal(_jpeg_file(JPEG, "RGB")) == (422, "invalid_dicom")
    # libjpeg believes a JFIF header more than Adobe's segment.
    jfif = JPEG[2 : JPEG.index(b"JFIF") + 14]
    both = red_green_blue[:2] + jfif + red_green_blue[2:]
    assert decode_image(both).tobytes() != decode_image(red_green_blue).tobytes()
    assert _refusal(_jpeg_file(both, "RGB")) == (422, "invalid_dicom")


def _with_transfer_syntax(uid: bytes) -> bytes:
    whole = dicom()
    start = whole.index(b"1.2.840.10008.1.2.1") - 8
    old = dicom_element(0x00020010, b"UI", b"1.2.840.10008.1.2.1")
    return whole[:start] + dicom_element(0x00020010, b"UI", uid) + whole[start + len(old) :]


def _nested(depth: int) -> bytes:
    begin = dicom_element(0x00400555, b"SQ", b"", length=DICOM_UNDEFINED)
    begin += dicom_item(DICOM_ITEM, length=DICOM_UNDEFINED)
    return begin * depth + (dicom_item(DICOM_ITEM_END) + dicom_item(DICOM_SEQUENCE_END)) * depth


def _long_head(kind: bytes, length: int) -> bytes:
    """Return the head of an element with a length of 32 bits."""
    return struct.pack("<HH2s2xI", 0x0040, 0x0555, kind, length)


def _uncompressed_in_items(side: int) -> bytes:
    """Return a DICOM file whose pixels are an item, as many bytes in all as pixels would be."""
    whole = dicom(side=side, pixels=b"")
    head = dicom_element(0x7FE00010, b"OB", b"", length=DICOM_UNDEFINED)
    item = dicom_item(DICOM_ITEM, bytes(3 * side**2 - 16))
    return whole[: -len(head)] + head + item + dicom_item(DICOM_SEQUENCE_END)


def _sequence(*items: bytes, kind: bytes = b"SQ") -> bytes:
    head = dicom_element(0x00400555, kind, b"", length=DICOM_UNDEFINED)
    return head + b"".join(items) + dicom_item(DICOM_SEQUENCE_END)


UNSUPPORTED, INVALID = (415, "unsupported_format"), (422, "invalid_dicom")
DAMAGED, MANY = (422, "image_truncated"), (422, "too_many_parts")
BAD: dict[str, tuple[Callable[[], bytes], tuple[int, str]]] = {
    "another object": (lambda: rgb_file(PIXELS, SOPClassUID=SECONDARY + ".4"), UNSUPPORTED),
    "a CT": (lambda: rgb_file(PIXELS, SOPClassUID="1.2.840.10008.5.1.4.1.1.2"), UNSUPPORTED),
    "no class": (lambda: rgb_file(PIXELS, SOPClassUID=None), INVALID),
    "several frames": (lambda: rgb_file(PIXELS, NumberOfFrames=2), (422, "several_frames")),
    "no frames": (lambda: rgb_file(PIXELS, NumberOfFrames=0), (422, "several_frames")),
    "16 bits": (lambda: rgb_file(PIXELS, BitsAllocated=16), UNSUPPORTED),
    "7 bits": (lambda: rgb_file(PIXELS, BitsStored=7, HighBit=6), UNSUPPORTED),
    "signed": (lambda: rgb_file(PIXELS, PixelRepresentation=1), UNSUPPORTED),
    "grey": (
        lambda: rgb_file(PIXELS, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2"),
        UNSUPPORTED,
    ),
    "palette": (
        lambda: rgb_file(PIXELS, PhotometricInterpretation="PALETTE COLOR"),
        UNSUPPORTED,
    ),
    "no rows": (lambda: rgb_file(PIXELS, Rows=None), INVALID),
    "no columns": (lambda: rgb_file(PIXELS, Columns=None), INVALID),
    "no colours": (lambda: rgb_file(PIXELS, PhotometricInterpretation=None), INVALID),
    "no pixels": (lambda: rgb_file(PIXELS, PixelData=None), INVALID),
    "rows of no number": (
        lambda: dicom().replace(
            dicom_element(0x00280010, b"US", b"\x40\0"), dicom_element(0x00280010, b"UL", bytes(4))
        ),
        INVALID,
    ),
    "no header": (lambda: bytes(128) + b"DICM" + bytes(90), INVALID),
    "a mark alone": (lambda: bytes(128) + b"DICM", INVALID),
    "25 megapixels and more": (
        lambda: rgb_file(PIXELS, Rows=9000, Columns=9000),
        (413, "image_too_large"),
    ),
    "too small": (lambda: rgb_file(PIXELS, Rows=8), (422, "bad_dimensions")),
    "a row too few": (lambda: rgb_file(PIXELS, Rows=61), DAMAGED),
    "a row too many": (lambda: rgb_file(PIXELS, Rows=59), DAMAGED),
    "an odd width with shared colours": (
        lambda: dicom_file(bytes(61 * 61 * 2), (61, 61), PhotometricInterpretation="YBR_FULL_422"),
        DAMAGED,
    ),
    "a JPEG of another size": (lambda: _jpeg_file(Rows=64), DAMAGED),
    "a larger JPEG": (lambda: _jpeg_file(_jpeg(smooth(800, 600))), DAMAGED),
    "half a JPEG": (lambda: _jpeg_file(JPEG[: len(JPEG) // 4 * 2]), DAMAGED),
    "no JPEG": (lambda: _jpeg_file(b"words" * 20), DAMAGED),
    "a grey JPEG": (lambda: _jpeg_file(_jpeg(PIXELS[..., 0])), INVALID),
    "an uncompressed JPEG": (
        lambda: _with_transfer_syntax(b"1.2.840.10008.1.2.4.50"),
        DAMAGED,
    ),
    "a length beyond the end": (
        lambda: dicom(dicom_element(0x00400555, b"SQ", b"", length=10**6)),
        DAMAGED,
    ),
    "an endless text": (
        lambda: dicom(_long_head(b"UT", DICOM_UNDEFINED) + dicom_item(DICOM_SEQUENCE_END)),
        DAMAGED,
    ),
    "an endless sequence": (
        lambda: dicom(dicom_element(0x00400555, b"SQ", b"", length=DICOM_UNDEFINED)),
        DAMAGED,
    ),
    "pixels twice": (lambda: dicom(dicom_element(0x7FE00010, b"OB", bytes(99))), DAMAGED),
    "rows twice": (lambda: dicom(dicom_element(0x00280010, b"US", b"\x40\0")), DAMAGED),
    "an unknown kind of value": (lambda: dicom(_long_head(b"1?", 0)), DAMAGED),
    "no item in a sequence": (lambda: dicom(_sequence(dicom_item(0x00080100))), DAMAGED),
    "an end with a length": (
        lambda: dicom(_sequence(dicom_item(DICOM_SEQUENCE_END, b"12"))),
        DAMAGED,
    ),
    "items without a JPEG": (lambda: _uncompressed_in_items(64), DAMAGED),
    "a third way to lay out planes": (
        lambda: rgb_file(PIXELS, PlanarConfiguration=2),
        UNSUPPORTED,
    ),
    "shared colours in planes": (
        lambda: dicom_file(
            bytes(80 * 60 * 2), PhotometricInterpretation="YBR_FULL_422", PlanarConfiguration=1
        ),
        DAMAGED,
    ),
    "deep sequences": (lambda: dicom(_nested(MAX_DEPTH + 1)), MANY),
    "many items": (lambda: dicom(_sequence(dicom_item(DICOM_ITEM) * MAX_ELEMENTS)), MANY),
    "many elements": (
        lambda: dicom(*(dicom_element(0x00410001 + i, b"UN", b"") for i in range(MAX_ELEMENTS))),
        MANY,
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_with_their_status(name: str) -> None:
    make, refusal = BAD[name]
    assert _refusal(make()) == refusal


@pytest.mark.parametrize(
    ("uid", "words"),
    [
        (b"1.2.840.10008.1.2.1.99", "deflated"),
        (b"1.2.840.10008.1.2.2", "big-endian"),
        (b"1.2.840.10008.1.2.4.70", "lossless JPEG"),
        (b"1.2.840.10008.1.2.4.80", "JPEG-LS"),
        (b"1.2.840.10008.1.2.4.90", "JPEG 2000"),
        (b"1.2.840.10008.1.2.5", "run-length encoded"),
        (b"1.2.3.4", "another transfer syntax"),
    ],
)
def test_other_transfer_syntaxes_are_refused_by_name(uid: bytes, words: str) -> None:
    with pytest.raises(InvalidImageError, match=f"{words}.*Export it uncompressed") as refused:
        decode_image(_with_transfer_syntax(uid))
    assert (refused.value.status, refused.value.code) == UNSUPPORTED


WHOLE = {
    "nested": lambda: dicom(_nested(MAX_DEPTH)),
    "items with a length": lambda: dicom(
        _sequence(dicom_item(DICOM_ITEM, dicom_element(0x00080100, b"SH", b"code")))
    ),
    "an unknown element with elements": lambda: dicom(
        # Implicit VR inside, whatever the file has (PS3.5, 6.2.2).
        _sequence(
            dicom_item(DICOM_ITEM, length=DICOM_UNDEFINED),
            b"\x08\0\x00\x01\x04\0\0\0code",
            dicom_item(DICOM_ITEM_END),
            kind=b"UN",
        )
    ),
    "padding behind the pixels": lambda: dicom() + dicom_element(0xFFFCFFFC, b"OB", bytes(99)),
    "one frame": lambda: dicom().replace(
        dicom_element(0x00280010, b"US", b"\x40\0"),
        dicom_element(0x00280008, b"IS", b"1") + dicom_element(0x00280010, b"US", b"\x40\0"),
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_an_archive_adds_changes_nothing(name: str) -> None:
    assert decode_image(WHOLE[name]()).tobytes() == decode_image(dicom()).tobytes()


def test_the_size_is_known_before_the_pixels_are_looked_at() -> None:
    large = dicom(side=64, pixels=b"").replace(b"US\2\0\x40\0", b"US\2\0\x70\x17")  # 6000 px
    with pytest.raises(InvalidImageError) as refused:
        announced_size(large)
    assert refused.value.code == "image_too_large"


@pytest.mark.parametrize(
    "whole", [_jpeg_file(), rgb_file(PIXELS), dicom(_nested(3))], ids=["JPEG", "RGB", "nested"]
)
def test_any_damage_gives_an_image_or_a_refusal(whole: bytes) -> None:
    """And never another error, a log line or a warning."""
    rng, refusals = random.Random(0), []
    head = whole.index(b"\xe0\x7f\x10\0")  # most of what can go wrong stands before the pixels
    for _ in range(400):
        data = bytearray(whole)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.randrange(6)):
            place = rng.randrange(128, head + 12)
            data[place : place + 1] = bytes([rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))])
        try:
            check_content(decode_image(bytes(data)))
        except InvalidImageError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert not planted_in("".join(refusals))


def test_every_truncation_is_refused() -> None:
    for whole in (_jpeg_file(), rgb_file(PIXELS)):
        head = whole.index(b"\xe0\x7f\x10\0")
        for end in (*range(0, head + 12, 3), *range(head + 12, len(whole) - 1, 997)):
            with pytest.raises(InvalidImageError):
                decode_image(whole[:end])


def test_nothing_that_a_file_says_is_repeated(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        decode_image(rgb_file(PIXELS))
        for keyword in ("Rows", "PhotometricInterpretation", "PixelData"):
            _refusal(rgb_file(PIXELS, **{keyword: None}))
        for keyword in ("SOPClassUID", "PhotometricInterpretation", "NumberOfFrames"):
            whole = rgb_file(PIXELS, NumberOfFrames=1)
            _refusal(_overwritten(whole, keyword))
    assert not warned
    assert not caplog.records


def _overwritten(whole: bytes, keyword: str) -> bytes:
    value = {
        "SOPClassUID": b"77.1.7",
        "PhotometricInterpretation": b"RGB ",
        "NumberOfFrames": b"1 ",
    }
    place = whole.rindex(value[keyword], 0, whole.index(b"\xe0\x7f\x10\0"))
    return whole[:place] + b"planted"[: len(value[keyword])] + whole[place + len(value[keyword]) :]
