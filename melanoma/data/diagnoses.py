"""Reads the diagnosis of each metadata row as one of the task's classes, or says why it cannot.

`SPELLINGS` is the one table of how people write a diagnosis. A column that only says benign or
malignant is read if the task has such classes.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from melanoma.data.tables import Table
from melanoma.errors import DataError
from melanoma.task import TASKS, Task

_ISIC_ARCHIVE = tuple(f"diagnosis_{level}" for level in (5, 4, 3, 2, 1))
_ISIC_2024 = ("iddx_full", *(f"iddx_{level}" for level in (5, 4, 3, 2, 1)))
DIAGNOSIS_COLUMNS = ("dx", "diagnostic", "diagnosis", *_ISIC_ARCHIVE, *_ISIC_2024)
"""Columns that spell a diagnosis, the most specific first."""
BINARY_COLUMNS = (
    "benign_malignant", "target", "malignant", "is_malignant", "malignancy", "label", "class",
)  # fmt: skip
"""Columns that say benign or malignant, in words or as 0 and 1."""
BENIGN, MALIGNANT = "benign", "malignant"
ONE_HOT = {
    "mel": "mel", "nv": "nv", "bcc": "bcc", "akiec": "akiec", "ak": "akiec", "bkl": "bkl",
    "df": "df", "vasc": "vasc", "scc": "scc", "sccka": "scc",
    "ben_oth": BENIGN, "inf": BENIGN, "mal_oth": MALIGNANT,
}  # fmt: skip
"""Columns of ISIC 2018 and 2019 and of MILK10k that hold 1 for the class of an image or lesion.

MILK10k's other benign and malignant lesions, and its inflammations, are no class of most tasks.
"""
ONE_HOT_UNKNOWN = "unk"
_ISIC_2017 = ("melanoma", "seborrheic_keratosis")

SPELLINGS: dict[str, tuple[str, ...]] = {
    "akiec": (
        "ack", "ak", "actinic keratosis", "solar keratosis", "solar or actinic keratosis",
        "bowens disease", "bowen disease", "intraepithelial carcinoma",
        "squamous cell carcinoma in situ", "intraepithelial carcinoma bowens disease",
        "actinic keratosis bowens disease", "actinic keratosis intraepithelial carcinoma",
        "actinic keratosis and intraepithelial carcinoma",
        "actinic keratosis and intraepithelial carcinoma bowens disease",
    ),
    "bcc": (
        "basal cell carcinoma", "nodular basal cell carcinoma", "superficial basal cell carcinoma",
        "pigmented basal cell carcinoma", "infiltrating basal cell carcinoma", "basalioma",
    ),
    "bkl": (
        "sek", "seborrheic keratosis", "lichenoid keratosis", "lichen planus like keratosis",
        "solar lentigo", "lentigo nos", "lentigo simplex", "pigmented benign keratosis",
        "benign keratosis", "benign keratosis like lesion",
    ),
    "df": ("dermatofibroma", "fibrous histiocytoma"),
    "mel": (
        "melanoma", "malignant melanoma", "melanoma nos", "melanoma in situ", "in situ melanoma",
        "melanoma invasive", "invasive melanoma", "melanoma metastasis", "metastatic melanoma",
        "lentigo maligna", "lentigo maligna melanoma", "superficial spreading melanoma",
        "nodular melanoma", "acral melanoma", "acral lentiginous melanoma", "mucosal melanoma",
        "subungual melanoma", "amelanotic melanoma", "desmoplastic melanoma", "nevoid melanoma",
        "spitzoid melanoma", "melanoma less than 0.76 mm", "melanoma 0.76 to 1.5 mm",
        "melanoma more than 1.5 mm", "malignant melanocytic proliferations melanoma",
    ),
    "nv": (
        "nev", "nevus", "mole", "nevus nos", "melanocytic nevus", "clark nevus", "clarks nevus",
        "dysplastic nevus", "atypical nevus", "atypical mole", "dysplastic mole", "blue nevus",
        "spitz nevus", "reed or spitz nevus", "reed nevus", "congenital nevus",
        "congenital melanocytic nevus", "acquired nevus", "acquired melanocytic nevus",
        "combined nevus", "recurrent nevus", "dermal nevus", "intradermal nevus", "compound nevus",
        "junctional nevus", "common nevus", "halo nevus", "acral nevus", "benign nevus",
    ),
    "scc": (
        "squamous cell carcinoma", "invasive squamous cell carcinoma",
        "squamous cell carcinoma invasive", "squamous cell carcinoma nos", "keratoacanthoma",
    ),
    "vasc": (
        "vascular lesion", "hemangioma", "angioma", "cherry angioma", "cherry hemangioma",
        "angiokeratoma", "pyogenic granuloma",
    ),
    BENIGN: ("0", "0.0", "false", "no", "negative"),
    MALIGNANT: ("1", "1.0", "true", "yes", "positive"),
}  # fmt: skip
"""Diagnosis -> how people spell it, in the form that `_plain` gives.

