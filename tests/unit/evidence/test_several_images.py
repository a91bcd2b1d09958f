import numpy as np
import pandas as pd

from melanoma.evidence.contract import SEVERAL_IMAGES
from melanoma.evidence.several_images import MAX_IMAGES, lesion_units
from tests.tasks import CLASSES, HAM, MELANOMA_INDEX

NEVUS = CLASSES.index("nv")


def _rows(*lesions: tuple[str, int, int]) -> pd.DataFrame:
    """Return the rows of lesions of (lesion_id, number of images, label)."""
    return pd.DataFrame(
        [
            {"lesion_id": name, "group": name or f"image {number}", "label": label}
            for name, num, label in lesions
            for number in range(num)
        ]
    )


def _logits(num: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num, 7))


def _units(rows: pd.DataFrame, logits: np.ndarray, unusual: np.ndarray | None = None):  # type: ignore[no-untyped-def]
    usual = np.zeros(len(rows), dtype=bool)
    return lesion_units(rows, logits, usual if unusual is None else unusual, HAM, seed=0)


def test_the_unit_of_the_contract_says_how_many() -> None:
    assert f"up to {MAX_IMAGES} images of one lesion" == SEVERAL_IMAGES


def test_logits_are_averaged_over_the_images_of_a_lesion() -> None:
    rows = _rows(("a", 2, NEVUS), ("b", 3, MELANOMA_INDEX))
    logits = _logits(5)
    units = _units(rows, logits)
    assert np.allclose(units.logits, [logits[:2].mean(axis=0), logits[2:].mean(axis=0)])
    assert units.labels.tolist() == [NEVUS, MELANOMA_INDEX]
    assert units.num_images.tolist() == [2, 3]
    assert units.first[0] in (0, 1)
    assert units.first[1] in (2, 3, 4)


def test_a_lesion_of_one_image_or_without_an_id_is_no_unit() -> None:
    rows = _rows(("a", 1, NEVUS), ("", 4, NEVUS), ("b", 2, NEVUS))
    assert _units(rows, _logits(7)).num_images.tolist() == [2]


def test_of_many_images_six_are_drawn() -> None:
    rows = _rows(("a", 40, NEVUS))
    logits = np.repeat(np.arange(40.0)[:, None], 7, axis=1)
    units = _units(rows, logits)
    assert units.num_images.tolist() == [MAX_IMAGES]
    assert units.logits[0, 0] not in (np.mean(range(6)), np.mean(range(34, 40)))
    assert np.allclose(_units(rows, logits).logits, units.logits)


def test_an_image_that_a_lesion_has_twice_counts_once() -> None:
    rows = _rows(("a", 3, NEVUS), ("b", 2, NEVUS), ("c", 2, NEVUS))
    logits = _logits(7)
    logits[2] = logits[0] + 1e-5
    logits[4] = logits[3]
    logits[5] = logits[0]  # of another lesion
    units = _units(rows, logits)
    assert units.num_images.tolist() == [2, 2]
    assert np.allclose(units.logits, [logits[:2].mean(axis=0), logits[5:].mean(axis=0)], atol=1e-4)


def test_an_unusual_image_makes_its_lesion_unusual() -> None:
    rows = _rows(("a", 2, NEVUS), ("b", 2, NEVUS))
    units = _units(rows, _logits(4), np.array([False, True, False, False]))
    assert units.unusual.tolist() == [True, False]


def test_one_target_image_makes_a_lesion_a_target() -> None:
    rows = _rows(("a", 2, NEVUS))
    rows.loc[1, "label"] = MELANOMA_INDEX
    assert _units(rows, _logits(2)).labels.tolist() == [MELANOMA_INDEX]


def test_without_such_lesions_there_is_no_unit() -> None:
    assert len(_units(_rows(("a", 1, NEVUS)), _logits(1))) == 0
