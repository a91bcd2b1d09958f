"""The HTTP surface: bytes in, checked and decoded here, fanned out, encoded and answered. Nothing of a request is kept."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from melanoma.predictor import Prediction
from serve.classifier import Job
from serve.explainer import GuidedJob
from serve.pictures import MAX_BODY_BYTES, decode, explanation_of, model_info, picture_bytes, preprocess_of
from serve.problems import RETRY_AFTER_SECONDS, body_too_large, install_problem_handlers, new_request_id, problem
from serve.schemas import Alive, ContractInfo, ModelResponse, PredictResponse, Problem

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
)
install_problem_handlers(app)
app.add_middleware(RequestBodyLimitMiddleware, max_body_size=MAX_BODY_BYTES)  # counts bodies that state no length


@app.middleware("http")
async def _frame(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Give every request an id and every answer the headers that keep it from being cached or sniffed.

    The id stands in the body; the header X-Request-ID belongs to Ray Serve's proxy, which takes over what the client sent.
    """
    request.state.request_id = new_request_id()
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        response: Response = body_too_large(request, MAX_BODY_BYTES)
    else:
        response = await call_next(request)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


@serve.ingress(app)
class Ingress:
    """Decodes, asks the classifier, encodes."""

    def __init__(self, classifier: "DeploymentHandle[Any]", explainer: "DeploymentHandle[Any]") -> None:
        self._classifier, self._explainer = classifier, explainer
        self._described: dict[str, Any] | None = None

    async def _describe(self, version: str | None = None) -> dict[str, Any]:
        """Return what the classifier says of its bundle, asked again when an answer came from another version."""
        if self._described is None or version not in (None, self._described["manifest"]["version"]):
            self._described = await self._classifier.describe.remote()
        return self._described

    @app.post("/v1/predict", response_model=PredictResponse, responses=_ERRORS, openapi_extra=_BODY)
    async def predict(
        self, request: Request, explain: Annotated[Literal["none", "grad_cam", "guided_grad_cam"], Query()] = "none"
    ) -> Any:
        """Return calibrated probabilities, the decision, the contract it rests on and, if asked, a heatmap."""
        data = await picture_bytes(request)
        described = await self._describe()
        preprocess = preprocess_of(described["manifest"])
        image, picture = await asyncio.to_thread(decode, data, preprocess)
        prediction: Prediction
        prediction, version = await self._classifier.predict.remote(Job(picture, explain != "none"))
        described = await self._describe(version)
        explanation = None
        if explain != "none" and prediction.heatmap is not None:
            heatmap = prediction.heatmap
            if explain == "guided_grad_cam":
                guided, explained_by = await self._explainer.explain.remote(GuidedJob(picture, heatmap))
                if explained_by != version:
                    detail = "The service is taking up another bundle; try again after the time in Retry-After."
                    return problem(
                        request, 503, "bundle_changing", detail, headers={"Retry-After": RETRY_AFTER_SECONDS}
                    )
                heatmap = guided.peak / 255 * guided.values.astype(np.float32)
            explanation = await asyncio.to_thread(explanation_of, explain, image, heatmap, preprocess)
        warnings = [*prediction.warnings, *(["heatmap_empty"] if explanation and explanation.peak == 0 else [])]
        manifest = described["manifest"]
        return PredictResponse(
            request_id=request.state.request_id,
            model=model_info(manifest),
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
            model=model_info(described["manifest"]),
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
        except (TimeoutError, RayError, RayServeException):
            return problem(request, 503, "not_ready", "No classifier answers yet; try again in a few seconds.")
        return Alive()
