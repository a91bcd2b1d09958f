"""Reads the images of a request and builds the answer to it. Knows nothing of deployments.

These functions are not in `serve.ingress` because Ray Serve copies the names of that module when it
wraps the class. Names that are defined below the class do not exist then.
"""

import base64
from collections.abc import AsyncGenerator, Sequence

import numpy as np
from fastapi import HTTPException, Request
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from melanoma.arrays import FloatArray
from melanoma.bundle.manifest import BundleManifest
from melanoma.explain.overlay import heatmap_on, overlay
from melanoma.imaging.decode import format_of
from melanoma.imaging.png_writer import to_png
from serve.bodies import MAX_BODY_BYTES, RefusedError, read_body
from serve.readings import LesionReading, Reading
from serve.schemas import Explanation, ModelInfo, PredictResponse

# starlette writes larger parts to a temporary file, but no part of an image may reach a disk.
MultiPartParser.spool_max_size = MAX_BODY_BYTES + 1024 * 1024
MAX_FIELDS = 64
"""Largest number of files in a form, and of other fields. More than six images are then refused as
such, and floods of fields as malformed."""
_FORM_RULE = "The form must have file fields named image; send each image in one."


async def images_of(request: Request) -> list[bytes]:
    """Return the images of a request: the raw body, or every multipart field `image`.

    Raises:
        HTTPException: 400 if the form is malformed or cut off.
        RefusedError: if the body is JSON, cannot be read, or is a form without images.
    """
    kind = request.headers.get("content-type", "").lower()
    data = await read_body(request)
    if kind.startswith("multipart/"):
        return await _form_images(request.headers, data)
    if kind.startswith("application/json") and data.lstrip()[:1] in (b"{", b"[", b'"'):
        raise RefusedError(
            422,
            "no_image_field",
            "The body must be the image itself; it is JSON. Send the bytes of the image, or a form"
            " with a file field named image.",
        )
    return [data]


class _Parser(MultiPartParser):
    """Parses a form, and notes whether its end was reached.

    starlette's parser leaves out a field that was cut off, so that an image could be missed.
    """

    is_complete = False

    def on_end(self) -> None:
        self.is_complete = True


async def _form_images(headers: Headers, data: bytes) -> list[bytes]:
    """Return the content of the form fields `image`, sent with or without file names."""
    form = await _parsed(headers, data)
    try:
        contents = [
            await field.read() if isinstance(field, UploadFile) else _bytes_of_text(field)
            for field in form.getlist("image")
        ]
    finally:
        await form.close()
    images = [content for content in contents if content is not None]
    _check_form(form, has_images=bool(images) and len(images) == len(contents))
    return images


async def _parsed(headers: Headers, data: bytes) -> FormData:
    """Return a form; raise 400 if it is malformed or cut off."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield data
        yield b""

    parser = _Parser(
        headers,
        stream(),
        max_files=MAX_FIELDS,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_BODY_BYTES,
    )
    try:
        form = await parser.parse()
    # The last three stand for an unknown charset or a missing boundary.
    except (MultiPartException, KeyError, LookupError, ValueError) as error:
        raise HTTPException(400) from error
    if not parser.is_complete:
        await form.close()
        raise HTTPException(400)
    return form


def _check_form(form: FormData, *, has_images: bool) -> None:
    """Refuse a form that asks for more than would be answered.

    Args:
        form: the form.
        has_images: whether it has a field `image`, and all of them hold images.
    """
    if "explain" in form:
        raise RefusedError(
            422,
            "invalid_request",
            "explain must be in the query, not in the form. Send it as"
            " /v1/predict?explain=grad_cam.",
        )
    if not has_images:
        raise RefusedError(422, "no_image_field", _FORM_RULE)
    if any(isinstance(field, UploadFile) and name != "image" for name, field in form.multi_items()):
        raise RefusedError(
            422,
            "invalid_request",
            "All files of the form must be in fields named image; some are not. Rename their"
            " fields.",
        )


def _bytes_of_text(field: str) -> bytes | None:
    """Return the bytes of an image that was sent without a file name, or None for other text.

    The parser treats a part without a file name as text.
    """
    # The parser reads bytes that are not UTF-8 as Latin-1, which loses nothing. No image is UTF-8.
    try:
        data = field.encode("latin-1")
    except UnicodeEncodeError:
        return None
    return data if format_of(data) else None


def explanation_of(method: str, reading: Reading, values: FloatArray) -> Explanation:
    """Return the explanation of a reading.

    Args:
        method: how the heatmap was made.
        reading: the image and the prediction for it.
        values: heatmap ``(h, w)`` over the whole letterbox; it is mapped to the image's frame.
    """
    manifest = reading.described.manifest
    shown, heatmap = heatmap_on(reading.shown, values, manifest.preprocessing)
    # mypy knows the field `class_name` only by its alias.
    return Explanation(  # type: ignore[call-arg]
        method=method,
        class_name=manifest.task.target_name,
        heatmap_png=base64.b64encode(to_png(heatmap.values)).decode(),
        overlay_png=base64.b64encode(to_png(np.asarray(overlay(shown, heatmap)))).decode(),
        peak=heatmap.peak,
        lesion_claim=manifest.lesion_claims.get(method, "none"),
    )


def model_info(manifest: BundleManifest) -> ModelInfo:
    """Return the name, version and weights hash of the network that answers."""
    return ModelInfo(
        name=manifest.name, version=manifest.version, weights_sha256=manifest.weights_sha256
    )


def answer_of(
    lesion: LesionReading, explanations: Sequence[Explanation], *, request_id: str
) -> PredictResponse:
    """Return the answer to the images of one lesion.

    Args:
        lesion: the images and the prediction for them.
        explanations: that of each image, or none if none was asked for.
        request_id: the id of the request.
    """
    manifest, prediction = lesion.described.manifest, lesion.prediction.together
    point = lesion.prediction.operating_point
    empty = ["heatmap_empty"] if any(each.peak == 0 for each in explanations) else []
    return PredictResponse(
        request_id=request_id,
        model=model_info(manifest),
        probabilities={
            name: float(p)
            for name, p in zip(manifest.task.classes, prediction.probabilities, strict=True)
        },
        decision=prediction.decision,
        threshold=point.threshold,
        num_images=len(lesion.images),
        contract=point.contract,
        contract_sentence=point.contract.sentence(manifest.task),
        warnings=[*prediction.warnings, *empty],
        explanation=explanations[0] if explanations else None,
        further_explanations=list(explanations[1:]),
    )
