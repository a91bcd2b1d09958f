"""The figures in README and docs are those of the files they came from."""

import re
from pathlib import Path

import pytest

from benchmarks.figures import FIGURES, PAGES, TABLES, filled


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_says_what_its_files_say(page: Path) -> None:
    assert filled(page.read_text()) == page.read_text(), "python -m benchmarks.figures write"


def test_every_file_is_shown_and_every_mark_is_known() -> None:
    marked = {
        name
        for page in PAGES
        for name in re.findall(r"<!-- figures: ([\w-]+) -->", page.read_text())
    }
    assert marked <= set(TABLES)
    assert {TABLES[name][0] for name in marked} == {path.stem for path in FIGURES.glob("*.json")}


def test_no_file_names_an_image() -> None:
    for path in FIGURES.glob("*.json"):
        assert not re.search(r"ISIC_|PAT_\d|HAM_\d", path.read_text()), path.name


def test_a_changed_figure_is_noticed() -> None:
    page = next(page for page in PAGES if "<!-- figures:" in page.read_text())
    text = page.read_text()
    place = text.index("<!-- figures:")
    digit = re.search(r"\d\.\d\d", text[place:])
    assert digit
    at = place + digit.start()
    changed = text[:at] + "7.77" + text[at + 4 :]
    assert filled(changed) == text
