"""The HTTP surface: bytes in, checked and decoded here, fanned out, encoded and answered. Nothing of a request is kept."""

import asyncio
import datetime
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from PIL import Image
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

from melanoma.evidence.metrics import FloatArray
from melanoma.images import Uint8Array
from melanoma.predictor import Prediction
from serve import open_inference
from serve.api_keys import VARIABLE, keys_from_environment
from serve.classifier import Job
from serve.explainer import GuidedJob
from serve.frame import install_frame
from serve.metrics import request_metrics
from serve.openapi import DESCRIPTION, GUARDED, PAGE, PICTURE, errors, install_docs
from serve.pictures import (
    MAX_BODY_BYTES,
    answer_of,
    decode,
    explanation_of,
    model_info,
    picture_bytes,
    preprocess_of,
    stored,
)
from serve.problems import BundleChangingError, install_problem_handlers, problem
from serve.report_pdf import report_pdf
from serve.schemas import Alive, ModelResponse, PredictResponse

PICTURES_AT_ONCE = 8
Explain = Literal["none", "grad_cam", "guided_grad_cam"]
_REFUSALS = errors(400, 401, 403, 405, 406, 413, 415, 422, 500, 503, 504)

app = FastAPI(
    title="melanoma",
    version="1",
    description=DESCRIPTION,
    docs_url=None,
    redoc_url=None,
    redirect_slashes=False,
)
install_problem_handlers(app)
install_frame(app, max_body_bytes=MAX_BODY_BYTES)
install_docs(app)
app.mount("/page", StaticFiles(directory=PAGE))


