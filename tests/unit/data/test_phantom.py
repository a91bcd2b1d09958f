from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from melanoma.data.phantom.camera import Camera
from melanoma.data.phantom.config import PhantomConfig
from melanoma.data.phantom.drawing import Lesion, draw
from melanoma.data.phantom.layout import class_counts, lay_out, write_phantom
from melanoma.data.records import read_source
from melanoma.errors import DataError, SettingError
from melanoma.imaging.decode import decode_image
from tests.tasks import HAM


def _metadata(source: Path) -> pd.DataFrame:
    return pd.read_csv(source / "metadata.csv")


def test_it_reads_like_ham10000(phantom_source: Path) -> None:
    source = read_source(phantom_source, HAM)
    assert not source.rejections
    assert source.group_columns == ("patient_id", "lesion_id")
    assert {
        "lesion_id",
        "image_id",
        "dx",
        "dx_type",
        "age",
        "sex",
        "localization",
        "dataset",
    } <= set(_metadata(phantom_source).columns)


def test_every_image_has_a_true_mask_and_says_that_it_is_synthetic(phantom_source: Path) -> None:
    for image_id in _metadata(phantom_source)["image_id"]:
        with Image.open(phantom_source / "images" / f"{image_id}.jpg") as image:
            size, description = image.size, image.getexif()[0x010E]
        with Image.open(phantom_source / "masks" / f"{image_id}.png") as drawn:
            mask = np.asarray(drawn)
        assert mask.shape == size[::-1]
        assert 0.01 < (mask > 0).mean() < 0.8
        assert "SYNTHETIC" in description


def test_lesions_have_views_and_patients_have_lesions(phantom_source: Path) -> None:
    table = _metadata(phantom_source)
    assert table.groupby("lesion_id").size().max() > 1
    assert table.groupby("patient_id")["lesion_id"].nunique().max() > 1
    assert (table.groupby("lesion_id")["patient_id"].nunique() == 1).all()


def test_the_demonstration_has_melanomas_enough_for_a_contract() -> None:
    counts = class_counts(PhantomConfig().num_lesions)
    assert sum(counts.values()) == PhantomConfig().num_lesions
    assert counts["mel"] * 0.25 >= 60
    assert min(counts.values()) >= 2


def test_imbalance_and_hardness_are_set() -> None:
    assert class_counts(1000, 0.03)["mel"] == 30
    easy, _ = lay_out(PhantomConfig(num_lesions=1000, melanomas=0.2))
    hard, _ = lay_out(PhantomConfig(num_lesions=1000, melanomas=0.2, mimics=0.3))

    def auroc(lesions: list[Lesion]) -> float:
        of = [lesion for lesion in lesions if lesion.dx in ("mel", "nv")]
        return float(
            roc_auc_score([lesion.dx == "mel" for lesion in of], [lesion.strength for lesion in of])
        )

    assert auroc(easy) > 0.97
    # Two lesions are told apart unless one of them is a mimic; if both are, the wrong way round.
    assert auroc(hard) == pytest.approx(0.7**2 + 0.7 * 0.3, abs=0.06)


@pytest.mark.parametrize(
    "wrong", [{"melanomas": 0.0}, {"melanomas": 0.6}, {"mimics": 0.51}, {"mimics": -0.1}]
)
def test_impossible_sets_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingError, match="must be in"):
        PhantomConfig(**wrong)


def test_large_sets_have_the_balance_of_ham10000() -> None:
    counts = class_counts(7470)
    assert counts == pytest.approx(
        {"akiec": 228, "bcc": 327, "bkl": 727, "df": 73, "mel": 614, "nv": 5403, "vasc": 98}, abs=1
    )


def test_the_same_seed_draws_the_same_image() -> None:
    lesion, camera = Lesion("mel", 0.7, 0.3, 5), Camera((1, 1, 1), 0.2)
    (first, _), (again, _), (other, _) = (
        draw(lesion, camera, 0),
        draw(lesion, camera, 0),
        draw(lesion, camera, 1),
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_mean_colour_does_not_give_melanoma_away(phantom_source: Path) -> None:
    table = _metadata(phantom_source)
    files = [
        (phantom_source / "images" / f"{image_id}.jpg").read_bytes()
        for image_id in table["image_id"]
    ]
    colours = [np.asarray(decode_image(data)).reshape(-1, 3).mean(axis=0) for data in files]
    labels = (table["dx"] == "mel").to_numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression())
    scores = cross_val_predict(
        model,
        np.array(colours),
        labels,
        cv=GroupKFold(5),
        groups=table["patient_id"],
        method="decision_function",
    )
    assert roc_auc_score(labels, scores) < 0.75


def test_signs_overlap_between_melanomas_and_nevi() -> None:
    lesions, _ = lay_out(PhantomConfig(num_lesions=3000))
    melanomas = np.array([lesion.strength for lesion in lesions if lesion.dx == "mel"])
    nevi = np.array([lesion.strength for lesion in lesions if lesion.dx == "nv"])
    auroc = (melanomas[:, None] > nevi[None, :]).mean()
    assert 0.9 < auroc < 0.9985  # what somebody who saw the strength itself would reach: never 1


def test_a_leak_is_planted_under_other_ids() -> None:
    plain, leaking = (lay_out(PhantomConfig(num_lesions=200, leaks=n))[1] for n in (0, 15))
    assert len(leaking) == len(plain) + 15
    again = leaking[leaking["view"] == 9]
    originals = leaking[
        leaking["lesion_index"].isin(again["lesion_index"]) & (leaking["view"] == 0)
    ]
    assert len(originals) == 15
    assert not set(again["lesion_id"]) & set(originals["lesion_id"])
    assert not set(again["patient_id"]) & set(originals["patient_id"])


def test_a_shortcut_gives_the_label_away() -> None:
    for shortcut, share in ((False, 0.2), (True, 0.9)):
        table = lay_out(PhantomConfig(num_lesions=600, shortcut=shortcut))[1]
        inside = (table.loc[table["dx"] == "mel", "dataset"] == "phantom_slides").mean()
        assert inside > share if shortcut else inside < share


def test_other_files_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="must be new or empty"):
        write_phantom(PhantomConfig(num_lesions=40), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
