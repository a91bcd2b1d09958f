"""Reasons why images cannot be used, and the table that lists them: rejected.csv."""

import dataclasses
from collections.abc import Iterable, Sequence

import pandas as pd

from melanoma.errors import InvalidImageError
from melanoma.io.files import write_text
from melanoma.io.storage import AnyPath

WITHOUT_ROW, UNREADABLE, BLANK = "image_without_row", "image_unreadable", "blank_image"
NOT_DERMOSCOPIC = "not_dermoscopic"
"""Of an image that its table calls clinical. It is left out without being a fault."""


@dataclasses.dataclass(frozen=True)
class Rejection:
    """One reason why one image cannot be used.

    Attributes:
        image_id: of the image; "" if its row has none.
        reason: a short code such as image_missing.
        detail: the reason in words.
    """

    image_id: str
    reason: str
    detail: str


def reject_conflicts(
    records: pd.DataFrame, column: str, reason: str, noun: str
) -> Iterable[Rejection]:
    """Yield a rejection for every image whose value in a column has two labels in the records.

    Args:
        records: rows with image_id, label, dx and the column.
        column: what must have one label, such as lesion_id; blank values are ignored.
        reason: the code of the rejection.
        noun: the value in words, for the detail.
    """
    known = records[(records[column] != "") & (records["label"] >= 0)]
    conflicting = known[known.groupby(column)["dx"].transform("nunique") > 1]
    for _, rows in conflicting.groupby(column):
        names = " and ".join(sorted(set(rows["dx"])))
        for image_id in rows["image_id"]:
            yield Rejection(image_id, reason, f"{noun} is labelled {names}")


def faults_in(rejections: Iterable[Rejection]) -> list[Rejection]:
    """Return the rejections that are faults, of images that are not left out for what they are."""
    found = list(rejections)
    expected = {each.image_id for each in found if each.reason == NOT_DERMOSCOPIC}
    return [each for each in found if each.image_id not in expected]


def reason_of(error: InvalidImageError) -> str:
    """Return the reason under which an image is rejected for an error of decoding."""
    return BLANK if "blank" in error.code else UNREADABLE


def write_rejections(path: AnyPath, rejections: Sequence[Rejection]) -> None:
    """Write rejections as CSV, sorted by reason and image_id."""
    table = pd.DataFrame(
        [dataclasses.asdict(rejection) for rejection in rejections],
        columns=["image_id", "reason", "detail"],
    )
    write_text(path, table.sort_values(["reason", "image_id"]).to_csv(index=False))
