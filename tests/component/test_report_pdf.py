"""The PDF says what the colours of the map mean, and nothing falls off its page."""

import base64
import datetime
import io
import json

import pypdfium2 as pdfium
import pytest
from PIL import Image

from melanoma.evidence.contract import Contract
from melanoma.evidence.several_images import MAX_IMAGES
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


def _explanation(image: Image.Image, peak: float) -> Explanation:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    png = base64.b64encode(buffer.getvalue()).decode()
    return Explanation(  # type: ignore[call-arg]
        method="grad_cam",
        class_name=TASK.targets[0],
        heatmap_png=png,
        overlay_png=png,
        peak=peak,
    )


def _document(
    images: list[Image.Image], *, peaks: list[float], warnings: list[str]
) -> pdfium.PdfDocument:
    """Return the PDF of a made-up answer."""
    explanations = [_explanation(*pair) for pair in zip(images, peaks, strict=True)]
    answer = PredictResponse(
        request_id="0" * 32,
        model=ModelInfo(name="melanoma", version="0" * 16, weights_sha256="0" * 64),
        probabilities=dict.fromkeys(TASK.classes, 1 / len(TASK.classes)),
        decision="refer",
        threshold=0.05,
        num_images=len(images),
        contract=CONTRACT,
        contract_sentence="On images like those it was calibrated on, most are referred. " * 5,
        warnings=warnings,
        explanation=explanations[0],
        further_explanations=explanations[1:],
    )
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    return pdfium.PdfDocument(report_pdf(images, answer, TASK, now=now))


def _words(document: pdfium.PdfDocument) -> str:
    return " ".join(document[0].get_textpage().get_text_range().split())


@pytest.mark.parametrize("num", range(1, MAX_IMAGES + 1))
@pytest.mark.parametrize("size", [(40, 30), (30, 30), (30, 60)])
def test_nothing_falls_off_the_page(size: tuple[int, int], num: int) -> None:
    warnings = ["uncontracted", "other_cancer_likely", "unusual_image"]
    images = [Image.new("RGB", size)] * num
    document = _document(images, peaks=[1.0] * num, warnings=warnings)
    assert len(document) == 1
    text = document[0].get_textpage()
    lowest = min(text.get_rect(i)[1] for i in range(text.count_rects()))
    assert lowest > 14  # 5 mm, which printers reach


def test_the_legend_is_there_if_something_is_drawn() -> None:
    image = Image.new("RGB", (40, 30))
    drawn, empty = (_words(_document([image], peaks=[peak], warnings=[])) for peak in (1.0, 0.0))
    for sentence in (*WORDS["map_ends"], WORDS["map_scale"]):
        assert sentence in drawn
        assert sentence not in empty


def _pictures(document: pdfium.PdfDocument) -> list[tuple[float, float, float, float]]:
    """Return left, lower, right and upper end of everything that is drawn as an image."""
    found = document[0].get_objects(filter=[pdfium.raw.FPDF_PAGEOBJ_IMAGE])
    return [picture.get_bounds() for picture in found]


@pytest.mark.parametrize("num", range(2, MAX_IMAGES + 1))
def test_every_image_of_a_lesion_is_there_with_its_map(num: int) -> None:
    sizes = [(40, 30), (30, 60), (30, 30)] * 2
    images = [Image.new("RGB", size) for size in sizes[:num]]
    document = _document(images, peaks=[1.0] * num, warnings=[])
    places = _pictures(document)
    assert len(places) == 2 * num + 1  # and the scale
    for index, (left, lower, right, upper) in enumerate(places):
        for other in places[index + 1 :]:  # none lies on another
            assert left >= other[2] or right <= other[0] or lower >= other[3] or upper <= other[1]
    words = _words(document)
    assert f"{num} images of one lesion, judged together." in words
    assert all(f"Image {place} of {num} and its map" in words for place in range(1, num + 1))
    assert WORDS["several"]["map_scale"] in words
    assert "this image's own peak" not in words


def test_an_empty_map_among_others_is_named() -> None:
    images = [Image.new("RGB", (40, 30))] * 3
    warnings = ["heatmap_empty", "unusual_image"]
    words = _words(_document(images, peaks=[1.0, 0.0, 1.0], warnings=warnings))
    assert "Image 2 of 3; its map is empty" in words
    assert "At least one map is empty" in words
    assert "at least one of these images" in words
    assert WORDS["several"]["map_scale"] in words
    none_drawn = _words(_document(images, peaks=[0.0] * 3, warnings=warnings))
    assert WORDS["several"]["map_scale"] not in none_drawn


def test_one_image_is_not_called_several() -> None:
    words = _words(_document([Image.new("RGB", (40, 30))], peaks=[1.0], warnings=[]))
    assert "judged together" not in words
    assert "Image 1 of 1" not in words
