"""Preparing a data set, in this process."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from melanoma.data.dataset import ImageDataset, open_prepared
from melanoma.data.decoding import shard_rows
from melanoma.data.prepare import prepare
from melanoma.data.prepare_config import PrepareConfig
from melanoma.errors import DataError, LeakageError
from melanoma.imaging.decode import decode_image
from melanoma.imaging.letterbox import letterbox

CONFIG = PrepareConfig(size=64, num_folds=2, test_fraction=0.2, calibration_fraction=0.2)


def _spoil(source: Path) -> None:
    """Plant one fault of every kind that only decoding shows, and one of the metadata."""
    data = (source / "images" / "IMG_000_0.jpg").read_bytes()
    (source / "images" / "IMG_000_0.jpg").write_bytes(data[: len(data) // 2])
    (source / "images" / "IMG_002_0.jpg").write_bytes(b"not an image")
    (source / "images" / "IMG_005_1.jpg").unlink()
    # The same pixels under two names and two labels.
    (source / "images" / "IMG_007_0.jpg").write_bytes(
        (source / "images" / "IMG_008_0.jpg").read_bytes()
    )


def test_what_is_stored_is_what_was_decoded(source: Path, tmp_path: Path) -> None:
    manifest = prepare(source, tmp_path / "out", CONFIG)
    data = open_prepared(tmp_path / "out", verify=True)
    assert manifest.num_images == len(data.records) == 48
    dataset = ImageDataset(data, data.records)
    for index in (0, 17, 47):
        image, image_id = dataset.images([index])[0], dataset.image_ids[index]
        encoded = (source / "images" / f"{image_id}.jpg").read_bytes()
        assert np.array_equal(image.numpy(), letterbox(decode_image(encoded), data.stored_shape))
        assert dataset.labels[index] == data.records["label"][index]


def test_each_split_has_shards_of_its_own(source: Path, tmp_path: Path) -> None:
    """So that nothing which must not be looked at need be there: a search runs where calibration
    and test are removed."""
    prepare(source, tmp_path / "out", CONFIG)
    for shard in (tmp_path / "out" / "shards").iterdir():
        if not shard.name.startswith("train"):
            shard.unlink()
    data = open_prepared(tmp_path / "out")
    assert len(ImageDataset(data, data.rows("train"))) > 0
    with pytest.raises(DataError, match="missing"):
        ImageDataset(data, data.rows("test"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "manifest.json", "notes.txt", "records.parquet", "rejected.csv", "shards",
    }  # fmt: skip


def test_metadata_without_any_image_are_refused(source: Path, tmp_path: Path) -> None:
    for image in (source / "images").iterdir():
        image.unlink()
    with pytest.raises(DataError, match=r"none of 48 was found.*SOURCE holds no image"):
        prepare(source, tmp_path / "out", PrepareConfig(size=64, skip_bad=True))


def test_bad_rows_can_be_left_out_and_are_listed(source: Path, tmp_path: Path) -> None:
    _spoil(source)
    manifest = prepare(source, tmp_path / "out", PrepareConfig(size=64, num_folds=2, skip_bad=True))
    assert manifest.num_images == 43
    assert len(pd.read_csv(tmp_path / "out" / "rejected.csv")) == 5


def test_copies_and_known_pairs_are_joined(source: Path, tmp_path: Path) -> None:
    images = source / "images"
    (images / "IMG_002_0.jpg").write_bytes(
        (images / "IMG_004_0.jpg").read_bytes()
    )  # the same bytes
    Image.open(images / "IMG_006_0.jpg").save(
        images / "IMG_006_0.png"
    )  # the same pixels in another file
    (images / "IMG_008_0.jpg").unlink()
    (images / "IMG_006_0.png").rename(images / "IMG_008_0.png")
    (tmp_path / "pairs.csv").write_text("a,b\nIMG_001_0,IMG_003_1\n")
    prepare(
        source,
        tmp_path / "out",
        PrepareConfig(size=64, num_folds=2, same_lesion=tmp_path / "pairs.csv"),
    )
    group = open_prepared(tmp_path / "out").records.set_index("image_id")["group"]
    assert group["IMG_002_1"] == group["IMG_004_1"]
    assert group["IMG_006_1"] == group["IMG_008_1"]
    assert group["IMG_001_1"] == group["IMG_003_0"]
    assert group.nunique() == 24 - 3


def test_pairs_need_no_header_and_may_name_files(source: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("IMG_001_0.jpg, IMG_003_1.jpg\nIMG_005_0,ELSEWHERE\n")
    config = PrepareConfig(size=64, num_folds=2, same_lesion=tmp_path / "pairs.csv")
    assert prepare(source, tmp_path / "out", config).num_known_pairs == 1
    group = open_prepared(tmp_path / "out").records.set_index("image_id")["group"]
    assert group["IMG_001_1"] == group["IMG_003_0"]


def test_one_lesion_has_one_label_though_known_by_a_pair_alone(
    source: Path, tmp_path: Path
) -> None:
    (tmp_path / "pairs.csv").write_text("a,b\nIMG_001_0,IMG_002_0\n")
    with pytest.raises(DataError, match="2 pair_with_two_labels"):
        prepare(
            source,
            tmp_path / "out",
            PrepareConfig(size=64, num_folds=2, same_lesion=tmp_path / "pairs.csv"),
        )


def test_a_folder_named_like_an_image_is_none(source: Path, tmp_path: Path) -> None:
    (source / "images" / "IMG_003_0.jpg").unlink()
    (source / "images" / "IMG_003_0.jpg").mkdir()
    with pytest.raises(DataError, match="1 image_missing"):
        prepare(source, tmp_path / "out", CONFIG)


def test_large_images_lie_in_smaller_shards() -> None:
    assert shard_rows(256) == 512
    assert shard_rows(2048) * 2048 * 1536 * 3 <= 96 * 2**20


def test_groups_hold_though_the_image_that_joins_them_is_left_out(
    source: Path, tmp_path: Path
) -> None:
    """A known pair joins two lesions; that one of its images cannot be read does not part them
    again."""
    (source / "images" / "IMG_003_1.jpg").write_bytes(b"not an image")
    (tmp_path / "pairs.csv").write_text("a,b\nIMG_001_0,IMG_003_1\n")
    config = PrepareConfig(size=64, num_folds=2, same_lesion=tmp_path / "pairs.csv", skip_bad=True)
    prepare(source, tmp_path / "out", config)
    group = open_prepared(tmp_path / "out").records.set_index("image_id")["group"]
    assert group["IMG_001_1"] == group["IMG_003_0"]


def test_given_splits_that_leak_are_refused(source: Path, tmp_path: Path) -> None:
    table = pd.read_csv(source / "metadata.csv")
    given = table[["image_id"]].assign(split=np.where(np.arange(len(table)) % 2, "train", "test"))
    given.to_csv(tmp_path / "splits.csv", index=False)
    with pytest.raises(LeakageError, match="24 are"):
        prepare(source, tmp_path / "out", PrepareConfig(size=64, splits=tmp_path / "splits.csv"))
    assert not (tmp_path / "out").exists()


def test_grouping_is_never_guessed(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lack patient_id"):
        prepare(source, tmp_path / "out", PrepareConfig(size=64, group_by=("patient_id",)))
    pd.read_csv(source / "metadata.csv").drop(columns="lesion_id").to_csv(
        source / "metadata.csv", index=False
    )
    with pytest.raises(DataError, match="give no image a patient_id or lesion_id"):
        prepare(source, tmp_path / "out", CONFIG)


def test_a_column_of_blanks_groups_nothing(source: Path, tmp_path: Path) -> None:
    table = pd.read_csv(source / "metadata.csv").assign(patient_id="", lesion_id="")
    table.to_csv(source / "metadata.csv", index=False)
    with pytest.raises(DataError, match="give no image a patient_id or lesion_id"):
        prepare(source, tmp_path / "out", CONFIG)
    table.loc[:39, "lesion_id"] = [f"L{row // 2}" for row in range(40)]
    table.to_csv(source / "metadata.csv", index=False)
    manifest = prepare(source, tmp_path / "out", CONFIG)
    assert manifest.group_columns == ("lesion_id",)
    assert manifest.num_without_group_id == 8


def test_a_data_set_is_never_overwritten(source: Path, tmp_path: Path) -> None:
    prepare(source, tmp_path / "out", CONFIG)
    with pytest.raises(DataError, match="must be new or empty"):
        prepare(source, tmp_path / "out", CONFIG)
    assert open_prepared(tmp_path / "out", verify=True).manifest.seed == 0


def test_any_column_groups(source: Path, tmp_path: Path) -> None:
    table = pd.read_csv(source / "metadata.csv").rename(columns={"lesion_id": "Ward"})
    table.to_csv(source / "metadata.csv", index=False)
    manifest = prepare(source, tmp_path / "out", dataclasses.replace(CONFIG, group_by=("ward",)))
    assert (manifest.group_columns, manifest.num_groups) == (("ward",), 24)


def test_names_that_are_not_utf_8_are_prepared(source: Path, tmp_path: Path) -> None:
    os.rename(os.fsencode(source / "images"), os.path.join(os.fsencode(source), b"bilder\xe4"))
    assert prepare(source, tmp_path / "out", CONFIG).num_images == 48


def test_public_photographs_with_patients_are_prepared(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "pad_ufes_20_sample"
    manifest = prepare(folder, tmp_path / "out", PrepareConfig(size=64, num_folds=2, skip_bad=True))
    rejected = pd.read_csv(tmp_path / "out" / "rejected.csv")
    assert manifest.group_columns == ("patient_id", "lesion_id")
    # Squamous cell carcinoma has no counterpart; four originals lie beside their copies.
    assert rejected["reason"].value_counts().to_dict() == {"unknown_dx": 6, "image_twice": 4}
    assert manifest.num_images == 125 - rejected["image_id"].nunique()
