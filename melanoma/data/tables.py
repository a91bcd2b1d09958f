"""Reads tables as people save them: parquet, or CSV with any separator, byte order mark and blanks.

Every value of a CSV table stays text. Nothing is repaired by guessing: a table that can be read in
several ways is refused, and the message names the line. Knows nothing of data sets.
"""

import csv
import dataclasses
import io
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator

import pandas as pd

from melanoma.data.names import shown
from melanoma.errors import DataError
from melanoma.io.files import read_parquet
from melanoma.io.storage import AnyPath

_SEPARATORS = ",;\t|"
_HEAD_BYTES = 2**20
_PARQUET = b"PAR1"
_OTHER_FILES = {
    b"PK\x03\x04": "an Excel workbook or another zip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x89HDF": "an HDF5 file",
    _PARQUET: "a parquet file",
    b"\x1f\x8b": "compressed with gzip",
}
_INVISIBLE = re.compile("[\ufeff\u200b-\u200d\u2060]")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        name: of its file, for messages.
        header: the names of its columns as they are written, without blanks around them.
        rows: its rows. Columns have lower-case names; of several with one name the first is here.
        repeated: names that several columns have -> their names as they are written.
    """

    name: str
    header: tuple[str, ...]
    rows: pd.DataFrame
    repeated: dict[str, tuple[str, ...]]

    def first(self, names: Iterable[str]) -> str | None:
        """Return the first of some names (in lower case) that is a column, or None.

        Raises:
            DataError: if two columns have that name.
        """
        name = next((name for name in names if name in self.rows.columns), None)
        if name in self.repeated:
            raise DataError(
                f"{self.name} has {len(self.repeated[name])} columns called {name}"
                f" ({', '.join(self.repeated[name])}), if blanks and case are ignored. Keep one of"
                " them."
            )
        return name


def read_table(path: AnyPath, name: str = "", *, only_with: Collection[str] = ()) -> Table:
    """Read a table whose first line names its columns.

    Args:
        path: its file.
        name: its name in messages; by default the name of the file.
        only_with: names of columns in lower case. If they are given, a table with none of them is
            returned without rows.

    Raises:
        DataError: if it is not a table in UTF-8, or a row has more values than the header.
    """
    name = name or shown(path.name)
    with path.open("rb") as file:
        data = file.read(_HEAD_BYTES)
        separator, header = _header(data, name)
        wanted = not only_with or any(column.casefold() in only_with for column in header)
        if wanted and len(data) == _HEAD_BYTES:
            data += file.read()
    lines = _records(_decode(data, name), separator, name) if wanted else iter([(1, header)])
    _, header = next(lines, (1, []))
    rows = [_fit(values, len(header), line, name) for line, values in lines]
    return _table(name, header, rows)


def read_file(path: AnyPath, what: str) -> pd.DataFrame:
    """Read a parquet table, or one that `read_table` reads.

    Args:
        path: its file.
        what: what it is, for messages, such as the option that names it.

    Returns:
        Its rows. The names of its columns have no blanks around them and are in lower case.

    Raises:
        DataError: if it is not there, is no such table, or names a column twice.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "is not there"
        raise DataError(f"{what} must be a file, parquet or CSV; {path} {found}. Correct the path.")
    with path.open("rb") as file:
        is_parquet = file.read(len(_PARQUET)) == _PARQUET
    if is_parquet or path.suffix.lower() == ".parquet":
        rows = read_parquet(path)
        rows.columns = pd.Index([str(column).strip().casefold() for column in rows.columns])
        repeated = rows.columns[rows.columns.duplicated()].tolist()
    else:
        table = read_table(path)
        rows, repeated = table.rows, list(table.repeated)
    if repeated:
        raise DataError(
            f"{what} must name each column once; {shown(path.name)} has several called"
            f" {repeated[0]}, if blanks and case are ignored. Keep one of them."
        )
    return rows


