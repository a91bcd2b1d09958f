"""One evaluation for human readers: the same text, table and plots as HTML and as PDF."""

import dataclasses
import html
import io
from collections.abc import Mapping
from typing import Any

from reportlab.lib.colors import HexColor
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.platypus import (
    Flowable,
    Image,
    KeepTogether,
    Paragraph,
    SimpleDocTemplate,
    Spacer,
    Table,
    TableStyle,
)

from melanoma.config import DISCLAIMER
from melanoma.data.external import EXTERNAL
from melanoma.data.left_out import left_out_sentence
from melanoma.evidence.page import html_table, image, page
from melanoma.evidence.plots import ACCENT, INK
from melanoma.evidence.sections import Section, overlap_sentence, sections
from melanoma.task import task_of

TITLE = "Melanoma triage: evaluation"
_NOTE = (
    "Intervals are 95 %. Proportions at the bundle's threshold, and shares by likeliest class, have"
    " Clopper-Pearson intervals with the effective number of groups (Kish). AUROC has Newcombe's"
    " interval with the same numbers, and none with fewer than 10 of them. The others have"
    " bootstrap intervals over groups, and none with fewer than 30 targets. Specificity at 90 %"
    " sensitivity chooses its threshold on these same images."
)
_OTHER_SPLITS = (
    "<b>The bundle was not trained on the splits of this data set.</b> Make sure that none of these"
    " images were used to train it."
)
_WIDTH = A4[0] - 36 * mm
_KEPT_ROWS = 15
_TEXT = ParagraphStyle(
    "text",
    fontName="Helvetica",
    fontSize=9.5,
    leading=13,
    textColor=HexColor(INK),
    spaceAfter=2 * mm,
)
_HEAD = ParagraphStyle("head", parent=_TEXT, fontName="Helvetica-Bold", fontSize=15, leading=20)
_HEAD2 = ParagraphStyle(
    "head2", parent=_TEXT, fontName="Helvetica-Bold", fontSize=11, spaceBefore=4 * mm
)
_SMALL = ParagraphStyle(
    "small", parent=_TEXT, fontSize=8, leading=11, textColor=HexColor("#52606d")
)
_VERDICT = ParagraphStyle(
    "verdict", parent=_TEXT, borderPadding=6, backColor=HexColor("#fdf2f8"), spaceBefore=3 * mm
)


@dataclasses.dataclass(frozen=True)
class _Shown:
    """The parts of the page, as HTML with only those tags that reportlab's paragraphs accept."""

    heading: str
    summary: str
    verdict: list[str]
    sections: list[Section]


def evaluation_page(report: Mapping[str, Any], plots: Mapping[str, bytes], promise: str) -> str:
    """Return the text of report.html.

    Args:
        report: the content of report.json.
        plots: name -> PNG.
        promise: the bundle's contract in words.
    """
    shown = _shown(report, promise)
    figures = "".join(image(_title(name), data) for name, data in plots.items())
    first, *rest = [_as_html(section) for section in shown.sections]
    body = f"""<h1>{shown.heading}</h1>
<p>{shown.summary}</p>
<p class="verdict">{"<br>".join(shown.verdict)}</p>
{first}
<p><small>{_NOTE}</small></p>
{figures}
{"".join(rest)}"""
    return page(TITLE, body)


def _as_html(section: Section) -> str:
    title = f"<h2>{section.title}</h2>" if section.title else ""
    note = f"<p><small>{section.note}</small></p>" if section.note else ""
    return f'{title}<div class="wide">{html_table(section.columns, section.rows)}</div>{note}'


