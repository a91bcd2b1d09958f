"""Pictures known to show one lesion though no id says so: the file of `--same-lesion`."""

from collections.abc import Iterable

import pandas as pd

from melanoma.data.records import Rejection, without_suffix
from melanoma.errors import DataError
from melanoma.storage import Place


def read_pairs(path: Place | None, known: set[str]) -> list[tuple[str, str]]:
    """Return the pairs of a CSV whose first two columns are image ids, as far as both are known; none without a file.

    Raises:
        DataError: if it has fewer columns, or no pair is known.
    """
    if path is None:
        return []
    with path.open("rb") as file:
        table = pd.read_csv(file, dtype=str, header=None, keep_default_na=False)
    if table.shape[1] < 2:
        raise DataError(
            f"--same-lesion must be a CSV whose first two columns are image ids, {path.name} has {table.shape[1]}."
        )
    pairs = [
        (without_suffix(a.strip()), without_suffix(b.strip())) for a, b in table.iloc[:, :2].itertuples(index=False)
    ]
    # The first line may be a header; every other pair that names no picture here, of a part of a larger set, joins nothing.
    found = [(a, b) for a, b in pairs if a in known and b in known]
    if not found:
        raise DataError(f"--same-lesion must name pictures of SOURCE, no pair of {path.name} does.")
    return found


def reject_pairs(records: pd.DataFrame, pairs: list[tuple[str, str]]) -> Iterable[Rejection]:
    """Yield a rejection for both pictures of a known pair that stand under two labels."""
    dx = records.drop_duplicates("image_id").set_index("image_id")["dx"]
    for a, b in pairs:
        if dx[a] and dx[b] and dx[a] != dx[b]:
            for image_id in (a, b):
                yield Rejection(image_id, "pair_with_two_labels", f"its known pair is labelled {dx[a]} and {dx[b]}")
