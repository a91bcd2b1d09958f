"""Metadata tables of the public data sets -> one validated table of records; reads no pixel.

Understood: HAM10000, ISIC 2018 and 2019 (one-hot ground truth, several tables joined), ISIC 2020, the ISIC Archive's own
export, PAD-UFES-20.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import pandas as pd

from melanoma.config import CLASSES
from melanoma.errors import DataError
from melanoma.storage import Place, files_below

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
_ALIASES = {
    "image_id": ("image_id", "isic_id", "image_name", "image", "img_id"),
    "lesion_id": ("lesion_id",),
    "patient_id": ("patient_id",),
    "age": ("age", "age_approx"),
    "sex": ("sex", "gender"),
    "site": ("localization", "anatom_site_general_challenge", "anatom_site_general", "region"),
    "source": ("dataset", "attribution"),
}
_DIAGNOSIS_COLUMNS = ("dx", "diagnostic", "diagnosis", "diagnosis_5", "diagnosis_4", "diagnosis_3", "diagnosis_2")
_ONE_HOT = {
    "MEL": "mel",
    "NV": "nv",
    "BCC": "bcc",
    "AKIEC": "akiec",
    "AK": "akiec",
    "BKL": "bkl",
    "DF": "df",
    "VASC": "vasc",
}
_ONE_HOT_REFUSED = ("SCC", "UNK")
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


@dataclasses.dataclass(frozen=True)
class Rejection:
    """One reason why one picture cannot be used."""

    image_id: str
    reason: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Source:
    """What a SOURCE folder holds.

    Attributes:
        records: one row a metadata row: image_id, lesion_id, patient_id, dx, label, age, sex, site, source, path; unusable rows too.
        rejections: every reason found so far.
        group_columns: which of patient_id and lesion_id the metadata have, and fill in for at least one picture.
    """

    records: pd.DataFrame
    rejections: list[Rejection]
    group_columns: tuple[str, ...]


def read_source(folder: Place) -> Source:
    """Read the metadata of a SOURCE folder and find its pictures anywhere below it.

    Folders named ``masks`` are passed over: they hold segmentations, not pictures.

    Raises:
        DataError: if the folder, its metadata or a required column is missing.
    """
    if not folder.is_dir():
        raise DataError(f"SOURCE must be a folder with a metadata CSV and pictures, {folder} is not a folder.")
    table = _read_metadata(folder)
    records, groups = _normalise(table)
    paths, doubled = _find_pictures(folder)
    records["path"] = [paths.get(image_id, "") for image_id in records["image_id"]]
    rejections = [*_reject_rows(records), *_reject_pictures(records, paths, doubled)]
    return Source(records, rejections, groups)


def _read_metadata(folder: Place) -> pd.DataFrame:
    tables = []
    for path in files_below(folder, {".csv"}):
        try:
            with path.open("rb") as file:
                table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise DataError(f"{path.name} must be a CSV table in UTF-8; repair or remove it ({error}).") from error
        table.columns = [str(column).strip() for column in table.columns]
        name = _first(table, _ALIASES["image_id"])
        if name:
            tables.append(table.rename(columns={name: "image_id"}))
    if not tables:
        known = ", ".join(_ALIASES["image_id"])
        raise DataError(f"{folder} must hold a metadata CSV with one of the columns {known}; none was found.")
    merged = tables[0]
    for table in tables[1:]:
        shared = [column for column in table.columns if column in merged.columns and column != "image_id"]
        if shared or table["image_id"].duplicated().any() or merged["image_id"].duplicated().any():
            raise DataError(
                "SOURCE must hold one metadata CSV, or several that share only the image id; move the others away."
            )
        merged = merged.merge(table, on="image_id", how="outer").fillna("")
    return merged


def _first(table: pd.DataFrame, names: Iterable[str]) -> str | None:
    return next((name for name in names if name in table.columns), None)


def _normalise(table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    records = pd.DataFrame(index=table.index)
    for name, aliases in _ALIASES.items():
        column = _first(table, aliases)
        records[name] = table[column].str.strip() if column else ""
    # PAD-UFES-20 counts lesions; the same number stands for lesions of several patients.
    is_number = records["lesion_id"].str.fullmatch(r"\d+") & (records["patient_id"] != "")
    records["lesion_id"] = records["lesion_id"].where(~is_number, records["patient_id"] + "/" + records["lesion_id"])
    records["image_id"] = records["image_id"].map(without_suffix)
    records["age"] = pd.to_numeric(records["age"], errors="coerce").where(lambda age: age > 0)
    diagnoses = _diagnoses(table)
    records["dx"] = [dx or "" for dx, _ in diagnoses]
    records["dx_given"] = [given for _, given in diagnoses]
    records["label"] = records["dx"].map({name: index for index, name in enumerate(CLASSES)}).fillna(-1).astype(int)
    groups = tuple(name for name in ("patient_id", "lesion_id") if (records[name] != "").any())
    return records, groups


def without_suffix(name: str) -> str:
    """Return an image id as some tables write it, with the suffix of its file, without that."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in IMAGE_SUFFIXES else name


