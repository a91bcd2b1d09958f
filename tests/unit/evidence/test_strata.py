import numpy as np
import pandas as pd
import pytest

from melanoma.evidence.intervals import clopper_pearson
from melanoma.evidence.levels import contract_level, image_level, lesion_level
from melanoma.evidence.strata import by_class, by_column, subgroups
from tests.tasks import CLASSES, HAM, MELANOMA_INDEX

NEVUS, BCC = CLASSES.index("nv"), CLASSES.index("bcc")


def _table(scores: list[float], labels: list[int], **columns: object) -> pd.DataFrame:
    num = len(scores)
    probabilities = np.zeros((num, len(CLASSES)))
    probabilities[:, MELANOMA_INDEX], probabilities[:, NEVUS] = scores, 1 - np.array(scores)
    ids = [f"I{i}" for i in range(num)]
    known = {"source": "a", "dx_type": "", "sex": "", "age": np.nan, "site": "", "skin_type": ""}
    known |= {"ita": np.nan, "decision": "refer"}
    table = pd.DataFrame(
        {"image_id": ids, "lesion_id": ids, "group": ids, "label": labels, **known}
    )
    named = {f"probability_{name}": probabilities[:, i] for i, name in enumerate(CLASSES)}
    return table.assign(**named, **columns)


def test_pooling_to_lesions_never_asks_for_the_label() -> None:
    """A patient's melanoma and nevus have no lesion ids: neither may be averaged by its label."""
    table = _table([0.9, 0.1, 0.5], [MELANOMA_INDEX, MELANOMA_INDEX, NEVUS], lesion_id="")
    assert lesion_level(image_level(table, HAM)) is None
    mixed = table.assign(lesion_id=["L", "L", "L"], group="P")
    lesions = lesion_level(image_level(mixed, HAM))
    assert lesions is not None
    assert lesions.units.scores.tolist() == pytest.approx([0.5])
    assert lesions.units.labels.tolist() == [MELANOMA_INDEX]


def test_a_lesion_keeps_its_own_label_and_group() -> None:
    scores, labels = [0.1, 0.9, 0.3, 0.8], [NEVUS, MELANOMA_INDEX, NEVUS, MELANOMA_INDEX]
    table = _table(scores, labels, lesion_id=["N", "M", "N", "L"], group=["n", "m", "n", "m"])
    lesions = lesion_level(image_level(table, HAM))
    assert lesions is not None
    found = dict(zip(lesions.rows["lesion_id"], lesions.units.labels, strict=True))
    assert found == {"N": NEVUS, "M": MELANOMA_INDEX, "L": MELANOMA_INDEX}
    assert dict(zip(lesions.rows["lesion_id"], lesions.units.scores.round(6), strict=True)) == {
        "N": 0.2,
        "M": 0.9,
        "L": 0.8,
    }
    assert lesions.groups.tolist() == lesions.rows["group"].map({"m": 0, "n": 1}).tolist()


def test_an_image_without_a_lesion_id_is_a_lesion_of_its_own() -> None:
    table = _table([0.9, 0.1, 0.5], [NEVUS] * 3, lesion_id=["L", "", "L"])
    lesions = lesion_level(image_level(table, HAM))
    assert lesions is not None
    assert sorted(lesions.units.scores.tolist()) == pytest.approx([0.1, 0.7])


def test_the_contract_counts_one_image_of_each_kind_in_a_group() -> None:
    table = _table([0.9, 0.8, 0.1, 0.2], [MELANOMA_INDEX] * 2 + [NEVUS] * 2, group="P")
    level, refused = contract_level(image_level(table, HAM))
    assert level.units.is_target.tolist() == [True, False]
    assert refused == 0


def test_the_contract_draws_an_image_before_it_asks_whether_it_is_assessed() -> None:
    """Otherwise a lesion with one refused image of two would always count as assessed."""
    num = 400
    table = _table([0.9] * 2 * num, [MELANOMA_INDEX] * 2 * num).assign(
        group=[f"L{i // 2}" for i in range(2 * num)], decision=["cannot_assess", "refer"] * num
    )
    level, refused = contract_level(image_level(table, HAM))
    assert len(level) + refused == num
    assert 150 < refused < 250
    assert (level.rows["decision"] == "refer").all()


def test_a_class_that_nobody_looks_for_can_be_seen() -> None:
    table = _table([0.9] * 3 + [0.1] * 7, [BCC] * 10)
    found = by_class(image_level(table, HAM), 0.5)
    low, high = clopper_pearson(3, 10)
    assert found["bcc"] == {"num": 10, "referred": 3, "value": 0.3, "low": low, "high": high}
    assert np.isnan(found["mel"]["value"])


def test_sources_are_told_apart_and_few_targets_are_marked() -> None:
    scores, labels = [0.9] * 12 + [0.1] * 20, [MELANOMA_INDEX] * 12 + [NEVUS] * 20
    table = _table(scores, labels, source=["a"] * 11 + ["b"] + ["a"] * 10 + [""] * 10)
    level = image_level(table, HAM)
    found = by_column(level, table["source"], 0.5)
    assert list(found) == ["a", "unknown", "b"]
    assert {name: cell["few_targets"] for name, cell in found.items()} == {
        "a": False,
        "unknown": True,
        "b": True,
    }
    assert found["a"]["sensitivity"]["value"] == 1
    assert found["unknown"]["specificity"]["value"] == 1
    assert np.isnan(found["b"]["auroc"]["value"])


def test_subgroups_are_those_that_are_known() -> None:
    table = _table([0.9, 0.1, 0.1], [MELANOMA_INDEX, NEVUS, NEVUS], age=[29.9, 30.0, np.nan])
    found = subgroups(image_level(table, HAM), 0.5)
    assert list(found) == ["age"]
    assert {name: cell["num"] for name, cell in found["age"].items()} == {
        "under 30": 1,
        "30 to 49": 1,
        "unknown": 1,
    }
