"""Predictions as DICOM: what is in the two objects, and that the standard allows it."""

import copy
import importlib.util
import io
import json
import logging
import warnings
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.pixels import pixel_array

from melanoma import __version__
from melanoma.config import DISCLAIMER
from melanoma.dicom_objects import Finding, check_installed, overlay_of, report_of
from melanoma.errors import DataError, SettingError
from melanoma.task import TASKS
from tests.dicom_files import DERMOSCOPIC, PLANTED, planted_in, rgb_file, smooth
from tests.dicom_standard import dicom_info

SOURCE = rgb_file(smooth())
SENTENCE = "On images like those it was calibrated on (Zürich), 90% are referred. " * 9
TASK = TASKS["ham10000"]
FINDING = Finding(
    task=TASK,
    version="0a1b2c3d",
    weights_sha256="f" * 64,
    probabilities={name: 0.123456789 / 2**i for i, name in enumerate(TASK.classes)},
    score=0.123456789,
    threshold=0.1,
    decision="refer",
    warnings=("uncontracted", "other_cancer_likely"),
    contract_sentence=SENTENCE,
)
DRAWN = smooth(64, 48, seed=1)
COMPREHENSIVE_3D_SR, SECONDARY = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.7"


def _report() -> bytes:
    return report_of(SOURCE, FINDING)


def _capture() -> bytes:
    return overlay_of(SOURCE, FINDING, DRAWN, "grad_cam")


def _read(data: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(data))


def test_the_report_holds_the_prediction() -> None:
    report = hd.sr.srread(io.BytesIO(_report()))
    assert report.SOPClassUID == COMPREHENSIVE_3D_SR
    (group,) = report.content.get_image_measurement_groups()
    values = {item.name.value: item for item in group.get_measurements()}
    assert values.pop("score").value == pytest.approx(FINDING.score, abs=1e-9)
    assert {code: item.value for code, item in values.items()} == pytest.approx(
        {f"p_{name}": p for name, p in FINDING.probabilities.items()}, abs=1e-9
    )
    assert {(item.unit.value, item.unit.scheme_designator) for item in values.values()} == {
        ("1", "UCUM")
    }
    assert values["p_" + TASK.targets[0]].name.meaning == "Probability of Melanoma"
    evaluations = [
        (item.name.value, item.value.value) for item in group.get_qualitative_evaluations()
    ]
    assert evaluations == [
        ("decision", "refer"),
    ]


def _texts(item: pydicom.Dataset) -> list[tuple[str, str]]:
    """Return name and text of all text items of a report, from the top."""
    found = [
        (child.ConceptNameCodeSequence[0].CodeMeaning, str(child.TextValue))
        for child in item.get("ContentSequence", [])
        if child.ValueType == "TEXT"
    ]
    return found + [text for child in item.get("ContentSequence", []) for text in _texts(child)]


def test_the_report_says_what_made_it_and_what_it_is_worth() -> None:
    texts = _texts(_read(_report()))
    for expected in (
        ("Algorithm Name", "melanoma"),
        ("Algorithm Version", FINDING.version),
        ("Algorithm Parameters", "threshold 0.100000"),
        ("Algorithm Parameters", f"weights_sha256 {FINDING.weights_sha256}"),
        ("Device Observer Model Name", f"melanoma {__version__}"),
        ("Comment", "Warnings: uncontracted, other_cancer_likely."),
        ("Comment", SENTENCE.strip()),
        ("Comment", DISCLAIMER),
    ):
        assert expected in [(name, text.strip()) for name, text in texts]


def test_the_report_refers_to_its_source() -> None:
    report = hd.sr.srread(io.BytesIO(_report()))
    source = (
        PLANTED["StudyInstanceUID"],
        PLANTED["SeriesInstanceUID"],
        PLANTED["SOPInstanceUID"],
        DERMOSCOPIC,
    )
    assert report.get_evidence() == [source]
    (group,) = report.content.get_image_measurement_groups()
    (image,) = group.source_images
    assert image.referenced_sop_instance_uid == PLANTED["SOPInstanceUID"]


def test_the_capture_holds_the_heatmap_and_refers_to_its_source() -> None:
    capture = _read(_capture())
    assert capture.SOPClassUID == SECONDARY
    assert np.array_equal(pixel_array(capture), DRAWN)
    assert capture.ImageType == ["DERIVED", "SECONDARY"]
    (source,) = capture.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == PLANTED["SOPInstanceUID"]
    assert "grad_cam" in capture.DerivationDescription
    assert DISCLAIMER in capture.DerivationDescription


def test_a_capture_has_as_much_burned_in_as_its_source() -> None:
    assert "BurnedInAnnotation" not in _read(_capture())
    for value in ("YES", "NO"):
        source = rgb_file(smooth(), BurnedInAnnotation=value, LossyImageCompression="01")
        capture = _read(overlay_of(source, FINDING, DRAWN, "grad_cam"))
        assert (capture.BurnedInAnnotation, capture.LossyImageCompression) == (value, "01")


