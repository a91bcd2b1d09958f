"""What must never be split: images joined over patient, lesion and duplicate images. Knows nothing of splits."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

GROUP_COLUMNS = ("patient_id", "lesion_id")
"""The columns that group images unless others are named."""


def join_groups(
    image_ids: Sequence[str], keys: Iterable[Sequence[str]], pairs: Iterable[tuple[str, str]] = ()
) -> list[str]:
    """Join images that share any key, or stand in a known pair, into groups.

    Args:
        image_ids: N unique ids.
        keys: sequences of N strings each (lesion ids, patient ids, hashes); images with an equal, non-empty string belong together.
        pairs: image_ids of known pairs; pairs that name an image not present are passed over.

    Returns:
        N group names: the smallest image_id of each group.
    """
    position = {image_id: index for index, image_id in enumerate(image_ids)}
    edges: list[tuple[int, int]] = [(position[a], position[b]) for a, b in pairs if a in position and b in position]
    for column in keys:
        first: dict[str, int] = {}
        for index, key in enumerate(column):
            if key:
                edges.append((first.setdefault(key, index), index))
    left, right = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    num = len(image_ids)
    _, component = connected_components(
        coo_array((np.ones(len(left)), (left, right)), shape=(num, num)), directed=False
    )
    smallest: dict[int, str] = {}
    for image_id, label in zip(image_ids, component, strict=True):
        smallest[label] = min(smallest.get(label, image_id), image_id)
    return [smallest[label] for label in component]


def key_column(name: str) -> str:
    """Return where the records hold a column that groups images."""
    return name if name in GROUP_COLUMNS else f"group by {name}"


def largest_groups(records: pd.DataFrame, columns: Sequence[str], *, num: int = 5) -> list[dict[str, Any]]:
    """Return the groups with the most images, largest first: how many, of how many all in all, and what joins them."""
    found = []
    for group, size in (
        records["group"].value_counts().sort_index().sort_values(ascending=False, kind="stable")[:num].items()
    ):
        rows = records[records["group"] == group]
        ids = {name: sorted(set(rows[column]) - {""})[:3] for name in columns if (column := key_column(name)) in rows}
        found.append({"group": group, "num_images": int(size), "split": rows["split"].iloc[0], "ids": ids})
    return found
