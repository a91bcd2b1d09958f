"""Reads a SOURCE folder into one validated table of records, without reading a pixel.

It understands HAM10000, ISIC 2016 (no header), 2017, 2018 and 2019 (one-hot ground truth, several
tables joined), 2020 and 2024, exports of the ISIC Archive, MILK10k (ground truth by lesion),
BCN20000, PAD-UFES-20, and any table with image ids, diagnoses and a column that groups images.
"""

import dataclasses
from collections.abc import Iterable

import pandas as pd

from melanoma.data.diagnoses import CONTRADICTION, read_diagnoses
from melanoma.data.group_ids import known_ids, tell_sources_apart
from melanoma.data.groups import GROUP_COLUMNS, key_column
from melanoma.data.image_files import ImageFiles, find_images
from melanoma.data.metadata import (
    ALIASES,
    GIVEN,
    IMAGE_TYPE,
    KEY,
    TABLE,
    Metadata,
    read_metadata,
)
from melanoma.data.rejections import NOT_DERMOSCOPIC, WITHOUT_ROW, Rejection, reject_conflicts
from melanoma.data.standards import is_clinical, reference_standard, skin_tone_class, skin_type
from melanoma.errors import DataError
from melanoma.io.storage import AnyPath, files_below
from melanoma.places import check_source
from melanoma.task import Task

SKIN_TONE = ALIASES["skin_type"][-1]


