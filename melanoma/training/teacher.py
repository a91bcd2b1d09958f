"""Tables of a teacher: the probabilities that another model gives the training images.

A teacher that was trained on images of calibration or test would tell the student about them, so a
table states on which splits of which data set its model was trained. Knows nothing of networks.
"""

import numpy as np
import pandas as pd

from melanoma.arrays import FloatArray
from melanoma.data.dataset import PreparedData
from melanoma.data.names import shown
from melanoma.data.tables import read_file
from melanoma.errors import DataError
from melanoma.io.storage import AnyPath

OUT_OF_FOLD = "out_of_fold.parquet"
"""The table that an ensemble leaves: each image, scored by the network trained without it."""
SPLIT_HASH, TRAINED_ON, TRAIN = "split_hash", "trained_on", "train"


def teacher_table(
    image_ids: list[str], probabilities: FloatArray, data: PreparedData
) -> pd.DataFrame:
    """Return the table of a model that was trained on the train split of a data set.

    Args:
        image_ids: the ids of N images.
        probabilities: ``(N, C)``, calibrated.
        data: the data set.
    """
    named = dict(zip(_columns(data), np.asarray(probabilities, dtype=np.float64).T, strict=True))
    stated = {SPLIT_HASH: data.manifest.split_hash, TRAINED_ON: TRAIN}
    return pd.DataFrame({"image_id": image_ids, **named, **stated})


def read_teacher(path: AnyPath, data: PreparedData) -> pd.DataFrame:
    """Read a teacher's table and check that it may teach on a data set.

    Args:
        path: a parquet or CSV file with the columns image_id, probability_CLASS for each class,
            split_hash (of the data set on which the model was trained) and trained_on (the splits
            that it was trained on, the same in every row).
        data: the data set of the student.

    Returns:
        The probabilities of the images of the train split: a column for each class, in the order of
        the task, with the image_id as index.

    Raises:
        DataError: if the table lacks a column or an image, if its model was trained on other
            splits, on calibration or on test, or if its values are no probabilities.
    """
    table, where = read_file(path, "--teacher"), f"--teacher {shown(path.name)}"
    wanted = _columns(data)
    missing = [
        name for name in ("image_id", *wanted, SPLIT_HASH, TRAINED_ON) if name not in table.columns
    ]
    if missing:
        raise DataError(
            f"{where} must have the columns image_id, probability_CLASS for each class,"
            f" {SPLIT_HASH} and {TRAINED_ON}; it lacks {', '.join(missing[:3])}"
            f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}. Add them."
        )
    _check_origin(table, data, where)
    table = table.astype({"image_id": str}).set_index("image_id")
    if table.index.has_duplicates:
        raise DataError(f"{where} must name every image once; some occur twice. Remove the copies.")
    ids = data.rows(TRAIN)["image_id"]
    num_missing = int((~ids.isin(table.index)).sum())
    if num_missing:
        raise DataError(
            f"{where} must hold every image of the train split; it lacks {num_missing} of"
            f" {len(ids)}. Score them too."
        )
    found: pd.DataFrame = table.loc[ids, wanted].apply(pd.to_numeric, errors="coerce")
    sums = found.sum(axis=1, skipna=False)
    if not ((found >= 0).all(axis=None) and np.allclose(sums, 1, atol=1e-3)):
        raise DataError(
            f"{where} must hold probabilities, which are at least 0 and sum to 1 for each image;"
            " some do not. Pass calibrated probabilities, not logits."
        )
    shares: pd.DataFrame = found.div(sums, axis=0)
    return shares


def _check_origin(table: pd.DataFrame, data: PreparedData, where: str) -> None:
    hashes = set(table[SPLIT_HASH].astype(str))
    if hashes != {data.manifest.split_hash}:
        stated = ", ".join(sorted(each[:12] for each in hashes)) or "none"
        raise DataError(
            f"{where} must be of a model trained on the splits of this data set"
            f" ({data.manifest.split_hash[:12]}); it states {stated}. On other splits it may have"
            " seen calibration or test images. Train the teacher on this data set."
        )
    splits = {
        split.strip() for each in set(table[TRAINED_ON].astype(str)) for split in each.split(",")
    }
    if splits != {TRAIN}:
        raise DataError(
            f"{where} must be of a model trained on the train split alone; it was trained on"
            f" {', '.join(sorted(splits))}. A teacher that has seen calibration or test images"
            " makes every figure on them worthless. Train it on train."
        )


def _columns(data: PreparedData) -> list[str]:
    return [f"probability_{name}" for name in data.task.classes]
