from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from melanoma.data.groups import join_groups
from melanoma.data.pairs import read_pairs
from melanoma.data.prepare_config import check_shares
from melanoma.data.records import read_source
from melanoma.data.splits import (
    apply_splits,
    check_splits,
    draw_splits,
    read_splits,
    split_hash,
)
from melanoma.errors import DataError, LeakageError, SettingError
from tests.tasks import HAM


def _table(seed: int = 0, num: int = 900) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for group in range(num):
        label = rng.choice(7, p=[0.03, 0.05, 0.1, 0.02, 0.1, 0.68, 0.02])
        rows += [
            {"group": f"G{group}", "label": int(label), "image_id": f"I{group}_{view}"}
            for view in range(rng.integers(1, 5))
        ]
    return pd.DataFrame(rows)


def _draw(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    return draw_splits(
        table["group"].tolist(),
        table["label"].tolist(),
        test_fraction=0.15,
        calibration_fraction=0.15,
        num_folds=5,
        seed=seed,
    )


def test_groups_are_joined_over_every_key() -> None:
    lesions, patients = ["L1", "L1", "L2", "L3", ""], ["", "P1", "P1", "", ""]
    assert join_groups(list("abcde"), [lesions, patients], [("d", "e"), ("a", "absent")]) == [
        "a",
        "a",
        "a",
        "d",
        "d",
    ]


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_parted_and_every_part_has_its_share_of_every_class(seed: int) -> None:
    table = _table(seed)
    drawn = _draw(table, seed)
    sides = pd.Series(drawn["split"] + drawn["fold"].astype(str))
    assert (sides.groupby(table["group"].to_numpy()).nunique() == 1).all()
    first = drawn[~table["group"].duplicated().to_numpy()]
    for _, rows in first.groupby(table["label"]):
        for split, share in (("test", 0.15), ("calibration", 0.15)):
            assert (rows["split"] == split).sum() == pytest.approx(share * len(rows), abs=3)


@pytest.mark.parametrize(
    ("test", "calibration", "num_folds"),
    [(0.15, 0.15, 5), (0.05, 0.05, 5), (0.15, 0.25, 5), (0.15, 0.15, 10), (0.3, 0.3, 2), (0, 0, 3)],
)
def test_every_part_is_a_random_sample(test: float, calibration: float, num_folds: int) -> None:
    """Sizes go with the class, the source and a score: a part that preferred large groups would
    hold easier ones."""
    rng = np.random.default_rng(0)
    num = 300
    label = rng.choice(3, num, p=[0.1, 0.2, 0.7])
    size = np.minimum(rng.geometric(0.5 + 0.1 * label), 30)
    source = rng.random(num) < 1 / size
    score = size + rng.normal(size=num)
    groups, labels = np.repeat(np.arange(num).astype(str), size), np.repeat(label, size)
    first = np.cumsum(size) - size
    train = (1 - test - calibration) / num_folds
    shares = np.array([test, calibration] + [train] * num_folds)
    largest = size >= np.sort(size)[-10]
    seen = {what: [] for what in ("largest", "target", "size", "source", "score")}  # type: ignore[var-annotated]
    for seed in range(100):
        drawn = draw_splits(
            groups.tolist(),
            labels.tolist(),
            test_fraction=test,
            calibration_fraction=calibration,
            num_folds=num_folds,
            seed=seed,
        ).iloc[first]
        part = np.where(drawn["fold"] >= 0, 2 + drawn["fold"], drawn["split"] == "calibration")
        inside = part == np.arange(len(shares))[:, None]
        seen["largest"].append((inside & largest).sum(axis=1) / largest.sum())
        seen["target"].append((inside & (label == 0)).sum(axis=1) / (label == 0).sum())
        for what, values in (("size", size), ("source", source), ("score", score)):
            seen[what].append((inside * values).sum(axis=1) / values.sum())
    for what, draws in seen.items():
        error = np.std(draws, axis=0) / np.sqrt(len(draws))
        assert (np.abs(np.mean(draws, axis=0) - shares) <= 4.5 * error + 1e-9).all(), what
    # Within one draw, target groups are spread more evenly than by chance.
    by_chance = np.sqrt(shares * (1 - shares) / (label == 0).sum())
    assert (np.std(seen["target"], axis=0) <= 0.8 * by_chance).all()


def test_the_same_seed_draws_the_same_splits() -> None:
    table = _table()
    first, again, other = _draw(table), _draw(table), _draw(table, seed=1)
    hashes = [
        split_hash(table["image_id"], drawn["split"], drawn["fold"])
        for drawn in (first, again, other)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_parted_group_is_refused() -> None:
    with pytest.raises(LeakageError, match=r"1 are \(the first is g"):
        check_splits(
            pd.Series(["g", "g", "h"]), pd.Series(["train", "test", "test"]), pd.Series([0, -1, -1])
        )


def test_given_splits_are_taken_and_checked() -> None:
    table = _table()
    drawn = _draw(table)
    given = table[["image_id"]].assign(
        split=np.where(drawn["fold"] == 0, "validation", drawn["split"])
    )
    applied = apply_splits(table, given, num_folds=5, seed=0)
    assert ((applied["fold"] == 0) == (given["split"] == "validation")).all()
    assert (applied["split"] == drawn["split"]).all()
    leak = given.copy()
    in_train = table.index[table["group"].duplicated() & (drawn["split"] == "train").to_numpy()]
    leak.loc[in_train[0], "split"] = "test"
    with pytest.raises(LeakageError):
        apply_splits(table, leak, num_folds=5, seed=0)
    with pytest.raises(DataError, match=f"1 of {len(table)} are missing: I0_0."):
        apply_splits(table, given.iloc[1:], num_folds=5, seed=0)


@pytest.mark.parametrize(
    "text",
    [
        "image_id,split\nA,train\nB,validation\nC,calibration\nD,test\n",
        "image_id;split\nA.jpg;Train\nB.png;VAL\nC.JPG;Calibration\nD.jpg;TEST\n",
        "Image,Split\nimages/A,training\nimages\\B,val\nC,cal\nD,testing\n",
        "split\timage_id\ntrain\tA\nvalid\tB\ncalib\tC\ntest\tD\ntest\tD\n",
    ],
)
def test_splits_are_read_as_people_keep_them(text: str, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(text)
    given = read_splits(tmp_path / "s.csv")
    assert dict(zip(given["image_id"], given["split"], strict=True)) == {
        "A": "train", "B": "validation", "C": "calibration", "D": "test",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "image_id,part\nA,train\n",
            r"must have the columns image_id and split; s\.csv has image_id, part",
        ),
        ("image_id,split\nA,trian\n", "it is trian"),
        ("image_id,split\nA,\n", "it is blank"),
        ("image_id,split\nA,train\nA.jpg,test\n", "it names A with different splits"),
    ],
)
def test_splits_that_cannot_be_meant_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_splits(tmp_path / "s.csv")


def test_images_without_a_split_are_counted_and_shown() -> None:
    table = pd.DataFrame({"image_id": list("ABCDE"), "group": list("ABCDE"), "label": 0})
    given = pd.DataFrame({"image_id": ["x1", "x2"], "split": "train"})
    with pytest.raises(DataError, match=r"5 of 5 are missing: A, B, C, \.\.\.; it names x1\."):
        apply_splits(table, given, num_folds=2, seed=0)


@pytest.mark.parametrize("shares", [(0.5, 0.5, 2), (-0.1, 0.1, 2), (0.1, 0.1, 1)])
def test_shares_that_cannot_be_are_refused(shares: tuple[float, float, int]) -> None:
    with pytest.raises(SettingError, match="must be at least"):
        check_shares(*shares)


@pytest.mark.parametrize(
    "text", ["A,B\n", "first;second\nA.jpg;images/B.png\n", "A\tB\tsimilarity\n"]
)
def test_known_pairs_are_read_as_people_keep_them(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(text)
    assert read_pairs(tmp_path / "p.csv", {"A", "B"}) == [("A", "B")]


@pytest.mark.parametrize(
    ("text", "message"),
    [("A\nB\n", "p.csv has one"), ("A,X\n", "Its last pair is A and X; the first")],
)
def test_pairs_of_other_images_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path / "p.csv", {"A", "B"})


def test_ham10000_has_its_known_groups(shared) -> None:  # type: ignore[no-untyped-def]
    folder = shared / "data" / "ham10000"
    records = read_source(folder, HAM).records
    lesions = [records["lesion_id"].tolist()]
    pairs = list(
        pd.read_csv(folder / "known_duplicates.csv").iloc[:, :2].itertuples(index=False, name=None)
    )
    assert len(set(join_groups(records["image_id"].tolist(), lesions))) == 7470
    assert len(set(join_groups(records["image_id"].tolist(), lesions, pairs))) == 7452
