"""Rebuilds the seed system's split of HAM10000 as a file for `melanoma data prepare --splits`.

The seed system is the one that this project started from. It split by lesion with
GroupShuffleSplit(random_state=42) into 70, 15 and 15 %: 7,002, 1,519 and 1,494 images. The class
counts match those it published. Here its middle part is halved, by lesion, into validation and
calibration. Only the metadata are needed.

    python -m benchmarks.seed_splits HAM10000_metadata.csv seed_splits.csv
"""

import sys

import pandas as pd
from sklearn.model_selection import GroupShuffleSplit


def _halve(table: pd.DataFrame, share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split a table in two by lesion; the second part gets about ``share`` of the lesions."""
    splitter = GroupShuffleSplit(n_splits=1, test_size=share, random_state=seed)
    first, second = next(splitter.split(table, groups=table["lesion_id"]))
    return table.iloc[first], table.iloc[second]


def seed_splits(metadata: pd.DataFrame) -> pd.DataFrame:
    """Return image_id and split for HAM10000's metadata in its published order."""
    train, rest = _halve(metadata, 0.3, 42)
    middle, test = _halve(rest, 0.5, 42)
    validation, calibration = _halve(middle, 0.5, 0)
    if (len(train), len(middle), len(test)) != (7002, 1519, 1494):
        raise SystemExit(
            "The metadata must be HAM10000's 10,015 rows in their published order; they are not."
            " Pass the published HAM10000_metadata.csv."
        )
    parts = {"train": train, "validation": validation, "calibration": calibration, "test": test}
    return pd.concat(part[["image_id"]].assign(split=name) for name, part in parts.items())


if __name__ == "__main__":
    seed_splits(pd.read_csv(sys.argv[1])).to_csv(sys.argv[2], index=False)
