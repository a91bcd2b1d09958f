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
from melanoma.evidence.metrics import title_of
from melanoma.evidence.page import html_table, image, page
from melanoma.evidence.plots import ACCENT, INK
from melanoma.task import task_of

TITLE = "Melanoma triage: evaluation"
_NOTE = (
    "Intervals are 95 %. Sensitivity and specificity at the bundle's threshold, and shares by"
    " likeliest class, have Clopper-Pearson intervals with the effective number of groups (Kish)."
    " AUROC has Newcombe's interval with the same numbers. The others have bootstrap intervals over"
    " groups. Specificity at 90 % sensitivity chooses its threshold on these same images."
    " Calibration: negative log-likelihood {nll:.3f}, Brier score {brier:.3f}, expected calibration"
    " error {ece:.3f}."
)
_OTHER_SPLITS = (
    "<b>The bundle was not trained on the splits of this data set.</b> Make sure that none of these"
    " images were used to train it."
)
_WIDTH = A4[0] - 36 * mm
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
    # The name of a metric, then its value and interval for images and for lesions.
    rows: list[tuple[str, list[tuple[str, str]]]]
    note: str
    accesses: list[list[str]]


def evaluation_page(report: Mapping[str, Any], plots: Mapping[str, bytes], promise: str) -> str:
    """Return the text of report.html.

    Args:
        report: the content of report.json.
        plots: name -> PNG.
        promise: the bundle's contract in words.
    """
    shown = _shown(report, promise)
    figures = "".join(image(_title(name), data) for name, data in plots.items())
    accesses = (
        f"<h2>Accesses to this split</h2>{html_table(_ACCESS_COLUMNS, shown.accesses)}"
        if shown.accesses
        else ""
    )
    rows = [
        [name, *(f"{value} <small>{interval}</small>" for value, interval in cells)]
        for name, cells in shown.rows
    ]
    body = f"""<h1>{shown.heading}</h1>
<p>{shown.summary}</p>
<p class="verdict">{"<br>".join(shown.verdict)}</p>
{html_table(_COLUMNS, rows)}
<p><small>{shown.note}</small></p>
{figures}{accesses}"""
    return page(TITLE, body)


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
    rows = [
        [name, *(f"<b>{value}</b> {interval}" for value, interval in cells)]
        for name, cells in shown.rows
    ]
    parts: list[Flowable] = [
        Paragraph(shown.heading, _HEAD),
        Paragraph(shown.summary, _TEXT),
        *(Paragraph(sentence, _VERDICT) for sentence in shown.verdict),
        Spacer(1, 3 * mm),
        _table([_COLUMNS, *rows], [0.36, 0.32, 0.32]),
        Spacer(1, 2 * mm),
        Paragraph(shown.note, _SMALL),
        Table(pairs, colWidths=[_WIDTH / 2] * 2, style=[("LEFTPADDING", (0, 0), (-1, -1), 0)]),
    ]
    if shown.accesses:
        parts.append(
            KeepTogether(
                [
                    Paragraph("Accesses to this split", _HEAD2),
                    _table([_ACCESS_COLUMNS, *shown.accesses], [0.4, 0.4, 0.2]),
                ]
            )
        )
    document.build(parts, onFirstPage=_foot, onLaterPages=_foot)
    return buffer.getvalue()


_COLUMNS = ["", "per image", "per lesion"]
_ACCESS_COLUMNS = ["time", "bundle", "images"]


def _shown(report: Mapping[str, Any], promise: str) -> _Shown:
    contract, images, lesions = report["contract"], report["image"], report["lesion"]
    nouns = html.escape(report["task"]["noun"][1])
    names = [name for name, value in images.items() if isinstance(value, dict)]
    verdict = [
        f"<b>Contract here: {contract['status']}.</b> {html.escape(contract['sentence'])}",
        html.escape(promise),
    ]
    if not report["same_splits_as_training"]:
        verdict.append(_OTHER_SPLITS)
    if report["left_out"]:
        when = "" if report["split"] == EXTERNAL else "When the data set was prepared: "
        sentence = left_out_sentence(report["left_out"], task_of(report["task"]))
        verdict.append(f"<b>{when}{html.escape(sentence)}</b>")
    return _Shown(
        heading=html.escape(report["population"]),
        summary=(
            f"{images['num']} images of {lesions['num']} lesions; {images['num_target']} images of"
            f" {lesions['num_target']} {nouns}. Bundle {report['bundle']['version']}, threshold"
            f" {report['bundle']['threshold']:.4f}."
        ),
        verdict=verdict,
        rows=[(title_of(name), [_cell(images[name]), _cell(lesions[name])]) for name in names],
        note=_NOTE.format(**report["calibration"]),
        accesses=[
            [html.escape(str(access.get(key, ""))) for key in ("time", "bundle_version", "num")]
            for access in report["accesses"]
        ],
    )


def _cell(metric: Mapping[str, float | None]) -> tuple[str, str]:
    """Return a value and its interval as text."""
    if metric["value"] is None or metric["low"] is None or metric["high"] is None:
        return "undefined here", ""
    return f"{metric['value']:.3f}", f"{metric['low']:.3f} to {metric['high']:.3f}"


def _title(name: str) -> str:
    return name.removesuffix(".png").replace("_", " ")


def _table(rows: list[list[str]], shares: list[float]) -> Table:
    cells = [[Paragraph(cell, _TEXT) for cell in row] for row in rows]
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
    return Table(cells, colWidths=[share * _WIDTH for share in shares], style=style, repeatRows=1)


def _foot(canvas: Any, document: Any) -> None:
    canvas.setFont("Helvetica-Bold", 8)
    canvas.drawString(18 * mm, 10 * mm, DISCLAIMER)
    canvas.drawRightString(A4[0] - 18 * mm, 10 * mm, str(document.page))
