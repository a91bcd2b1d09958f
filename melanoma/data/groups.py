"""Groups of images that must never be split, joined by patient, lesion and duplicate images.

Knows nothing of splits.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from melanoma.io.typed import Strict

GROUP_COLUMNS = ("patient_id", "lesion_id")
"""The columns that group images unless others are named."""


def join_groups(
    image_ids: Sequence[str], keys: Iterable[Sequence[str]], pairs: Iterable[tuple[str, str]] = ()
) -> list[str]:
    """Join images that share a key or form a known pair into groups.

    Args:
        image_ids: N unique ids.
        keys: sequences of N strings each (lesion ids, patient ids, hashes). Images with an equal,
            non-empty string belong together.
        pairs: image_ids of known pairs. Pairs that name an absent image are ignored.

    Returns:
        N group names: the smallest image_id of each group.
    """
    position = {image_id: index for index, image_id in enumerate(image_ids)}
    edges: list[tuple[int, int]] = [
        (position[a], position[b]) for a, b in pairs if a in position and b in position
    ]
    for column in keys:
        first: dict[str, int] = {}
        for index, key in enumerate(column):
            if key:
                edges.append((first.setdefault(key, index), index))
    # Groups are the connected components of the graph whose nodes are images.
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
    """Return the column of the records that holds a grouping column of the metadata."""
    return name if name in GROUP_COLUMNS else f"group by {name}"


@dataclasses.dataclass(frozen=True)
class LargeGroup(Strict):
    """One of the largest groups of a data set.

    Attributes:
        group: its name.
        num_images: number of its images.
        split: the split that holds all of them.
        ids: column -> up to three of the values that join them.
    """

    group: str
    num_images: int
    split: str
    ids: dict[str, list[str]]


def largest_groups(
    records: pd.DataFrame, columns: Sequence[str], *, num: int = 5
) -> list[LargeGroup]:
    """Return the groups with the most images, largest first."""
    found = []
    sizes = records["group"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    for group, size in sizes[:num].items():
        rows = records[records["group"] == group]
        ids = {
            name: sorted(set(rows[column]) - {""})[:3]
            for name in columns
            if (column := key_column(name)) in rows
        }
        found.append(LargeGroup(str(group), int(size), str(rows["split"].iloc[0]), ids))
    return found