def read_rows(path: AnyPath) -> list[list[str]]:
    """Read a table without looking for a header; rows may differ in length.

    Raises:
        DataError: if it is not a table in UTF-8.
    """
    name = shown(path.name)
    data = path.read_bytes()
    separator, _ = _header(data, name)
    return [values for _, values in _records(_decode(data, name), separator, name)]


def _header(data: bytes, name: str) -> tuple[str, list[str]]:
    """Return the separator of a table and the values of its first line.

    Args:
        data: the first bytes of the table.
        name: of the table, for messages.
    """
    _check_kind(data, name)
    text = data.decode("utf-8-sig", "replace")
    first = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")
    if first.casefold().startswith("sep=") and len(first.strip("\r\n")) == 5:  # Excel writes this.
        second = (
            line for line in io.StringIO(text, newline=None) if line.strip() and line != first
        )
        return first[4], _split(next(second, ""), first[4])
    # The separator that gives most columns wins; on a tie the first does, which is the comma.
    separator = max(_SEPARATORS, key=lambda candidate: len(_split(first, candidate)))
    return separator, _split(first, separator)


def _split(line: str, separator: str) -> list[str]:
    try:
        values = next(csv.reader([line], delimiter=separator), [])
    except csv.Error as error:
        raise DataError(
            "A table must begin with a line of column names; this one begins with another line"
            f" ({error}). Add such a line."
        ) from error
    return [_INVISIBLE.sub("", value).strip() for value in values]


def _check_kind(data: bytes, name: str) -> None:
    """Raise DataError, which names the kind of file, unless the bytes can be text in UTF-8."""
    if not data.strip():
        raise DataError(f"{name} is empty. Repair or remove it.")
    kind = next((kind for magic, kind in _OTHER_FILES.items() if data.startswith(magic)), None)
    if kind:
        raise DataError(f"{name} must be a CSV table; it is {kind}. Save it as CSV in UTF-8.")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:1000]:
        raise DataError(
            f"{name} must be a CSV table in UTF-8; it is in UTF-16 or binary. Save it as CSV in"
            " UTF-8."
        )


def _decode(data: bytes, name: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name} must be a CSV table in UTF-8; byte 0x{data[error.start]:02x} in line {line} is"
            " not (it may be Latin-1 or Windows-1252). Save it as CSV in UTF-8."
        ) from error
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", text))


def _records(text: str, separator: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the values of every row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    is_first = True
    try:
        for values in reader:
            cleaned = [value.strip() for value in values]
            if any(cleaned) and not (
                is_first and text[:4].casefold() == "sep=" and len(cleaned) <= 2
            ):
                yield reader.line_num, cleaned
            is_first = False
    except csv.Error as error:
        raise DataError(
            f"{name} must be a CSV table; line {reader.line_num} is not ({error}). Repair it."
        ) from error


def _fit(values: list[str], length: int, line: int, name: str) -> list[str]:
    """Return the values of a row, as many as the header has.

    A row may have fewer values, or blanks behind the last one.
    """
    if any(values[length:]):
        raise DataError(
            f"Every row of {name} must have {length} values like its header; line {line} has"
            f" {len(values)}. Put values that hold the separator in quotes, or name every column."
        )
    return values[:length] + [""] * (length - len(values))


def _table(name: str, header: list[str], rows: list[list[str]]) -> Table:
    places: dict[str, list[int]] = {}
    for index, column in enumerate(header):
        places.setdefault(column.casefold(), []).append(index)
    places.pop("", None)
    first = [indices[0] for indices in places.values()]
    frame = pd.DataFrame(
        [[row[index] for index in first] for row in rows], columns=list(places), dtype=str
    )
    repeated = {
        column: tuple(header[i] for i in indices)
        for column, indices in places.items()
        if len(indices) > 1
    }
    return Table(name, tuple(column for column in header if column), frame, repeated)
