"""What a bundle keeps of the images of its data set, to recognise them later.

Those of the test split count too: it is evaluated as a split, where its accesses are logged.

Only hashes: no image can be made from them.
"""

import io

import pandas as pd

from melanoma.data.dataset import ImageDataset, PreparedData
from melanoma.imaging.fingerprint import MAX_DISTANCE, fingerprint, nearest

_BATCH = 256
_HASH_CHARACTERS = 16
"""Of a sha256 in hex: enough to tell a billion files apart."""


def known_images(data: PreparedData) -> bytes:
    """Return the content of the file for the images of a data set."""
    rows = fingerprinted(data)
    return _content(rows["sha256"].str[:_HASH_CHARACTERS].tolist(), rows["fingerprint"].tolist())


def fingerprinted(data: PreparedData) -> pd.DataFrame:
    """Return the records of a data set with the fingerprints of their images."""
    rows = data.records
    dataset = ImageDataset(data, rows)
    prints = [
        fingerprint(image.numpy())
        for start in range(0, len(rows), _BATCH)
        for image in dataset.images(range(start, min(start + _BATCH, len(rows))))
    ]
    return rows.assign(fingerprint=prints)


def joined(*files: bytes) -> bytes:
    """Return the content of one file for the images of several."""
    tables = [pd.read_parquet(io.BytesIO(file)) for file in files]
    table = pd.concat(tables).drop_duplicates()
    return _content(table["file"].tolist(), table["image"].tolist())


def no_known_images() -> bytes:
    """Return the content of the file of a bundle that was made from no images."""
    return _content([], [])


def _content(files: list[str], prints: list[bytes]) -> bytes:
    table = pd.DataFrame({"file": files, "image": prints})
    buffer = io.BytesIO()
    # In an order that says nothing about the data set.
    table.sort_values("file", kind="stable").to_parquet(buffer, index=False)
    return buffer.getvalue()


def is_known(known: bytes, rows: pd.DataFrame) -> pd.Series:
    """Return which images are of the data set that a bundle was made from.

    Args:
        known: the content of the bundle's file.
        rows: N rows with sha256 and fingerprint.

    Returns:
        N booleans with the index of the rows: the same file, or nearly the same image.
    """
    table = pd.read_parquet(io.BytesIO(known))
    if table.empty:
        return pd.Series(False, index=rows.index)
    same_file = rows["sha256"].str[:_HASH_CHARACTERS].isin(set(table["file"]))
    distance = nearest(rows["fingerprint"].tolist(), table["image"].tolist())
    return same_file | (distance <= MAX_DISTANCE)
