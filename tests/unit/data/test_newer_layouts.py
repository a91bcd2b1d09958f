"""MILK10k and BCN20000 as they are published, in small."""

from pathlib import Path

import pandas as pd
import pytest

from melanoma.data.dataset import open_prepared
from melanoma.data.external import read_external
from melanoma.data.prepare import prepare
from melanoma.data.prepare_config import PrepareConfig
from melanoma.data.records import read_source
from melanoma.data.standards import is_clinical, skin_tone_class
from melanoma.errors import DataError
from melanoma.task import TASKS, Task
from tests.sources import draw, write_table
from tests.tasks import HAM

ISIC_2019 = TASKS["isic2019"]
MILK = ("AKIEC", "BCC", "BEN_OTH", "BKL", "DF", "INF", "MAL_OTH", "MEL", "NV", "SCCKA", "VASC")


def _milk(folder: Path, classes: tuple[str, ...] = MILK, *, part: str = "Training") -> Path:
    """Write a lesion of each class, each with a close-up and a dermoscopic image."""
    metadata, truth = [], []
    for number, name in enumerate(classes):
        lesion = f"IL_{part[:2]}{number:06d}"
        truth.append({"lesion_id": lesion} | {each: f"{each == name:.1f}" for each in MILK})
        for image_type, offset in (("clinical: close-up", 0), ("dermoscopic", 500)):
            image = f"ISIC_{part[:2]}{number + offset:06d}"
            row = {
                "lesion_id": lesion,
                "image_type": image_type,
                "isic_id": image,
                "attribution": "MILK study team",
                "copyright_license": "CC-BY-NC",
                "image_manipulation": "instrument only",
                "age_approx": "65.0",
                "sex": "female",
                "skin_tone_class": str(number % 6),
                "site": "trunk",
                "MONET_ulceration_crust": "0.13",
                "MONET_hair": "0.5",
            }
            metadata.append(row)
            draw(folder / f"MILK10k_{part}_Input" / lesion / f"{image}.jpg", number + offset)
    write_table(folder / f"MILK10k_{part}_Metadata.csv", metadata)
    if part == "Training":
        write_table(folder / f"MILK10k_{part}_GroundTruth.csv", truth)
    return folder


def test_lesions_of_milk10k_give_their_images_the_diagnosis(tmp_path: Path) -> None:
    source = read_source(_milk(tmp_path), ISIC_2019)
    records = source.records[source.records["path"] != ""]
    assert records["dx"].tolist() == [
        "akiec", "bcc", "", "bkl", "df", "", "", "mel", "nv", "scc", "vasc",
    ]  # fmt: skip
    assert source.group_columns == ("lesion_id",)
    first = records.iloc[0]
    assert first["lesion_id"] == "IL_Tr000000"
    assert (first["age"], first["sex"], first["site"]) == (65, "female", "trunk")
    assert (first["skin_type"], first["source"]) == ("tone 0", "MILK study team")
    assert any("have the diagnoses of their lesions" in note for note in source.notes)
    found = pd.Series([each.reason for each in source.rejections]).value_counts().to_dict()
    assert found == {"not_dermoscopic": 11, "unknown_dx": 3}


def test_close_ups_are_left_out_and_counted_without_being_a_fault(tmp_path: Path) -> None:
    known = tuple(name for name in MILK if name not in ("BEN_OTH", "INF", "MAL_OTH", "SCCKA"))
    source = _milk(tmp_path / "source", known * 3)
    # What is left out anyway need not be there, or readable.
    (source / "MILK10k_Training_Input" / "IL_Tr000000" / "ISIC_Tr000000.jpg").unlink()
    manifest = prepare(source, tmp_path / "dataset", PrepareConfig(size=64, num_folds=2))
    assert manifest.num_images == 21
    assert dict.fromkeys(HAM.classes, 3) == manifest.left_out["not_dermoscopic"]
    assert set(manifest.left_out) == {"not_dermoscopic"}
    records = open_prepared(tmp_path / "dataset").records
    assert records["image_id"].str.startswith("ISIC_Tr0005").all()
    external = read_external(source, HAM, [], skip_bad=False)
    assert len(external.rows) == 21
    assert external.left_out([], skip_bad=False)["not_dermoscopic"]["mel"] == 3


def test_classes_that_a_task_lacks_are_named(tmp_path: Path) -> None:
    source = _milk(tmp_path / "source")
    with pytest.raises(DataError, match=r"4 unknown_dx .*1 BEN_OTH.*--skip-bad") as error:
        read_external(source, HAM, [], skip_bad=False)
    assert "not_dermoscopic" not in str(error.value)
    left_out = read_external(source, HAM, [], skip_bad=True).left_out([], skip_bad=True)
    assert left_out["unknown_dx"] == {"BEN_OTH": 1, "INF": 1, "MAL_OTH": 1, "SCCKA": 1}