@dataclasses.dataclass(frozen=True)
class Source:
    """What a SOURCE folder holds.

    Attributes:
        records: a row for each metadata row, usable or not: image_id, lesion_id, patient_id, dx,
            dx_given, dx_type, label, age, sex, site, source, skin_type, path.
        rejections: every reason found so far.
        group_columns: those of patient_id and lesion_id that the metadata fill in for at least one
            image.
        metadata: the tables as they were read.
        files: the images below the folder.
        notes: sentences on decisions that the owner of the data should know.
    """

    records: pd.DataFrame
    rejections: list[Rejection]
    group_columns: tuple[str, ...]
    metadata: Metadata
    files: ImageFiles
    notes: list[str]

    def check_found(self) -> None:
        """Raise DataError if no image that the metadata name is there."""
        if not (self.records["path"] != "").any():
            raise DataError(
                self.files.none_found(self.records["image_id"].tolist(), self.metadata.names)
            )

    def group_by(self, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
        """Choose the columns that group images.

        Chosen columns other than patient_id and lesion_id are added to the records.

        Args:
            wanted: names of columns of the metadata. None takes those of patient_id and lesion_id
                that are filled in.

        Returns:
            The names of the columns, in lower case.

        Raises:
            DataError: if a column is missing or blank in every row, or None is given and there is
                neither a patient_id nor a lesion_id.
        """
        there = f"The metadata have the columns {', '.join(self.metadata.header)}."
        if wanted is None:
            if not self.group_columns:
                raise DataError(
                    "The metadata must have the columns that group images; they give no image a"
                    f" patient_id or lesion_id. {there} Add one of the two, or name others with"
                    " --group-by. If no two images show the same patient, pass --group-by image_id."
                )
            return self.group_columns
        return tuple(self._group_column(name.strip(), there) for name in wanted)

    def _group_column(self, wanted: str, there: str) -> str:
        name = wanted.casefold()
        if name in ALIASES["image_id"]:
            self.records[key_column(name)] = self.records["image_id"]
            return name
        if name not in (self.group_columns if name in GROUP_COLUMNS else self.metadata.rows):
            raise DataError(
                f"The metadata must have the columns that group images; they lack {wanted}."
                f" {there} Add it, or name others with --group-by."
            )
        if name not in GROUP_COLUMNS:
            ids, notes = known_ids(self.metadata.rows[name], wanted)
            ids, more = tell_sources_apart(
                ids, _origins(self.metadata, self.records), self.records["sex"], wanted
            )
            if not (ids != "").any():
                raise DataError(
                    f"--group-by must name columns that group images; {wanted} is blank in every"
                    " row. Name others."
                )
            self.records[key_column(name)] = ids
            self.notes.extend([*notes, *more])
        return name


def read_source(folder: AnyPath, task: Task) -> Source:
    """Read the metadata of a SOURCE folder and find its images.

    Images are found anywhere below the folder; links are followed. Folders named ``masks`` are
    skipped, because they hold segmentations.

    Args:
        folder: SOURCE.
        task: the classes that diagnoses are read as.

    Raises:
        DataError: if the folder, its metadata or a required column is missing.
    """
    check_source(folder)
    below = files_below(folder)
    metadata, files = read_metadata(folder, below, task), find_images(folder, below)
    records, groups, notes = _normalise(metadata, task)
    found = [
        files.find(*ids) for ids in zip(records["image_id"], metadata.rows[GIVEN], strict=True)
    ]
    # As objects, because a file name need not be UTF-8 and the strings of pandas must be.
    records["path"] = pd.Series(
        [str(paths[0]) if paths else "" for paths in found], index=records.index, dtype=object
    )
    rejections = [
        *_reject_rows(records, metadata, task),
        *_reject_images(records, found, files, metadata.passed_over),
    ]
    clinical = _is_clinical(metadata)
    if clinical.all():
        raise DataError(
            f"SOURCE must hold dermoscopic images; {IMAGE_TYPE} calls all {len(records)} of them"
            " clinical. Take other images."
        )
    records.loc[clinical, "path"] = ""  # never decoded
    left = len(set(files.by_stem) & metadata.passed_over)
    notes = [
        *metadata.notes,
        *notes,
        *(
            [f"{left} images are named only by tables that are ignored; they are ignored too"]
            if left
            else []
        ),
    ]
    return Source(records, rejections, groups, metadata, files, notes)


def _normalise(metadata: Metadata, task: Task) -> tuple[pd.DataFrame, tuple[str, ...], list[str]]:
    rows = metadata.rows
    records = pd.DataFrame({"image_id": rows[KEY]}, index=rows.index)
    for name in (name for name in ALIASES if name != "image_id"):
        column = next((alias for alias in ALIASES[name] if alias in rows), None)
        records[name] = rows[column] if column else ""
    records["age"] = pd.to_numeric(records["age"].str.replace(",", "."), errors="coerce").where(
        lambda age: age > 0
    )
    records["dx_type"] = records["dx_type"].map(reference_standard)
    only_tone = not any(name in rows for name in ALIASES["skin_type"] if name != SKIN_TONE)
    records["skin_type"] = records["skin_type"].map(skin_tone_class if only_tone else skin_type)
    diagnoses = read_diagnoses(rows, task)
    records["dx"] = [dx for dx, _ in diagnoses]
    records["dx_given"] = [given for _, given in diagnoses]
    records["label"] = (
        records["dx"]
        .map({name: index for index, name in enumerate(task.classes)})
        .fillna(-1)
        .astype(int)
    )
    notes = _clean_ids(records, metadata)
    groups = tuple(name for name in GROUP_COLUMNS if (records[name] != "").any())
    return records, groups, notes


def _clean_ids(records: pd.DataFrame, metadata: Metadata) -> list[str]:
    """Clean the ids of patients and lesions in place and return notes on what was done.

    Ids that mean "not known" become blank. Equal ids that several sources or patients use for
    different things get a prefix.
    """
    origins, notes = _origins(metadata, records), list[str]()
    for column, trait in (("patient_id", "sex"), ("lesion_id", "dx")):
        records[column], unknown = known_ids(records[column], column)
        if column == "lesion_id":
            # PAD-UFES-20 numbers lesions, and lesions of several patients may share a number.
            is_number = records[column].str.fullmatch(r"\d+") & (records["patient_id"] != "")
            records[column] = records[column].where(
                ~is_number, records["patient_id"] + "/" + records[column]
            )
        records[column], apart = tell_sources_apart(
            records[column], origins, records[trait], column
        )
        notes += [*unknown, *apart]
    return notes


def _origins(metadata: Metadata, records: pd.DataFrame) -> pd.Series:
    """Return where each row comes from.

    That is its source, or its table if the row has no source or several tables share the source.
    """
    tables, sources = metadata.rows[TABLE].map(_without_ending), records["source"]
    if tables.nunique() < 2:
        return sources
    is_own = tables.groupby(sources).transform("nunique") == 1
    return sources.where(is_own & (sources != ""), tables)


def _without_ending(table: str) -> str:
    return table.rpartition(".")[0] or table


def _is_clinical(metadata: Metadata) -> pd.Series:
    """Return which rows are of images that no dermatoscope took, as far as the tables say so."""
    rows = metadata.rows
    if IMAGE_TYPE not in rows:
        return pd.Series(False, index=rows.index)
    return rows[IMAGE_TYPE].map(is_clinical).astype(bool)


def _reject_rows(records: pd.DataFrame, metadata: Metadata, task: Task) -> Iterable[Rejection]:
    clinical = _is_clinical(metadata)
    for image_id in records.loc[clinical, "image_id"]:
        yield Rejection(
            image_id, NOT_DERMOSCOPIC, f"{IMAGE_TYPE} calls it clinical, not dermoscopic"
        )
    unlabelled = (records["label"] < 0) & ~clinical
    for image_id, given in records.loc[unlabelled, ["image_id", "dx_given"]].itertuples(
        index=False
    ):
        if given.endswith(CONTRADICTION):
            yield Rejection(image_id, "contradicting_labels", f"the row says {given}")
        else:
            yield Rejection(
                image_id,
                "unknown_dx",
                f"dx {given!r} is not one of {', '.join(task.classes)} or a known name of one",
            )
    for image_id in records.loc[records["image_id"] == "", "image_id"]:
        yield Rejection(image_id, "no_image_id", "the row has no image id")
    twice = records["image_id"].duplicated(keep=False) & (records["image_id"] != "")
    for image_id, rows in metadata.rows[twice].groupby(records.loc[twice, "image_id"]):
        differing = [
            name
            for name in rows.columns
            if name not in (KEY, GIVEN, TABLE) and rows[name].nunique() > 1
        ]
        detail = (
            f"{len(rows)} rows have this image_id and differ in {', '.join(differing) or 'nothing'}"
        )
        yield Rejection(str(image_id), "image_id_twice", detail)
    noun = "its lesion"
    if _are_plain_numbers(records, metadata):
        noun = (
            "its lesion, whose id is a plain number that two hospitals may both use (a column"
            " dataset tells them apart),"
        )
    yield from reject_conflicts(records, "lesion_id", "lesion_with_two_labels", noun)


def _are_plain_numbers(records: pd.DataFrame, metadata: Metadata) -> bool:
    given = metadata.rows["lesion_id"] if "lesion_id" in metadata.rows else pd.Series(dtype=str)
    known = given[given != ""]
    return bool(
        len(known)
        and known.str.fullmatch(r"\d+").all()
        and not (_origins(metadata, records) != "").any()
    )


def _reject_images(
    records: pd.DataFrame,
    found: list[list[AnyPath]],
    files: ImageFiles,
    passed_over: frozenset[str],
) -> Iterable[Rejection]:
    by_id = dict(zip(records["image_id"], found, strict=True))
    by_id.pop("", None)
    for image_id, paths in by_id.items():
        if not paths:
            yield Rejection(image_id, "image_missing", files.why_missing(image_id))
    for stem in sorted(set(files.by_stem) - {_last(image_id) for image_id in by_id} - passed_over):
        yield Rejection(stem, WITHOUT_ROW, "no metadata row names this image")
    for image_id, paths in sorted(by_id.items()):
        if len(paths) > 1:
            yield Rejection(
                image_id, "image_twice", f"{len(paths)} images below SOURCE have this name"
            )


def _last(image_id: str) -> str:
    return image_id.rpartition("/")[2]
