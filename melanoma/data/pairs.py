"""Pairs of images that show one lesion although no id says so: the file of `--same-lesion`."""

from collections.abc import Iterable

import pandas as pd

from melanoma.data.names import image_id_of, shown
from melanoma.data.rejections import Rejection
from melanoma.data.tables import read_rows
from melanoma.errors import DataError
from melanoma.io.storage import AnyPath


def read_pairs(path: AnyPath | None, known: set[str]) -> list[tuple[str, str]]:
    """Return the pairs of known images in a CSV whose first two columns are image ids.

    Args:
        path: the CSV; None gives no pairs.
        known: image ids of SOURCE. Pairs with any other id are ignored.

    Raises:
        DataError: if the CSV has fewer columns, or no pair is known.
    """
    if path is None:
        return []
    rows = read_rows(path)
    if max((len(row) for row in rows), default=0) < 2:
        raise DataError(
            f"--same-lesion must be a CSV whose first two columns are image ids; {shown(path.name)}"
            " has one column. Write one pair in each row."
        )
    pairs = [(image_id_of(row[0]), image_id_of(row[1])) for row in rows if len(row) > 1]
    # The first line may be a header. SOURCE may be part of a larger set, so other pairs may name
    # no image here and join nothing.
    found = [(a, b) for a, b in pairs if a in known and b in known]
    if not found:
        raise DataError(
            f"--same-lesion must name images of SOURCE; no pair of {shown(path.name)} does. Its"
            f" last pair is {' and '.join(pairs[-1])}; the first image of SOURCE is"
            f" {min(known, default='')}."
        )
    return found


def reject_pairs(records: pd.DataFrame, pairs: list[tuple[str, str]]) -> Iterable[Rejection]:
    """Yield a rejection for both images of each known pair with two labels."""
    dx = records.drop_duplicates("image_id").set_index("image_id")["dx"]
    for a, b in pairs:
        if dx[a] and dx[b] and dx[a] != dx[b]:
            for image_id in (a, b):
                yield Rejection(
                    image_id,
                    "pair_with_two_labels",
                    f"its known pair is labelled {dx[a]} and {dx[b]}",
                )