def test_both_belong_to_the_patient_and_study_of_the_source() -> None:
    for made in (_read(_report()), _read(_capture())):
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID"):
            assert str(made[keyword].value) == PLANTED[keyword]
        for keyword in ("PatientComments", "StudyDescription", "StudyDate"):
            assert made[keyword].value == PLANTED[keyword]
        assert made.SeriesInstanceUID != PLANTED["SeriesInstanceUID"]
        assert made.SOPInstanceUID != PLANTED["SOPInstanceUID"]
        for keyword in ("ImageComments", "StationName", "OperatorsName", "AnatomicRegionSequence"):
            assert keyword not in made
    assert _read(_report()).SOPInstanceUID != _read(_report()).SOPInstanceUID


def test_names_in_another_character_set_stay_readable() -> None:
    species = pydicom.Dataset()
    species.CodeMeaning = "Größe"
    source = rgb_file(
        smooth(),
        SpecificCharacterSet="ISO_IR 100",
        PatientName="Müller^Jörg",
        PatientSpeciesCodeSequence=[species],
    )
    assert "Müller".encode("latin-1") in source
    for data in (report_of(source, FINDING), overlay_of(source, FINDING, DRAWN, "grad_cam")):
        made = _read(data)
        assert str(made.PatientName) == "Müller^Jörg"
        assert made.PatientSpeciesCodeSequence[0].CodeMeaning == "Größe"


@pytest.mark.parametrize(
    "changes",
    [
        {"StudyInstanceUID": None},
        {"SeriesInstanceUID": None},
        {"PatientSex": "PLANTED"},
        {"SOPClassUID": None},
    ],
)
def test_a_source_of_nobody_is_refused_without_a_word_of_it(
    changes: dict[str, str | None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    source = rgb_file(smooth(), **changes)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for make in (
            lambda: report_of(source, FINDING),
            lambda: overlay_of(source, FINDING, DRAWN, "grad_cam"),
        ):
            with pytest.raises(DataError, match="no DICOM object can be derived") as refused:
                make()
            assert refused.value.__suppress_context__
    assert not warned
    assert not planted_in(caplog.text)


def test_nothing_of_the_source_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """highdicom logs names and UIDs; the levels that were set before are kept."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("highdicom").setLevel(logging.INFO)
    odd = SOURCE.replace(b"Planted^Name", b"Plan=te=d=Na")  # of four parts, which warns
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        report_of(odd, FINDING)
        overlay_of(odd, FINDING, DRAWN, "grad_cam")
    assert not warned
    assert not caplog.records
    assert logging.getLogger("highdicom").level == logging.INFO
    logging.getLogger("highdicom").setLevel(logging.NOTSET)


def test_without_the_packages_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "highdicom" else find(name)
    )
    with pytest.raises(SettingError, match=r"pip install 'melanoma\[dicom\]'"):
        check_installed()


def _missing(dataset: pydicom.Dataset, iod: str) -> list[str]:
    """Return what the mandatory modules of an object ask for and it lacks."""
    folder = Path(hd.__file__).parent / "_standard"
    parts = json.loads((folder / "iod_module_map.json").read_text())[iod]
    attributes = json.loads((folder / "module_attribute_map.json").read_text())
    return [
        row["keyword"]
        for part in parts
        if part["usage"] == "M"
        for row in attributes[part["key"]]
        if not row["path"]
        and (
            (row["type"] in ("1", "2") and row["keyword"] not in dataset)
            or (row["type"] == "1" and dataset[row["keyword"]].is_empty)
        )
    ]


def test_the_objects_hold_what_their_modules_ask_for() -> None:
    """By the tables in highdicom, which are in every development environment."""
    report, capture = _read(_report()), _read(_capture())
    # The root of a report is a container. These are for items of other types of values.
    assert set(_missing(report, "comprehensive-3d-sr")) == {
        "ReferencedSOPSequence", "TemporalRangeType", "ConceptCodeSequence",
        "MeasuredValueSequence", "TabulatedValuesSequence", "GraphicData", "GraphicType",
        "ReferencedFrameOfReferenceUID",
    }  # fmt: skip
    assert _missing(capture, "secondary-capture-image") == []
    del capture.ConversionType
    assert _missing(capture, "secondary-capture-image") == ["ConversionType"]


def test_the_validator_finds_no_error(tmp_path: Path) -> None:
    """And it finds those that are planted."""
    validator = pytest.importorskip("dicom_validator.validator.iod_validator")
    info = dicom_info()

    def num_errors(dataset: pydicom.Dataset) -> int:
        path = tmp_path / "object.dcm"
        dataset.save_as(path, enforce_file_format=True)
        found = validator.IODValidator(pydicom.dcmread(path), info, log_level=logging.CRITICAL)
        return int(found.validate().errors)

    report, capture = _read(_report()), _read(_capture())
    assert (num_errors(report), num_errors(capture)) == (0, 0)
    for whole, spoil in (
        (report, lambda made: delattr(made, "CompletionFlag")),
        (report, lambda made: setattr(made, "VerificationFlag", "MAYBE")),
        (report, lambda made: delattr(made.ContentSequence[0], "ConceptCodeSequence")),
        (capture, lambda made: delattr(made, "ConversionType")),
        (capture, lambda made: delattr(made, "PatientName")),
        (capture, lambda made: delattr(made.SourceImageSequence[0], "ReferencedSOPClassUID")),
    ):
        spoiled = copy.deepcopy(whole)
        spoil(spoiled)
        assert num_errors(spoiled) > 0