Collected from HAM10000, the ISIC challenges and archive, PAD-UFES-20, derm7pt and Kaggle.
"""
_DIAGNOSIS_OF = {
    spelling: name for name, spellings in SPELLINGS.items() for spelling in (name, *spellings)
}
_BRITISH = (("naev", "nev"), ("haem", "hem"), ("rrhoe", "rrhe"))
_PLURALS = (
    ("nevi", "nevus"), ("oses", "osis"), ("omas", "oma"), ("omae", "oma"), ("omata", "oma"),
    ("lesions", "lesion"), ("moles", "mole"),
)  # fmt: skip
_BINARY_WORDS = {word for name in (BENIGN, MALIGNANT) for word in (name, *SPELLINGS[name])}
_NEVER_BOTH = {BENIGN: {"mel", "bcc", "scc"}, MALIGNANT: {"nv", "bkl", "df", "vasc"}}
"""Diagnoses that contradict a binary label. Actinic keratoses are found under either label."""
_MELANOMA = re.compile(r"melanom|lentigo maligna")
_MELANOMA_OR_NOT = ("melanoma", "is_melanoma")  # names of columns
_NO_MELANOMA = re.compile(r"\b(non|not|no)[-_ ]*melanom")
CONTRADICTION = "two labels that contradict each other"


def is_label(text: str, task: Task) -> bool:
    """Return whether a text names a class of a task, or is the word benign or malignant."""
    return says_binary(text) or class_in(text, task) is not None


def says_binary(text: str) -> bool:
    """Return whether a text is the word benign or malignant."""
    return text.casefold() in (BENIGN, MALIGNANT)


def how_to_read_binary(task: Task) -> str:
    """Return what to do with labels that only say benign or malignant."""
    return (
        f"Benign and malignant do not say which class of the task {task.name} an image shows: pass"
        f" --task {_BINARY_TASK}, or write one of {', '.join(task.classes)}, or a name such as"
        " nevus or melanoma, into a column dx"
    )


@functools.lru_cache(maxsize=4096)
def _plain(text: str) -> str:
    """Return a text in lower case, American and singular, without punctuation between words."""
    words = re.sub(r"[-_,()/\s]+", " ", text.casefold().replace("\u2019", "'").replace("'", ""))
    for british, american in _BRITISH:
        words = words.replace(british, american)
    return " ".join(map(_singular, words.split()))


def _singular(word: str) -> str:
    for plural, singular in _PLURALS:
        if word.endswith(plural):
            return word.removesuffix(plural) + singular
    return word


def diagnosis_of(text: str) -> str | None:
    """Return the diagnosis (a key of `SPELLINGS`) that a text spells, or None.

    Of ISIC's ``a::b::c`` the last known part counts, because it is the most specific.
    """
    parts = map(_plain, reversed(text.split("::")))
    return next((_DIAGNOSIS_OF[part] for part in parts if part in _DIAGNOSIS_OF), None)


def class_in(text: str, task: Task) -> str | None:
    """Return the class of a task that a text means, or None.

    The text may be the class's name, its name for people, a spelling that the task lists, or a
    known spelling of a diagnosis that the class holds. If a task splits a diagnosis over several
    classes, only the first three kinds are understood.
    """
    parts = [_plain(part) for part in text.split("::")]
    for name in (BENIGN, MALIGNANT):  # ISIC's ``Benign::...`` says it beside the diagnosis.
        if name in parts and name in task.classes:
            return name
    for name in task.classes:
        spelled = (name, task.name_of(name), *task.diagnoses.get(name, ()))
        if _plain(text) in map(_plain, spelled):
            return name
    return _class_holding(diagnosis_of(text), task)


def _class_holding(diagnosis: str | None, task: Task) -> str | None:
    holders = [] if diagnosis is None else _holders(diagnosis, task)
    return holders[0] if len(holders) == 1 else None


def _holders(diagnosis: str, task: Task) -> list[str]:
    """Return the classes that hold a diagnosis, by their own names or by what the task lists."""
    return [
        name
        for name in task.classes
        if diagnosis in map(diagnosis_of, (name, *task.diagnoses.get(name, ())))
    ]


def says_target(text: str, task: Task) -> bool:
    """Return whether a text says that a lesion is a target.

    A text that spells no known diagnosis counts if it speaks of melanoma.
    """
    name = class_in(text, task)
    if name is not None:
        return name in task.targets
    words = text.casefold()
    is_melanoma = bool(_MELANOMA.search(words)) and not _NO_MELANOMA.search(words)
    return is_melanoma and not set(task.targets).isdisjoint(_holders("mel", task))


def has_diagnosis(columns: Iterable[str], task: Task) -> bool:
    """Return whether some columns, in lower case, say which class of a task an image shows."""
    names = set(columns)
    return (
        any(name in names for name in DIAGNOSIS_COLUMNS)
        or {"mel", "nv"} <= names
        or set(_ISIC_2017) <= names
        or (_is_binary(task) and any(name in names for name in BINARY_COLUMNS))
        or set(task.classes) <= names
    )


def _is_binary(task: Task) -> bool:
    return task.class_of(BENIGN) is not None and task.class_of(MALIGNANT) is not None


def read_diagnoses(rows: pd.DataFrame, task: Task) -> list[tuple[str, str]]:
    """Return, for each row, its class (or "") and what the table says.

    Raises:
        DataError: if the labels are binary and the task is not.
    """
    named = [name for name in DIAGNOSIS_COLUMNS if name in rows.columns]
    columns = {*named, *BINARY_COLUMNS, *ONE_HOT, ONE_HOT_UNKNOWN, *_ISIC_2017, *task.classes}
    rows = rows[[column for column in rows.columns if column in columns]]
    if not _is_binary(task):
        said = {value.casefold() for name in named for value in rows[name] if value}
        if said and said <= _BINARY_WORDS:
            raise DataError(_refuse_binary(named, "The metadata", task))
        return [_diagnosis(row, named, task) for row in rows.to_dict("records")]
    binary = next(
        (name for name in BINARY_COLUMNS if name in rows.columns and _says_binary(rows[name])), None
    )
    if not named:  # A column such as label may hold diagnoses too.
        named = [name for name in BINARY_COLUMNS if name in rows.columns and name != binary]
    return [_binary_diagnosis(row, named, binary, task) for row in rows.to_dict("records")]


def _diagnosis(row: dict[Any, str], named: Sequence[str], task: Task) -> tuple[str, str]:
    given = [row[name] for name in named if row[name]]
    for text in given:
        name = class_in(text, task)
        if name is not None:
            return name, text
    diagnosis, said = _marked(row, task)
    if diagnosis is not None and not given:
        own = diagnosis if diagnosis in task.classes and diagnosis not in SPELLINGS else None
        return own or _class_holding(diagnosis, task) or "", said
    return "", given[0] if given else said


def _marked(row: dict[Any, str], task: Task) -> tuple[str | None, str]:
    """Return the diagnosis whose column holds 1, or None, and what the row says.

    For tables with one column for each diagnosis.
    """
    if set(_ISIC_2017) <= row.keys() and not {"mel", "nv"} <= row.keys():
        # ISIC 2017 has no column for its third class, nevus: both columns then hold 0.
        values = [row[name] for name in _ISIC_2017]
        known = {("1", "0"): "mel", ("0", "1"): "bkl", ("0", "0"): "nv"}
        return known.get((values[0].removesuffix(".0"), values[1].removesuffix(".0"))), "+".join(
            values
        )
    columns = {**dict.fromkeys(task.classes), **ONE_HOT, ONE_HOT_UNKNOWN: None}
    marked = [name for name in columns if row.get(name) in ("1", "1.0")]
    said = "+".join(name.upper() for name in marked)
    if len(marked) != 1:
        return None, said
    name = marked[0]
    if name in task.classes and name not in SPELLINGS:  # a class of the task's own
        return name, said
    return ONE_HOT.get(name, name if name in task.classes else None), said


def _binary_diagnosis(
    row: dict[Any, str], named: Sequence[str], binary: str | None, task: Task
) -> tuple[str, str]:
    """Return the class of a row (or "") and what it says, for a binary task.

    The binary label decides if there is one. A diagnosis beside it must not contradict it.
    """
    name, said = _diagnosis(row, named, task)
    label = diagnosis_of(row[binary]) if binary is not None and row[binary] else None
    if label not in (BENIGN, MALIGNANT):
        return name, said
    spelled = {diagnosis_of(row[column]) for column in named if row[column]}
    if spelled & _NEVER_BOTH[label]:
        return "", f"{said} and {label}, {CONTRADICTION}"
    return task.class_of(label) or "", row[binary or ""]


def _says_binary(values: pd.Series) -> bool:
    said = {value.casefold() for value in values if value}
    return bool(said) and said <= _BINARY_WORDS | {"indeterminate", "unknown"}


def no_diagnosis(tables: Sequence[Table], task: Task) -> DataError:
    """Return the error for tables of which none has a diagnosis."""
    for table in tables:
        binary = [
            name
            for name in table.rows.columns
            if name in BINARY_COLUMNS or _says_benign(table.rows[name])
        ]
        if binary:
            return DataError(_refuse_binary(binary, table.name, task))
        melanoma = [name for name in table.rows.columns if name in _MELANOMA_OR_NOT]
        if melanoma:
            return DataError(
                f"{table.name} says only whether an image shows a melanoma ({melanoma[0]})."
                " Write melanoma or other into a column dx, and pass --task with a JSON file that"
                " names these two classes."
            )
    columns = "; ".join(
        f"{table.name} has the columns {', '.join(table.header)}" for table in tables[:3]
    )
    return DataError(
        f"The metadata must have a diagnosis column ({', '.join(DIAGNOSIS_COLUMNS[:4])} or MEL, NV,"
        f" BCC, ...); {columns}. Rename the column that holds it to dx."
    )


def _says_benign(values: pd.Series) -> bool:
    said = {value.casefold() for value in values if value}
    return bool(said) and said <= {BENIGN, MALIGNANT}


def _refuse_binary(columns: Sequence[str], table: str, task: Task) -> str:
    return f"{table} has binary labels only ({', '.join(columns)}). {how_to_read_binary(task)}."


_BINARY_TASK = next(task.name for task in TASKS.values() if _is_binary(task))
