"""Draws or reads grouped, stratified splits and folds, and checks that no group is divided."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pandas as pd

from melanoma.data.metadata import ALIASES, image_keys
from melanoma.data.prepare_config import check_shares
from melanoma.data.tables import read_table
from melanoma.errors import DataError, LeakageError
from melanoma.io.storage import AnyPath

SPLITS = ("train", "calibration", "test")
VALIDATION = "validation"
_GOLDEN_RATIO = (5**0.5 - 1) / 2
_SPELLED = {
    **{name: name for name in (*SPLITS, VALIDATION)},
    **{
        "training": "train",
        "val": VALIDATION,
        "valid": VALIDATION,
        "dev": VALIDATION,
        "cal": "calibration",
        "calib": "calibration",
    },
    **{"testing": "test"},
}


def draw_splits(
    groups: Sequence[str],
    labels: Sequence[int],
    *,
    test_fraction: float,
    calibration_fraction: float,
    num_folds: int,
    seed: int,
) -> pd.DataFrame:
    """Draw test, calibration and the folds of the rest by group.

    Every group falls into a part with a probability equal to the part's share, whatever its size,
    its classes and the other groups, so that each part is a random sample of the groups. This is
    systematic sampling (Madow and Madow, On the Theory of Systematic Sampling, 1944): the groups
    stand in a row, similar ones side by side, and are dealt in steps of the golden ratio from a
    random start.
    Similar groups are therefore spread over the parts more evenly than by chance.

    Args:
        groups: N group names.
        labels: N class indices.
        test_fraction: share of the groups for test, in [0, 1).
        calibration_fraction: share for calibration, in [0, 1).
        num_folds: folds of the rest, at least 2.
        seed: orders equal groups and draws the start.

    Returns:
        N rows with `split` (train, calibration or test) and `fold` (-1 outside train).

    Raises:
        SettingError: if the fractions or the number of folds cannot be met.
    """
    check_shares(test_fraction, calibration_fraction, num_folds)
    train_share = (1 - test_fraction - calibration_fraction) / num_folds
    shares = np.array([test_fraction, calibration_fraction] + [train_share] * num_folds)
    names, counts = _count_by_group(groups, labels)
    parts = _assign(counts, shares, np.random.default_rng(seed))
    part = pd.Series(parts, index=names).loc[list(groups)].to_numpy()
    split = np.where(part == 0, "test", np.where(part == 1, "calibration", "train"))
    drawn = pd.DataFrame({"split": split, "fold": np.where(part < 2, -1, part - 2)})
    check_splits(pd.Series(list(groups)), drawn["split"], drawn["fold"])
    return drawn


def _count_by_group(groups: Sequence[str], labels: Sequence[int]) -> tuple[list[str], np.ndarray]:
    """Return the group names in order and their ``(num_groups, C)`` counts of each class."""
    table = pd.crosstab(
        pd.Series(list(groups), name="group"), pd.Series(list(labels), name="label")
    )
    return [str(name) for name in table.index], table.to_numpy()


def _assign(counts: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Assign each group to a part.

    Args:
        counts: ``(num_groups, C)`` images of each class.
        shares: ``(num_parts,)`` share of the groups that each part should get; they sum to 1.
        rng: orders equal groups and draws the start.

    Returns:
        The index of the part of each group, ``(num_groups,)``.
    """
    # Groups of one class stand together, by their rarest one, and the largest come first.
    rarity = np.argsort(np.argsort(counts.sum(axis=0), kind="stable"))
    rarest = np.where(counts > 0, rarity, counts.shape[1]).min(axis=1)
    order = rng.permutation(len(counts))
    order = order[np.lexsort((-counts[order].sum(axis=1), rarest[order]))]
    # Any run of steps of the golden ratio is spread evenly over [0, 1), which the parts share out.
    at = (rng.random() + _GOLDEN_RATIO * np.arange(len(order))) % 1
    parts = np.empty(len(counts), dtype=int)
    parts[order] = np.searchsorted(np.cumsum(shares)[:-1], at, side="right")
    return parts


