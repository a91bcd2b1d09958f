"""Two tables of predictions: what is compared, what is refused, and what is said."""

import functools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from melanoma.comparison import compare, describe_comparison
from melanoma.errors import DataError
from melanoma.evidence.paired import paired_differences
from tests.tasks import CLASSES, HAM

N = 240


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    few = functools.partial(paired_differences, num_draws=50)
    monkeypatch.setattr("melanoma.comparison.paired_differences", few)


def _table(seed: int = 0, skill: float = 1.0) -> pd.DataFrame:
    """Return a table as `evaluate` writes it: two images a lesion, all seven classes."""
    labels = np.repeat(np.arange(N // 2) % HAM.num_classes, 2)
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(N, HAM.num_classes))
    logits[np.arange(N), labels] += skill
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    columns = {f"probability_{name}": probabilities[:, i] for i, name in enumerate(CLASSES)}
    refer = HAM.target_scores(probabilities) >= 0.1
    return pd.DataFrame(
        {
            "image_id": [f"ISIC_{i:04d}" for i in range(N)],
            "lesion_id": [f"L{i // 2}" for i in range(N)],
            "group": [f"ISIC_{i // 2 * 2:04d}" for i in range(N)],
            "label": labels,
            **columns,
            "decision": np.where(refer, "refer", "no_referral"),
        }
    )


def _written(folder: Path, name: str, table: pd.DataFrame) -> Path:
    path = folder / name
    table.to_parquet(path, index=False) if path.suffix == ".parquet" else table.to_csv(
        path, index=False
    )
    return path


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return _written(tmp_path, "a.parquet", _table(0))


@pytest.fixture
def b(tmp_path: Path) -> Path:
    return _written(tmp_path, "b.parquet", _table(1, 2.0).sample(frac=1, random_state=0))


def test_a_table_does_not_differ_from_itself(a: Path) -> None:
    found = compare(a, a)
    assert all(each["value"] == 0 and not each["shown"] for each in found["differences"].values())
    assert set(found["p_values"].values()) == {1.0}
    assert found["images"]["compared"] == found["num"] == N
    assert (found["num_groups"], found["num_target_groups"]) == (N // 2, 17)
    assert found["group_columns"] == ["group"]
    assert "No difference is shown." in describe_comparison(found)


def test_rows_are_matched_by_image_and_signs_follow_the_order(a: Path, b: Path) -> None:
    forth, back = compare(a, b), compare(b, a)
    assert set(forth["differences"]) >= {"auroc", "sensitivity", "macro_f1", "accuracy", "brier"}
    for name, each in forth["differences"].items():
        assert each["value"] == -back["differences"][name]["value"]
    assert forth["differences"]["accuracy"]["value"] > 0.2
    assert forth["differences"]["accuracy"]["shown"]
    assert "accuracy (B is higher)" in describe_comparison(forth)


def test_a_csv_gives_the_numbers_of_the_parquet(a: Path, b: Path, tmp_path: Path) -> None:
    text = _written(tmp_path, "b.csv", pd.read_parquet(b))
    ours, theirs = compare(a, b), compare(a, text)
    assert ours["differences"] == theirs["differences"]


def test_the_public_form_of_other_projects_is_read(a: Path, tmp_path: Path) -> None:
    """Paths, numbered classes, and labels as numbers; groups stand in the other table."""
    table = _table(1, 2.0)
    numbered = {f"probability_class_{i}": table[f"probability_{n}"] for i, n in enumerate(CLASSES)}
    public = pd.DataFrame(
        {
            "filename": "/home/share/clean/" + table["image_id"] + ".jpg",
            "true_label": table["label"],
            "predicted_label": 0,
            **numbered,
        }
    )
    found = compare(a, _written(tmp_path, "public.csv", public))
    expected = compare(a, _written(tmp_path, "ours.parquet", table.drop(columns="decision")))
    assert found["differences"] == expected["differences"]
    assert "sensitivity" not in found["differences"]


def test_a_column_of_scores_is_enough(a: Path, tmp_path: Path) -> None:
    table = _table(1, 2.0)
    scores = pd.DataFrame(
        {
            "image_id": table["image_id"],
            "label": (table["label"] == CLASSES.index("mel")).astype(int),
            "score": np.log(table["probability_mel"]),
        }
    )
    found = compare(a, _written(tmp_path, "scores.csv", scores))
    assert set(found["differences"]) == {
        "auroc",
        "average_precision",
        "specificity_at_sensitivity_90",
    }
    named = scores.assign(label="").drop(columns="label")
    again = compare(a, _written(tmp_path, "no_labels.csv", named))
    assert again["differences"] == found["differences"]  # the labels of A are enough


def test_two_tables_of_scores_need_no_task(tmp_path: Path) -> None:
    rng, target = np.random.default_rng(0), np.arange(100) % 2
    rows = pd.DataFrame({"image_id": [f"i{i}" for i in range(100)], "label": target})
    paths = [
        _written(tmp_path, f"{name}.csv", rows.assign(score=skill * target + rng.normal(size=100)))
        for name, skill in (("a", 1.0), ("b", 3.0))
    ]
    found = compare(*paths, group_by=["image_id"])
    assert found["task"] is None
    assert found["differences"]["auroc"]["value"] > 0.05
    with pytest.raises(DataError, match="--group-by image_id"):
        compare(*paths)


def test_images_of_one_table_are_refused_or_counted(a: Path, tmp_path: Path) -> None:
    fewer = _written(tmp_path, "fewer.parquet", _table(1).iloc[10:])
    with pytest.raises(DataError, match=r"10 are only in A .* and 0 only in B .* --common"):
        compare(a, fewer)
    found = compare(a, fewer, common=True)
    assert (found["images"]["only_a"], found["num"]) == (10, N - 10)
    assert "not among them: 10 only in A" in describe_comparison(found)
    other = _written(
        tmp_path, "other.parquet", _table().assign(image_id=lambda t: "x" + t["image_id"])
    )
    with pytest.raises(DataError, match="none of the 240 images"):
        compare(a, other, common=True)


def test_labels_that_disagree_are_refused_by_number(a: Path, tmp_path: Path) -> None:
    table = _table(1)
    table.loc[:2, "label"] = 3
    with pytest.raises(DataError, match=r"for 3 of 240 images they do not") as error:
        compare(a, _written(tmp_path, "wrong.parquet", table))
    assert "ISIC_" not in str(error.value)


def test_groups_of_either_table_join(a: Path, tmp_path: Path) -> None:
    table = _table(1)
    table["group"] = [f"g{(i + 1) // 2}" for i in range(N)]  # joins every image to its neighbour
    found = compare(a, _written(tmp_path, "chained.parquet", table))
    assert found["num_groups"] == 1
    alone = compare(a, _written(tmp_path, "plain.csv", table), group_by=["image_id"])
    assert alone["num_groups"] == N
    with pytest.raises(DataError, match="ward is in neither"):
        compare(a, a, group_by=["ward"])
    by_lesion = _written(tmp_path, "lesion.csv", _table().drop(columns="group"))
    assert compare(by_lesion, by_lesion)["group_columns"] == ["lesion_id"]


def test_images_without_a_decision_do_not_count_unless_asked_for(a: Path, tmp_path: Path) -> None:
    table = _table(1)
    table.loc[:9, "decision"] = "cannot_assess"
    other = _written(tmp_path, "refusing.parquet", table)
    found = compare(a, other)
    assert found["num"] == N - 10
    assert found["cannot_assess"]["only_b"] == {"images": 10, "targets": 2}
    assert "cannot_assess, not counted: 0 by A alone" in describe_comparison(found)
    everything = compare(a, other, unassessed=True)
    assert everything["num"] == N
    assert (
        everything["differences"]["sensitivity"]["b"]
        <= (
            compare(a, _written(tmp_path, "all.parquet", _table(1)))["differences"]["sensitivity"][
                "b"
            ]
        )
    )


def test_known_images_and_their_groups_stand_apart(a: Path, tmp_path: Path) -> None:
    table = _table(1).assign(known=[i in (0, 4) for i in range(N)])
    found = compare(a, _written(tmp_path, "known.parquet", table))
    assert found["images"]["known"] == 4  # with the other image of each lesion
    assert (found["num"], found["known"]["num"]) == (N - 4, 4)
    assert "images known to a model, 4 of 2 groups, apart:" in describe_comparison(found)


def test_models_of_different_tasks_are_refused(a: Path, tmp_path: Path) -> None:
    binary = pd.DataFrame(
        {
            "image_id": _table()["image_id"],
            "group": _table()["group"],
            "label": 0,
            "probability_benign": 0.5,
            "probability_malignant": 0.5,
        }
    )
    with pytest.raises(DataError, match=r"of one task.*ham10000 and binary"):
        compare(a, _written(tmp_path, "binary.parquet", binary))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="image_id"), "a column of ids"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "row 241 names none, or one that stands above"),
        (lambda t: t.drop(columns="probability_nv"), "must have a column for each class"),
        (lambda t: t.assign(probability_nv="high"), "row 1 holds another text"),
        (lambda t: t.assign(label="wart"), "it says 'wart'"),
        (lambda t: t.drop(columns="decision").assign(label=t["label"] % 2), "could be the classes"),
        (lambda t: t.assign(decision="perhaps"), "row 1 holds another word"),
        (lambda t: t.filter(["image_id", "label", "group"]), "or a column score"),
        (lambda t: t.assign(label=""), "240 without a label"),
    ],
)
def test_other_tables_are_refused(change, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    wrong = _written(tmp_path, "wrong.csv", change(_table()))
    with pytest.raises(DataError, match=message):
        compare(wrong, wrong, task="ham10000")


def test_a_page_stands_beside_the_numbers(a: Path, b: Path, tmp_path: Path) -> None:
    found = compare(a, b, out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == found
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "accuracy" in page
    assert f"{found['differences']['accuracy']['value']:+.3f}" in page
    compare(a, a, out=tmp_path / "out")  # replaces an earlier comparison
