"""Writes one prediction as a PDF of one page.

It holds the images of the lesion and their heatmaps, but no metadata of the images' files.
"""

import base64
import dataclasses
import datetime
import html
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from reportlab.lib.colors import HexColor
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Paragraph

from melanoma.evidence.prevalence import PREVALENCES, per_thousand, shifted
from melanoma.explain.grad_cam import Heatmap
from melanoma.explain.methods import DEFAULT_METHOD, METHODS
from melanoma.explain.overlay import overlay
from melanoma.task import Task
from serve.openapi import PAGE
from serve.schemas import Explanation, PredictResponse

_WORDS: dict[str, Any] = json.loads((PAGE / "words.json").read_text())
_GROUNDS: list[str] = json.loads((PAGE / "map.json").read_text())["grounds"]
_INK, _QUIET, _BAR, _ACCENT = (
    HexColor("#1b2430"),
    HexColor("#52606d"),
    HexColor("#61758a"),
    HexColor("#a3195b"),
)
_SCALE_HEIGHT = 5 * mm
_MARGIN, _GAP, _CAPTION = 18 * mm, 6 * mm, 14
_WIDTH, _HEIGHT = A4
_TEXT = ParagraphStyle("text", fontName="Helvetica", fontSize=10, leading=14, textColor=_INK)
_SMALL = ParagraphStyle("small", parent=_TEXT, fontSize=8, leading=11, textColor=_QUIET)
_VERDICT = ParagraphStyle(
    "verdict", parent=_TEXT, fontName="Helvetica-Bold", fontSize=20, leading=25
)
_HEAD = ParagraphStyle("head", parent=_TEXT, fontName="Helvetica-Bold", fontSize=11, leading=16)


@dataclasses.dataclass(frozen=True)
class _Grid:
    """How the pairs of an image and its overlay are laid out on the page.

    Attributes:
        columns: number of pairs in a row.
        between: space between the image and the overlay of a pair, in points.
        most: largest height of an image, in points.
    """

    columns: int
    between: float
    most: float

    @property
    def pair_width(self) -> float:
        """The width of a pair, in points."""
        return float(_WIDTH - 2 * _MARGIN - (self.columns - 1) * _GAP) / self.columns

    @property
    def image_width(self) -> float:
        """The largest width of an image, in points."""
        return (self.pair_width - self.between) / 2


def _grid(num_images: int) -> _Grid:
    """Return the grid for some number of images, which leaves room for the text on the page."""
    if num_images == 1:
        return _Grid(columns=1, between=_GAP, most=68 * mm)
    num_rows = 1 if num_images == 2 else 2
    return _Grid(columns=2 if num_images <= 4 else 3, between=1 * mm, most=58 * mm / num_rows)


def report_pdf(
    images: Sequence[Image.Image], answer: PredictResponse, task: Task, *, now: datetime.datetime
) -> bytes:
    """Return the bytes of the PDF.

    Args:
        images: the upright images, small enough to be shown.
        answer: the service's answer for the images, with the Grad-CAM of each.
        task: the classes and their names for people.
        now: time of the reading in UTC, to be printed.
    """
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=A4, pageCompression=1)
    canvas.setTitle("Melanoma triage")
    canvas.setSubject(answer.disclaimer)
    top = _write(canvas, "Melanoma triage", _HEAD, _HEIGHT - _MARGIN)
    top = _write(canvas, f"<b>{answer.disclaimer}</b>", _TEXT, top) - _GAP
    top = _images(canvas, images, answer, task, top) - _GAP
    top = _decision(canvas, answer, task, top)
    top = _write(canvas, "Probabilities", _HEAD, top - _GAP)
    top = _bars(canvas, answer, task, top) - 3 * mm
    top = _write(canvas, _meaning(answer, task), _SMALL, top) - 3 * mm
    _write(canvas, _origin(answer, task, now), _SMALL, top)
    canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def _decision(canvas: Canvas, answer: PredictResponse, task: Task, top: float) -> float:
    """Write the decision, its contract and the warnings; return the position of their lower end."""
    several, noun = _WORDS["several"] if answer.num_images > 1 else {}, task.noun[0]
    top = _write(canvas, _WORDS["verdicts"][answer.decision], _VERDICT, top)
    if several:
        line = several["judged"].replace("{num}", str(answer.num_images))
        top = _write(canvas, line, _TEXT, top)
    score = _score(answer, task)
    side = "at or above" if score >= answer.threshold else "below"
    if answer.decision != "cannot_assess":  # without a contract the threshold means nothing
        line = f"{noun.capitalize()} {score:.1%}, {side} the threshold of {answer.threshold:.1%}."
        top = _write(canvas, line, _TEXT, top) - 2 * mm
    top = _write(canvas, html.escape(answer.contract_sentence), _TEXT, top)
    words = _WORDS["warnings"] | several.get("warnings", {})
    for warning in answer.warnings:
        line = words.get(warning, warning).replace("{noun}", noun)
        top = _write(canvas, html.escape(line), _TEXT, top)
    return top


