"""External data: what is refused before any image is read, and what is said to be left out."""

from pathlib import Path

import pytest

from melanoma.data.external import read_external
from melanoma.data.rejections import Rejection
from melanoma.errors import DataError
from tests.sources import draw, rows, write_source
from tests.tasks import HAM


def _untidy(folder: Path) -> Path:
    """Three melanomas whose images are away, two unknown diagnoses and an image without a row."""
    table = rows()
    for i in (1, 2):
        table[i]["dx"] = "unknown"
    source = write_source(folder, table)
    for i in (0, 4, 8):
        (source / "images" / f"ISIC_{i:04d}.jpg").unlink()
    draw(source / "images" / "stray.jpg", 99)
    return source


def test_bad_rows_are_refused_with_reason_and_class(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=(
            r"5 are not: 3 image_missing \(3 mel\); 2 unknown_dx \(2 unknown\)\. .* pass --skip-bad"
        ),
    ):
        read_external(_untidy(tmp_path), HAM, [], skip_bad=False)


def test_bad_rows_may_be_left_out_and_are_counted(tmp_path: Path) -> None:
    external = read_external(_untidy(tmp_path), HAM, [], skip_bad=True)
    assert len(external.rows) == 19
    counted = {
        "image_missing": {"mel": 3},
        "image_without_row": {"(no row)": 1},
        "unknown_dx": {"unknown": 2},
    }
    assert external.left_out([], skip_bad=True) == counted
    unreadable = [Rejection("ISIC_0012", "blank_image", "blank")]
    assert external.left_out(unreadable, skip_bad=True) == {**counted, "blank_image": {"mel": 1}}
    with pytest.raises(
        DataError, match=r"1 are not: 1 blank_image \(1 mel\)\. The first is ISIC_0012: blank"
    ):
        external.left_out(unreadable, skip_bad=False)


def test_images_without_a_row_are_no_fault_of_a_row(tmp_path: Path) -> None:
    source = write_source(tmp_path, rows(4))
    draw(source / "images" / "stray.jpg", 99)
    assert read_external(source, HAM, [], skip_bad=False).left_out([], skip_bad=False) == {
        "image_without_row": {"(no row)": 1}
    }


def test_the_bundle_s_own_columns_group_what_has_no_others(tmp_path: Path) -> None:
    table = [
        {"image_id": row["image_id"], "dx": row["dx"], "ward": f"{i // 2}"}
        for i, row in enumerate(rows())
    ]
    source = write_source(tmp_path, table)
    assert read_external(source, HAM, ["ward"], skip_bad=False).rows["group"].nunique() == 12
    with pytest.raises(
        DataError, match=r"must have patient_id or lesion_id.*the columns image_id, dx, ward"
    ):
        read_external(source, HAM, ["patient_id"], skip_bad=False)


def test_images_stand_alone_where_those_of_the_bundle_did(tmp_path: Path) -> None:
    table = [{"image_id": row["image_id"], "dx": row["dx"]} for row in rows()]
    source = write_source(tmp_path, table)
    external = read_external(source, HAM, ["image_id"], skip_bad=False)
    assert external.rows["group"].nunique() == len(table)