def test_as_two_classes_every_lesion_of_milk10k_has_one(tmp_path: Path) -> None:
    records = read_source(_milk(tmp_path), TASKS["binary"]).records
    malignant = records.loc[records["dx"] == "malignant", "lesion_id"].nunique()
    assert (malignant, (records["dx"] == "").sum()) == (5, 0)


def test_a_task_may_have_a_class_for_each_of_milk10k_s(tmp_path: Path) -> None:
    task = Task(tuple(name.lower() for name in MILK), ("mel",), "milk10k")
    source = read_source(_milk(tmp_path), task)
    shown = source.records[source.records["path"] != ""]
    assert shown["dx"].tolist() == list(task.classes)


def test_the_test_part_of_milk10k_is_passed_over(tmp_path: Path) -> None:
    folder = _milk(_milk(tmp_path), ("MEL", "NV"), part="Test")
    source = read_source(folder, ISIC_2019)
    assert not source.records["image_id"].str.startswith("ISIC_Te").any()
    assert any("MILK10k_Test_Metadata.csv has no diagnosis" in note for note in source.notes)
    assert {each.reason for each in source.rejections} == {"not_dermoscopic", "unknown_dx"}


def test_a_lesion_with_two_rows_of_truth_is_refused(tmp_path: Path) -> None:
    folder = _milk(tmp_path)
    path = folder / "MILK10k_Training_GroundTruth.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    with pytest.raises(DataError, match="names each lesion once"):
        read_source(folder, ISIC_2019)


def test_close_ups_alone_are_refused(tmp_path: Path) -> None:
    row = {"isic_id": "A", "lesion_id": "L", "dx": "mel", "image_type": "clinical: overview"}
    write_table(tmp_path / "metadata.csv", [row])
    draw(tmp_path / "A.jpg")
    with pytest.raises(DataError, match="calls all 1 of them clinical"):
        read_source(tmp_path, HAM)


def test_bcn20000_is_read(tmp_path: Path) -> None:
    """The training table has diagnoses; the test table, where there is one, has none."""
    names = ("MEL", "NV", "BCC", "BKL", "AK", "SCC", "DF", "VASC")
    rows = [
        {
            "bcn_filename": f"BCN_{number:010d}.jpg",
            "age_approx": "55.0",
            "anatom_site_general": "anterior torso",
            "diagnosis": name,
            "lesion_id": f"BCN_{number // 2:07d}",
            "capture_date": "2012-05-16",
            "sex": "male",
            "split": "train",
        }
        for number, name in enumerate(name for name in names for _ in range(2))
    ]
    write_table(tmp_path / "bcn_20k_train.csv", rows)
    test = [{k: v for k, v in row.items() if k != "diagnosis"} for row in rows[:2]]
    for number, row in enumerate(test):
        row["bcn_filename"], row["split"] = f"BCN_{number + 900:010d}.jpg", "test"
    write_table(tmp_path / "bcn_20k_test.csv", test)
    for seed, row in enumerate([*rows, *test]):
        draw(tmp_path / f"BCN_20k_{row['split']}" / "deep" / row["bcn_filename"], seed)
    source = read_source(tmp_path, ISIC_2019)
    records = source.records
    assert records["dx"].tolist() == [
        dx for dx in ("mel", "nv", "bcc", "bkl", "akiec", "scc", "df", "vasc") for _ in range(2)
    ]
    assert records["image_id"].iloc[0] == "BCN_0000000000"
    assert records["lesion_id"].nunique() == 8
    assert (records["site"] == "anterior torso").all()
    assert not source.rejections


@pytest.mark.parametrize(
    ("text", "tone"), [("0", "tone 0"), ("5.0", "tone 5"), ("6", ""), ("", ""), ("iv", "")]
)
def test_skin_tones_are_no_fitzpatrick_types(text: str, tone: str) -> None:
    assert skin_tone_class(text) == tone


@pytest.mark.parametrize(
    ("image_type", "clinical"),
    [
        ("clinical: close-up", True),
        ("Clinical: overview", True),
        ("dermoscopic", False),
        ("TBP tile: close-up", False),
        ("", False),
    ],
)
def test_only_clinical_images_are_left_out(image_type: str, clinical: bool) -> None:
    assert is_clinical(image_type) == clinical
