"""Every code that an answer may carry has words for people."""

import json
from pathlib import Path
from typing import get_args

import serve
from melanoma.bundle.deciding import NO_CONTRACT, OTHER_CANCER, UNCONTRACTED, UNUSUAL
from melanoma.evidence.operating_point import Decision


def test_every_code_has_words() -> None:
    words = json.loads((Path(serve.__file__).parent / "page" / "words.json").read_text())
    assert set(words["verdicts"]) == set(get_args(Decision))
    assert {NO_CONTRACT, OTHER_CANCER, UNCONTRACTED, UNUSUAL} <= set(words["warnings"])
