"""DICOM files as cameras and archives write them, made by pydicom."""

import io
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

DERMOSCOPIC = "1.2.840.10008.5.1.4.1.1.77.1.7"
PLANTED = {
    "PatientName": "Planted^Name",
    "PatientID": "PLANTED-ID",
    "PatientBirthDate": "19470313",
    "PatientComments": "planted comment",
    "OtherPatientNames": "Planted^Other",
    "AccessionNumber": "PLANTED-ACC",
    "StudyID": "PLANTED-STUDY",
    "StudyDate": "19870611",
    "StudyTime": "070911",
    "StudyDescription": "planted study",
    "ReferringPhysicianName": "Planted^Referrer",
    "InstitutionName": "Planted Hospital",
    "OperatorsName": "Planted^Operator",
    "DeviceSerialNumber": "PLANTED-SERIAL",
    "ImageComments": "planted words",
    "StationName": "PLANTED-STATION",
    "StudyInstanceUID": "1.2.3.19470313.1",
    "SeriesInstanceUID": "1.2.3.19470313.2",
    "SOPInstanceUID": "1.2.3.19470313.3",
}
"""What no log, answer or file may hold, and what only the objects derived from an image may."""
_PLANTED_PARTS = ("planted", "19470313", "19870611", "070911")


def smooth(width: int = 80, height: int = 60, seed: int = 0) -> np.ndarray:
    """Return ``(H, W, 3)`` of soft colours, as a photograph has."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def dicom_file(
    pixels: bytes,
    size: tuple[int, int] = (80, 60),
    *,
    syntax: str = ExplicitVRLittleEndian,
    encapsulated: bool = False,
    **changes: Any,
) -> bytes:
    """Return a DICOM file with planted words in its texts.

    Args:
        pixels: as they are stored.
        size: width and height, px.
        syntax: the transfer syntax.
        encapsulated: whether the pixels are items.
        **changes: other values of attributes; None leaves one out.
    """
    image = pydicom.Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = syntax
    image.SOPClassUID, image.Modality, image.PatientSex = DERMOSCOPIC, "XC", "F"
    for keyword, value in PLANTED.items():
        setattr(image, keyword, value)
    region = pydicom.Dataset()
    region.CodeValue, region.CodingSchemeDesignator = "PLANTED", "99PLANTED"
    region.CodeMeaning = "planted region"
    image.AnatomicRegionSequence = [region]
    image["AnatomicRegionSequence"].is_undefined_length = True
    image.Columns, image.Rows = size
    image.SamplesPerPixel, image.PhotometricInterpretation = 3, "RGB"
    image.PlanarConfiguration, image.PixelRepresentation = 0, 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 8, 8, 7
    image.PixelData = pixels
    image["PixelData"].VR = "OB"
    image["PixelData"].is_undefined_length = encapsulated
    for keyword, value in changes.items():
        if value is None:
            delattr(image, keyword)
        else:
            setattr(image, keyword, value)
    buffer = io.BytesIO()
    complete = "SOPClassUID" in image
    if not complete:
        image.preamble = bytes(128)
    image.save_as(buffer, enforce_file_format=complete)
    return buffer.getvalue()


def rgb_file(pixels: np.ndarray, **changes: Any) -> bytes:
    """Return a DICOM file of ``(H, W, 3)`` RGB pixels."""
    return dicom_file(pixels.tobytes(), (pixels.shape[1], pixels.shape[0]), **changes)


def planted_in(text: str | bytes) -> list[str]:
    """Return which planted words a text holds."""
    shown = text.decode("latin-1") if isinstance(text, bytes) else text
    return [part for part in _PLANTED_PARTS if part in shown.lower()]


def new_uid() -> str:
    """Return a UID that nothing else has."""
    return str(generate_uid())
