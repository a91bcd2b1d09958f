"""How people spell a diagnosis, and what binary tables say."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from melanoma.data.diagnoses import SPELLINGS, _plain, class_in, read_diagnoses, says_target
from melanoma.data.prepare import prepare
from melanoma.data.prepare_config import PrepareConfig
from melanoma.data.records import read_source
from melanoma.errors import DataError
from melanoma.task import TASKS, Task
from tests.sources import draw

HAM, BINARY, ISIC_2019 = TASKS["ham10000"], TASKS["binary"], TASKS["isic2019"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MEL", "mel"),
        ("Melanoma", "mel"),
        ("malignant melanoma", "mel"),
        ("melanoma in situ", "mel"),
        ("Lentigo maligna", "mel"),
        ("lentigo maligna melanoma", "mel"),
        ("Nodular melanoma", "mel"),
        ("superficial spreading melanoma", "mel"),
        ("NV", "nv"),
        ("Nevus", "nv"),
        ("naevus", "nv"),
        ("Melanocytic nevi", "nv"),
        ("melanocytic nevus", "nv"),
        ("clark nevus", "nv"),
        ("dysplastic nevus", "nv"),
        ("blue nevus", "nv"),
        ("Benign keratosis-like lesions", "bkl"),
        ("benign keratosis", "bkl"),
        ("Basal cell carcinoma", "bcc"),
        ("BCC", "bcc"),
        ("Actinic keratoses", "akiec"),
        ("Vascular lesions", "vasc"),
        ("Dermatofibroma", "df"),
        ("angioma", "vasc"),
        ("seborrhoeic keratosis", "bkl"),
        ("haemangioma", "vasc"),
        ("Malignant::Malignant melanocytic proliferations (Melanoma)::Melanoma Invasive", "mel"),
        ("melanocytic_nevus", "nv"),
        ("Actinic keratosis, Bowen's disease", "akiec"),
        ("Bowen\u2019s disease", "akiec"),
        ("Actinic keratoses and intraepithelial carcinomae", "akiec"),
        ("Actinic keratoses / Bowen's disease", "akiec"),
        ("AK", "akiec"),
        ("Basal-cell carcinomas", "bcc"),
        ("benign lichenoid keratoses", None),
        ("Lichen planus-like keratosis", "bkl"),
        ("junctional naevus", "nv"),
        ("Compound Naevi", "nv"),
        ("atypical moles", "nv"),
        ("dysplastic naevi", "nv"),
        ("melanoma in-situ", "mel"),
        ("acral melanoma", "mel"),
        ("melanoma (in situ)", "mel"),
        ("melanoma (0.76 to 1.5 mm)", "mel"),
        ("haemangiomas", "vasc"),
        ("epidermal naevus", None),
        ("benign", None),
        ("malignant", None),
        ("0", None),
        ("1", None),
        ("unknown", None),
        ("squamous cell carcinoma", None),
    ],
)
def test_spellings_of_ham10000(text: str, expected: str | None) -> None:
    assert class_in(text, HAM) == expected


def test_no_spelling_means_two_diagnoses() -> None:
    spelled = [spelling for spellings in SPELLINGS.values() for spelling in spellings]
    assert len(spelled) == len(set(spelled))
    assert all(_plain(spelling) == spelling for spelling in spelled)


def test_other_tasks_hold_other_classes() -> None:
    assert class_in("squamous cell carcinoma", ISIC_2019) == "scc"
    assert [
        class_in(text, BINARY)
        for text in ("1", "benign", "melanoma", "SCC", "blue nevus", "unknown")
    ] == [
        "malignant",
        "benign",
        "malignant",
        "malignant",
        "benign",
        None,
    ]


def test_a_task_may_spell_the_diagnoses_that_a_class_holds() -> None:
    other = ("Seborrheic keratosis", "cafe-au-lait macule")
    task = Task(("mel", "other"), ("mel",), diagnoses={"other": other})
    texts = ("melanoma", "SEK", "bkl", "Cafe-au-lait macule", "other", "nevus")
    assert [class_in(text, task) for text in texts] == ["mel", *["other"] * 4, None]


def test_classes_may_be_named_in_words() -> None:
    task = Task(("melanoma", "nevus", "rest"), ("melanoma",))
    texts = ("nodular melanoma", "mel", "NV", "dysplastic naevus", "bcc", "rest")
    assert [class_in(text, task) for text in texts] == [
        "melanoma", "melanoma", "nevus", "nevus", None, "rest",
    ]  # fmt: skip
    assert says_target("melanoma of the eye", task)


def test_a_diagnosis_that_a_task_splits_is_read_only_as_it_is_listed() -> None:
    task = Task(
        ("in_situ", "invasive", "rest"),
        ("in_situ", "invasive"),
        diagnoses={"in_situ": ("melanoma in situ",), "invasive": ("nodular melanoma",)},
    )
    texts = ("Melanoma in-situ", "nodular melanoma", "melanoma")
    assert [class_in(text, task) for text in texts] == ["in_situ", "invasive", None]
    assert says_target("melanoma", task)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("desmoplastic melanoma", True),
        ("melanoma of the eye", True),
        ("not melanoma", False),
        ("non-melanoma", False),
        ("wart", False),
    ],
)
def test_what_is_left_out_counts_as_melanoma_by_its_words(text: str, expected: bool) -> None:
    assert says_target(text, HAM) == expected


def _classes(task: str, **columns: list[str]) -> list[str]:
    return [name for name, _ in read_diagnoses(pd.DataFrame(columns), TASKS[task])]


def test_isic_2017_has_three_classes() -> None:
    table = {
        "melanoma": ["1.0", "0.0", "0.0", "1.0"],
        "seborrheic_keratosis": ["0.0", "1.0", "0.0", "1.0"],
    }
    assert _classes("ham10000", **table) == ["mel", "bkl", "nv", ""]
    assert _classes("binary", **table) == ["malignant", "benign", "benign", ""]


def test_a_binary_label_decides_and_a_diagnosis_must_not_contradict_it() -> None:
    diagnosis = ["melanoma", "unknown", "nevus", "melanoma", "solar lentigo", ""]
    found = _classes("binary", diagnosis=diagnosis, target=["1", "0", "0", "0", "1", ""])
    assert found == ["malignant", "benign", "benign", "", "", ""]
    assert _classes("ham10000", diagnosis=diagnosis, target=["1", "0", "0", "0", "1", ""]) == [
        "mel",
        "",
        "nv",
        "mel",
        "bkl",
        "",
    ]


def test_what_isic_says_beside_a_diagnosis_decides() -> None:
    full = ["Benign::Benign epidermal proliferations::Solar or actinic keratosis", "Malignant::x"]
    assert _classes("binary", iddx_full=full) == ["benign", "malignant"]
    assert _classes("ham10000", iddx_full=full) == ["akiec", ""]


def test_a_column_named_label_may_hold_diagnoses() -> None:
    assert _classes("binary", label=["nevus", "melanoma", "?"]) == ["benign", "malignant", ""]


def test_not_melanoma_does_not_mean_benign() -> None:
    assert _classes("binary", diagnosis=["basal cell carcinoma"], melanoma=["0"]) == ["malignant"]
    assert _classes("binary", diagnosis=["not melanoma"]) == [""]


def test_isic_2019_marks_eight_classes() -> None:
    columns = {
        name: ["0.0"] * 3 for name in ("mel", "nv", "bcc", "ak", "bkl", "df", "vasc", "scc", "unk")
    }
    columns["scc"][0] = columns["ak"][1] = columns["unk"][2] = "1.0"
    assert _classes("isic2019", **columns) == ["scc", "akiec", ""]
    assert _classes("ham10000", **columns) == ["", "akiec", ""]


def _images(folder: Path, num: int) -> list[str]:
    names = [f"ISIC_{number:07d}" for number in range(num)]
    for number, name in enumerate(names):
        draw(folder / f"{name}.jpg", seed=number)
    return names


def _isic_2016(folder: Path, names: list[str]) -> tuple[str, ...]:
    lines = [f"{name},{('benign', 'malignant')[i % 2]}" for i, name in enumerate(names)]
    (folder / "gt.csv").write_text("\n".join(lines) + "\n")
    return ("image_id",)


def _isic_2017(folder: Path, names: list[str]) -> tuple[str, ...]:
    lines = [f"{name},{float(i % 2)},{float(i % 4 == 2)}" for i, name in enumerate(names)]
    (folder / "gt.csv").write_text(
        "image_id,melanoma,seborrheic_keratosis\n" + "\n".join(lines) + "\n"
    )
    return ("image_id",)


def _isic_2020(folder: Path, names: list[str]) -> tuple[str, ...]:
    lines = ["image_name,patient_id,diagnosis,benign_malignant,target"]
    for i, name in enumerate(names):
        diagnosis, label = (("unknown", "benign"), ("melanoma", "malignant"))[i % 2]
        lines.append(f"{name},IP_{i // 4},{diagnosis},{label},{i % 2}")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    return ()


def _isic_2020_plain(folder: Path, names: list[str]) -> tuple[str, ...]:
    lines = [f"{name},IP_{i // 4},{i % 2}" for i, name in enumerate(names)]
    (folder / "train.csv").write_text("\n".join(["image_name,patient_id,target", *lines]) + "\n")
    return ()


def _isic_2024(folder: Path, names: list[str]) -> tuple[str, ...]:
    lines = ["isic_id,target,patient_id,iddx_1,iddx_full"]
    for i, name in enumerate(names):
        spelled = ("Benign,", "Malignant,Malignant::Melanoma Invasive")[i % 2]
        lines.append(f"{name},{i % 2},IP_{i // 4},{spelled}")
    (folder / "meta.csv").write_text("\n".join(lines) + "\n")
    return ()


def _isic_2024_hdf5(folder: Path, names: list[str]) -> tuple[str, ...]:
    with h5py.File(folder / "train-image.hdf5", "w") as file:
        for name in names:
            file[name] = np.void((folder / f"{name}.jpg").read_bytes())
            (folder / f"{name}.jpg").unlink()
    return _isic_2024(folder, names)


def _own(folder: Path, names: list[str]) -> tuple[str, ...]:
    lines = [f"{name}.jpg,{('nevus', 'melanoma')[i % 2]},{i // 4}" for i, name in enumerate(names)]
    (folder / "own.csv").write_text("filename,diagnosis,patient\n" + "\n".join(lines) + "\n")
    return ("patient",)


@pytest.mark.parametrize(
    "write",
    [_isic_2016, _isic_2017, _isic_2020, _isic_2020_plain, _isic_2024, _isic_2024_hdf5, _own],
)
def test_binary_tables_are_prepared(
    write: Callable[[Path, list[str]], tuple[str, ...]], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    group_by = write(source, _images(source, 40))
    config = PrepareConfig(task=BINARY, size=64, num_folds=2, group_by=group_by or None)
    manifest = prepare(source, tmp_path / "out", config)
    assert manifest.task == BINARY
    assert manifest.num_images == 40
    assert sum(manifest.num_targets(split) for split in manifest.counts) == 20


@pytest.mark.parametrize("write", [_isic_2016, _isic_2020_plain])
def test_seven_classes_cannot_be_read_from_them(
    write: Callable[[Path, list[str]], object], tmp_path: Path
) -> None:
    write(tmp_path, _images(tmp_path, 4))
    with pytest.raises(DataError, match="pass --task binary"):
        read_source(tmp_path, HAM)


def test_a_file_that_is_no_hdf5_is_refused(tmp_path: Path) -> None:
    _isic_2024(tmp_path, _images(tmp_path, 4))
    (tmp_path / "train-image.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    with pytest.raises(DataError, match=r"train-image\.hdf5 must be an HDF5 file"):
        read_source(tmp_path, BINARY)
