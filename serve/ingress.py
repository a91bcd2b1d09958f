"""The HTTP surface: bytes in, checked and decoded here, fanned out, encoded and answered. Nothing of a request is kept."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response
from PIL import Image
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartParser

from melanoma.config import DataConfig
from melanoma.errors import InvalidImageError
from melanoma.explain.overlay import heatmap_on, overlay, to_png
from melanoma.images import Preprocess, Uint8Array, decode_image
from melanoma.predictor import Prediction
from serve.classifier import Job
from serve.problems import install_problem_handlers, new_request_id, problem
from serve.schemas import Alive, ContractInfo, Explanation, ModelInfo, ModelResponse, PredictResponse, Problem

MAX_BODY_BYTES = 20 * 1024 * 1024
# starlette writes larger parts to a temporary file; nothing of a picture may reach a disk.
MultiPartParser.spool_max_size = MAX_BODY_BYTES + 1024 * 1024

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "content": {"application/problem+json": {}}} for status in (400, 413, 415, 422, 500, 503)
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            **{
                kind: {"schema": {"type": "string", "format": "binary"}}
                for kind in ("image/jpeg", "image/png", "image/webp")
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}

app = FastAPI(
    title="melanoma",
    version="1",
    description="Melanoma triage. Research use only; not a medical device.",
    docs_url=None,
    redoc_url=None,
    max_body_size=MAX_BODY_BYTES,
)
install_problem_handlers(app)


@app.middleware("http")
async def _frame(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Give every request an id and every answer the headers that keep it from being cached or sniffed."""
    request.state.request_id = new_request_id()
    response = await call_next(request)
    response.headers["X-Request-ID"] = request.state.request_id
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


@serve.ingress(app)
class Ingress:
    """Decodes, asks the classifier, encodes."""

    def __init__(self, classifier: "DeploymentHandle[Any]") -> None:
        self._classifier = classifier
        self._described: dict[str, Any] | None = None

    async def _describe(self) -> dict[str, Any]:
        if self._described is None:
            self._described = await self._classifier.describe.remote()
        return self._described

    @app.post("/v1/predict", response_model=PredictResponse, responses=_ERRORS, openapi_extra=_BODY)
    async def predict(
        self, request: Request, explain: Annotated[Literal["none", "grad_cam"], Query()] = "none"
    ) -> PredictResponse:
        """Return calibrated probabilities, the decision, the contract it rests on and, if asked, a heatmap."""
        data = await _picture_bytes(request)
        described = await self._describe()
        preprocess = _preprocess(described["manifest"])
        image, picture = await asyncio.to_thread(_decode, data, preprocess)
        prediction: Prediction = await self._classifier.predict.remote(Job(picture, explain == "grad_cam"))
        explanation = (
            await asyncio.to_thread(_explain, image, prediction, preprocess) if explain == "grad_cam" else None
        )
        warnings = [*prediction.warnings, *(["heatmap_empty"] if explanation and explanation.peak == 0 else [])]
        manifest = described["manifest"]
        return PredictResponse(
            request_id=request.state.request_id,
            model=_model_info(manifest),
            probabilities={
                name: float(p) for name, p in zip(manifest["classes"], prediction.probabilities, strict=True)
            },
            decision=prediction.decision,
            threshold=manifest["operating_point"]["threshold"],
            contract=ContractInfo(**manifest["operating_point"]["contract"]),
            warnings=warnings,
            explanation=explanation,
        )

    @app.get("/v1/model", response_model=ModelResponse, responses={503: _ERRORS[503]})
    async def model(self) -> ModelResponse:
        """Return the manifest as far as a client may see it, and the model card."""
        described = await self._describe()
        shown = ("classes", "architecture", "preprocessing", "calibration", "operating_point", "group_columns")
        return ModelResponse(
            model=_model_info(described["manifest"]),
            **{name: described["manifest"][name] for name in shown},
            contract_sentence=described["contract_sentence"],
            model_card=described["model_card"],
        )

    @app.get("/healthz", response_model=Alive)
    async def healthz(self) -> Alive:
        """Answer that the process is alive."""
        return Alive()

    @app.get("/readyz", response_model=Alive, responses={503: _ERRORS[503]})
    async def readyz(self, request: Request) -> Any:
        """Answer whether a classifier with loaded weights can be asked."""
        try:
            await asyncio.wait_for(self._classifier.describe.remote(), timeout=5)
        except TimeoutError:
            return problem(request, 503, "not_ready", "No classifier answers yet; try again in a few seconds.")
        return Alive()


async def _picture_bytes(request: Request) -> bytes:
    """Return the picture of a raw body or of the one multipart field `image`."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/"):
        return await request.body()
    async with request.form(max_files=1, max_fields=4, max_part_size=MAX_BODY_BYTES) as form:
        field = form.get("image")
        if not isinstance(field, UploadFile):
            raise InvalidImageError(
                "The form must have one file field named image; send the picture in it.",
                status=422,
                code="no_image_field",
            )
        return await field.read()


def _preprocess(manifest: dict[str, Any]) -> Preprocess:
    settings = dict(manifest["preprocessing"])
    height, width = settings.pop("canvas")
    return Preprocess((height, width), DataConfig.from_dict(settings))


def _decode(data: bytes, preprocess: Preprocess) -> tuple[Image.Image, Uint8Array]:
    image = decode_image(data)
    return image, preprocess.stored(image)


def _explain(image: Image.Image, prediction: Prediction, preprocess: Preprocess) -> Explanation:
    assert prediction.heatmap is not None
    shown, heatmap = heatmap_on(image, prediction.heatmap, preprocess)
    return Explanation(  # type: ignore[call-arg]  # mypy knows the field by its name on the wire only
        method="grad_cam",
        class_name="mel",
        heatmap_png=base64.b64encode(to_png(Image.fromarray(heatmap.values))).decode(),
        overlay_png=base64.b64encode(to_png(overlay(shown, heatmap))).decode(),
        peak=heatmap.peak,
    )


def _model_info(manifest: dict[str, Any]) -> ModelInfo:
    return ModelInfo(
        name=manifest["name"], version=manifest["version"], weights_sha256=manifest["files"]["model.safetensors"]
    )
