"""The split of the seed system, rebuilt on metadata small enough to draw, and on HAM10000's."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import GroupShuffleSplit

from melanoma import seed_replay as module
from melanoma.data.dataset import PreparedData
from melanoma.errors import DataError
from melanoma.seed_replay import SPLITS_FILE, describe_seed_replay, seed_replay
from melanoma.task import DEFAULT_TASK, TASKS
from ray_jobs.arguments import BAD_INPUT
from ray_jobs.cli import main

TASK = TASKS[DEFAULT_TASK]


@pytest.fixture
def small(phantom_source: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """The phantom's metadata with their split, and its counts as the published ones."""
    table = pd.read_csv(phantom_source / "metadata.csv")

    def halve(rows: pd.DataFrame, share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
        splitter = GroupShuffleSplit(1, test_size=share, random_state=42)
        first, second = next(splitter.split(rows, groups=rows["lesion_id"]))
        return rows.iloc[first], rows.iloc[second]

    train, rest = halve(table, 0.3)
    _, test = halve(rest, 0.5)
    counts = {
        name: tuple(int((rows["dx"] == dx).sum()) for dx in TASK.classes)
        for name, rows in (("train", train), ("test", test))
    }
    monkeypatch.setattr(module, "PUBLISHED", counts)
    named = pd.Series("middle", index=table.index)
    named[train.index], named[test.index] = "train", "test"
    return table.assign(part=named)


def test_the_parts_are_those_of_scikit_learn(
    small: pd.DataFrame, phantom_source: Path, tmp_path: Path
) -> None:
    found = seed_replay(phantom_source, out=tmp_path / "replay")
    splits = pd.read_csv(tmp_path / "replay" / SPLITS_FILE).set_index("image_id")["split"]
    parts = splits.replace({"validation": "middle", "calibration": "middle"})
    assert (parts[small["image_id"]].to_numpy() == small["part"].to_numpy()).all()
    assert {"validation", "calibration"} <= set(splits)
    joined = small.assign(split=small["image_id"].map(splits))
    assert (joined.groupby("lesion_id")["split"].nunique() == 1).all()
    assert found["ours"] is None
    is_target = (small["part"] == "test") & small["dx"].isin(TASK.targets)
    assert found["target_lesions"] == small.loc[is_target, "lesion_id"].nunique()
    assert found["claims"][0]["num"] == is_target.sum()


def test_known_pairs_on_two_sides_are_counted(
    small: pd.DataFrame, phantom_source: Path, tmp_path: Path
) -> None:
    by_part = {name: rows["image_id"].tolist() for name, rows in small.groupby("part")}
    pairs = [
        (by_part["train"][0], by_part["train"][1]),
        (by_part["train"][0], by_part["test"][0]),
        (by_part["middle"][0], by_part["test"][1]),
    ]
    path = tmp_path / "pairs.csv"
    path.write_text("".join(f"{a},{b}\n" for a, b in pairs))
    found = seed_replay(phantom_source, same_lesion=path)
    assert found["known_pairs"] == {"num": 3, "across": 2, "train_test": 1}
    assert "2 of 3 known pairs" in describe_seed_replay(found)


def test_other_metadata_are_refused(
    phantom_source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "seed-replay", str(phantom_source)]) == BAD_INPUT
    assert "must be HAM10000" in capsys.readouterr().err


def test_a_bundle_that_knows_the_images_by_another_split_is_refused(
    small: pd.DataFrame, phantom_source: Path, bundle_dir: Path, prepared: PreparedData
) -> None:
    assert len(small) == len(prepared.records)
    with pytest.raises(DataError, match="trained on this split, or on none"):
        seed_replay(phantom_source, bundle=bundle_dir)


def test_a_bundle_of_other_images_is_measured_on_all_of_test(
    small: pd.DataFrame,
    phantom_source: Path,
    bundle_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_knows", lambda bundle, data: False)
    out = tmp_path / "replay"
    ours = seed_replay(phantom_source, bundle=bundle_dir, out=out)["ours"]
    predictions = pd.read_parquet(out / "evidence" / "predictions.parquet")
    assert ours["num"] == (small["part"] == "test").sum()
    assert ours["num"] == len(predictions)
    assert ours["cannot_assess"] == (predictions["decision"] == "cannot_assess").sum()
    assert 0 <= ours["auroc"]["low"] <= ours["auroc"]["value"] <= ours["auroc"]["high"] <= 1
    assert np.isfinite(ours["target_recall_argmax"]["value"])


def test_ham10000_has_the_published_counts(shared: Path) -> None:
    source = shared / "data" / "ham10000"
    found = seed_replay(source, same_lesion=source / "known_duplicates.csv")
    assert {part: sum(counts.values()) for part, counts in found["counts"].items()} == {
        "train": 7002,
        "validation": 766,
        "calibration": 753,
        "test": 1494,
    }
    assert found["known_pairs"] == {"num": 18, "across": 9, "train_test": 6}
    assert (found["lesions"]["test"], found["target_lesions"]) == (1121, 106)
    assert [round(claim["low"], 3) for claim in found["claims"]] == [0.607, 0.846]
