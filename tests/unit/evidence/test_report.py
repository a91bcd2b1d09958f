import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pypdfium2
import pytest

from melanoma.bundle.bundle import Bundle, load_bundle
from melanoma.evidence.calibration import Calibrator
from melanoma.evidence.evaluated import Evaluated
from melanoma.evidence.intervals import clopper_pearson
from melanoma.evidence.report import write_report
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
    known = {"source": "a", "dx_type": "histology", "sex": "male", "age": 40.0, "site": "back"}
    return table.drop(columns="melanoma").assign(
        image_id=image_ids, split="test", skin_type="", ita=30.0, decision="refer", **known, **named
    )


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


def _mixed() -> pd.DataFrame:
    """Return 60 melanomas and 240 nevi of two sources, the second of which has few melanomas."""
    rng = np.random.default_rng(0)
    is_target = np.arange(300) < 60
    source = np.where(rng.random(300) < np.where(is_target, 0.1, 0.6), "b", "a")
    scores = np.clip(0.3 + 0.4 * is_target - 0.2 * (source == "b") + rng.normal(0, 0.2, 300), 0, 1)
    labels = np.where(is_target, MELANOMA_INDEX, NEVUS)
    rows = [(f"L{i}", f"L{i}", int(labels[i]), float(scores[i])) for i in range(300)]
    return _table(rows).assign(source=source, dx_type=np.where(source == "b", "follow_up", ""))


def test_the_network_stands_beside_models_that_see_no_image(bundle: Bundle, tmp_path: Path) -> None:
    table = _mixed()
    evaluated = _evaluated(
        bundle, table, split="test", population="some", same_splits=True, train=table
    )
    report = write_report(evaluated, tmp_path)
    (found,) = report["reference_models"]  # nothing but the source differs
    assert found["columns"] == ["source"]
    assert found["within_source"]["reference_auroc"] == pytest.approx(0.5)
    assert found["pooled"]["reference_auroc"] > 0.65
    assert found["within_source"]["auroc"] == pytest.approx(report["within_source"]["value"])
    assert found["pooled"]["auroc"] == pytest.approx(report["contract_unit"]["auroc"]["value"])
    lead = found["pooled"]["difference"]
    assert lead["low"] < lead["value"] < lead["high"]
    assert set(report["by_source"]) == {"a", "b"}
    assert set(report["by_reference_standard"]) == {"follow_up", "unknown"}
    assert report["by_source"]["b"]["few_targets"]
    assert report["by_source"]["b"]["specificity_at_sensitivity_90"]["low"] is None
    best = report["by_source"]["a"]["specificity_at_sensitivity_90"]
    assert 0 <= best["low"] < best["value"] < best["high"] < 1
    page = (tmp_path / "report.html").read_text()
    for title in ("By source", "Beside models", "Referred by class", "At other prevalences"):
        assert title in page, title
    text = " ".join(
        page.get_textpage().get_text_range()
        for page in pypdfium2.PdfDocument(tmp_path / "report.pdf")
    )
    for title in ("By reference standard", "too few", "Where the numbers come from"):
        assert title in " ".join(text.split()), title


def test_missed_melanomas_are_named_and_the_table_adds_up(bundle: Bundle, tmp_path: Path) -> None:
    table = _mixed()
    report = _report(bundle, table, tmp_path)
    missed = table[(table["label"] == MELANOMA_INDEX) & (table["probability_mel"] < 0.5)]
    assert {row["image_id"] for row in report["missed_targets"]} == set(missed["image_id"])
    counts = report["contract_unit"]["table"]
    assert counts["missed_target"] == len(missed)
    assert sum(counts.values()) == 300 == report["contract_unit"]["num_groups"]
    assert report["by_class"]["mel"]["referred"] == counts["referred_target"]
    (row, *_) = report["at_prevalence"]
    value = row["positive_predictive_value"]
    assert value["low"] < value["value"] < value["high"]


def test_images_that_the_bundle_knows_are_not_counted(bundle: Bundle, tmp_path: Path) -> None:
    table = _mixed()
    known = frozenset(table["image_id"][:30])
    evaluated = _evaluated(
        bundle, table, split="external", population="some", same_splits=False, known=known
    )
    report = write_report(evaluated, tmp_path)
    is_known = table["group"].isin(set(table["group"][:30])).to_numpy()
    assert report["flow"] == {
        "images": 300,
        "known_to_the_bundle": is_known.sum(),
        "cannot_assess": 0,
        "numbers_rest_on_known": False,
        "judged": 300 - is_known.sum(),
        "left_out_before": 0,
    }
    is_target = (table["label"] == MELANOMA_INDEX).to_numpy()
    assert report["contract"]["num_target"] == table["group"][is_target & ~is_known].nunique()
    assert report["contract"]["status"] != "none"
    everything = dataclasses.replace(evaluated, known=frozenset(table["image_id"]))
    assert write_report(everything, tmp_path)["contract"]["status"] == "none"