def _score(answer: PredictResponse, task: Task) -> float:
    return sum(answer.probabilities[name] for name in task.targets)


def _origin(answer: PredictResponse, task: Task, now: datetime.datetime) -> str:
    """Return what read the images and when, and what the marks and maps on the page are."""
    noun, model = task.noun[0], answer.model
    claim = answer.explanation.lesion_claim if answer.explanation else "none"
    maps = "The map is" if answer.num_images == 1 else "The maps are"
    mark = f"The line across the bar of {noun} marks the threshold. "
    return (
        f"Read {now:%Y-%m-%d %H:%M} UTC by {model.name} {model.version}, weights"
        f" {model.weights_sha256[:12]}; request {answer.request_id}."
        f" {mark if _has_mark(answer, task) else ''}"
        f"{maps} {METHODS[DEFAULT_METHOD].title} of {noun}. {_WORDS['claims'][claim]}"
    )


def _meaning(answer: PredictResponse, task: Task) -> str:
    """Return what the probability and the decision mean at some prevalences."""
    contract, (one, many) = answer.contract, task.noun
    mix = contract.target_share
    lines = [f"The probabilities are for data of which {mix:.0%} are {many}."]
    if answer.decision == "cannot_assess":
        return lines[0]
    lines.append(f"Where other shares of the lesions are {many}:")
    for prevalence in PREVALENCES:
        at = shifted(_score(answer, task), calibrated_at=mix, prevalence=prevalence)
        line = f"{prevalence:.0%} {many}: the probability of {one} is {at:.1%}"
        if contract.status == "met":
            counted = per_thousand(
                prevalence,
                sensitivity=contract.target_sensitivity,
                specificity=contract.specificity,
            )
            line += (
                f"; of 1000 lesions about {counted.referred:.0f} are referred, and at most"
                f" {counted.missed:.1f} {many} are not"
            )
        lines.append(f"{line}.")
    return "<br/>".join(lines)


def _write(canvas: Canvas, text: str, style: ParagraphStyle, top: float) -> float:
    """Write a paragraph below `top` and return the position of its lower end, in points."""
    paragraph = Paragraph(text, style)
    _, height = paragraph.wrap(_WIDTH - 2 * _MARGIN, _HEIGHT)
    paragraph.drawOn(canvas, _MARGIN, top - height)
    return top - float(height)


def _images(
    canvas: Canvas, images: Sequence[Image.Image], answer: PredictResponse, task: Task, top: float
) -> float:
    """Draw each image beside its overlay, in a grid; return the position of their lower end."""
    assert answer.explanation is not None
    explanations, num = [answer.explanation, *answer.further_explanations], len(images)
    grid, title = _grid(num), f"{METHODS[DEFAULT_METHOD].title} of {task.noun[0]}"
    pairs = list(zip(images, explanations, strict=True))
    for start in range(0, num, grid.columns):
        lower = top
        for column, (image, explanation) in enumerate(pairs[start : start + grid.columns]):
            place = f"Image {start + column + 1} of {num}"
            empty = "; its map is empty" if explanation.peak == 0 else " and its map"
            captions = ("Image", title) if num == 1 else (f"{place}{empty}", "")
            left = _MARGIN + column * (grid.pair_width + _GAP)
            lower = min(lower, _pair(canvas, (image, explanation), captions, grid, (left, top)))
        top = lower
    if all(each.peak == 0 for each in explanations):
        return top
    words = _WORDS if num == 1 else _WORDS["several"]
    return _legend(canvas, (_WIDTH - 2 * _MARGIN - _GAP) / 2, top - 3, words)


