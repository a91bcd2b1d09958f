"""Several tables below one folder: joined, put below each other, passed over or refused, and always
said."""

from pathlib import Path

import pytest

from melanoma.data.metadata import KEY, Metadata, read_metadata
from melanoma.errors import DataError
from melanoma.io.storage import files_below
from tests.tasks import HAM

LABELS = "image_id,dx,age\nA,mel,40\nB,nv,50\n"


def _read(folder: Path, **tables: str) -> Metadata:
    for name, text in tables.items():
        path = folder / name.replace("__", "/").replace("_csv", ".csv").replace(
            "_tab", ".tab"
        ).replace("_txt", ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_metadata(folder, files_below(folder), HAM)


def _column(metadata: Metadata, name: str) -> dict[str, str]:
    return dict(zip(metadata.rows[KEY], metadata.rows[name], strict=True))


@pytest.mark.parametrize("name", ["m_csv", "m_tab", "m", "m_txt", "deep__m_csv"])
def test_a_table_is_known_by_what_it_holds(name: str, tmp_path: Path) -> None:
    metadata = _read(tmp_path, **{name: LABELS}, LICENSE="image\nfree, to use", notes_txt="image\n")
    assert _column(metadata, "dx") == {"A": "mel", "B": "nv"}


def test_columns_of_other_tables_are_joined_and_agree(tmp_path: Path) -> None:
    metadata = _read(
        tmp_path, a_csv=LABELS, b_csv="image_id,age,patient_id\nB.jpg,50,P2\nA.jpg,,P1\n"
    )
    assert _column(metadata, "patient_id") == {"A": "P1", "B": "P2"}
    assert _column(metadata, "age") == {"A": "40", "B": "50"}


def test_tables_of_two_hospitals_are_read_as_one(tmp_path: Path) -> None:
    metadata = _read(tmp_path, north__m_csv=LABELS, south__m_csv="dx,image_id,age\nbcc,C,60\n")
    assert _column(metadata, "dx") == {"A": "mel", "B": "nv", "C": "bcc"}
    assert "north/m.csv and south/m.csv" in metadata.notes[0]


def test_a_copy_of_a_table_counts_once(tmp_path: Path) -> None:
    metadata = _read(tmp_path, a_csv=LABELS, b_csv=LABELS)
    assert len(metadata.rows) == 2
    assert "repeats rows" in metadata.notes[0]


def test_tables_without_a_diagnosis_of_other_images_are_passed_over(tmp_path: Path) -> None:
    submission = "image_id,target\nT1,0\n"
    test = "image_id,age\nT1,50\nT2,50\n"
    metadata = _read(tmp_path, train_csv=LABELS, test_csv=test, sample_csv=submission)
    assert _column(metadata, "dx") == {"A": "mel", "B": "nv"}
    assert metadata.passed_over == {"T1", "T2"}
    assert [note.partition(" ")[0] for note in metadata.notes] == ["sample.csv", "test.csv"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            "image_id,dx,age\nA,nv,40\n",
            r"a\.csv and b\.csv have different rows for 1 images; the first is A",
        ),
        (
            "image_id,age\nA,41\n",
            r"a\.csv and b\.csv must agree on age; for A one says '40' and the other '41'",
        ),
        ("image_id,dx,site\nC,nv,arm\n", r"a\.csv and b\.csv .*differ in columns \(age, site\)"),
        (
            "image_id,patient_id\nA,P1\nA,P2\n",
            r"b\.csv must name every image once .* different rows for A",
        ),
        (
            "image_id,patient_id\n1,P1\n2,P2\n",
            r"b\.csv has patient_id but names none of the images of a\.csv",
        ),
    ],
)
def test_tables_that_contradict_each_other_are_named(
    other: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        _read(tmp_path, a_csv=LABELS, b_csv=other)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "picture,diagnosis,patient\nA,Nevus,1\n",
            r"has the columns picture, diagnosis, patient \(known: diagnosis\)",
        ),
        (
            "ISIC_0000001,benign\nISIC_0000002,malignant\n",
            "no header; .*Benign and malignant do not say",
        ),
        ("1,A,mel\n2,B,nv\n", "no header"),
        ("image_id,age\nA,5\n", r"diagnosis column .*m\.csv has the columns image_id, age"),
        ("image_id,target\nA,1\nB,0\n", r"m\.csv has binary labels only \(target\)"),
        ("image_id,benign_malignant\nA,benign\n", "binary labels only"),
        ("image_id,melanoma\nA,1.0\nB,0.0\n", r"only whether .* a melanoma \(melanoma\)"),
        ("image_id,outcome\nA,malignant\nB,benign\n", r"binary labels only \(outcome\)"),
        ("image_id,dx\n", "must have a row for every image"),
    ],
)
def test_a_table_that_will_not_do_is_described(table: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        _read(tmp_path, m_csv=table)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("mel/A.jpg", r"Names of folders \(mel\) are not read as labels"),
        ("m.xlsx", r"m\.xlsx\. Save it as CSV"),
        ("x.bin", "it holds none"),
    ],
)
def test_a_folder_without_a_table_says_what_is_there_instead(
    file: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        _read(tmp_path)


def test_equal_names_in_different_folders_are_different_images(tmp_path: Path) -> None:
    metadata = _read(
        tmp_path, m_csv="image_id,dx\nnorth/1.jpg,mel\nsouth\\1.jpg,nv\nsouth/2.jpg,nv\n"
    )
    assert _column(metadata, "dx") == {"north/1": "mel", "south/1": "nv", "2": "nv"}
