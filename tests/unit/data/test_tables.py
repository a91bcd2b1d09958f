import csv
from pathlib import Path

import pandas as pd
import pytest

from melanoma.data.tables import read_file, read_rows, read_table
from melanoma.errors import DataError

ROWS = [["image_id", "dx", "patient_id"], ["A", "mel", "P 1"], ["B", "nv", "Zoë"]]


def _text(separator: str = ",", end: str = "\n") -> str:
    return end.join(separator.join(row) for row in ROWS) + end


AS_PEOPLE_SAVE_THEM = {
    "commas": _text().encode(),
    "semicolons, byte order mark, CRLF": _text(";", "\r\n").encode("utf-8-sig"),
    "tabs": _text("\t").encode(),
    "bars": _text("|").encode(),
    "Excel's hint": ("sep=;\n" + _text(";")).encode(),
    "old Mac line ends": _text(end="\r").encode(),
    "a comma behind every row but the header": (
        _text().replace("\n", ",\n").replace("patient_id,", "patient_id", 1).encode()
    ),
    "commas behind every row": _text(end=",,\n").encode(),
    "blanks around values": _text(" , ").encode(),
    "blank lines and rows": ("\n" + _text() + "\n,,\n").encode(),
    "quotes": ("\n".join(",".join(f'"{value}"' for value in row) for row in ROWS)).encode(),
    "letters apart from their accents": _text().replace("ë", "e\u0308").encode(),
    "a byte order mark within": _text().replace("dx", "\ufeffdx").encode(),
    "a header in capitals": (
        _text().replace("image_id,dx,patient_id", "Image_ID,DX,Patient_Id").encode()
    ),
    "an index without a name": (",image_id,dx,patient_id\n0,A,mel,P 1\n1,B,nv,Zoë\n").encode(),
}


@pytest.mark.parametrize("kind", AS_PEOPLE_SAVE_THEM)
def test_one_table_is_read_alike_however_it_is_saved(kind: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(AS_PEOPLE_SAVE_THEM[kind])
    rows = read_table(tmp_path / "t.csv").rows
    assert [rows.columns.tolist(), *rows.to_numpy().tolist()] == ROWS


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_text().encode("utf-16"), "UTF-16"),
        (_text().encode("utf-16-le"), "UTF-16"),
        (_text().encode("latin-1"), r"byte 0xeb in line 3 .*Latin-1"),
        (b"PK\x03\x04" + bytes(40), "Excel workbook"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
        (b" \n", "empty"),
        (b"image_id,dx\nA,mel,P1\n", r"2 values like its header; line 2 has 3"),
        (b'image_id,dx\nA,"mel\nB,nv\n', "must be a CSV table; line"),
    ],
)
def test_what_is_no_table_is_called_what_it_is(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(DataError, match=rf"t\.csv.*{message}"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("header", ["image_id,dx,dx ", "image_id,dx,DX", "image_id,\u00a0dx,dx"])
def test_a_name_that_two_columns_have_is_refused_where_it_is_used(
    header: str, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(f"{header}\nA,mel,nv\n")
    table = read_table(tmp_path / "t.csv")
    assert table.first(["image_id"]) == "image_id"
    with pytest.raises(DataError, match=r"t\.csv has 2 columns called dx"):
        table.first(["dx"])


def test_a_table_of_something_else_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("pixel0,pixel1\n1,2,3\n")
    assert read_table(tmp_path / "t.csv", only_with=["image_id"]).rows.empty


def test_rows_without_a_header_keep_their_length(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("A; B\nC;D;0.9\n")
    assert read_rows(tmp_path / "t.csv") == [["A", "B"], ["C", "D", "0.9"]]


def test_long_lines_are_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["image_id", "dx"], *([f"I{number}", "x" * 1000] for number in range(2000))]
        )
    assert len(read_table(tmp_path / "t.csv", only_with=["image_id"]).rows) == 2000


@pytest.mark.parametrize("name", ["table.parquet", "table.pq", "table.csv"])
def test_parquet_is_told_by_its_first_bytes(name: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({" Image_ID": ["a", "b"], "value": [1, 2]})
    if name.endswith("csv"):
        frame.to_csv(tmp_path / name, index=False)
    else:
        frame.to_parquet(tmp_path / name)
    found = read_file(tmp_path / name, "--table")
    assert found["image_id"].tolist() == ["a", "b"]
    assert found["value"].astype(int).tolist() == [1, 2]


@pytest.mark.parametrize("write", ["to_csv", "to_parquet"])
def test_a_column_named_twice_is_refused(write: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"image_id": ["a"], "Image_ID": ["b"]})
    getattr(frame, write)(tmp_path / "table", index=False)
    with pytest.raises(DataError, match="several called image_id"):
        read_file(tmp_path / "table", "--table")


def test_a_table_that_is_not_there_is_called_by_its_option(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--table must be a file.* is not there"):
        read_file(tmp_path / "table.csv", "--table")
    with pytest.raises(DataError, match=r"--table must be a file.* is a folder"):
        read_file(tmp_path, "--table")
