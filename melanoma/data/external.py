"""External data: the usable rows of a SOURCE folder, grouped, and an account of the others.

Reads images only to find copies.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import pandas as pd

from melanoma.data.groups import join_groups, key_column
from melanoma.data.image_files import read_image
from melanoma.data.left_out import LeftOut, count_left_out, describe_left_out, left_out_sentence
from melanoma.data.metadata import ALIASES
from melanoma.data.records import Source, read_source
from melanoma.data.rejections import WITHOUT_ROW, Rejection, faults_in
from melanoma.errors import DataError
from melanoma.io.storage import AnyPath, is_address
from melanoma.task import Task

EXTERNAL = "external"


@dataclasses.dataclass(frozen=True)
class External:
    """External data.

    Attributes:
        records: every row of the metadata.
        rows: the usable rows, with group and split.
        rejections: what is wrong with the other rows, and images without a row.
        notes: sentences on decisions that the owner of the data should know.
        task: of the bundle.
    """

    records: pd.DataFrame
    rows: pd.DataFrame
    rejections: list[Rejection]
    notes: list[str]
    task: Task

    def left_out(self, unreadable: Sequence[Rejection], *, skip_bad: bool) -> LeftOut:
        """Count what is left out, including images that could not be read.

        Args:
            unreadable: images that could not be read.
            skip_bad: leave such images out instead of refusing them.

        Raises:
            DataError: if there are unreadable images and they may not be left out.
        """
        if unreadable and not skip_bad:
            raise _refusal(self.records, unreadable, self.task)
        rejected = [
            (rejection.image_id, rejection.reason) for rejection in (*self.rejections, *unreadable)
        ]
        return count_left_out(rejected, self.records, self.task)


def read_external(
    folder: AnyPath, task: Task, group_columns: Sequence[str], *, skip_bad: bool
) -> External:
    """Read a SOURCE folder.

    Every fault of the metadata is found before any image is read.

    Args:
        folder: SOURCE.
        task: of the bundle.
        group_columns: of the bundle; used if the metadata have neither patient_id nor lesion_id.
        skip_bad: leave out bad rows instead of refusing them.

    Raises:
        DataError: if the folder has no usable row, no column that groups images, or bad rows that
            may not be left out.
    """
    source = read_source(folder, task)
    source.check_found()
    columns = _group_columns(source, group_columns)
    faults = [each for each in faults_in(source.rejections) if each.reason != WITHOUT_ROW]
    if faults and not skip_bad:
        raise _refusal(source.records, faults, task)
    bad = {each.image_id for each in source.rejections if each.reason != WITHOUT_ROW}
    rows = source.records[~source.records["image_id"].isin(bad)].reset_index(drop=True)
    external = External(source.records, rows, source.rejections, source.notes, task)
    if rows.empty:
        said = left_out_sentence(external.left_out([], skip_bad=True), task)
        raise DataError(f"SOURCE must hold at least one usable image; {folder} has none. {said}")
    keys = [rows[key_column(column)].tolist() for column in columns]
    # A copy under another name belongs to the group of the original.
    digests = [_digest(path) for path in rows["path"]]
    keys.append(digests)
    grouped = rows.assign(
        group=join_groups(rows["image_id"].tolist(), keys), split=EXTERNAL, sha256=digests
    )
    return dataclasses.replace(external, rows=grouped)


def _group_columns(source: Source, of_bundle: Sequence[str]) -> tuple[str, ...]:
    known = {*source.metadata.rows, *ALIASES["image_id"]}
    own = tuple(name for name in of_bundle if name in known)
    if not source.group_columns and not own:
        raise DataError(
            "The metadata must have patient_id or lesion_id, because intervals are drawn over"
            f" patients or lesions; they have the columns {', '.join(source.metadata.header)}."
            " Add one of the two."
        )
    return source.group_columns or source.group_by(own)


def _digest(path: str) -> str:
    """Return the sha256 of an image, or "" if it cannot be read.

    An unreadable image is rejected later, when it is decoded.
    """
    try:
        return hashlib.sha256(read_image(path)).hexdigest()
    except OSError:
        if is_address(path):
            raise
        return ""


def _refusal(records: pd.DataFrame, faults: Sequence[Rejection], task: Task) -> DataError:
    counts = describe_left_out(
        count_left_out([(fault.image_id, fault.reason) for fault in faults], records, task)
    )
    return DataError(
        f"Every row of SOURCE must be usable; {len({fault.image_id for fault in faults})} are not:"
        f" {counts}. The first is {faults[0].image_id}: {faults[0].detail.rstrip('.')}. Fix them"
        " or pass --skip-bad."
    )
