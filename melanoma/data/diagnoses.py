"""What a metadata table says of the disease -> one of the classes, or why it says none of them."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from melanoma.config import CLASSES
from melanoma.data.tables import Table
from melanoma.errors import DataError

DIAGNOSIS_COLUMNS = ("dx", "diagnostic", "diagnosis", "diagnosis_5", "diagnosis_4", "diagnosis_3", "diagnosis_2")
ONE_HOT = {"mel": "mel", "nv": "nv", "bcc": "bcc", "akiec": "akiec", "ak": "akiec", "bkl": "bkl", "df": "df", "vasc": "vasc"}  # fmt: skip
ONE_HOT_REFUSED = ("scc", "unk")
_BY_NAME = {
    **{name: name for name in CLASSES},
    **{"nev": "nv", "ack": "akiec", "sek": "bkl"},  # PAD-UFES-20
    **{"nevus": "nv", "melanoma": "mel", "melanoma, nos": "mel", "melanoma in situ": "mel", "melanoma invasive": "mel"},
    **{"melanoma metastasis": "mel", "basal cell carcinoma": "bcc", "actinic keratosis": "akiec"},
    **{"solar or actinic keratosis": "akiec", "squamous cell carcinoma in situ": "akiec", "bowen's disease": "akiec"},
    **{
        "seborrheic keratosis": "bkl",
        "lichenoid keratosis": "bkl",
        "lichen planus like keratosis": "bkl",
        "solar lentigo": "bkl",
    },
    **{"lentigo nos": "bkl", "pigmented benign keratosis": "bkl", "dermatofibroma": "df"},
    **{
        "hemangioma": "vasc",
        "angiokeratoma": "vasc",
        "angioma": "vasc",
        "vascular lesion": "vasc",
        "pyogenic granuloma": "vasc",
    },
}
_BINARY_COLUMNS = {
    "target",
    "benign_malignant",
    "malignant",
    "is_malignant",
    "malignancy",
    "melanoma",
    "is_melanoma",
    "label",
    "class",
}
_BINARY_WORDS = {"benign", "malignant", "0", "1", "0.0", "1.0", "true", "false", "yes", "no", "positive", "negative"}


def has_diagnosis(columns: Iterable[str]) -> bool:
    """Return whether some columns, in small letters, say which class an image shows: by name, or one column a class."""
    names = set(columns)
    return any(name in names for name in DIAGNOSIS_COLUMNS) or {"mel", "nv"} <= names


def read_diagnoses(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Return for each row its class, or "", and what the table says.

    Raises:
        DataError: if the labels are binary.
    """
    hot = [name for name in (*ONE_HOT, *ONE_HOT_REFUSED) if name in rows.columns]
    named = [name for name in DIAGNOSIS_COLUMNS if name in rows.columns]
    said = {value.casefold() for name in named for value in rows[name] if value}
    if said and said <= _BINARY_WORDS:
        raise DataError(_binary(named, "The metadata"))
    return [_diagnosis(row, named, hot) for row in rows[named + hot].to_dict("records")]


def _diagnosis(row: dict[Any, str], named: list[str], hot: list[str]) -> tuple[str, str]:
    given = [row[name] for name in named if row[name]]
    for text in given:
        if text.casefold() in _BY_NAME:
            return _BY_NAME[text.casefold()], text
    marked = [name for name in hot if row[name] in {"1", "1.0"}]
    if len(marked) == 1 and not given:
        return ONE_HOT.get(marked[0], ""), marked[0].upper()
    return "", given[0] if given else "+".join(name.upper() for name in marked)


def no_diagnosis(tables: Sequence[Table]) -> DataError:
    """Return the refusal of tables of which none has a diagnosis."""
    for table in tables:
        binary = [name for name in table.rows.columns if name in _BINARY_COLUMNS or _is_binary(table.rows[name])]
        if binary:
            return DataError(_binary(binary, table.name, spelled=_spelled(table)))
    columns = "; ".join(f"{table.name} has the columns {', '.join(table.header)}" for table in tables[:3])
    return DataError(
        f"the metadata must have a diagnosis column ({', '.join(DIAGNOSIS_COLUMNS)} or MEL, NV, BCC, ...); {columns}. "
        f"Call the column that holds it dx."
    )


def _is_binary(values: pd.Series) -> bool:
    said = {value.casefold() for value in values if value}
    return bool(said) and said <= {"benign", "malignant"}


def _spelled(table: Table) -> str:
    """Return a hint at columns of ISIC 2024 that do spell the diagnosis."""
    columns = [name for name in table.header if name.casefold().startswith("iddx_")]
    return (
        f" Its columns {', '.join(columns)} spell some diagnoses: write the most exact of them into dx."
        if columns
        else ""
    )


def _binary(columns: Sequence[str], table: str, *, spelled: str = "") -> str:
    return (
        f"{table} has binary labels only ({', '.join(columns)}), which do not say which of the classes an image shows; a column dx must hold "
        f"one of {', '.join(CLASSES)}, or a name such as nevus or melanoma, for every image.{spelled} Benign is not a class: an image may be "
        "called nv only if its lesion is a nevus."
    )
