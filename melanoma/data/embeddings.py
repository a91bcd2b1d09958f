"""Tables of embeddings: what another model, such as a foundation model, says of each image.

They stand in for the features of a network. Knows nothing of networks.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from melanoma.arrays import FloatArray
from melanoma.data.names import shown
from melanoma.data.tables import read_file
from melanoma.errors import DataError
from melanoma.io.storage import AnyPath

ID, VECTOR = "image_id", "embedding"


class Embeddings:
    """The embeddings of some images.

    Args:
        vectors: ``(N, F)`` float32.
        image_ids: the ids of the N images.
    """

    def __init__(self, vectors: FloatArray, image_ids: Iterable[str]) -> None:
        self._vectors = vectors
        self._places = {name: place for place, name in enumerate(image_ids)}

    @property
    def size(self) -> int:
        """F, the length of each vector."""
        return int(self._vectors.shape[1])

    def of(self, image_ids: list[str]) -> FloatArray:
        """Return the vectors ``(n, F)`` of some images.

        Raises:
            DataError: if the table lacks one of them.
        """
        missing = [name for name in image_ids if name not in self._places]
        if missing:
            raise DataError(
                f"--embeddings must hold every image; it lacks {len(missing)} of {len(image_ids)}."
                " Compute them too."
            )
        found: FloatArray = self._vectors[[self._places[name] for name in image_ids]]
        return found


def read_embeddings(path: AnyPath) -> Embeddings:
    """Read a table of embeddings.

    Args:
        path: a parquet file with the column image_id and a column embedding with a list of numbers
            for each image, or a parquet or CSV file with a column for each number.

    Raises:
        DataError: if the file is damaged, lacks a column, names an image twice, or holds vectors
            that differ in length or are not finite.
    """
    table, where = read_file(path, "--embeddings"), f"--embeddings {shown(path.name)}"
    if ID not in table.columns or len(table.columns) < 2:
        raise DataError(
            f"{where} must have the column {ID} and a column {VECTOR} with lists of numbers"
            f" (parquet), or a column for each number; it has {', '.join(table.columns[:6])}."
            " Rename its columns."
        )
    ids = table[ID].astype(str)
    if ids.duplicated().any():
        raise DataError(
            f"{where} must name every image once; {ids[ids.duplicated()].iloc[0]!r}"
            " occurs twice. Remove one of the rows."
        )
    vectors = _vectors(table)
    if vectors is None:
        raise DataError(
            f"{where} must hold numbers, as many for every image; it does not. Leave out columns of"
            " other things, or compute the embeddings again."
        )
    broken = ~np.isfinite(vectors).all(axis=1)
    if broken.any():
        raise DataError(
            f"{where} must hold finite numbers; the embeddings of {int(broken.sum())} images, such"
            f" as {shown(ids.iloc[int(broken.argmax())])!r}, do not. Compute them again."
        )
    return Embeddings(vectors, ids)


def _vectors(table: pd.DataFrame) -> FloatArray | None:
    """Return the vectors ``(N, F)`` of a table, or None if they are not numbers of one length."""
    try:
        if VECTOR in table.columns:
            vectors = np.stack([np.asarray(each, dtype=np.float32) for each in table[VECTOR]])
        else:
            numbers = table.drop(columns=ID).replace("", np.nan)  # a blank cell of a CSV table
            vectors = numbers.to_numpy(dtype=np.float32)
    except (TypeError, ValueError):
        return None
    return vectors if vectors.ndim == 2 else None
