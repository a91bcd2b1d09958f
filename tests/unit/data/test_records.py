from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from melanoma.data.records import read_source
from melanoma.errors import DataError
from tests.tasks import HAM

TABLES = {
    "ham10000": (
        "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset\nL1,A,mel,histo,80.0,male,scalp,vidir_modern\nL2,B,nv,follow_up,0.0,,back,rosendahl\n",
        ["mel", "nv"],
        ("lesion_id",),
    ),
    "isic 2018": (
        "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\nA,1.0,0.0,0.0,0.0,0.0,0.0,0.0\nB,0.0,0.0,0.0,0.0,0.0,1.0,0.0\n",
        ["mel", "df"],
        (),
    ),
    "isic 2019": (
        "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\nA,0.0,0.0,0.0,1.0,0.0,0.0,0.0,0.0,0.0\nB,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0\n",
        ["akiec", ""],
        (),
    ),
    "isic 2020": (
        (
            "image_name,patient_id,lesion_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target\n"
            "A,P1,L1,male,45,torso,melanoma,malignant,1\nB,P2,L2,female,50,head/neck,unknown,benign,0\n"
        ),
        ["mel", ""],
        ("patient_id", "lesion_id"),
    ),
    "isic archive": (
        (
            "isic_id,attribution,age_approx,anatom_site_general,diagnosis_1,diagnosis_2,diagnosis_3,lesion_id,patient_id,sex\nA,X,60,head/neck,Malignant,Malignant"
            ' melanocytic proliferations (Melanoma),"Melanoma,'
            ' NOS",L1,P1,male\nB,X,60,head/neck,Benign,Benign epidermal proliferations,Seborrheic'
            " keratosis,L2,P2,female\n"
        ),
        ["mel", "bkl"],
        ("patient_id", "lesion_id"),
    ),
    "pad-ufes-20": (
        "patient_id,lesion_id,age,gender,region,diagnostic,img_id\nPAT_1,11,50,MALE,FACE,ACK,A.png\nPAT_2,12,50,FEMALE,ARM,SCC,B.png\n",
        ["akiec", ""],
        ("patient_id", "lesion_id"),
    ),
}


def _write(folder: Path, table: str, images: tuple[str, ...] = ("A", "B")) -> Path:
    (folder / "images" / "deep").mkdir(parents=True)
    (folder / "labels.csv").write_text(table)
    for name in images:
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(
            folder / "images" / "deep" / f"{name}.jpg"
        )
    return folder


@pytest.mark.parametrize("name", TABLES)
def test_public_layouts_are_understood(name: str, tmp_path: Path) -> None:
    table, expected, groups = TABLES[name]
    source = read_source(_write(tmp_path, table), HAM)
    assert source.records["image_id"].tolist() == ["A", "B"]
    assert source.records["dx"].tolist() == expected
    assert source.group_columns == groups
    assert (source.records["path"] != "").all()
    assert [(r.image_id, r.reason) for r in source.rejections] == [
        (i, "unknown_dx") for i, dx in zip("AB", expected, strict=True) if not dx
    ]


def test_tables_are_joined_on_the_image_id(tmp_path: Path) -> None:
    folder = _write(tmp_path, TABLES["isic 2018"][0])
    (folder / "groupings.csv").write_text("image,lesion_id\nB,L2\nA,L1\n")
    source = read_source(folder, HAM)
    assert dict(zip(source.records["image_id"], source.records["lesion_id"], strict=True)) == {
        "A": "L1",
        "B": "L2",
    }
    assert source.group_columns == ("lesion_id",)


def test_an_age_of_zero_is_unknown(tmp_path: Path) -> None:
    ages = read_source(_write(tmp_path, TABLES["ham10000"][0]), HAM).records["age"]
    assert ages[0] == 80
    assert np.isnan(ages[1])


def test_every_fault_is_found_in_one_reading(source: Path) -> None:
    table = pd.read_csv(source / "metadata.csv", dtype=str)
    table.loc[0, "dx"] = "wart"
    table.loc[2, "dx"] = "df"  # its lesion's other image says mel
    table = pd.concat(
        [table, table.iloc[[8]].assign(age="41"), table.iloc[[9]]]
    )  # a row that is equal to another counts once
    table.to_csv(source / "metadata.csv", index=False)
    (source / "images" / "IMG_005_0.jpg").unlink()
    (source / "images" / "IMG_006_0.jpg").rename(source / "images" / "STRAY.jpg")
    found = {(r.image_id, r.reason) for r in read_source(source, HAM).rejections}
    assert found == {
        ("IMG_000_0", "unknown_dx"),
        ("IMG_001_0", "lesion_with_two_labels"),
        ("IMG_001_1", "lesion_with_two_labels"),
        ("IMG_004_0", "image_id_twice"),
        ("IMG_005_0", "image_missing"),
        ("IMG_006_0", "image_missing"),
        ("STRAY", "image_without_row"),
    }


def test_masks_are_no_images(source: Path) -> None:
    (source / "masks").mkdir()
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(source / "masks" / "IMG_000_0.png")
    assert not read_source(source, HAM).rejections


@pytest.mark.parametrize(
    ("table", "message"), [("a,b\n1,2\n", "image_id"), ("image_id,lesion_id\nA,L\n", "diagnosis")]
)
def test_a_missing_column_is_named(table: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_source(_write(tmp_path, table), HAM)
