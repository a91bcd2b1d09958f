import pandas as pd

from melanoma.data.left_out import count_left_out, left_out_sentence
from melanoma.data.records import read_source
from tests.sources import rows, write_source
from tests.tasks import HAM

RECORDS = pd.DataFrame(
    {
        "image_id": ["A", "B", "C", "D", "D"],
        "dx": ["mel", "nv", "", "", ""],
        "dx_given": ["melanoma", "nv", "Nodular melanoma", "", ""],
    }
)


def test_images_are_counted_by_their_first_reason_and_class() -> None:
    rejected = [
        ("A", "image_missing"),
        ("A", "image_twice"),
        ("B", "image_missing"),
        ("C", "unknown_dx"),
        ("D", "unknown_dx"),
        ("X", "stray"),
    ]
    left_out = count_left_out(rejected, RECORDS, HAM)
    assert left_out == {
        "image_missing": {"mel": 1, "nv": 1},
        "stray": {"(no row)": 1},
        "unknown_dx": {"Nodular melanoma": 1, "(blank)": 1},
    }
    assert left_out_sentence(left_out, HAM).startswith(
        "5 images were left out, 2 of them labelled as melanoma: 2 image_missing (1 mel, 1 nv); "
    )


def test_nothing_left_out_is_nothing_said() -> None:
    assert left_out_sentence(count_left_out([], RECORDS, HAM), HAM) == ""


def test_a_table_of_many_words_does_not_hide_melanomas() -> None:
    words = [f"word {number}" for number in range(30)] + ["lentigo maligna"]
    records = pd.DataFrame({"image_id": words, "dx": "", "dx_given": words})
    left_out = count_left_out([(word, "unknown_dx") for word in words], records, HAM)
    assert left_out["unknown_dx"]["lentigo maligna"] == 1
    assert sum(left_out["unknown_dx"].values()) == 31
    assert len(left_out["unknown_dx"]) == 13


def test_unknown_diagnoses_are_counted_by_what_the_table_says(tmp_path) -> None:  # type: ignore[no-untyped-def]
    table = [{**row, "dx": "unknown" if i % 2 else row["dx"]} for i, row in enumerate(rows())]
    source = read_source(write_source(tmp_path, table), HAM)
    counted = count_left_out(
        [(r.image_id, r.reason) for r in source.rejections], source.records, HAM
    )
    assert counted == {"unknown_dx": {"unknown": 12}}
