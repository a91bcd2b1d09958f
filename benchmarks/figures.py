"""Puts measured figures into the documentation: JSON files in docs/figures become tables.

A page names a table between two marks, `<!-- figures: NAME -->` and `<!-- end of figures -->`. A
test fails where the text between them differs from what the file says.

    python -m benchmarks.figures keep NAME TITLE=EVIDENCE/report.json [TITLE=...]
    python -m benchmarks.figures write
"""

import argparse
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from melanoma.evidence.strata import AT_90
from melanoma.io.files import write_text

DOCS = Path(__file__).parents[1] / "docs"
FIGURES = DOCS / "figures"
PAGES = (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))
KEPT = (
    "population",
    "flow",
    "contract_unit",
    "by_class",
    "by_source",
    "by_reference_standard",
    "within_source",
    "reference_models",
    "cannot_assess",
    "calibration",
    "contract",
    "several_images",
)
"""The parts of a report that are kept: none names an image."""
_MARKED = re.compile(r"<!-- figures: ([\w-]+) -->\n.*?<!-- end of figures -->", re.DOTALL)

Report = Mapping[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(found: Mapping[str, float | None] | None, digits: int = 2) -> str:
    """Return a value with its interval."""
    if found is None or found["value"] is None:
        return "undefined"
    if found["low"] is None or found["high"] is None:
        return f"{found['value']:.{digits}f}"
    return f"{found['value']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def reports_table(reports: Mapping[str, Report], leave_out: Collection[str] = ()) -> str:
    """Return the main figures of some reports, a column for each."""
    rows: list[list[str]] = [
        ["units, of them melanomas"]
        + [
            f"{each['contract_unit']['num']:,}, {each['contract_unit']['num_target']}"
            for each in reports.values()
        ]
    ]
    for title, value in _ROWS.items():
        cells = [value(each) for each in reports.values()]
        if any(cells) and title not in leave_out:
            rows.append([title, *(cell or "-" for cell in cells)])
    return table(["one image per group", *reports], rows)


def _among(standard: str, metric: str = "specificity") -> Callable[[Report], str]:
    def value(report: Report) -> str:
        cell = report["by_reference_standard"].get(standard)
        others = cell and cell["num"] > cell["num_target"] and cell[metric]["value"] is not None
        return number(cell[metric]) if others else ""

    return value


def _reference(place: str) -> Callable[[Report], str]:
    def value(report: Report) -> str:
        found = [each[place] for each in report["reference_models"]]
        found = [each for each in found if each["reference_auroc"] is not None]
        if not found:
            return ""
        return f"{found[-1]['reference_auroc']:.2f}"  # the one that knows most

    return value


def _verdict(report: Report) -> str:
    found = report["contract"]
    return f"{found['status']}: {found['referred']} of {found['num_target']} referred"


def _unassessed(report: Report) -> str:
    flow = report["flow"]
    found = report["contract"]
    refused, counted = found["num_target_unassessed"], found["num_target"]
    images = flow["images"] - flow["known_to_the_bundle"]
    return f"{flow['cannot_assess']} of {images} images, {refused} of {refused + counted} melanomas"


_ROWS: dict[str, Callable[[Report], str]] = {
    "answered with `cannot_assess`": _unassessed,
    "AUROC": lambda report: number(report["contract_unit"]["auroc"]),
    "AUROC of a model that sees no image": _reference("pooled"),
    "AUROC within sources": lambda report: number(report["within_source"]),
    "within sources, of a model that sees no image": _reference("within_source"),
    "sensitivity at the threshold": lambda report: number(report["contract_unit"]["sensitivity"]),
    "specificity at the threshold": lambda report: number(report["contract_unit"]["specificity"]),
    "specificity at the threshold, negatives proven by histology": _among("histology"),
    "specificity at the threshold, negatives by follow-up": _among("follow_up"),
    "specificity at 90 % sensitivity": lambda report: number(report["contract_unit"][AT_90]),
    "specificity at 90 % sensitivity, negatives proven by histology": _among("histology", AT_90),
    "the promise here": _verdict,
}
_DETAILS = (
    "specificity at 90 % sensitivity",
    "specificity at the threshold, negatives by follow-up",
)


def short_table(reports: Mapping[str, Report]) -> str:
    """Return the figures that the README shows."""
    return reports_table(reports, leave_out=_DETAILS)


def strata_table(reports: Mapping[str, Report]) -> str:
    """Return the figures of the first report by source."""
    first = next(iter(reports.values()))
    rows = [
        [
            name,
            f"{cell['num']:,}, {cell['num_target']}",
            "too few melanomas" if cell["few_targets"] else number(cell["auroc"]),
            number(cell["sensitivity"]) if cell["num_target"] else "-",
            number(cell["specificity"]),
        ]
        for name, cell in first["by_source"].items()
    ]
    return table(["source", "units, melanomas", "AUROC", "sensitivity", "specificity"], rows)


def classes_table(reports: Mapping[str, Report]) -> str:
    """Return how many units of each class are referred, in the first report."""
    first = next(iter(reports.values()))
    rows = [
        [name, str(cell["num"]), number(cell)]
        for name, cell in first["by_class"].items()
        if cell["num"]
    ]
    return table(["class", "units", "referred"], rows)


_OF_LESIONS = {
    "AUROC": "auroc",
    "specificity at 90 % sensitivity": AT_90,
    "macro-F1": "macro_f1",
    "sensitivity at the threshold": "sensitivity",
    "specificity at the threshold": "specificity",
}


def lesions_table(reports: Mapping[str, Report]) -> str:
    """Return several images of each lesion beside one image of it, in the first report."""
    found = next(iter(reports.values()))["several_images"]
    both = found["together"], found["one_image"]
    rows = [
        ["lesions, of them melanomas", *(f"{each['num']}, {each['num_target']}" for each in both)]
    ]
    rows += [[title, *(number(each[name]) for each in both)] for title, name in _OF_LESIONS.items()]
    rows.append(
        ["expected calibration error", *(f"{each['calibration']['ece']:.3f}" for each in both)]
    )
    promise = found["contract"]
    told = f"{promise['status']}: {promise['referred']} of {promise['num_target']} referred"
    rows.append(["the promise for several images here", told, "-"])
    images = f"{found['mean_images']:.1f} images on average"
    return table(["the same lesions", f"all images together, {images}", "one image of each"], rows)


def rows_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows of ready cells, all with the same keys."""
    return table(list(rows[0]), [list(row.values()) for row in rows])


TABLES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "ham10000": ("ham10000", reports_table),
    "ham10000-short": ("ham10000", short_table),
    "ham10000-sources": ("ham10000", strata_table),
    "ham10000-classes": ("ham10000", classes_table),
    "external": ("external", reports_table),
    "several-images": ("several-images", lesions_table),
    "frozen": ("several-images", short_table),
    **{
        name: (name, rows_table)
        for name in (
            "artefacts",
            "unusual",
            "sources",
            "ways",
            "broken",
            "best-of",
            "auroc",
            "auroc-within",
            "bootstrap",
            "copies",
            "epochs",
            "served",
            "answer-steps",
            "overload",
            "training-speed",
            "speed",
            "pipeline-steps",
            "machine",
            "search-efficiency",
            "growth",
            "kept-memory",
            "recipes",
            "score-speed",
            "seed-bundles",
        )
    },
}
"""Name of a table -> its file in docs/figures and the function that writes it."""


def filled(text: str) -> str:
    """Return a page with its tables written anew."""

    def again(mark: re.Match[str]) -> str:
        file, write = TABLES[mark[1]]
        content = json.loads((FIGURES / f"{file}.json").read_text())
        return f"<!-- figures: {mark[1]} -->\n\n{write(content)}\n\n<!-- end of figures -->"

    return _MARKED.sub(again, text)


def keep(name: str, content: Any) -> None:
    """Write a file of figures."""
    FIGURES.mkdir(exist_ok=True)
    write_text(FIGURES / f"{name}.json", json.dumps(content, indent=1) + "\n")


def write_pages() -> None:
    """Write the tables of every page anew."""
    for page in PAGES:
        write_text(page, filled(page.read_text()))


def main() -> None:
    """Keep figures, or write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("keep")
    command.add_argument("name")
    command.add_argument("reports", nargs="+", metavar="TITLE=FILE")
    commands.add_parser("write")
    args = parser.parse_args()
    if args.command == "keep":
        found = {}
        for each in args.reports:
            title, _, path = each.partition("=")
            report = json.loads(Path(path).read_text())
            found[title] = {part: report[part] for part in KEPT}
        keep(args.name, found)
    write_pages()


if __name__ == "__main__":
    main()
