"""The HTTP API: reads and decodes requests, asks the model, encodes and returns the answers.

It keeps nothing of a request.
"""

import asyncio
import datetime
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, cast

from fastapi import FastAPI, Query, Request, Response
from PIL import Image
from pydantic import AfterValidator
from pydantic_core import PydanticCustomError
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from melanoma.errors import SettingError
from melanoma.explain.methods import DEFAULT_METHOD, METHODS
from serve import open_inference
from serve.answers import answer_of, explanation_of, images_of, model_info
from serve.api_keys import VARIABLE, check_keys
from serve.bodies import MAX_BODY_BYTES, RefusedError, read_body
from serve.classifier import MAX_IMAGES, Classifier, ClassifierArgs
from serve.described import Described
from serve.explainer import MAX_BATCH as EXPLAINED_AT_ONCE
from serve.in_flight import in_flight
from serve.lanes import Lane
from serve.listener import Listen, Listener
from serve.logs import keep_traces_out
from serve.metrics import request_metrics
from serve.middleware import install_middleware
from serve.model_client import ModelClient, all_of
from serve.models import DeployedModel, LocalModel, Model
from serve.openapi import DESCRIPTION, GUARDED, IMAGE, PAGE, errors, install_docs
from serve.problems import install_problem_handlers
from serve.readings import LesionReading, Reading
from serve.report_pdf import report_pdf
from serve.schemas import Alive, Explanation, ExplanationMethod, ModelResponse, PredictResponse
from serve.uploads import Upload, uploads_of

NO_HEATMAP = "none"


def _known(explain: str) -> str:
    allowed = (NO_HEATMAP, *METHODS)
    if explain not in allowed:
        expected = " or ".join(map(repr, allowed))
        # The type of pydantic's own error for a choice, whose message may be returned.
        raise PydanticCustomError(
            "literal_error", "Input should be {expected}", {"expected": expected}
        )
    return explain


Explain = Annotated[
    str, Query(json_schema_extra={"enum": [NO_HEATMAP, *METHODS]}), AfterValidator(_known)
]
_JSON = "application/json"
_REFUSALS = errors(400, 401, 403, 405, 406, 408, 413, 415, 422, 500, 503, 504)
_V2_READING = errors(401, 403, 404, 406, 422, 500, 503, 504, kind=_JSON)
_V2_REFUSALS = errors(400, 401, 403, 404, 405, 406, 408, 413, 415, 422, 500, 503, 504, kind=_JSON)

app = FastAPI(
    title="melanoma",
    version="1",
    description=DESCRIPTION,
    docs_url=None,
    redoc_url=None,
    redirect_slashes=False,
    servers=[{"url": "./"}],  # relative, so that it also works behind a path prefix
)
install_problem_handlers(app)
install_middleware(app, max_body_bytes=MAX_BODY_BYTES)
install_docs(app)
app.mount("/page", StaticFiles(directory=PAGE))