@serve.ingress(app)
class Ingress:
    """Decodes, asks the classifier, encodes."""

    def __init__(
        self,
        classifier: "DeploymentHandle[Any]",
        explainer: "DeploymentHandle[Any]",
        *,
        require_api_key: bool,
        answer_timeout_s: float,
    ) -> None:
        if keys_from_environment() is None and require_api_key:
            raise ValueError(
                f"{VARIABLE} must name a file of API keys where a service is bound beyond loopback; see serve/api_keys.py."
            )
        self._classifier, self._explainer = classifier, explainer
        self._timeout_s = answer_timeout_s
        self._described: dict[str, Any] | None = None

    async def _describe(self, version: str | None = None) -> dict[str, Any]:
        """Return what the classifier says of its bundle, asked again when an answer came from another version."""
        if self._described is None or version not in (None, self._described["manifest"]["version"]):
            self._described = await self._classifier.describe.remote()
        described: dict[str, Any] = self._described
        if version not in (None, described["manifest"]["version"]):  # another replica spoke, of another bundle
            self._described = None
            raise BundleChangingError
        return described

    async def _predict(self, picture: Uint8Array, *, explain: bool = False) -> tuple[Prediction, dict[str, Any]]:
        """Return what the classifier says of a stored picture, and of the bundle that said it."""
        with request_metrics().stage("predict"):
            prediction, version = await self._classifier.predict.remote(Job(picture, explain))
        if prediction is None:  # the picture was made for another bundle
            self._described = None
            raise BundleChangingError
        request_metrics().decided(prediction.decision)
        return prediction, await self._describe(version)

    async def _read(self, request: Request, explain: Explain) -> tuple[Image.Image, PredictResponse]:
        """Return the picture of a request and the answer to it."""
        async with asyncio.timeout(self._timeout_s):
            data = await picture_bytes(request)
            return await self._answer(data, explain, request_id=request.state.request_id)

    async def _answer(self, data: bytes, explain: Explain, *, request_id: str) -> tuple[Image.Image, PredictResponse]:
        """Return an encoded picture, decoded, and the answer to it."""
        preprocess = preprocess_of((await self._describe())["manifest"])
        with request_metrics().stage("decode"):
            image, picture = await asyncio.to_thread(decode, data, preprocess)
        prediction, described = await self._predict(picture, explain=explain != "none")
        manifest, explanation = described["manifest"], None
        if explain != "none" and prediction.heatmap is not None:
            heatmap = prediction.heatmap
            if explain == "guided_grad_cam":
                heatmap = await self._guided(picture, heatmap, version=manifest["version"])
            with request_metrics().stage("encode"):
                explanation = await asyncio.to_thread(explanation_of, explain, image, heatmap, preprocess)
        return image, answer_of(prediction, described, explanation, request_id=request_id)

    async def _guided(self, picture: Uint8Array, heatmap: FloatArray, *, version: str) -> FloatArray:
        """Return the guided map ``(H, W)`` of a stored picture, from its Grad-CAM ``(h, w)``."""
        with request_metrics().stage("explain"):
            guided, explained_by = await self._explainer.explain.remote(GuidedJob(picture, heatmap))
        if guided is None or explained_by != version:
            raise BundleChangingError
        values: FloatArray = guided.peak / 255 * guided.values.astype(np.float32)
        return values

    @app.post(
        "/v1/predict",
        response_model=PredictResponse,
        responses=_REFUSALS,
        openapi_extra=PICTURE,
        dependencies=GUARDED,
    )
    async def predict(self, request: Request, explain: Annotated[Explain, Query()] = "none") -> PredictResponse:
        """Return calibrated probabilities, the decision, the contract it rests on and, if asked, a heatmap."""
        return (await self._read(request, explain))[1]

    @app.post(
        "/v1/report",
        response_class=Response,
        responses={200: {"content": {"application/pdf": {}}}, **_REFUSALS},
        openapi_extra=PICTURE,
        dependencies=GUARDED,
    )
    async def report(self, request: Request) -> Response:
        """Return the same prediction with its heatmap as one page of PDF."""
        image, answer = await self._read(request, "grad_cam")
        page = await asyncio.to_thread(report_pdf, image, answer, now=datetime.datetime.now(datetime.UTC))
        return Response(page, media_type="application/pdf")

    @app.get(
        "/v1/model",
        response_model=ModelResponse,
        responses=errors(401, 403, 406, 422, 500, 503, 504),
        dependencies=GUARDED,
    )
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

    @app.get("/", include_in_schema=False)
    async def page(self) -> FileResponse:
        """Return the reading page."""
        return FileResponse(PAGE / "index.html")

    @app.get("/healthz", response_model=Alive)
    @app.get("/v2/health/live", response_model=Alive)
    async def healthz(self) -> Alive:
        """Answer that the process is alive."""
        return Alive()

    @app.get("/readyz", response_model=Alive, responses=errors(503))
    @app.get("/v2/health/ready", response_model=Alive, responses=errors(503))
    @app.get("/v2/models/melanoma/ready", response_model=Alive, responses=errors(503))
    async def readyz(self, request: Request) -> Any:
        """Answer whether a classifier with loaded weights can be asked."""
        try:
            await asyncio.wait_for(self._classifier.ready.remote(), timeout=5)
        except BackPressureError:
            return Alive()  # busy, which is not the same: taken out of service it would leave its share to the others
        except (TimeoutError, RayError, RayServeException):
            return problem(request, 503, "not_ready", "No classifier answers yet; try again in a few seconds.")
        return Alive()

    @app.get("/v2")
    async def server(self) -> dict[str, Any]:
        """Return what the Open Inference Protocol wants to know of a server."""
        return {"name": "melanoma", "version": app.version, "extensions": ["binary_tensor_data"]}

    @app.get("/v2/models/melanoma", responses=errors(401, 403, 406, 422, 500, 503, 504), dependencies=GUARDED)
    async def model_metadata(self) -> dict[str, Any]:
        """Return the inputs and outputs of the model."""
        return open_inference.metadata((await self._describe())["manifest"]["version"])

    @app.post("/v2/models/melanoma/infer", responses=_REFUSALS, openapi_extra=open_inference.BODY, dependencies=GUARDED)
    async def infer(self, request: Request) -> Response:
        """Answer an inference request of the Open Inference Protocol, JSON or with binary data: up to 32 pictures at once."""
        async with asyncio.timeout(self._timeout_s):
            return await self._infer(await request.body(), request.headers.get(open_inference.HEADER_LENGTH))

    async def _infer(self, body: bytes, header_length: str | None) -> Response:
        asked = await asyncio.to_thread(open_inference.read_request, body, header_length)
        preprocess = preprocess_of((await self._describe())["manifest"])
        at_once = asyncio.Semaphore(PICTURES_AT_ONCE)  # one request must not fill the queue of all

        async def predict(sent: bytes | Image.Image) -> tuple[Prediction, dict[str, Any]]:
            async with at_once:
                return await self._predict(await asyncio.to_thread(stored, sent, preprocess))

        tasks = [asyncio.create_task(predict(sent)) for sent in asked.pictures]
        try:
            answers = await asyncio.gather(*tasks)
        finally:  # the others of a request that is refused must not go on unseen
            for task in tasks:
                task.cancel()
        versions = {described["manifest"]["version"] for _, described in answers}
        if len(versions) > 1:
            raise BundleChangingError
        body, headers = open_inference.write_response(
            asked,
            versions.pop(),
            np.stack([prediction.probabilities for prediction, _ in answers]),
            [prediction.decision for prediction, _ in answers],
        )
        return Response(body, headers=headers)