def evaluation_pdf(report: Mapping[str, Any], plots: Mapping[str, bytes], promise: str) -> bytes:
    """Return the bytes of report.pdf; arguments as in `evaluation_page`."""
    shown, buffer = _shown(report, promise), io.BytesIO()
    document = SimpleDocTemplate(
        buffer,
        pagesize=A4,
        leftMargin=18 * mm,
        rightMargin=18 * mm,
        topMargin=16 * mm,
        bottomMargin=18 * mm,
        title=TITLE,
    )
    side = _WIDTH / 2 - 3 * mm
    images = [
        Image(io.BytesIO(data), width=side, height=side, kind="proportional")
        for data in plots.values()
    ]
    pairs = [images[start : start + 2] for start in range(0, len(images), 2)]
    pairs[-1] += [""] * (2 - len(pairs[-1]))
    first, *rest = shown.sections
    parts: list[Flowable] = [
        Paragraph(shown.heading, _HEAD),
        Paragraph(shown.summary, _TEXT),
        *(Paragraph(sentence, _VERDICT) for sentence in shown.verdict),
        Spacer(1, 3 * mm),
        _table(first),
        Spacer(1, 2 * mm),
        Paragraph(_NOTE, _SMALL),
        Table(pairs, colWidths=[_WIDTH / 2] * 2, style=[("LEFTPADDING", (0, 0), (-1, -1), 0)]),
    ]
    for section in rest:
        parts += _as_flowables(section)
    document.build(parts, onFirstPage=_foot, onLaterPages=_foot)
    return buffer.getvalue()


def _as_flowables(section: Section) -> list[Flowable]:
    parts: list[Flowable] = [Paragraph(section.title, _HEAD2), _table(section)]
    if section.note:
        parts += [Spacer(1, 1 * mm), Paragraph(_for_pdf(section.note), _SMALL)]
    # A table of a few rows is not split between pages.
    return [KeepTogether(parts)] if len(section.rows) <= _KEPT_ROWS else parts


def _shown(report: Mapping[str, Any], promise: str) -> _Shown:
    contract, images = report["contract"], report["image"]
    nouns = html.escape(report["task"]["noun"][1])
    verdict = [
        f"<b>Contract here: {contract['status']}.</b> {html.escape(contract['sentence'])}",
        html.escape(promise),
    ]
    if report["flow"]["known_to_the_bundle"]:
        verdict.append(f"<b>{overlap_sentence(report)}</b>")
    if not report["same_splits_as_training"] and report["split"] != EXTERNAL:
        verdict.append(_OTHER_SPLITS)
    if report["left_out"]:
        when = "" if report["split"] == EXTERNAL else "When the data set was prepared: "
        sentence = left_out_sentence(report["left_out"], task_of(report["task"]))
        verdict.append(f"<b>{when}{html.escape(sentence)}</b>")
    lesions = f" of {report['lesion']['num']} lesions" if "lesion" in report else ""
    return _Shown(
        heading=html.escape(report["population"]),
        summary=(
            f"{images['num']} images{lesions} in {images['num_groups']} groups;"
            f" {images['num_target']} images of {nouns}. Bundle {report['bundle']['version']},"
            f" threshold {report['bundle']['threshold']:.4f}."
        ),
        verdict=verdict,
        sections=sections(report),
    )


def _title(name: str) -> str:
    return name.removesuffix(".png").replace("_", " ")


def _table(section: Section) -> Table:
    cells = [
        [Paragraph(_for_pdf(cell), _TEXT) for cell in row]
        for row in (section.columns, *section.rows)
    ]
    style = TableStyle(
        [
            ("LINEBELOW", (0, 0), (-1, -1), 0.4, HexColor("#e4e7eb")),
            ("LINEBELOW", (0, 0), (-1, 0), 0.8, HexColor(ACCENT)),
            ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
            ("LEFTPADDING", (0, 0), (-1, -1), 0),
            ("TOPPADDING", (0, 0), (-1, -1), 1.5),
            ("BOTTOMPADDING", (0, 0), (-1, -1), 0),
        ]
    )
    num = len(section.columns)
    first = max(0.25, 1 / num)
    widths = [first * _WIDTH, *([(1 - first) / (num - 1) * _WIDTH] * (num - 1))]
    return Table(cells, colWidths=widths, style=style, repeatRows=1)


def _for_pdf(text: str) -> str:
    """Return text with the tag that reportlab has for small print."""
    return text.replace("<small>", '<font size="7.5" color="#52606d">').replace(
        "</small>", "</font>"
    )


def _foot(canvas: Any, document: Any) -> None:
    canvas.setFont("Helvetica-Bold", 8)
    canvas.drawString(18 * mm, 10 * mm, DISCLAIMER)
    canvas.drawRightString(A4[0] - 18 * mm, 10 * mm, str(document.page))
