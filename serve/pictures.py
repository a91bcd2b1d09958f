"""One picture in, one answer out: reading bodies, encoding heatmaps. Knows requests, but nothing of deployments.

Stands apart from the ingress because Ray Serve copies that module's names when it wraps the class, before any below it exist.
"""

import base64
from typing import Any, Literal

from fastapi import HTTPException, Request
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartParser

from melanoma.errors import InvalidImageError
from melanoma.evidence.metrics import FloatArray
from melanoma.explain.overlay import heatmap_on, overlay, to_png
from melanoma.images import Preprocess
from serve.calls import Reading
from serve.schemas import ContractInfo, Explanation, ModelInfo, PredictResponse

MAX_BODY_BYTES = 20 * 1024 * 1024
# starlette writes larger parts to a temporary file; nothing of a picture may reach a disk.
MultiPartParser.spool_max_size = MAX_BODY_BYTES + 1024 * 1024


async def picture_bytes(request: Request) -> bytes:
    """Return the picture of a raw body or of the one multipart field `image`."""
    kind = request.headers.get("content-type", "").lower()
    if not kind.startswith("multipart/"):
        data = await request.body()
        if kind.startswith("application/json") and data.lstrip()[:1] in (b"{", b"[", b'"'):
            raise InvalidImageError(
                "The body must be the picture itself, it is JSON; send the bytes, or a form with one file field named image.",
                status=422,
                code="no_image_field",
            )
        return data
    try:
        form = await request.form(max_files=1, max_fields=4, max_part_size=MAX_BODY_BYTES)
    except (UnicodeError, ValueError) as error:  # of a charset that is none; starlette tells all else itself
        raise HTTPException(400) from error
    try:
        field = form.get("image")
        if not isinstance(field, UploadFile):
            raise InvalidImageError(
                "The form must have one file field named image; send the picture in it.",
                status=422,
                code="no_image_field",
            )
        return await field.read()
    finally:
        await form.close()


def explanation_of(
    method: Literal["grad_cam", "guided_grad_cam"], image: Image.Image, values: FloatArray, preprocess: Preprocess
) -> Explanation:
    """Return a map ``(h, w)`` of the whole canvas in the frame of its picture."""
    shown, heatmap = heatmap_on(image, values, preprocess)
    return Explanation(  # type: ignore[call-arg]  # mypy knows the field by its name on the wire only
        method=method,
        class_name="mel",
        heatmap_png=base64.b64encode(to_png(Image.fromarray(heatmap.values))).decode(),
        overlay_png=base64.b64encode(to_png(overlay(shown, heatmap))).decode(),
        peak=heatmap.peak,
    )


def model_info(manifest: dict[str, Any]) -> ModelInfo:
    """Return which network answers."""
    return ModelInfo(
        name=manifest["name"], version=manifest["version"], weights_sha256=manifest["files"]["model.safetensors"]
    )


def answer_of(reading: Reading, explanation: Explanation | None, *, request_id: str) -> PredictResponse:
    """Return the answer to one picture."""
    manifest, prediction = reading.described["manifest"], reading.prediction
    empty = ["heatmap_empty"] if explanation and explanation.peak == 0 else []
    return PredictResponse(
        request_id=request_id,
        model=model_info(manifest),
        probabilities={name: float(p) for name, p in zip(manifest["classes"], prediction.probabilities, strict=True)},
        decision=prediction.decision,
        threshold=manifest["operating_point"]["threshold"],
        contract=ContractInfo(**manifest["operating_point"]["contract"]),
        contract_sentence=reading.described["contract_sentence"],
        warnings=[*prediction.warnings, *empty],
        explanation=explanation,
    )
