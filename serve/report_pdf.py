"""One prediction as one page of PDF. Holds the image and its map, and nothing of the file they came in."""

import base64
import datetime
import html
import io

from PIL import Image
from reportlab.lib.colors import HexColor
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Paragraph

from serve.schemas import PredictResponse

NAMES = {
    "akiec": "Actinic keratosis, Bowen's disease",
    "bcc": "Basal cell carcinoma",
    "bkl": "Benign keratosis",
    "df": "Dermatofibroma",
    "mel": "Melanoma",
    "nv": "Nevus",
    "vasc": "Vascular lesion",
}
VERDICTS = {"refer": "Refer", "no_referral": "No referral", "cannot_assess": "Cannot assess"}
# The page has the same sentences: serve/page/page.js.
WARNINGS = {
    "contract_not_met": "The network has not earned a promise: its sensitivity contract is not met, so no decision is given.",
    "uncontracted": "The operator has switched decisions on although the sensitivity contract is not met. Nothing is promised.",
    "heatmap_empty": "The map is empty: nothing in the image speaks for melanoma to this network.",
}
_INK, _QUIET, _BAR, _ACCENT = HexColor("#1b2430"), HexColor("#52606d"), HexColor("#61758a"), HexColor("#a3195b")
_MARGIN, _GAP = 18 * mm, 6 * mm
_WIDTH, _HEIGHT = A4
_TEXT = ParagraphStyle("text", fontName="Helvetica", fontSize=10, leading=14, textColor=_INK)
_SMALL = ParagraphStyle("small", parent=_TEXT, fontSize=8, leading=11, textColor=_QUIET)
_VERDICT = ParagraphStyle("verdict", parent=_TEXT, fontName="Helvetica-Bold", fontSize=20, leading=25)
_HEAD = ParagraphStyle("head", parent=_TEXT, fontName="Helvetica-Bold", fontSize=11, leading=16)


def report_pdf(image: Image.Image, answer: PredictResponse, *, now: datetime.datetime) -> bytes:
    """Return the page.

    Args:
        image: the upright image, small enough to be shown.
        answer: what the service answers for it, with its Grad-CAM.
        now: printed as the time of the reading, UTC.
    """
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=A4, pageCompression=1)
    canvas.setTitle("Melanoma triage")
    canvas.setSubject(answer.disclaimer)
    top = _write(canvas, "Melanoma triage", _HEAD, _HEIGHT - _MARGIN)
    top = _write(canvas, f"<b>{answer.disclaimer}</b>", _TEXT, top) - _GAP
    top = _images(canvas, image, answer, top) - _GAP
    top = _write(canvas, VERDICTS[answer.decision], _VERDICT, top)
    melanoma = answer.probabilities["mel"]
    side = "at or above" if melanoma >= answer.threshold else "below"
    if answer.decision != "cannot_assess":  # without a promise the threshold means nothing
        told = f"Melanoma {melanoma:.1%}, {side} the threshold of {answer.threshold:.1%}."
        top = _write(canvas, told, _TEXT, top) - 2 * mm
    top = _write(canvas, html.escape(answer.contract_sentence), _TEXT, top)
    for warning in answer.warnings:
        top = _write(canvas, WARNINGS.get(warning, warning), _TEXT, top)
    top = _write(canvas, "Probabilities", _HEAD, top - _GAP)
    top = _bars(canvas, answer, top) - _GAP
    _write(
        canvas,
        f"Read {now:%Y-%m-%d %H:%M} UTC by {answer.model.name} {answer.model.version}, weights {answer.model.weights_sha256[:12]}; "
        f"request {answer.request_id}. "
        + ("" if answer.decision == "cannot_assess" else "The line across melanoma's bar is the threshold. ")
        + "The map is Grad-CAM of melanoma in coarse cells; no map here has been shown to mark lesions.",
        _SMALL,
        top,
    )
    canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def _write(canvas: Canvas, text: str, style: ParagraphStyle, top: float) -> float:
    """Write a paragraph below `top` and return where it ends, in points."""
    paragraph = Paragraph(text, style)
    _, height = paragraph.wrap(_WIDTH - 2 * _MARGIN, _HEIGHT)
    paragraph.drawOn(canvas, _MARGIN, top - height)
    return top - float(height)


def _images(canvas: Canvas, image: Image.Image, answer: PredictResponse, top: float) -> float:
    """Draw the image and, beside it, the map laid over it; return where they end."""
    assert answer.explanation is not None
    width, most = (_WIDTH - 2 * _MARGIN - _GAP) / 2, 95 * mm
    overlaid = Image.open(io.BytesIO(base64.b64decode(answer.explanation.overlay_png)))
    scale = min(width / image.width, most / image.height)
    size = image.width * scale, image.height * scale
    for column, (drawn, title) in enumerate(((image, "Image"), (overlaid, "Grad-CAM of melanoma"))):
        left = _MARGIN + column * (width + _GAP)
        canvas.drawImage(ImageReader(drawn), left, top - size[1], *size)
        canvas.setFont("Helvetica", 8)
        canvas.setFillColor(_QUIET)
        canvas.drawString(left, top - size[1] - 11, title)
    return float(top - size[1] - 14)


def _bars(canvas: Canvas, answer: PredictResponse, top: float) -> float:
    """Draw a bar a class, the likeliest first, with the threshold on melanoma's; return where they end."""
    left, width, step = _MARGIN + 62 * mm, 90 * mm, 6.2 * mm
    for name, value in sorted(answer.probabilities.items(), key=lambda item: -item[1]):
        top -= step
        is_melanoma = name == "mel"
        canvas.setFillColor(_INK)
        canvas.setFont("Helvetica-Bold" if is_melanoma else "Helvetica", 10)
        canvas.drawString(_MARGIN, top, NAMES.get(name, name))
        canvas.drawRightString(_WIDTH - _MARGIN, top, f"{value:.1%}")
        canvas.setFillColor(_ACCENT if is_melanoma else _BAR)
        canvas.rect(left, top - 0.5, max(0.5, width * value), 8, stroke=0, fill=1)
        if is_melanoma and answer.decision != "cannot_assess":
            canvas.setStrokeColor(_INK)
            place = left + width * answer.threshold
            canvas.line(place, top - 3, place, top + 10)
    return top
