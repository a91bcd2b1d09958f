import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from melanoma.config import TrainConfig
from melanoma.data.dataset import PreparedData
from melanoma.errors import DataError
from melanoma.io.storage import to_path
from melanoma.training.plan import Training
from melanoma.training.teacher import read_teacher, teacher_table
from tests.tasks import CLASSES, MELANOMA_INDEX


@pytest.fixture
def table(prepared: PreparedData) -> pd.DataFrame:
    ids = prepared.rows("train")["image_id"].tolist()
    drawn = np.random.default_rng(0).dirichlet(np.ones(len(CLASSES)), len(ids))
    return teacher_table(ids, drawn, prepared)


def _written(table: pd.DataFrame, folder: Path, name: str = "table.parquet") -> Path:
    if name.endswith(".csv"):
        table.to_csv(folder / name, index=False)
    else:
        table.to_parquet(folder / name)
    return folder / name


def test_a_table_may_lie_in_object_storage(
    table: pd.DataFrame, prepared: PreparedData, tmp_path: Path
) -> None:
    there = to_path(f"memory://bucket/{tmp_path.name}/table.parquet")
    there.write_bytes(_written(table, tmp_path).read_bytes())
    found = read_teacher(there, prepared)
    assert np.allclose(found.to_numpy(), table.iloc[:, 1 : 1 + len(CLASSES)].to_numpy())
    with pytest.raises(DataError, match="--teacher must be a file, parquet or CSV"):
        read_teacher(there.parent / "missing.parquet", prepared)


@pytest.mark.parametrize("name", ["table.parquet", "table.csv"])
def test_a_table_is_read_whatever_its_order(
    table: pd.DataFrame, prepared: PreparedData, tmp_path: Path, name: str
) -> None:
    shuffled = table.sample(frac=1, random_state=0)
    found = read_teacher(_written(shuffled, tmp_path, name), prepared)
    assert found.index.tolist() == prepared.rows("train")["image_id"].tolist()
    assert np.allclose(found.to_numpy(), table.iloc[:, 1 : 1 + len(CLASSES)].to_numpy())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.drop(columns="split_hash"), "lacks split_hash"),
        (lambda t: t.drop(columns="probability_mel"), "lacks probability_mel"),
        (lambda t: t.assign(split_hash="0" * 64), "trained on the splits of this data set"),
        (lambda t: t.assign(trained_on="train, test"), "it was trained on test, train"),
        (lambda t: t.assign(trained_on="calibration"), "it was trained on calibration"),
        (lambda t: t.iloc[3:], "it lacks 3 of"),
        (lambda t: t.assign(probability_mel=2.0), "sum to 1"),
        (lambda t: t.assign(probability_mel="much"), "sum to 1"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "every image once"),
    ],
)
def test_a_table_that_may_not_teach_is_refused(
    table: pd.DataFrame,
    prepared: PreparedData,
    tmp_path: Path,
    change: Callable[[pd.DataFrame], pd.DataFrame],
    said: str,
) -> None:
    with pytest.raises(DataError, match=said):
        read_teacher(_written(change(table), tmp_path), prepared)


def test_a_row_of_other_splits_says_who_has_seen_them(
    table: pd.DataFrame, prepared: PreparedData, tmp_path: Path
) -> None:
    one = table.copy()
    one.loc[one.index[-1], "trained_on"] = "test"
    with pytest.raises(DataError, match="it was trained on test, train"):
        read_teacher(_written(one, tmp_path), prepared)


def test_what_is_no_table_is_refused(prepared: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "table.parquet").write_text("no table")
    with pytest.raises(DataError, match="--teacher must be a file, parquet or CSV"):
        read_teacher(tmp_path / "missing.csv", prepared)
    with pytest.raises(DataError, match="must be a parquet table"):
        read_teacher(tmp_path / "table.parquet", prepared)


def test_the_student_learns_the_teachers_share(
    table: pd.DataFrame, prepared: PreparedData, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    teacher = read_teacher(_written(table, tmp_path), prepared)
    config = tiny_config.with_overrides(["loss.tau=0", "loss.teacher_share=0.25"])
    training = Training.on(config, prepared, teacher=teacher)
    label = int(training.train.labels[0])
    expected = 0.25 * teacher.loc[training.train.image_ids[0]].to_numpy()
    expected[label] += 0.75
    expected[np.bincount(training.train.labels, minlength=len(CLASSES)) == 0] = 0
    assert torch.allclose(training.targets[0], torch.from_numpy(expected).float(), atol=1e-6)
    plain = Training.on(dataclasses.replace(config), prepared)
    assert plain.targets[0, label] == 1
    assert training.targets[:, MELANOMA_INDEX].sum() != plain.targets[:, MELANOMA_INDEX].sum()
