"""The tools that ask how a network bears another source, and artefacts."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.artefacts import ARTEFACTS, changes
from benchmarks.leave_one_source_out import splits_without
from melanoma.data.dataset import PreparedData
from melanoma.evidence.intervals import clopper_pearson


@pytest.mark.parametrize("name", list(ARTEFACTS))
def test_an_artefact_leaves_a_lesion_to_be_seen(name: str) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :128]
    is_lesion = np.hypot(x - 64, y - 48) < 25
    image = Image.fromarray(
        np.where(is_lesion[..., None], (90, 60, 50), (210, 170, 150)).astype("u1")
    )
    drawn = ARTEFACTS[name](image, rng)
    assert drawn.size == image.size
    changed = np.abs(np.asarray(drawn).astype(int) - np.asarray(image)).max(axis=2) > 20
    assert changed[is_lesion].mean() < 0.35
    assert (np.asarray(drawn) != np.asarray(image)).any()
    again = ARTEFACTS[name](image, np.random.default_rng(0))
    assert (np.asarray(again) == np.asarray(drawn)).all()


def test_changes_are_paired() -> None:
    refer, spare, refuse = "refer", "no_referral", "cannot_assess"
    before = np.array([refer, refer, refer, spare, spare, refer, refer, refuse], dtype=object)
    after = np.array([refer, spare, refer, refer, spare, spare, refuse, spare], dtype=object)
    is_target = np.array([True, True, False, False, False, False, True, True])
    found = changes(before, after, is_target)
    low, high = clopper_pearson(1, 2)
    assert found["targets lost"] == {"num": 1, "of": 2, "low": low, "high": high}
    assert (found["others flipped"]["num"], found["others flipped"]["of"]) == (2, 4)
    assert (found["cannot_assess"]["num"], found["cannot_assess"]["of"]) == (1, 7)


def test_a_source_is_left_out_whole(prepared: PreparedData) -> None:
    records = prepared.records
    source = str(records["source"].iloc[0])
    splits = splits_without(records, source).set_index("image_id")["split"]
    of = records.set_index("image_id").loc[splits.index]
    assert source not in set(of["source"][splits != "test"])
    assert len(splits) == len(records)
    groups = of.groupby(splits)["group"].apply(set)
    assert not groups["test"] & (groups["train"] | groups["calibration"])
    assert set(splits) == {"test", "train", "calibration"}
