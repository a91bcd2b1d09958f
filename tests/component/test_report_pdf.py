"""The PDF says what the colours of the map mean, and nothing falls off its page."""

import base64
import datetime
import io
import json

import pypdfium2 as pdfium
import pytest
from PIL import Image

from melanoma.evidence.contract import Contract
from melanoma.task import TASKS
from serve.openapi import PAGE
from serve.report_pdf import report_pdf
from serve.schemas import Explanation, ModelInfo, PredictResponse

TASK = TASKS["isic2019"]
WORDS = json.loads((PAGE / "words.json").read_text())
CONTRACT = Contract(
    status="met",
    targets=TASK.targets,
    reason=None,
    target_sensitivity=0.9,
    confidence=0.95,
    access=1,
    accesses_declared=0,
    error=0.05,
    sensitivity_expected=0.95,
    specificity=0.5,
    specificity_low=0.4,
    num_target=83,
    num_other=500,
    misses_allowed=3,
    num_target_needed=29,
    auroc=0.9,
    reference_auroc=0.6,
    difference_low=0.2,
    unit="lesion",
    population="HAM10000",
    basis="split",
    num_target_unassessed=9,
    target_share=0.1,
)


def _page(image: Image.Image, *, peak: float, warnings: list[str]) -> pdfium.PdfTextPage:
    """Return the text of the PDF of a made-up answer."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    png = base64.b64encode(buffer.getvalue()).decode()
    answer = PredictResponse(
        request_id="0" * 32,
        model=ModelInfo(name="melanoma", version="0" * 16, weights_sha256="0" * 64),
        probabilities=dict.fromkeys(TASK.classes, 1 / len(TASK.classes)),
        decision="refer",
        threshold=0.05,
        contract=CONTRACT,
        contract_sentence="On images like those it was calibrated on, most are referred. " * 5,
        warnings=warnings,
        explanation=Explanation(  # type: ignore[call-arg]
            method="grad_cam",
            class_name=TASK.targets[0],
            heatmap_png=png,
            overlay_png=png,
            peak=peak,
        ),
    )
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    return pdfium.PdfDocument(report_pdf(image, answer, TASK, now=now))[0].get_textpage()


@pytest.mark.parametrize("size", [(40, 30), (30, 30), (30, 60)])
def test_nothing_falls_off_the_page(size: tuple[int, int]) -> None:
    warnings = ["uncontracted", "other_cancer_likely", "unusual_image"]
    text = _page(Image.new("RGB", size), peak=1.0, warnings=warnings)
    lowest = min(text.get_rect(i)[1] for i in range(text.count_rects()))
    assert lowest > 14  # 5 mm, which printers reach


def test_the_legend_is_there_if_something_is_drawn() -> None:
    image = Image.new("RGB", (40, 30))
    drawn, empty = (
        " ".join(_page(image, peak=peak, warnings=[]).get_text_range().split())
        for peak in (1.0, 0.0)
    )
    for sentence in (*WORDS["map_ends"], WORDS["map_scale"]):
        assert sentence in drawn
        assert sentence not in empty
