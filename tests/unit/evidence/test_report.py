import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pypdfium2
import pytest

from melanoma.bundle.bundle import Bundle, load_bundle
from melanoma.evidence.metrics import clopper_pearson
from melanoma.evidence.report import Evaluated, write_report
from tests.tasks import CLASSES, MELANOMA_INDEX

NEVUS = CLASSES.index("nv")


@pytest.fixture(scope="module")
def bundle(bundle_dir: Path) -> Bundle:
    """A bundle whose contract is met, with a threshold that is easy to read."""
    loaded = load_bundle(bundle_dir)
    point = dataclasses.replace(loaded.operating_point, threshold=0.5)
    return dataclasses.replace(
        loaded, manifest=dataclasses.replace(loaded.manifest, operating_point=point)
    )


def _table(rows: list[tuple[str, str, int, float]]) -> pd.DataFrame:
    """Return predictions of (lesion, group, label, melanoma probability); what is left goes to
    nevus."""
    table = pd.DataFrame(rows, columns=["lesion_id", "group", "label", "melanoma"])
    probabilities = np.zeros((len(rows), len(CLASSES)))
    probabilities[:, MELANOMA_INDEX], probabilities[:, NEVUS] = (
        table["melanoma"],
        1 - table["melanoma"],
    )
    named = {f"probability_{name}": probabilities[:, index] for index, name in enumerate(CLASSES)}
    image_ids = [f"I{number:03d}" for number in range(len(rows))]
    return table.drop(columns="melanoma").assign(image_id=image_ids, split="test", **named)


def _evaluated(bundle: Bundle, table: pd.DataFrame, **values: Any) -> Evaluated:
    return Evaluated(
        task=bundle.task,
        operating_point=bundle.operating_point,
        bundle_version=bundle.manifest.version,
        weights_sha256=bundle.manifest.weights_sha256,
        predictions=table,
        accesses=[],
        **values,
    )


def _report(
    bundle: Bundle,
    table: pd.DataFrame,
    folder: Path,
    *,
    split: str = "test",
    same_splits: bool = True,
):  # type: ignore[no-untyped-def]
    evaluated = _evaluated(
        bundle, table, split=split, population=f"some, {split}", same_splits=same_splits
    )
    report = write_report(evaluated, folder)
    assert json.loads((folder / "report.json").read_text()) == report
    return report


def test_its_numbers_are_those_of_the_table(bundle: Bundle, tmp_path: Path) -> None:
    melanomas = [
        ("M0", "M0", MELANOMA_INDEX, 0.9),
        ("M0", "M0", MELANOMA_INDEX, 0.2),
        ("M1", "M1", MELANOMA_INDEX, 0.4),
    ]
    nevi = [
        ("N0", "N0", NEVUS, 0.6),
        ("N1", "N1", NEVUS, 0.3),
        ("N2", "N2", NEVUS, 0.1),
        ("N3", "N3", NEVUS, 0.1),
    ]
    report = _report(bundle, _table([*melanomas, *nevi]), tmp_path)
    image, lesion = report["image"], report["lesion"]
    assert (image["num"], image["num_target"]) == (7, 3)
    assert (lesion["num"], lesion["num_target"]) == (6, 2)
    assert image["sensitivity"]["value"] == pytest.approx(1 / 3)
    assert image["specificity"]["value"] == pytest.approx(3 / 4)
    assert lesion["sensitivity"]["value"] == pytest.approx(1 / 2)  # the mean of M0's images is 0.55
    # Ranked above a nevus: of 12 pairs of images 4 + 2 + 3, of 8 pairs of lesions 3 + 3.
    assert image["auroc"]["value"] == pytest.approx(9 / 12)
    assert lesion["auroc"]["value"] == pytest.approx(6 / 8)
    # Two images of one lesion and one of another are worth (2 + 1)^2 / (4 + 1) independent ones.
    worth = 9 / 5
    assert (image["sensitivity"]["low"], image["sensitivity"]["high"]) == pytest.approx(
        clopper_pearson(worth / 3, worth)
    )
    assert report["confusion"][MELANOMA_INDEX][NEVUS] == 2
    assert report["confusion"][NEVUS][MELANOMA_INDEX] == 1
    right = np.array([0.9, 0.2, 0.4, 0.4, 0.7, 0.9, 0.9])
    assert report["calibration"]["nll"] == pytest.approx(float(-np.log(right).mean()))
    assert report["calibration"]["brier"] == pytest.approx(float((2 * (1 - right) ** 2).mean()))


@pytest.mark.parametrize(
    ("referred", "status"), [(60, "confirmed"), (55, "undecided"), (45, "refuted")]
)
def test_the_contract_is_judged_by_referred_melanomas(
    referred: int, status: str, bundle: Bundle, tmp_path: Path
) -> None:
    """Of 60 melanomas: all confirm a promise of 0.90, 45 (0.75) refute it, 55 leave it open."""
    rows = [(f"M{i}", f"M{i}", MELANOMA_INDEX, 0.8 if i < referred else 0.1) for i in range(60)]
    table = _table([*rows, ("N0", "N0", NEVUS, 0.2)])
    contract = _report(bundle, table, tmp_path)["contract"]
    assert contract["status"] == status
    assert (contract["referred"], contract["num_target"]) == (referred, 60)
    low, high = clopper_pearson(referred, 60, confidence=0.9)  # two one-sided bounds of 95 %
    assert (contract["sensitivity_low"], contract["sensitivity_high"]) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("split", "same_splits"), [("calibration", True), ("train", True), ("test", False)]
)
def test_images_it_may_know_cannot_judge_it(
    split: str, same_splits: bool, bundle: Bundle, tmp_path: Path
) -> None:
    table = _table(
        [(f"M{i}", f"M{i}", MELANOMA_INDEX, 0.8) for i in range(60)] + [("N0", "N0", NEVUS, 0.2)]
    )
    contract = _report(bundle, table, tmp_path, split=split, same_splits=same_splits)["contract"]
    assert contract["status"] == "none"
    assert contract["sentence"].startswith("No verdict")


def test_two_images_of_one_group_are_one_melanoma_of_the_contract(
    bundle: Bundle, tmp_path: Path
) -> None:
    rows = [(f"M{i}", f"G{i // 2}", MELANOMA_INDEX, 0.8) for i in range(60)]
    report = _report(bundle, _table([*rows, ("N0", "N0", NEVUS, 0.2)]), tmp_path)
    assert report["contract"]["num_target"] == 30


@pytest.mark.parametrize("split", ["external", "test"])
def test_what_was_left_out_is_in_every_artefact(split: str, bundle: Bundle, tmp_path: Path) -> None:
    table = _table([("M0", "M0", MELANOMA_INDEX, 0.9), ("N0", "N0", NEVUS, 0.2)])
    left_out = {"image_missing": {"mel": 3}, "unknown_dx": {"un<known": 4}}
    evaluated = _evaluated(
        bundle, table, split=split, population="some", same_splits=False, left_out=left_out
    )
    assert write_report(evaluated, tmp_path)["left_out"] == left_out
    page = (tmp_path / "report.html").read_text()
    assert (
        "7 images were left out, 3 of them labelled as melanoma: 4 unknown_dx (4 un&lt;known); 3"
        " image_missing (3 mel)." in page
    )
    assert ("When the data set was prepared" in page) == (split == "test")
    text = " ".join(
        page.get_textpage().get_text_range()
        for page in pypdfium2.PdfDocument(tmp_path / "report.pdf")
    )
    assert "7 images were left out" in " ".join(text.split())
