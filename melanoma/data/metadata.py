"""Joins the tables of a SOURCE folder into one table with a row for each image.

A table is used if it has a column of image ids. Tables with the same columns and different images
are stacked. Tables with the same images and different columns are joined side by side. If none of
them has a diagnosis, one that names lesions only gives it to their images. Notes say which tables
were joined and which were ignored.
"""

import dataclasses
import re
from collections.abc import Sequence

import pandas as pd

from melanoma.data.diagnoses import (
    DIAGNOSIS_COLUMNS,
    class_in,
    has_diagnosis,
    how_to_read_binary,
    is_label,
    no_diagnosis,
    says_binary,
)
from melanoma.data.names import image_id_of, path_parts, shown, without_suffix
from melanoma.data.tables import Table, read_rows, read_table
from melanoma.errors import DataError
from melanoma.io.storage import AnyPath
from melanoma.task import Task

ALIASES = {
    "image_id": (
        "image_id",
        "isic_id",
        "image_name",
        "image",
        "img_id",
        "filename",
        "file_name",
        "file",
        "bcn_filename",
    ),
    "lesion_id": ("lesion_id",),
    "patient_id": ("patient_id",),
    "age": ("age", "age_approx"),
    "sex": ("sex", "gender"),
    "site": (
        "localization",
        "anatom_site_general_challenge",
        "anatom_site_general",
        "region",
        "site",
    ),
    "source": ("dataset", "attribution", "source", "hospital", "institution", "center", "centre"),
    "dx_type": ("dx_type", "diagnosis_confirm_type", "biopsed", "biopsied"),
    "skin_type": (
        "skin_type",
        "fitzpatrick_skin_type",
        "fitzpatrick",
        "fitspatrick",
        "skin_tone_class",
    ),
}
KEY, GIVEN, TABLE = "<image id>", "<image id as written>", "<table>"
"""Columns that this module adds to the columns of the tables."""
LESION, IMAGE_TYPE = "lesion_id", "image_type"
_OWN = [GIVEN, TABLE]
_SURE, _MAYBE = {".csv", ".tsv", ".tab"}, {".txt", ""}
_WORKBOOKS = {".xlsx", ".xls", ".ods", ".parquet", ".json", ".jsonl"}


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What the tables of a SOURCE folder say.

    Attributes:
        rows: one row for each image, all of it text: KEY, GIVEN, TABLE, and the tables' columns in
            lower case.
        names: the tables that were read.
        header: their columns as they are written.
        passed_over: image ids that only ignored tables, which have no diagnosis, name.
        notes: a sentence for everything that was joined, ignored or counted once.
    """

    rows: pd.DataFrame
    names: tuple[str, ...]
    header: tuple[str, ...]
    passed_over: frozenset[str]
    notes: tuple[str, ...]


def read_metadata(folder: AnyPath, files: Sequence[AnyPath], task: Task) -> Metadata:
    """Read the tables among the files of a SOURCE folder and join them.

    Raises:
        DataError: if there is no table with image ids and diagnoses, or several contradict each
            other.
    """
    found = [
        _metadata_table(path, shown(path.relative_to(folder)), task)  # type: ignore[arg-type]
        for path in files
        if _may_be_table(path)
    ]
    tables = [table for table in found if table is not None and KEY in table.rows]
    if not tables:
        raise _no_table(folder, files, [table for table in found if table is not None], task)
    notes: list[str] = []
    if not any(has_diagnosis(table.rows.columns, task) for table in tables):
        of_lesions = [table for table in found if table is not None and KEY not in table.rows]
        tables = _labelled_by_lesion(tables, of_lesions, task, notes)
    labelled = [table for table in tables if has_diagnosis(table.rows.columns, task)]
    if not labelled:
        raise no_diagnosis(tables, task)
    if not any(len(table.rows) for table in labelled):
        raise DataError(f"{labelled[0].name} must have a row for every image; it has none.")
    main = labelled[0]
    for other in labelled[1:]:
        main = _stack(main, other, notes) if _same_columns(main, other) else _beside(main, other)
    passed_over: set[str] = set()
    for other in (table for table in tables if not has_diagnosis(table.rows.columns, task)):
        if set(main.rows[KEY]) & set(other.rows[KEY]):
            main = _beside(main, other)
        else:
            notes.append(_pass_over(main, other))
            passed_over |= set(other.rows[KEY])
    main = _without_repeats(main, notes)
    _check_used(main)
    names = tuple(sorted({name for table in tables for name in table.name.split(", ")}))
    return Metadata(
        main.rows.reset_index(drop=True), names, main.header, frozenset(passed_over), tuple(notes)
    )


def _may_be_table(path: AnyPath) -> bool:
    return path.suffix.lower() in _SURE | _MAYBE


def _metadata_table(path: AnyPath, name: str, task: Task) -> Table | None:
    """Read a table and its image ids; return None for a text file that is not a table."""
    is_sure = path.suffix.lower() in _SURE
    try:
        table = read_table(path, name, only_with=(*ALIASES["image_id"], LESION))
    except DataError:
        if is_sure:
            raise
        return None
    column = table.first(ALIASES["image_id"])
    if (
        column is None
        and is_sure
        and (headerless := _without_header(path, table, task)) is not None
    ):
        table, column = headerless, "image_id"
    if column is None:
        return table if is_sure else None
    if not is_sure and len(table.header) < 2:
        return None
    rows = table.rows.drop(columns=column)
    rows[KEY], rows[GIVEN], rows[TABLE] = image_keys(table.rows[column]), table.rows[column], name
    return dataclasses.replace(table, rows=rows)


def _without_header(path: AnyPath, table: Table, task: Task) -> Table | None:
    """Return a table that has no header, or None if this is not one.

    Such a table, as in ISIC 2016, has two columns: image ids and classes of the task.
    """
    if len(table.header) != 2:
        return None
    rows = read_rows(path)
    if not all(len(row) == 2 and row[0] and class_in(row[1], task) is not None for row in rows):
        return None
    return Table(
        table.name,
        ("image_id", "dx"),
        pd.DataFrame(rows, columns=["image_id", "dx"], dtype=str),
        {},
    )


def image_keys(given: pd.Series) -> pd.Series:
    """Return the image ids of a column of ids or paths.

    The id is the last part of a path. If different paths share their last part, it is the whole
    path.
    """
    keys = given.map(image_id_of)
    whole = given.map(
        lambda text: "/".join([*path_parts(text)[:-1], without_suffix(path_parts(text)[-1])])
    )
    is_shared = whole.groupby(keys).transform("nunique") > 1 if len(keys) else keys.astype(bool)
    return keys.where(~is_shared, whole)


def _labelled_by_lesion(
    tables: Sequence[Table], of_lesions: Sequence[Table], task: Task, notes: list[str]
) -> list[Table]:
    """Give the images of some tables the diagnosis that another table has for their lesions.

    So it is in MILK10k, whose images stand in one table and whose lesions in another.
    """
    truths = [
        table
        for table in of_lesions
        if LESION in table.rows and has_diagnosis(table.rows.columns, task) and len(table.rows)
    ]
    if not truths:
        return list(tables)
    truth = truths[0]
    truth.first((LESION,))
    twice = truth.rows[LESION].duplicated() | (truth.rows[LESION] == "")
    if len(truths) > 1 or twice.any():
        raise DataError(
            f"SOURCE must hold one table of lesions that names each lesion once;"
            f" {' and '.join(table.name for table in truths)} do not. Correct or remove one."
        )
    return [_with_truth(table, truth, notes) for table in tables]


def _with_truth(table: Table, truth: Table, notes: list[str]) -> Table:
    """Return a table with the columns that another one has for its lesions, if it has some."""
    if LESION not in table.rows or not set(table.rows[LESION]) & set(truth.rows[LESION]):
        return table
    notes.append(f"the images of {table.name} have the diagnoses of their lesions in {truth.name}")
    new = [name for name in truth.rows.columns if name == LESION or name not in table.rows.columns]
    rows = table.rows.merge(truth.rows[new], on=LESION, how="left").fillna("")
    return _joined(table, truth, rows)


def _same_columns(left: Table, right: Table) -> bool:
    return set(left.rows.columns) == set(right.rows.columns)


def _content(rows: pd.DataFrame) -> list[str]:
    return [column for column in rows.columns if column not in _OWN]


def _stack(main: Table, other: Table, notes: list[str]) -> Table:
    """Stack the rows of two tables with the same columns; rows that are equal in both count once.

    Raises:
        DataError: if the tables have different rows for an image.
    """
    content = _content(main.rows)
    new = other.rows[~_tuples(other.rows[content]).isin(set(_tuples(main.rows[content])))]
    twice = sorted((set(new[KEY]) & set(main.rows[KEY])) - {""})
    if twice:
        raise DataError(
            f"{main.name} and {other.name} have different rows for {len(twice)} images; the first"
            f" is {twice[0]}. Remove one of the tables, or give the images of two hospitals"
            " different names."
        )
    notes.append(
        f"{main.name} and {other.name} have the same columns and name different images; they are"
        " read as one table"
        if len(new)
        else f"{other.name} repeats rows of {main.name}; they count once"
    )
    return _joined(main, other, pd.concat([main.rows, new[main.rows.columns]], ignore_index=True))


def _tuples(rows: pd.DataFrame) -> pd.Series:
    return pd.Series(list(rows.itertuples(index=False, name=None)), index=rows.index, dtype=object)


def _joined(main: Table, other: Table, rows: pd.DataFrame) -> Table:
    header = (*main.header, *(name for name in other.header if name not in main.header))
    return Table(f"{main.name}, {other.name}", header, rows, {**other.repeated, **main.repeated})


def _beside(main: Table, other: Table) -> Table:
    """Join the columns of two tables side by side.

    Raises:
        DataError: if the tables disagree on a value, if one names an image twice, or if they have
            neither the same images nor the same columns.
    """
    extra = other.rows.drop_duplicates(_content(other.rows))
    if not set(main.rows[KEY]) & set(extra[KEY]):
        raise _unlike(main, other)
    if extra[KEY].duplicated().any():
        twice = extra.loc[extra[KEY].duplicated(), KEY].iloc[0]
        raise DataError(
            f"{other.name} must name every image once to be joined with {main.name}; it has"
            f" different rows for {twice}. Correct it or remove it."
        )
    shared = [column for column in _content(extra) if column in main.rows.columns and column != KEY]
    merged = main.rows.merge(
        extra.drop(columns=_OWN), on=KEY, how="outer", suffixes=("", " <other>")
    ).fillna("")
    for column in shared:
        again = merged.pop(f"{column} <other>")
        differ = (merged[column] != "") & (again != "") & (merged[column] != again)
        if differ.any():
            row = merged[differ].iloc[0]
            raise DataError(
                f"{main.name} and {other.name} must agree on {column}; for {row[KEY]} one says"
                f" {row[column]!r} and the other {again[differ].iloc[0]!r}. Correct or remove one"
                " of the tables."
            )
        merged[column] = merged[column].where(merged[column] != "", again)
    merged[GIVEN] = merged[GIVEN].where(merged[GIVEN] != "", merged[KEY])
    return _joined(main, other, merged)


def _unlike(main: Table, other: Table) -> DataError:
    only = sorted(set(main.rows.columns) ^ set(other.rows.columns))
    return DataError(
        f"SOURCE must hold one metadata CSV; {main.name} and {other.name} both have a diagnosis,"
        f" name different images and differ in columns ({', '.join(only[:6])}). Write one table, or"
        " give both the same columns so that they are read as one."
    )


def _pass_over(main: Table, other: Table) -> str:
    """Return a note on an ignored table, which has no diagnosis and names none of the images.

    Raises:
        DataError: if only this table has the ids that group images. It was then meant for these
            images.
    """
    lacking = [
        name for name in ("patient_id", "lesion_id") if name in other.rows and name not in main.rows
    ]
    if lacking and len(other.rows):
        raise DataError(
            f"{other.name} has {' and '.join(lacking)} but names none of the images of {main.name}"
            f" (it names {other.rows[KEY].iloc[0]!r}, {main.name} names"
            f" {main.rows[KEY].iloc[0]!r}). Correct the names or remove the table."
        )
    return f"{other.name} has no diagnosis and names other images; it is ignored"


def _without_repeats(table: Table, notes: list[str]) -> Table:
    """Drop repeated rows of a table and note how many there were."""
    repeats = table.rows.duplicated(_content(table.rows))
    if repeats.any():
        notes.append(
            f"{int(repeats.sum())} rows of the metadata repeat an earlier row; they count once"
        )
    return dataclasses.replace(table, rows=table.rows[~repeats])


def _check_used(table: Table) -> None:
    """Raise DataError if the table has a column that is used twice."""
    for names in (*ALIASES.values(), *((name,) for name in DIAGNOSIS_COLUMNS)):
        table.first(names)
    if not any(name in table.rows for name in DIAGNOSIS_COLUMNS):
        for name in table.repeated:
            table.first([name])


def _no_table(
    folder: AnyPath, files: Sequence[AnyPath], tables: Sequence[Table], task: Task
) -> DataError:
    """Return the error for a folder without a table of image ids; it says what is there instead."""
    known = ", ".join(ALIASES["image_id"])
    if tables:
        return DataError(
            f"SOURCE must hold a metadata CSV with one of the columns {known};"
            f" {_columns_of(tables, task)}."
        )
    others = [shown(path.name) for path in files if path.suffix.lower() in _WORKBOOKS]
    there = (
        f"it holds {', '.join(others[:3])}. Save it as CSV" if others else "it holds none. Add one"
    )
    parts = {part.casefold() for path in files for part in path.relative_to(folder).parts[:-1]}  # type: ignore[arg-type]
    named = sorted(part for part in parts if is_label(part, task))
    folders = (
        f". Names of folders ({', '.join(named)}) are not read as labels: write them into the"
        " column dx of that table"
        if named
        else ""
    )
    return DataError(
        f"{shown(folder)} must hold a metadata CSV with the columns image_id, dx and lesion_id or"
        f" patient_id; {there}{folders}."
    )


def _columns_of(tables: Sequence[Table], task: Task) -> str:
    return ". ".join(_columns(table, task) for table in tables[:4])


def _columns(table: Table, task: Task) -> str:
    names = ", ".join(table.header[:12]) + (", ..." if len(table.header) > 12 else "")
    if _looks_like_data(table.header, task):
        return (
            f"{table.name} has no header; its first line is {names!r}. Add one, such as"
            f" image_id,dx,lesion_id{_binary_note(table, task)}"
        )
    used = {name for names in ALIASES.values() for name in names} | set(DIAGNOSIS_COLUMNS)
    known = [name for name in table.header if name.casefold() in used]
    understood = f" (known: {', '.join(known)})" if known else ""
    return (
        f"{table.name} has the columns {names}{understood}. Rename the one that names the images"
        " to image_id"
    )


def _binary_note(table: Table, task: Task) -> str:
    return f". {how_to_read_binary(task)}" if any(map(says_binary, table.header)) else ""


def _looks_like_data(header: Sequence[str], task: Task) -> bool:
    """Return whether a first line holds values: a number, or an id with digits and a label."""
    cells = [cell.casefold() for cell in header]
    is_labelled = bool(re.search(r"\d{3}", cells[0])) and any(
        is_label(cell, task) for cell in cells[1:]
    )
    return is_labelled or any(cell.replace(".", "").isdigit() for cell in cells)
