"""A clue that ranks the targets is a shortcut; other clues are not."""

import numpy as np
import pandas as pd
import pytest

from melanoma.arrays import BoolArray, FloatArray
from melanoma.audit.shortcuts import Clue, appearance, find_shortcuts, source_accuracy
from melanoma.data.phantom.camera import Camera
from melanoma.data.phantom.drawing import Lesion, draw
from melanoma.imaging.descriptors import NUM_DESCRIPTORS

NUM = 400
RNG = np.random.default_rng(0)
IS_TARGET: BoolArray = RNG.random(NUM) < 0.3


def _rows(**columns: object) -> pd.DataFrame:
    rows = pd.DataFrame(
        {
            "group": [f"group {index}" for index in range(NUM)],
            "source": "one",
            "dx_type": "",
            "width_px": 600,
            "height_px": 450,
            "file_bytes": 20_000 + RNG.integers(0, 2000, NUM),
        }
    )
    return rows.assign(**columns)


def _looks() -> FloatArray:
    looks = RNG.normal(size=(NUM, NUM_DESCRIPTORS + 97))
    looks[:, -1] = 20_000 + RNG.integers(0, 2000, NUM)
    return looks


def _found(rows: pd.DataFrame, looks: FloatArray) -> dict[str, Clue]:
    return {clue.name: clue for clue in find_shortcuts(rows, IS_TARGET, looks)}


def _mostly(target: object, other: object) -> np.ndarray:
    """Return a column that says in nine of ten rows whether the row is a target."""
    told = np.where(RNG.random(NUM) < 0.9, IS_TARGET, ~IS_TARGET)
    return np.where(told, target, other)


def test_a_clean_set_has_no_shortcut() -> None:
    rows = _rows(source=RNG.choice(["a", "b", "c"], NUM), width_px=RNG.choice([600, 1024], NUM))
    found = _found(rows, _looks())
    assert [name for name, clue in found.items() if clue.is_shortcut] == []
    assert found["source"].is_shortcut is False
    assert found["reference_standard"].is_shortcut is None  # it does not vary


@pytest.mark.parametrize(
    ("clue", "columns"),
    [
        ("source", {"source": _mostly("clinic", "screening")}),
        ("reference_standard", {"dx_type": _mostly("histology", "follow_up")}),
        ("image_size", {"width_px": _mostly(1024, 600)}),
        ("compression", {"file_bytes": _mostly(60_000, 20_000) + RNG.integers(0, 2000, NUM)}),
    ],
)
def test_a_planted_shortcut_is_found(clue: str, columns: dict[str, object]) -> None:
    found = _found(_rows(**columns), _looks())
    assert [name for name, each in found.items() if each.is_shortcut] == [clue]
    auroc = found[clue].auroc
    assert auroc is not None
    assert 0.85 < auroc < 0.95


def test_colours_along_the_border_are_found() -> None:
    looks = _looks()
    looks[:, NUM_DESCRIPTORS + 5] += 4 * IS_TARGET
    assert _found(_rows(), looks)["border"].is_shortcut


def test_a_source_that_the_pixels_tell_is_found() -> None:
    source = _mostly("clinic", "screening")
    looks = _looks()
    looks[:, 3] += 6 * (source == "clinic")
    rows = _rows(source=source)
    assert _found(rows, looks)["source_from_pixels"].is_shortcut
    told = source_accuracy(rows, looks)
    assert told is not None
    assert told["accuracy"] > 0.98
    assert told["largest"] == pytest.approx(pd.Series(source).value_counts(normalize=True).iloc[0])


def test_too_few_targets_are_not_judged() -> None:
    rows = _rows(source=_mostly("clinic", "screening"))
    few = np.zeros(NUM, dtype=bool)
    few[:9] = True
    assert {clue.is_shortcut for clue in find_shortcuts(rows, few, _looks())} == {None}


@pytest.mark.parametrize("num_small", [1, 4, 6])
def test_small_sources_count_as_the_largest(num_small: int) -> None:
    small = [f"small {index}" for index in range(num_small)]
    rows = _rows(source=np.array(["large"] * (NUM - num_small) + small))
    assert source_accuracy(rows, _looks()) is None
    assert _found(rows, _looks())["source_from_pixels"].is_shortcut is None


def test_many_sources_that_say_nothing_are_no_shortcut() -> None:
    """The shares of targets of 20 small sources vary by chance; they must not be fitted to."""
    source = np.repeat([f"clinic {index:02d}" for index in range(20)], NUM // 20)
    looks = _looks()
    looks[:, :20] += 8 * (source[:, None] == np.unique(source)[None])
    found = _found(_rows(source=source), looks)["source_from_pixels"]
    assert found.auroc is not None
    assert found.auroc < 0.56


def test_the_appearance_has_one_number_for_each_part() -> None:
    pixels, _ = draw(Lesion("nv", 0.2, 0.3, 1), Camera((1.0, 1.0, 1.0), 0.1), 0)
    looks = appearance(pixels)
    assert looks.shape == (NUM_DESCRIPTORS + 97,)
    assert np.isfinite(looks).all()
