"""`melanoma score --lesions`: a table of images and a table of lesions."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from melanoma.bundle.bundle import load_bundle
from melanoma.bundle.deciding import Decider
from melanoma.bundle.predictor import Predictor
from melanoma.errors import DataError
from melanoma.lesion_scores import LESION_SCORES, lesion_scores, read_lesions
from melanoma.scoring import describe_scores, score


@pytest.fixture
def images(phantom_source: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted((phantom_source / "images").glob("*.jpg"))[:5]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def _table(folder: Path, rows: list[tuple[str, str]]) -> Path:
    pd.DataFrame(rows, columns=["image", "lesion_id"]).to_csv(folder / "lesions.csv", index=False)
    return folder / "lesions.csv"


def test_a_lesion_has_the_mean_of_its_images(
    bundle_dir: Path, images: Path, tmp_path: Path
) -> None:
    names = sorted(path.name for path in images.iterdir())
    stems = [Path(name).stem for name in names]
    rows = [(names[0], "a"), (stems[1], "a"), (names[2], "b")]
    scores = score(bundle_dir, images, tmp_path / "out", lesions=_table(tmp_path, rows))
    found = pd.read_parquet(tmp_path / "out" / LESION_SCORES).set_index("lesion_id")
    assert found["num_images"].to_dict() == {"a": 2, "b": 1}
    predictor = Predictor(load_bundle(bundle_dir))
    joined = predictor.predict_lesion([images / names[0], images / names[1]]).together
    columns = [f"probability_{name}" for name in predictor.bundle.task.classes]
    assert np.allclose(found.loc["a", columns].to_numpy(float), joined.probabilities, atol=1e-5)
    assert found.loc["a", "decision"] == joined.decision
    alone = scores.set_index("path").loc[names[2], columns]
    assert np.allclose(found.loc["b", columns].to_numpy(float), alone.to_numpy(float))
    said, text = describe_scores(scores, tmp_path / "out", with_lesions=True)
    assert (said["num_lesions"], said["num_without_lesion"]) == (2, 2)
    assert sum(said["lesion_decisions"].values()) == 2
    assert "2 images are of none of them" in text


def test_why_images_are_not_assessed_is_said(tmp_path: Path) -> None:
    rows = [
        ("refer", "", ""),
        ("cannot_assess", "", "contract_not_met, unusual_image"),
        ("cannot_assess", "", "contract_not_met"),
        ("cannot_assess", "blank_image", "The image is one colour."),
    ]
    table = pd.DataFrame(rows, columns=["decision", "reason", "detail"])
    said, text = describe_scores(table, tmp_path)
    assert said["cannot_assess"] == {"contract_not_met": 2, "unusual_image": 1, "blank_image": 1}
    assert said["num_unusable"] == 1
    assert "cannot_assess: 1 blank_image, 2 contract_not_met, 1 unusual_image" in text
    assert "nothing is decided" in text


def test_a_lesion_with_an_unreadable_image_is_not_assessed(bundle_dir: Path) -> None:
    manifest = load_bundle(bundle_dir).manifest
    names = manifest.task.classes
    nothing = {f"{kind}_{name}": np.nan for kind in ("logit", "probability") for name in names}
    row = {"path": "x.jpg", "decision": "cannot_assess", "reason": "unreadable", "detail": ""}
    scores = pd.DataFrame([{**row, **nothing}])
    (row,) = lesion_scores(scores, {"a": ["x.jpg"]}, Decider(manifest)).to_dict("records")
    assert (row["decision"], row["reason"]) == ("cannot_assess", "unreadable_image")


def test_an_image_under_two_names_does_not_count_twice(
    bundle_dir: Path, images: Path, tmp_path: Path
) -> None:
    first = min(images.iterdir())
    (images / "copy.jpg").write_bytes(first.read_bytes())
    rows = [(first.name, "a"), ("copy.jpg", "a")]
    score(bundle_dir, images, tmp_path / "out", lesions=_table(tmp_path, rows))
    (row,) = pd.read_parquet(tmp_path / "out" / LESION_SCORES).to_dict("records")
    assert (row["decision"], row["reason"]) == ("cannot_assess", "repeated_image")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("none.jpg", "a")], "is not below FOLDER"),
        ([("x", "a")], "could be several files"),
        ([("one/x.jpg", "a"), ("one/x.jpg", "b")], "two lesions"),
        ([(f"i{number}.jpg", "a") for number in range(7)], "at most 6 images"),
        ([("i0.jpg", "a"), ("i1.jpg", "")], "1 of 2 rows do not"),
        ([], "it has none"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    rows: list[tuple[str, str]], said: str, tmp_path: Path
) -> None:
    names = ["one/x.jpg", "two/x.jpg", *(f"i{number}.jpg" for number in range(7))]
    with pytest.raises(DataError, match=said):
        read_lesions(_table(tmp_path, rows), names)


def test_names_match_in_any_form_of_unicode_and_in_parquet(tmp_path: Path) -> None:
    decomposed = "La\u0308sion.jpg"  # as macOS names files
    wanted = {"a": [decomposed], "1": ["b.jpg"]}
    rows = [("L\u00e4sion.jpg", "a"), (" b.jpg", "1")]
    names = [decomposed, "b.jpg"]
    assert read_lesions(_table(tmp_path, rows), names) == wanted
    table = pd.DataFrame(rows, columns=["Image", "lesion_id"])
    table.to_parquet(tmp_path / "lesions.parquet")
    assert read_lesions(tmp_path / "lesions.parquet", names) == wanted
    table.assign(lesion_id=["a", None]).to_parquet(tmp_path / "lesions.parquet")
    with pytest.raises(DataError, match="1 of 2 rows do not"):
        read_lesions(tmp_path / "lesions.parquet", names)