@serve.ingress(app)
class Ingress:
    """Decodes images, asks the classifier, encodes answers."""

    def __init__(
        self,
        classifier: "DeploymentHandle[Any] | ClassifierArgs",
        explainer: "DeploymentHandle[Any]",
        *,
        require_api_key: bool,
        answer_timeout_s: float,
        listen: Listen | None = None,
    ) -> None:
        keep_traces_out()
        if not check_keys() and require_api_key:
            raise SettingError(
                f"{VARIABLE} must name a file of API keys, because the service listens beyond"
                " loopback. Set it; serve/api_keys.py describes the file."
            )
        model: Model = (
            LocalModel(Classifier(classifier), max_images=MAX_IMAGES)
            if isinstance(classifier, ClassifierArgs)
            else DeployedModel(classifier)
        )
        self._client = ModelClient(model, explainer)
        self._timeout_s = answer_timeout_s
        # One thread: parsed JSON may take twenty times its size in memory.
        self._parsing = Lane("parse", num_threads=1)
        self._listener = None if listen is None else Listener(listen)
        if listen is not None:
            in_flight().limit = listen.max_requests

    async def check_health(self) -> None:
        """Start the HTTP server if this replica has one of its own, and check that it runs.

        Ray Serve calls it when the replica is complete, and then every few seconds.
        """
        if self._listener is not None:
            await self._listener.ensure_running(cast(ASGIApp, self))

    async def drain(self) -> int:
        """Refuse new requests and return the number of requests in flight.

        `melanoma serve` calls it through Ray when it stops; it is not an HTTP route.
        """
        in_flight().is_stopping = True
        return in_flight().num

    async def _read(self, request: Request, explain: str) -> tuple[LesionReading, PredictResponse]:
        """Return the reading of a request's images and the answer to it.

        The timeout starts after the upload, so that a slow upload does not use it up.
        """
        contents = await images_of(request)
        async with asyncio.timeout(self._timeout_s):
            await self._client.check_num_images(len(contents))
            uploads = await self._uploads(contents)
            lesion = await self._client.read_lesion(uploads, explain=explain != NO_HEATMAP)
            wanted = () if explain == NO_HEATMAP else lesion.images
            explanations = await all_of(
                [partial(self._explanation, explain, reading) for reading in wanted],
                at_once=EXPLAINED_AT_ONCE,
            )
            request_metrics().decided(lesion.prediction.together.decision)
            return lesion, answer_of(lesion, explanations, request_id=request.state.request_id)

    async def _uploads(self, contents: Sequence[bytes | Image.Image]) -> list[Upload]:
        """Return the images of a request, after checking the headers of several."""
        if len(contents) == 1:  # its header is read when it is decoded
            return [Upload(contents[0])]
        return await self._parsing.run(partial(uploads_of, contents))

    async def _explanation(self, method: str, reading: Reading) -> Explanation:
        heatmap = (
            reading.prediction.heatmap
            if METHODS[method].make is None
            else await self._client.explain(reading, method)
        )
        assert heatmap is not None  # the request to the classifier asked for it
        with request_metrics().stage("encode"):
            return await asyncio.to_thread(explanation_of, method, reading, heatmap)

    @app.post(
        "/v1/predict",
        response_model=PredictResponse,
        responses=_REFUSALS,
        openapi_extra=IMAGE,
        dependencies=GUARDED,
    )
    async def predict(self, request: Request, explain: Explain = NO_HEATMAP) -> Response:
        """Return calibrated probabilities, the decision, its contract and, if asked, heatmaps.

        Several images in a form show one lesion and get one decision.
        """
        answer = (await self._read(request, explain))[1]
        # Written here, because FastAPI would check the finished answer once more.
        return Response(answer.model_dump_json(), media_type="application/json")

    @app.post(
        "/v1/report",
        response_class=Response,
        responses={200: {"content": {"application/pdf": {}}}, **_REFUSALS},
        openapi_extra=IMAGE,
        dependencies=GUARDED,
    )
    async def report(self, request: Request) -> Response:
        """Return the same prediction with its Grad-CAM as a PDF of one page."""
        lesion, answer = await self._read(request, DEFAULT_METHOD)
        task, images = lesion.described.manifest.task, [image.shown for image in lesion.images]
        page = await asyncio.to_thread(
            report_pdf, images, answer, task, now=datetime.datetime.now(datetime.UTC)
        )
        return Response(page, media_type="application/pdf")

    @app.get(
        "/v1/model",
        response_model=ModelResponse,
        responses=errors(401, 403, 406, 422, 500, 503, 504),
        dependencies=GUARDED,
    )
    async def model(self) -> ModelResponse:
        """Return the public part of the manifest and the model card."""
        described = await self._client.describe()
        manifest = described.manifest
        return ModelResponse(
            model=model_info(manifest),
            task=manifest.task,
            architecture=manifest.architecture,
            preprocessing=manifest.preprocessing,
            calibrator=manifest.calibrator,
            operating_point=manifest.operating_point,
            contract_sentence=described.contract_sentence,
            several_images=manifest.several_images,
            several_images_sentence=described.several_images_sentence,
            explanations=[
                ExplanationMethod(
                    name=name,
                    title=method.title,
                    meaning=method.meaning,
                    lesion_claim=manifest.lesion_claims.get(name, "none"),
                )
                for name, method in METHODS.items()
            ],
            group_columns=manifest.group_columns,
            model_card=described.model_card,
        )

    @app.get("/", include_in_schema=False)
    async def page(self) -> FileResponse:
        """Return the web page."""
        return FileResponse(PAGE / "index.html")

    @app.get("/healthz", response_model=Alive)
    async def healthz(self) -> Alive:
        """Return that the process is alive."""
        return Alive()

    @app.get("/readyz", response_model=Alive, responses=errors(503))
    async def readyz(self) -> Alive:
        """Return success if a classifier with loaded weights answers."""
        await self._client.check_ready()
        return Alive()

    @app.get("/v2/health/live")
    async def live(self) -> dict[str, bool]:
        """Return that the process is alive."""
        return {"live": True}

    @app.get("/v2/health/ready", responses=errors(503, kind=_JSON))
    async def ready(self) -> dict[str, bool]:
        """Return success if a classifier with loaded weights answers."""
        await self._client.check_ready()
        return {"ready": True}

    @app.get("/v2/models/melanoma/ready", responses=errors(503, kind=_JSON))
    async def model_ready(self) -> dict[str, Any]:
        """Return success if a classifier with loaded weights answers."""
        await self._client.check_ready()
        return {"name": open_inference.MODEL, "ready": True}

    @app.get("/v2")
    async def server(self) -> dict[str, Any]:
        """Return the server metadata of the Open Inference Protocol."""
        return {"name": "melanoma", "version": app.version, "extensions": ["binary_tensor_data"]}

    @app.get("/v2/models/melanoma", responses=_V2_READING, dependencies=GUARDED)
    async def model_metadata(self) -> dict[str, Any]:
        """Return the inputs and outputs of the model."""
        return open_inference.metadata(await self._client.describe())

    @app.get("/v2/models/melanoma/versions/{version}", responses=_V2_READING, dependencies=GUARDED)
    async def version_metadata(self, version: str) -> dict[str, Any]:
        """Return the metadata of the served version, or 404 for any other version."""
        return open_inference.metadata(await self._check_version(version))

    @app.get(
        "/v2/models/melanoma/versions/{version}/ready", responses=_V2_READING, dependencies=GUARDED
    )
    async def version_ready(self, version: str) -> dict[str, Any]:
        """Return success if a classifier of this version answers, or 404 for any other version."""
        await self._check_version(version)
        return {"name": open_inference.MODEL, "ready": True}

    @app.post(
        "/v2/models/melanoma/infer",
        responses=_V2_REFUSALS,
        openapi_extra=open_inference.BODY,
        dependencies=GUARDED,
    )
    async def infer(self, request: Request) -> Response:
        """Answer an inference request of the Open Inference Protocol with up to 32 images.

        The request may be JSON, or JSON with binary data.
        """
        return await self._infer(request, version=None)

    @app.post(
        "/v2/models/melanoma/versions/{version}/infer",
        responses=_V2_REFUSALS,
        openapi_extra=open_inference.BODY,
        dependencies=GUARDED,
    )
    async def infer_version(self, request: Request, version: str) -> Response:
        """Answer an inference request for the served version; return 404 for any other version."""
        return await self._infer(request, version=version)

    async def _check_version(self, version: str) -> Described:
        """Return the description of the served bundle.

        Raises:
            RefusedError: if the bundle has another version.
        """
        described = await self._client.describe()
        if described.manifest.version != version:
            raise RefusedError(
                404,
                "unknown_version",
                "The version must be the served one. GET /v2/models/melanoma to see it.",
            )
        return described

    async def _infer(self, request: Request, *, version: str | None) -> Response:
        body = await read_body(request)
        if version is not None:
            await self._check_version(version)
        async with asyncio.timeout(self._timeout_s):
            return await self._answer(body, request.headers.get(open_inference.HEADER_LENGTH))

    async def _answer(self, body: bytes, header_length: str | None) -> Response:
        asked = await self._parsing.run(partial(open_inference.read_request, body, header_length))
        predicted = await self._predicted(asked)
        for prediction in predicted.predictions:
            request_metrics().decided(prediction.decision)
        body, headers = open_inference.write_response(asked, predicted)
        return Response(body, headers=headers)

    async def _predicted(self, asked: open_inference.InferenceRequest) -> open_inference.Predicted:
        """Return the prediction for each image, or for the lesion that all of them show."""
        if not asked.one_lesion:
            readings = await self._client.read_all(await self._uploads(asked.images))
            described, found = readings[0].described, [each.prediction for each in readings]
            return open_inference.Predicted(described, described.manifest.operating_point, found)
        await self._client.check_num_images(len(asked.images))
        lesion = await self._client.read_lesion(await self._uploads(asked.images))
        point = lesion.prediction.operating_point
        return open_inference.Predicted(lesion.described, point, [lesion.prediction.together])
