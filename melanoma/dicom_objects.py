"""Writes a prediction as DICOM: a structured report, and the heatmap as a secondary capture.

Both belong to the patient and the study of the source, so that an archive files them with it. These
attributes go from the source into the two objects and nowhere else. pydicom and highdicom repeat
values in logs, warnings and errors; here none of them is let through. They are optional packages:
images are read without them (`melanoma/imaging/dicom.py`).

Source: DICOM PS3.16 (TID 1500 Measurement Report), PS3.3 (A.35.13 Comprehensive 3D SR, A.8.1
Secondary Capture).
"""

import contextlib
import dataclasses
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from melanoma import __version__
from melanoma.arrays import Uint8Array
from melanoma.config import DISCLAIMER
from melanoma.errors import DataError, SettingError
from melanoma.task import Task

if TYPE_CHECKING:  # optional
    import highdicom as hd
    import pydicom

SCHEME = "99MELANOMA"
"""Coding scheme of classes and decisions: the task of each bundle has classes of its own."""
_MAX_MEANING = 64
_DERMOSCOPIC = "1.2.840.10008.5.1.4.1.1.77.1.7"
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
# What the overlay has because its source has it.
_OF_THE_PIXELS = (
    "Laterality", "BurnedInAnnotation", "RecognizableVisualFeatures", "LossyImageCompression",
    "LossyImageCompressionRatio", "LossyImageCompressionMethod",
)  # fmt: skip
_DECISIONS = {
    "refer": "Refer to a specialist",
    "no_referral": "No referral",
    "cannot_assess": "Cannot assess",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a bundle says of one image.

    Attributes:
        task: the classes of the bundle.
        version: of the bundle.
        weights_sha256: hash of its weights.
        probabilities: class -> calibrated probability, in [0, 1].
        score: the probability that the lesion is one of the targets.
        threshold: of the score.
        decision: refer, no_referral or cannot_assess.
        warnings: codes of the warnings.
        contract_sentence: the contract in words.
    """

    task: Task
    version: str
    weights_sha256: str
    probabilities: Mapping[str, float]
    score: float
    threshold: float
    decision: str
    warnings: tuple[str, ...]
    contract_sentence: str


def check_installed() -> None:
    """Check that the packages that write DICOM are there.

    Raises:
        SettingError: if one is missing.
    """
    if not all(importlib.util.find_spec(name) for name in ("pydicom", "highdicom")):
        raise SettingError(
            "--dicom needs the packages pydicom and highdicom; they are not installed. Run"
            " pip install 'melanoma[dicom]'."
        )


def report_of(source: bytes, finding: Finding) -> bytes:
    """Return a Comprehensive 3D SR with the probabilities and the decision for an image.

    Args:
        source: the DICOM file that was predicted.
        finding: what the bundle says of it.

    Raises:
        DataError: if the source does not say to which patient and study it belongs.
    """
    with _nothing_repeated():
        import highdicom as hd
        from highdicom.coding_schemes import CodingSchemeIdentificationItem

        image = _read(source)
        report = hd.sr.Comprehensive3DSR(
            evidence=[image],
            content=_content(image, finding),
            series_number=1,
            instance_number=1,
            series_instance_uid=hd.UID(),
            sop_instance_uid=hd.UID(),
            is_complete=True,
            series_description="melanoma report, research use only",
            coding_schemes=[
                CodingSchemeIdentificationItem(
                    SCHEME, name="melanoma: classes and decisions of a bundle"
                )
            ],
            **_equipment(finding),
        )
        return _file_of(report)


def overlay_of(source: bytes, finding: Finding, pixels: Uint8Array, method: str) -> bytes:
    """Return a Secondary Capture of a heatmap over its image.

    Args:
        source: the DICOM file that was explained.
        finding: what the bundle says of it.
        pixels: ``(H, W, 3)`` RGB, the image with the heatmap.
        method: the kind of heatmap.

    Raises:
        DataError: if the source does not say to which patient and study it belongs.
    """
    with _nothing_repeated():
        import highdicom as hd

        image = _read(source)
        capture = hd.sc.SCImage.from_ref_dataset(
            image,
            pixels,
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),  # highdicom asks for one; replaced below
            series_number=2,
            instance_number=1,
            series_instance_uid=hd.UID(),
            sop_instance_uid=hd.UID(),
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            series_description="melanoma heatmap, research use only",
            **_equipment(finding),
        )
        capture.copy_patient_and_study_information(image)
        _derive(capture, image, f"{method} heatmap of melanoma {finding.version}. {DISCLAIMER}")
        return _file_of(capture)


@contextlib.contextmanager
def _nothing_repeated() -> Iterator[None]:
    """Let no value of a source into a log, a warning or an error.

    Not for several threads: the filters of warnings belong to the process.

    Raises:
        DataError: in place of any error of pydicom or highdicom.
    """
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception:
        raise DataError(
            "The DICOM object must state its study, series and instance, and its patient as DICOM"
            " writes it; it does not, so no DICOM object can be derived from it. Correct it at its"
            " source."
        ) from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _read(source: bytes) -> "pydicom.Dataset":
    """Return the header of a DICOM file; what must be there but may be empty is there.

    Raises:
        KeyError: if one of the UIDs that others refer to is missing.
    """
    import pydicom

    image = pydicom.dcmread(io.BytesIO(source), stop_before_pixels=True)
    image.decode()  # by its own character set, because what is written has another
    for keyword in _UIDS:
        image[keyword]
    for keyword in _MAY_BE_EMPTY:
        if keyword not in image:
            setattr(image, keyword, "")
    return image


def _equipment(finding: Finding) -> dict[str, Any]:
    return {
        "specific_character_set": "ISO_IR 192",  # UTF-8, whatever the source has
        "manufacturer": "melanoma",
        "manufacturer_model_name": "melanoma",
        "device_serial_number": finding.version,
        "software_versions": __version__,
    }


def _content(image: "pydicom.Dataset", finding: Finding) -> "hd.sr.MeasurementReport":
    """Return the content tree by TID 1500; warnings, contract and disclaimer are comments."""
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[finding.weights_sha256]),
        name="melanoma",
        model_name=f"melanoma {__version__}",
        serial_number=finding.version,
    )
    observer = hd.sr.ObserverContext(codes.DCM.Device, device)
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=(
            codes.SCT.DermoscopicPhotography
            if image.SOPClassUID == _DERMOSCOPIC
            else codes.SCT.ImagingProcedure
        ),
        imaging_measurements=[_measurements(image, finding)],
        title=codes.DCM.ImagingMeasurementReport,
    )
    comments = [finding.contract_sentence, DISCLAIMER]
    if finding.warnings:
        comments.insert(0, f"Warnings: {', '.join(finding.warnings)}.")
    report[0].ContentSequence.extend(
        hd.sr.TextContentItem(
            codes.DCM.Comment, text, relationship_type=hd.sr.RelationshipTypeValues.CONTAINS
        )
        for text in comments
    )
    return report


def _measurements(
    image: "pydicom.Dataset", finding: Finding
) -> "hd.sr.MeasurementsAndQualitativeEvaluations":
    import highdicom as hd
    from pydicom.sr.codedict import codes

    values = {
        "score": (f"Score of {finding.task.noun[0]}", finding.score),
        **{
            f"p_{name}": (f"Probability of {finding.task.name_of(name)}", value)
            for name, value in finding.probabilities.items()
        },
    }
    decision = hd.sr.QualitativeEvaluation(
        _code("decision", "Decision"), _code(finding.decision, _DECISIONS[finding.decision])
    )
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(), identifier="melanoma"),
        algorithm_id=hd.sr.AlgorithmIdentification(
            name="melanoma",
            version=finding.version,
            parameters=[
                f"threshold {finding.threshold:.6f}",
                f"weights_sha256 {finding.weights_sha256}",
            ],
        ),
        measurements=[
            hd.sr.Measurement(_code(code, meaning), value, codes.UCUM.NoUnits)
            for code, (meaning, value) in values.items()
        ],
        qualitative_evaluations=[decision],
        source_images=[
            hd.sr.SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)
        ],
    )


def _code(value: str, meaning: str) -> "hd.sr.CodedConcept":
    import highdicom as hd

    return hd.sr.CodedConcept(value, SCHEME, meaning[:_MAX_MEANING])


def _derive(capture: "pydicom.Dataset", image: "pydicom.Dataset", description: str) -> None:
    """Say of a capture from which image and how it was made.

    The heatmap has no text, so the capture has as much text burned in as its source.
    """
    import pydicom
    from pydicom.sr.codedict import codes

    source, purpose = pydicom.Dataset(), pydicom.Dataset()
    code = codes.DCM.SourceImageForImageProcessingOperation
    purpose.CodeValue, purpose.CodeMeaning = code.value, code.meaning
    purpose.CodingSchemeDesignator = code.scheme_designator
    source.ReferencedSOPClassUID = image.SOPClassUID
    source.ReferencedSOPInstanceUID = image.SOPInstanceUID
    source.PurposeOfReferenceCodeSequence = [purpose]
    capture.SourceImageSequence = [source]
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.ConversionType = "WSD"
    capture.DerivationDescription = description
    capture.PatientOrientation = image.get("PatientOrientation", "")
    for keyword in _OF_THE_PIXELS:
        if keyword in image:
            setattr(capture, keyword, image[keyword].value)
    if image.file_meta.TransferSyntaxUID.is_compressed:
        capture.LossyImageCompression = "01"


def _file_of(dataset: "pydicom.Dataset") -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