def _pair(
    canvas: Canvas,
    pair: tuple[Image.Image, Explanation],
    captions: tuple[str, str],
    grid: _Grid,
    corner: tuple[float, float],
) -> float:
    """Draw an image and its overlay side by side; return the position of their lower end.

    Args:
        canvas: the page.
        pair: the image and its explanation.
        captions: what is written below the two.
        grid: their sizes.
        corner: their left and upper end, in points.
    """
    (image, explanation), (left, top) = pair, corner
    overlaid = Image.open(io.BytesIO(base64.b64decode(explanation.overlay_png)))
    scale = min(grid.image_width / image.width, grid.most / image.height)
    size = image.width * scale, image.height * scale
    canvas.setFont("Helvetica", 8)
    canvas.setFillColor(_QUIET)
    for drawn, caption in zip((image, overlaid), captions, strict=True):
        canvas.drawImage(ImageReader(drawn), left, top - size[1], *size)
        canvas.drawString(left, top - size[1] - 11, caption)
        # Of several images each stands close to its overlay. One is aligned with the legend.
        left += (grid.image_width if grid.columns == 1 else size[0]) + grid.between
    return top - float(size[1]) - _CAPTION


def _legend(canvas: Canvas, width: float, top: float, words: dict[str, Any]) -> float:
    """Draw what the colours mean below the overlays; return the position of its lower end."""
    left, bottom = _WIDTH - _MARGIN - width, top - _SCALE_HEIGHT
    canvas.drawImage(ImageReader(_scale()), left, bottom, width, _SCALE_HEIGHT)
    least, most = words["map_ends"]
    canvas.drawString(left, bottom - 10, least)
    canvas.drawRightString(left + width, bottom - 10, most)
    paragraph = Paragraph(words["map_scale"], _SMALL)
    _, height = paragraph.wrap(width, _HEIGHT)
    paragraph.drawOn(canvas, left, bottom - 13 - height)
    return float(bottom - 13 - height)


def _scale() -> Image.Image:
    """Return the colours of a heatmap from 0 to its peak, on skin above and on a lesion below."""
    values = np.tile(np.arange(256, dtype=np.uint8), (16, 1))
    ground = Image.new("RGB", (256, 16), _GROUNDS[0])
    ground.paste(_GROUNDS[1], (0, 8, 256, 16))
    return overlay(ground, Heatmap(1.0, values))


def _bars(canvas: Canvas, answer: PredictResponse, task: Task, top: float) -> float:
    """Draw a bar for each class, the likeliest first; return the position of their lower end.

    The bar of the target has a line at the threshold.
    """
    left, width, step = _MARGIN + 62 * mm, 90 * mm, 6.2 * mm
    for name, value in sorted(answer.probabilities.items(), key=lambda item: -item[1]):
        top -= step
        is_target = name in task.targets
        canvas.setFillColor(_INK)
        canvas.setFont("Helvetica-Bold" if is_target else "Helvetica", 10)
        canvas.drawString(_MARGIN, top, task.name_of(name))
        canvas.drawRightString(_WIDTH - _MARGIN, top, f"{value:.1%}")
        canvas.setFillColor(_ACCENT if is_target else _BAR)
        canvas.rect(left, top - 0.5, max(0.5, width * value), 8, stroke=0, fill=1)
        if is_target and _has_mark(answer, task):
            canvas.setStrokeColor(_INK)
            place = left + width * answer.threshold
            canvas.line(place, top - 3, place, top + 10)
    return top


def _has_mark(answer: PredictResponse, task: Task) -> bool:
    """Return whether the threshold can be drawn on a bar.

    That needs a decision, and a single target, because the threshold applies to the sum of all
    targets.
    """
    return answer.decision != "cannot_assess" and len(task.targets) == 1