def _diagnoses(table: pd.DataFrame) -> list[tuple[str | None, str]]:
    """Return for each row its class, or None, and what the table says."""
    hot = [name for name in (*_ONE_HOT, *_ONE_HOT_REFUSED) if name in table.columns]
    named = [name for name in _DIAGNOSIS_COLUMNS if name in table.columns]
    if not named and not ("MEL" in hot and "NV" in hot):
        raise DataError(
            f"the metadata must have a diagnosis column ({', '.join(_DIAGNOSIS_COLUMNS)} or MEL, NV, BCC, ...); none was found."
        )
    return [_diagnosis(row, named, hot) for row in table[named + hot].to_dict("records")]


def _diagnosis(row: dict[Any, str], named: list[str], hot: list[str]) -> tuple[str | None, str]:
    given = [row[name].strip() for name in named if row[name].strip()]
    for text in given:
        if text.lower() in _BY_NAME:
            return _BY_NAME[text.lower()], text
    marked = [name for name in hot if row[name].strip() in {"1", "1.0"}]
    if len(marked) == 1 and not given:
        return _ONE_HOT.get(marked[0]), marked[0]
    return None, given[0] if given else "+".join(marked)


def _find_pictures(folder: Place) -> tuple[dict[str, str], dict[str, int]]:
    """Return image_id -> path, and image_id -> number of files where there are several."""
    paths: dict[str, str] = {}
    number: dict[str, int] = {}
    for path in files_below(folder, IMAGE_SUFFIXES):
        if "masks" not in path.parts[len(folder.parts) : -1]:
            paths.setdefault(path.stem, str(path))
            number[path.stem] = number.get(path.stem, 0) + 1
    return paths, {image_id: count for image_id, count in number.items() if count > 1}


def _reject_rows(records: pd.DataFrame) -> Iterable[Rejection]:
    for image_id, given in records.loc[records["label"] < 0, ["image_id", "dx_given"]].itertuples(index=False):
        yield Rejection(image_id, "unknown_dx", f"dx {given!r} is none of {', '.join(CLASSES)} nor a known name of one")
    for image_id in records.loc[records["image_id"] == "", "image_id"]:
        yield Rejection(image_id, "no_image_id", "the row has no image id")
    for image_id in sorted(set(records.loc[records["image_id"].duplicated(), "image_id"]) - {""}):
        yield Rejection(
            image_id, "image_id_twice", f"{int((records['image_id'] == image_id).sum())} rows have this image_id"
        )
    yield from reject_conflicts(records, "lesion_id", "lesion_with_two_labels", "its lesion")


def reject_conflicts(records: pd.DataFrame, column: str, reason: str, noun: str) -> Iterable[Rejection]:
    """Yield a rejection for every picture whose lesion, or whose pixels, stand in the table under two labels."""
    known = records[(records[column] != "") & (records["label"] >= 0)]
    for _, rows in known.groupby(column):
        names = sorted(set(rows["dx"]))
        if len(names) > 1:
            for image_id in rows["image_id"]:
                yield Rejection(image_id, reason, f"{noun} is labelled {' and '.join(names)}")


def _reject_pictures(records: pd.DataFrame, paths: dict[str, str], doubled: dict[str, int]) -> Iterable[Rejection]:
    for image_id in records.loc[(records["path"] == "") & (records["image_id"] != ""), "image_id"].unique():
        yield Rejection(image_id, "picture_missing", "no picture of this name lies below SOURCE")
    rows = set(records["image_id"])
    for image_id in sorted(set(paths) - rows):
        yield Rejection(image_id, "picture_without_row", "no metadata row names this picture")
    for image_id, count in sorted(doubled.items()):
        if image_id in rows:
            yield Rejection(image_id, "picture_twice", f"{count} pictures below SOURCE have this name")
