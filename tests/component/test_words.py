"""Every code that an answer may carry has words for people."""

import json
import re
from pathlib import Path
from typing import get_args

import serve
from melanoma.bundle.deciding import NO_CONTRACT, OTHER_CANCER, UNCONTRACTED, UNUSUAL
from melanoma.evidence.operating_point import Decision
from melanoma.evidence.several_images import MAX_IMAGES


def test_every_code_has_words() -> None:
    words = json.loads((Path(serve.__file__).parent / "page" / "words.json").read_text())
    assert set(words["verdicts"]) == set(get_args(Decision))
    assert {NO_CONTRACT, OTHER_CANCER, UNCONTRACTED, UNUSUAL} <= set(words["warnings"])


def test_the_docs_name_every_warning() -> None:
    words = json.loads((Path(serve.__file__).parent / "page" / "words.json").read_text())
    docs = (Path(serve.__file__).parents[1] / "docs" / "serving.md").read_text()
    rows = docs.split("| warning | meaning |\n|---|---|\n")[1].split("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)`", rows, re.MULTILINE)) == sorted(words["warnings"])


def test_several_images_have_words_of_their_own() -> None:
    """Page and PDF take these in the place of those for one image."""
    words = json.loads((Path(serve.__file__).parent / "page" / "words.json").read_text())
    several = words["several"]
    assert set(several) - {"judged"} <= set(words)
    assert set(several["warnings"]) <= set(words["warnings"])
    assert "this image" not in json.dumps(several)
    alone = {code: words["warnings"][code] for code in set(words["warnings"])}
    kept = {code: sentence for code, sentence in alone.items() if code not in several["warnings"]}
    assert "image" not in json.dumps(list(kept.values()))


def test_the_page_takes_as_many_images_as_the_service() -> None:
    page = Path(serve.__file__).parent / "page"
    assert f"const MAX_IMAGES = {MAX_IMAGES};" in (page / "page.js").read_text()
    assert f"up to {MAX_IMAGES} images of the same lesion" in (page / "index.html").read_text()