def test_images_that_are_not_assessed_are_counted_apart(bundle: Bundle, tmp_path: Path) -> None:
    table = _mixed()
    is_target = (table["label"] == MELANOMA_INDEX).to_numpy()
    refused = np.zeros(len(table), dtype=bool)
    refused[np.flatnonzero(is_target)[:3]] = refused[np.flatnonzero(~is_target)[:20]] = True
    table.loc[refused, "decision"] = "cannot_assess"
    report = _report(bundle, table, tmp_path)
    assert (report["flow"]["images"], report["flow"]["cannot_assess"]) == (300, 23)
    assert (report["image"]["num"], report["image"]["num_target"]) == (277, is_target.sum() - 3)
    cell = report["cannot_assess"]["mel"]
    assert (cell["num"], cell["refused"]) == (is_target.sum(), 3)
    assert "Flow of images" in (tmp_path / "report.html").read_text()


def test_without_lesion_ids_there_is_no_lesion_level(bundle: Bundle, tmp_path: Path) -> None:
    report = _report(bundle, _mixed().assign(lesion_id=""), tmp_path)
    assert "lesion" not in report
    assert "per lesion" not in (tmp_path / "report.html").read_text()


@pytest.fixture
def several(bundle: Bundle) -> Bundle:
    """The same, with a threshold of its own for several images."""
    point = dataclasses.replace(bundle.operating_point, threshold=0.4)
    identity = Calibrator.identity(len(CLASSES))
    manifest = dataclasses.replace(bundle.manifest, several_images=point, calibrator=identity)
    return dataclasses.replace(bundle, manifest=manifest)


def _with_logits(table: pd.DataFrame) -> pd.DataFrame:
    logits = {
        f"logit_{name}": np.log(table[f"probability_{name}"].clip(lower=1e-9)) for name in CLASSES
    }
    return table.assign(**logits)


def _several(bundle: Bundle, table: pd.DataFrame, folder: Path) -> Any:
    evaluated = _evaluated(
        bundle,
        _with_logits(table),
        split="test",
        population="some, test",
        same_splits=True,
        calibrator=bundle.manifest.calibrator,
        several_images=bundle.manifest.several_images,
    )
    return write_report(evaluated, folder)["several_images"]


def test_lesions_with_several_images_are_judged_together(several: Bundle, tmp_path: Path) -> None:
    """The mean of the logits of 0.9 and 0.2 is that of 0.6; alone, one of them is missed."""
    rows = [
        ("M0", "M0", MELANOMA_INDEX, 0.9),
        ("M0", "M0", MELANOMA_INDEX, 0.2),
        ("M1", "M1", MELANOMA_INDEX, 0.9),  # one image: no unit here
        ("N0", "N0", NEVUS, 0.1),
        ("N0", "N0", NEVUS, 0.2),
        ("N0", "N0", NEVUS, 0.3),
    ]
    found = _several(several, _table(rows), tmp_path)
    together, alone = found["together"], found["one_image"]
    assert (together["num"], together["num_target"], alone["num"]) == (2, 1, 2)
    assert found["mean_images"] == pytest.approx(2.5)
    assert together["threshold"] == 0.4
    assert alone["threshold"] == 0.5
    assert together["sensitivity"]["value"] == 1.0
    assert found["contract"]["num_target"] == 1
    assert "Several images of one lesion" in (tmp_path / "report.html").read_text()


def test_an_unusual_image_leaves_its_lesion_out_of_the_table(
    several: Bundle, tmp_path: Path
) -> None:
    rows = [(name, name, MELANOMA_INDEX, p) for name in ("M0", "M1") for p in (0.9, 0.8)]
    rows += [("N0", "N0", NEVUS, p) for p in (0.1, 0.2)]
    table = _table(rows)
    table.loc[0, "decision"] = "cannot_assess"
    found = _several(several, table, tmp_path)
    assert found["together"]["num_target"] == 1
    assert found["contract"]["num_target_unassessed"] == 1


def test_without_such_lesions_there_is_no_table(several: Bundle, tmp_path: Path) -> None:
    rows = [("M0", "M0", MELANOMA_INDEX, 0.9), ("N0", "N0", NEVUS, 0.1)]
    assert _several(several, _table(rows), tmp_path) is None
    assert "Several images of one lesion" not in (tmp_path / "report.html").read_text()
