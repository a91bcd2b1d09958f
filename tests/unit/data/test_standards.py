import pytest

from melanoma.data.standards import reference_standard, skin_type


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("histo", "histology"),
        ("Histopathology", "histology"),
        ("True", "histology"),
        ("False", "clinical"),
        ("serial imaging showing no change", "follow_up"),
        ("single image expert consensus", "consensus"),
        ("confocal microscopy with consensus dermoscopy", "confocal"),
        ("dermatoscope of the year", "other"),
        ("", ""),
    ],
)
def test_reference_standards_are_known_by_their_spellings(text: str, name: str) -> None:
    assert reference_standard(text) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [("3", "3"), ("3.0", "3"), ("Type II", "2"), ("VI", "6"), ("7", ""), ("unknown", ""), ("", "")],
)
def test_skin_types_are_one_to_six(text: str, name: str) -> None:
    assert skin_type(text) == name