def read_splits(path: AnyPath) -> pd.DataFrame:
    """Read a table of splits.

    Image ids may be file names. Names of splits may be in any case.

    Returns:
        Rows with image_id and split.

    Raises:
        DataError: if a column is missing, the name of a split is unknown, or an image is in two
            splits.
    """
    table = read_table(path)
    image_id, split = table.first(ALIASES["image_id"]), table.first(["split"])
    if image_id is None or split is None:
        raise DataError(
            f"The splits file must have the columns image_id and split; {table.name} has"
            f" {', '.join(table.header)}."
        )
    given = pd.DataFrame(
        {"image_id": image_keys(table.rows[image_id]), "split": table.rows[split].str.casefold()}
    )
    unknown = sorted(set(given["split"]) - set(_SPELLED))
    if unknown:
        raise DataError(
            "The split must be train, validation, calibration or test; it is"
            f" {unknown[0] or 'blank'}."
        )
    given["split"] = given["split"].map(_SPELLED)
    given = given.drop_duplicates(ignore_index=True)
    if given["image_id"].duplicated().any():
        twice = given.loc[given["image_id"].duplicated(), "image_id"].iloc[0]
        raise DataError(
            f"The splits file must name every image once; it names {twice} with different splits."
            " Keep one row."
        )
    return given


def match_splits(image_ids: pd.Series, given: pd.DataFrame) -> pd.Series:
    """Return the split of every image, in the order of the ids.

    Raises:
        DataError: if an image has none.
    """
    split = image_ids.map(given.set_index("image_id")["split"])
    if split.isna().any():
        missing = image_ids[split.isna()]
        shown = ", ".join(missing.iloc[:3]) + (", ..." if len(missing) > 3 else "")
        there = (
            f"; it names {given['image_id'].iloc[0]}"
            if len(missing) == len(image_ids) and len(given)
            else ""
        )
        raise DataError(
            f"The splits file must name every image; {len(missing)} of {len(image_ids)} are"
            f" missing: {shown}{there}. Add a row for each."
        )
    return split


def apply_splits(
    table: pd.DataFrame, given: pd.DataFrame, *, num_folds: int, seed: int
) -> pd.DataFrame:
    """Take the splits from a table `image_id,split` instead of drawing them.

    `split` is train, validation, calibration or test. Validation rows become fold 0 and train rows
    the other folds, so that a single run trains on exactly the train rows. Without validation rows
    all folds are drawn.

    Args:
        table: rows with image_id, group and label.
        given: as `read_splits` returns it.
        num_folds: folds of the train rows, validation included.
        seed: for drawing the folds.

    Returns:
        Rows as `draw_splits` returns them, in the order of table.

    Raises:
        DataError: if an image has no split.
        LeakageError: if a group is on two sides.
    """
    split = match_splits(table["image_id"], given)
    # Check before folds are drawn, so that a message names the splits as the file does.
    check_splits(table["group"], split, pd.Series(-1, index=table.index))
    has_validation = bool((split == VALIDATION).any())
    fold = pd.Series(-1, index=table.index)
    train = split == "train"
    first = 1 if has_validation else 0
    if train.any():
        if num_folds - first < 2:
            fold[train] = first
        else:
            rows = table[train]
            drawn = draw_splits(
                rows["group"].tolist(),
                rows["label"].tolist(),
                test_fraction=0,
                calibration_fraction=0,
                num_folds=num_folds - first,
                seed=seed,
            )
            fold[train] = drawn["fold"].to_numpy() + first
    fold[split == VALIDATION] = 0
    result = pd.DataFrame({"split": split.replace(VALIDATION, "train"), "fold": fold})
    check_splits(table["group"], result["split"], result["fold"])
    return result.reset_index(drop=True)


def check_splits(group: pd.Series, split: pd.Series, fold: pd.Series) -> None:
    """Raise LeakageError if any group is on two sides of a split or in two folds."""
    side = split.astype(str).to_numpy() + ":" + fold.astype(str).to_numpy()
    sides: dict[str, set[str]] = defaultdict(set)
    for name, place in zip(group.to_numpy(), side, strict=True):
        sides[name].add(place)
    leaking = sorted(name for name, places in sides.items() if len(places) > 1)
    if leaking:
        example = ", ".join(sorted(sides[leaking[0]]))
        raise LeakageError(
            f"No group may be on two sides of a split; {len(leaking)} are (the first is"
            f" {leaking[0]}, in {example}). Put all images of a group on one side."
        )


def split_hash(image_id: pd.Series, split: pd.Series, fold: pd.Series) -> str:
    """Return the sha256 over the sorted ``image_id,split,fold`` lines."""
    lines = sorted(f"{i},{s},{f}" for i, s, f in zip(image_id, split, fold, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
