"""Tables for public challenges: their form, what a task cannot answer, and images not judged."""

import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from melanoma.errors import DataError, SettingError
from melanoma.evaluation import evaluate
from melanoma.scoring import score
from melanoma.submission import CHALLENGES, Submission
from melanoma.task import TASKS, Task
from tests.tasks import HAM

OFFICIAL = {
    "isic2018": "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC",
    "isic2019": "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK",
    "isic2020": "image_name,target",
}


def _written(name: str, task: Task, probabilities: np.ndarray, folder: Path) -> pd.DataFrame:
    names = [f"deep/ISIC_{i:07d}.jpg" for i in range(len(probabilities))]
    path = Submission.of(name, task).write(folder, names, probabilities)
    text = (folder / path.name).read_text()
    assert text.splitlines()[0] == OFFICIAL[name]
    return pd.read_csv(io.StringIO(text))


@pytest.mark.parametrize("name", CHALLENGES)
@pytest.mark.parametrize("task", ["ham10000", "isic2019"])
def test_each_column_holds_the_probability_of_its_class(
    name: str, task: str, tmp_path: Path
) -> None:
    classes = TASKS[task].classes
    probabilities = np.random.default_rng(0).dirichlet(np.ones(len(classes)), 20)
    table = _written(name, TASKS[task], probabilities, tmp_path)
    assert table.iloc[:, 0].tolist() == [f"ISIC_{i:07d}" for i in range(20)]
    classes_of = {"ak": "akiec", "target": "mel"}
    for column in table.columns[1:]:
        lower = classes_of.get(column.lower(), column.lower())
        expected = probabilities[:, classes.index(lower)] if lower in classes else np.zeros(20)
        np.testing.assert_allclose(table[column], expected, rtol=1e-8)


def test_images_that_could_not_be_judged_get_a_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(7), 5)
    probabilities[2] = np.nan
    with caplog.at_level("INFO"):
        table = _written("isic2019", HAM, probabilities, tmp_path)
    assert "1 of 5 images could not be judged" in caplog.text
    assert "0 in SCC, UNK, which the bundle's task lacks" in caplog.text
    np.testing.assert_allclose(table["MEL"][2], table["MEL"][[0, 1, 3, 4]].mean())
    nothing = _written("isic2020", HAM, np.full((2, 7), np.nan), tmp_path)
    np.testing.assert_allclose(nothing["target"], 1 / 7)


def test_small_probabilities_make_no_ties(tmp_path: Path) -> None:
    small = np.linspace(1e-7, 1.00001e-7, 5)
    probabilities = np.column_stack([1 - small, small])
    table = _written("isic2020", TASKS["binary"], probabilities, tmp_path)
    assert table["target"].nunique() == 5


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("isic2018", TASKS["binary"], "needs a bundle whose task has a class for each diagnosis"),
        ("isic2019", TASKS["binary"], r"one class for several \(benign, malignant\)"),
        ("isic2018", Task(("bcc", "nv"), ("bcc",)), "a class for melanoma"),
        ("isic2020", Task(("bcc", "mel"), ("bcc",)), "melanoma among its targets"),
        ("isic2017", HAM, "must be one of isic2018, isic2019, isic2020"),
    ],
)
def test_a_task_that_cannot_answer_is_refused(name: str, task: Task, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Submission.of(name, task)


def test_a_folder_without_labels_is_scored_for_a_challenge(
    bundle_dir: Path, phantom_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    for path in sorted((phantom_source / "images").iterdir())[:4]:
        shutil.copy(path, folder / path.name)
    (folder / "broken.jpg").write_bytes(b"no image")
    table = score(bundle_dir, folder, tmp_path / "out", submission="isic2018")
    written = pd.read_csv(tmp_path / "out" / "submission_isic2018.csv").set_index("image")
    assert len(written) == len(table) == 5
    for path, expected in zip(table["path"][:3], table["probability_mel"][:3], strict=True):
        if path != "broken.jpg":
            assert written.loc[Path(path).stem, "MEL"] == pytest.approx(expected, rel=1e-8)
    # A finished scoring only writes the other table.
    monkeypatch.setattr("melanoma.judging.decode_image", None)
    score(bundle_dir, folder, tmp_path / "out", submission="isic2020")
    assert len(pd.read_csv(tmp_path / "out" / "submission_isic2020.csv")) == 5


def test_what_cannot_be_submitted_is_refused_before_an_image_is_read(
    bundle_dir: Path, phantom_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "archive"
    first = min((phantom_source / "images").iterdir())
    for part in ("a", "b"):
        (folder / part).mkdir(parents=True)
        shutil.copy(first, folder / part / first.name)
    with pytest.raises(DataError, match="1 repeat another one"):
        score(bundle_dir, folder, tmp_path / "out", submission="isic2018")
    assert not (tmp_path / "out").exists()
    with pytest.raises(SettingError, match="must be one of"):
        evaluate(bundle_dir, folder, tmp_path / "out", submission="isic2017")


def test_an_evaluation_writes_the_table_too(
    bundle_dir: Path, phantom_source: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "images").mkdir(parents=True)
    table = pd.read_csv(phantom_source / "metadata.csv").iloc[:30]
    table.to_csv(source / "metadata.csv", index=False)
    for name in table["image_id"]:
        shutil.copy(phantom_source / "images" / f"{name}.jpg", source / "images" / f"{name}.jpg")
    broken = table["image_id"].iloc[3]
    (source / "images" / f"{broken}.jpg").write_bytes(b"no image")
    evaluate(bundle_dir, source, tmp_path / "out", skip_bad=True, submission="isic2018")
    written = pd.read_csv(tmp_path / "out" / "submission_isic2018.csv").set_index("image")
    predictions = pd.read_parquet(tmp_path / "out" / "predictions.parquet").set_index("image_id")
    assert len(written) == 30 == len(predictions) + 1
    both = predictions.index
    for column, name in zip(("MEL", "NV"), ("mel", "nv"), strict=True):
        np.testing.assert_allclose(
            written.loc[both, column], predictions[f"probability_{name}"], rtol=1e-8
        )
    assert broken in written.index
