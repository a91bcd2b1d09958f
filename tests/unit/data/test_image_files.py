"""How names in a table and names of files find each other, and what is said when they do not."""

import os
import shutil
import unicodedata
from pathlib import Path

import pytest

from melanoma.data.records import read_source
from melanoma.errors import DataError
from tests.sources import draw, rows, write_source, write_table
from tests.tasks import HAM


def _renamed(names: list[str]) -> list[dict[str, str]]:
    return [{**row, "image_id": name} for row, name in zip(rows(len(names)), names, strict=True)]


@pytest.mark.parametrize(
    ("in_table", "file"),
    [
        ("ISIC_1", "ISIC_1.jpg"),
        ("ISIC_1.jpg", "ISIC_1.JPG"),
        ("ISIC_1.PNG", "ISIC_1.png"),
        ("ISIC_1.tif", "ISIC_1.jpg"),
        ("images/part_1/ISIC_1.jpg", "ISIC_1.jpg"),
        ("C:\\data\\ISIC_1.jpg", "ISIC_1.jpeg"),
        ("./ISIC_1", "ISIC_1.webp"),
        (unicodedata.normalize("NFC", "Müller 1"), unicodedata.normalize("NFD", "Müller 1.jpg")),
        (unicodedata.normalize("NFD", "Müller 1"), unicodedata.normalize("NFC", "Müller 1.jpg")),
        ("version.2", "version.2.jpg"),
    ],
)
def test_a_name_is_found_however_it_is_written(in_table: str, file: str, tmp_path: Path) -> None:
    source = read_source(write_source(tmp_path, _renamed([in_table]), names=[file]), HAM)
    assert source.rejections == []
    assert Path(source.records["path"][0]).name == file


@pytest.mark.parametrize(
    ("ids", "files", "message"),
    [
        (
            ["A1", "A2"],
            ["X1.jpg", "X2.jpg"],
            r"none of 2 was found\. metadata\.csv names 'A1'; the first of 2 images is 'X1\.jpg'",
        ),
        (
            ["7", "8"],
            ["0007.jpg", "0008.jpg"],
            r"'7' and '0007\.jpg' differ in leading zeros, which spreadsheets remove",
        ),
        (["ISIC_7"], ["ISIC_0007.jpg"], "differ in leading zeros"),
        (["24306.0"], ["0024306.jpg"], "differ in leading zeros"),
        (
            ["24306"],
            ["ISIC_0024306.jpg"],
            "differ in leading zeros|differ in the text before the number",
        ),
        (["isic_7"], ["ISIC_7.jpg"], "differ in upper and lower case"),
        (["ISIC-7"], ["ISIC 7.jpg"], "differ in blanks or separators"),
        (
            ["A", "B"],
            ["A.bmp", "B.bmp"],
            r"2 files end in \.bmp\. Only JPEG, PNG, WebP and DICOM are read",
        ),
        (["A", "B"], ["A.tiff", "B.dng"], r"1 files end in \.(tiff|dng) and 1 files end in"),
        (["A"], [], "SOURCE holds no image"),
    ],
)
def test_images_that_are_not_found_are_told_with_the_likely_cause(
    ids: list[str], files: list[str], message: str, tmp_path: Path
) -> None:
    write_table(tmp_path / "metadata.csv", _renamed(ids))
    for name in files:
        shutil.copy(draw(tmp_path / "drawn" / "x.png"), tmp_path / name)
    shutil.rmtree(tmp_path / "drawn", ignore_errors=True)
    with pytest.raises(DataError, match=message):
        read_source(tmp_path, HAM).check_found()


def test_the_cause_is_told_for_one_image_too(tmp_path: Path) -> None:
    source = write_source(
        tmp_path, _renamed(["1000", "7", "9", "x"]), names=["1000.jpg", "0007.jpg", "9.jpg"]
    )
    (source / "images" / "9.jpg").rename(source / "images" / "9.bmp")
    told = {
        r.image_id: r.detail
        for r in read_source(source, HAM).rejections
        if r.reason == "image_missing"
    }
    assert "leading zeros" in told["7"]
    assert "9.bmp is there" in told["9"]
    assert told["x"] == "no image below SOURCE has this name"


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    write_table(tmp_path / "metadata.csv", rows(2))
    (tmp_path / "images").symlink_to(tmp_path / "unmounted")
    with pytest.raises(DataError, match="the target of the link images is missing"):
        read_source(tmp_path, HAM).check_found()


def test_copies_of_one_image_count_once(tmp_path: Path) -> None:
    source = write_source(tmp_path, rows(3))
    shutil.copytree(source / "images", source / "IMAGES again")
    assert read_source(source, HAM).rejections == []
    draw(source / "IMAGES again" / "ISIC_0001.jpg", seed=99)
    assert [(r.image_id, r.reason) for r in read_source(source, HAM).rejections] == [
        ("ISIC_0001", "image_twice")
    ]


def test_folders_in_the_table_tell_equal_names_apart(tmp_path: Path) -> None:
    write_table(tmp_path / "metadata.csv", _renamed(["north/1.jpg", "south/1.jpg"]))
    north, south = draw(tmp_path / "data/north/1.jpg", 1), draw(tmp_path / "data/south/1.jpg", 2)
    source = read_source(tmp_path, HAM)
    assert source.rejections == []
    assert source.records["path"].tolist() == [str(north), str(south)]


def test_names_that_are_not_utf_8_stop_nothing(tmp_path: Path) -> None:
    source = write_source(tmp_path, rows(2))
    folder = os.path.join(os.fsencode(source), b"bilder\xe4")
    os.mkdir(folder)
    os.rename(
        os.fsencode(source / "images" / "ISIC_0000.jpg"), os.path.join(folder, b"ISIC_0000.jpg")
    )
    os.rename(os.fsencode(draw(source / "x.jpg", 5)), os.path.join(folder, b"N\xe4vus.jpg"))
    read = read_source(source, HAM)
    assert [(r.image_id, r.reason) for r in read.rejections] == [("N\\xe4vus", "image_without_row")]
    assert Path(read.records["path"][0]).is_file()
