"""Ids that mean "not known", and ids that two hospitals both use."""

from pathlib import Path

import pandas as pd
import pytest

from melanoma.data.group_ids import known_ids
from melanoma.data.groups import LargeGroup, largest_groups
from melanoma.data.records import read_source
from melanoma.errors import DataError
from tests.sources import rows, write_source, write_table
from tests.tasks import HAM

NOT_KNOWN = [
    "nan",
    "NaN",
    "None",
    "NULL",
    "na",
    "N/A",
    "n-a",
    "n.a.",
    "<NA>",
    "unknown",
    " Unknown ",
    "?",
    "??",
    "-",
    "--",
    "",
    " ",
    ".",
    "#N/A",
]


@pytest.mark.parametrize("word", NOT_KNOWN)
def test_a_word_for_not_known_joins_nothing(word: str) -> None:
    ids, notes = known_ids(pd.Series(["P1", word.strip(), word.strip()]), "patient_id")
    assert ids.tolist() == ["P1", "", ""]
    assert notes == (
        [f"2 images have patient_id {word.strip()!r}, which is read as not known"]
        if word.strip()
        else []
    )


@pytest.mark.parametrize("name", ["0", "1", "Nana", "P-1", "unknown-7", "na12", "IP_0000001"])
def test_an_id_is_no_word_for_not_known(name: str) -> None:
    ids, notes = known_ids(pd.Series([name]), "patient_id")
    assert (ids.tolist(), notes) == ([name], [])


@pytest.mark.parametrize("column", ["patient_id", "lesion_id"])
@pytest.mark.parametrize("word", ["nan", "unknown", "?"])
def test_images_of_unknown_patients_stand_alone_and_it_is_said(
    column: str, word: str, tmp_path: Path
) -> None:
    table = [{**row, column: word if i % 2 else row[column]} for i, row in enumerate(rows())]
    source = read_source(write_source(tmp_path, table), HAM)
    assert (source.records[column] == "").sum() == 12
    assert source.rejections == []
    assert source.notes == [f"12 images have {column} {word!r}, which is read as not known"]


def _two_hospitals(*, patient: str, lesion: str) -> list[dict[str, str]]:
    """Two hospitals that number patients and lesions from one."""
    tables = []
    for name, shift in (("north", 0), ("south", 1)):
        for i, row in enumerate(rows(12, prefix=f"{name}_")):
            dx = rows(24)[i + shift]["dx"]
            tables.append(
                {
                    **row,
                    "patient_id": f"{patient}{i // 2}",
                    "lesion_id": f"{lesion}{i}",
                    "dx": dx,
                    "dataset": name,
                }
            )
    return tables


@pytest.mark.parametrize(("patient", "lesion"), [("", ""), ("", "L"), ("P", "")])
def test_numbers_of_two_hospitals_are_told_apart_by_their_source(
    patient: str, lesion: str, tmp_path: Path
) -> None:
    source = read_source(
        write_source(tmp_path, _two_hospitals(patient=patient, lesion=lesion)), HAM
    )
    assert source.rejections == []
    assert source.records["lesion_id"].nunique() == 24
    assert any("are used by several sources (north and south)" in note for note in source.notes)


def test_numbers_of_two_tables_are_told_apart_by_their_table(tmp_path: Path) -> None:
    table = [
        {key: value for key, value in row.items() if key != "dataset"}
        for row in _two_hospitals(patient="", lesion="")
    ]
    write_source(tmp_path, table)
    (tmp_path / "metadata.csv").unlink()
    write_table(tmp_path / "north" / "m.csv", table[:12])
    write_table(tmp_path / "south" / "m.csv", table[12:])
    source = read_source(tmp_path, HAM)
    assert source.rejections == []
    assert set(source.records["lesion_id"].str.partition("/")[0]) == {"north", "south"}


def test_numbers_that_may_be_one_patients_are_not_parted_but_told(tmp_path: Path) -> None:
    """A source may be a camera: a patient in front of two must not cross a split."""
    source = read_source(write_source(tmp_path, _two_hospitals(patient="", lesion="L")), HAM)
    assert source.records["patient_id"].nunique() == 6
    assert any(
        "6 patient_ids are plain numbers that several sources use" in note for note in source.notes
    )


def test_numbers_that_nothing_tells_apart_are_named_as_the_cause(tmp_path: Path) -> None:
    table = [
        {key: value for key, value in row.items() if key not in ("dataset", "patient_id")}
        for row in _two_hospitals(patient="", lesion="")
    ]
    rejections = read_source(write_source(tmp_path, table), HAM).rejections
    assert {r.reason for r in rejections} == {"lesion_with_two_labels"}
    assert "a plain number that two hospitals may both use" in rejections[0].detail


def test_a_lesion_that_two_sources_show_stays_one(tmp_path: Path) -> None:
    table = [
        {**row, "lesion_id": f"HAM_{i // 2:07d}", "dx": "nv", "dataset": ("old", "new")[i % 2]}
        for i, row in enumerate(rows())
    ]
    source = read_source(write_source(tmp_path, table), HAM)
    assert source.records["lesion_id"].nunique() == 12


def test_any_column_of_the_table_groups(tmp_path: Path) -> None:
    table = [
        {"Image": row["image_id"], "dx": row["dx"], "Patient": f"{i // 2}" if i < 20 else "nan"}
        for i, row in enumerate(rows())
    ]
    source = read_source(
        write_source(tmp_path, table, names=[f"{row['Image']}.jpg" for row in table]), HAM
    )
    with pytest.raises(
        DataError, match=r"give no image a patient_id or lesion_id.*the columns Image, dx, Patient"
    ):
        source.group_by(None)
    with pytest.raises(
        DataError, match=r"they lack ward. The metadata have the columns Image, dx, Patient"
    ):
        source.group_by(("ward",))
    assert source.group_by((" patient",)) == ("patient",)
    assert source.records["group by patient"].nunique() == 11
    assert source.notes == ["4 images have patient 'nan', which is read as not known"]


def test_a_blank_column_groups_nothing(tmp_path: Path) -> None:
    source = read_source(write_source(tmp_path, [{**row, "ward": "?"} for row in rows(4)]), HAM)
    with pytest.raises(DataError, match="ward is blank in every row"):
        source.group_by(("ward",))


def test_the_largest_groups_are_shown_with_what_joins_them() -> None:
    records = pd.DataFrame(
        {"group": ["a"] * 3 + ["b", "c"], "patient_id": ["P"] * 3 + ["", "Q"], "split": "train"}
    )
    assert largest_groups(records, ["patient_id"], num=2) == [
        LargeGroup("a", 3, "train", {"patient_id": ["P"]}),
        LargeGroup("b", 1, "train", {"patient_id": []}),
    ]
