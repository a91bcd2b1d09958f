"""Several images of one lesion over HTTP: what the ingress makes of them, with a stand-in for the
classifier and without Ray."""

import asyncio
import contextlib
import dataclasses
import io
import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pypdfium2 as pdfium
import pytest
from fastapi import FastAPI, Request, Response
from PIL import Image
from starlette.testclient import TestClient

from melanoma.bundle.deciding import UNUSUAL, Decider, Prediction
from melanoma.errors import OneImageOnlyError
from serve import ingress
from serve.bodies import MAX_BODY_BYTES
from serve.classifier import Answer, Job
from serve.described import Described
from serve.ingress import Ingress
from serve.lanes import Lane
from serve.middleware import install_middleware
from serve.model_client import ModelClient
from serve.models import LocalModel
from serve.openapi import IMAGE
from serve.problems import install_problem_handlers
from serve.schemas import ModelResponse
from tests.bundles import described, several_images
from tests.problems import is_problem
from tests.tasks import MELANOMA_INDEX

DARK, BRIGHT = 40, 200
FOR_LESIONS = described("v", several_images=several_images())


class _Classifier:
    """Stands in for a classifier: the brighter an image, the likelier is melanoma; dark ones are
    unusual, and the heatmap of bright ones is empty."""

    def __init__(self, *answering: Described) -> None:
        self._answering, self.num_predicted = itertools.cycle(answering), 0

    async def ready(self) -> None:
        pass

    async def describe(self) -> Described:
        return next(self._answering)

    async def predict(self, job: Job) -> Answer:
        self.num_predicted += 1
        here = next(self._answering)
        prediction = predicted(here.decider, job.image)
        if not job.explain:
            prediction = dataclasses.replace(prediction, heatmap=None)
        return Answer(prediction, None if job.known == here.key else here)


def predicted(decider: Decider, image: np.ndarray) -> Prediction:
    """Return what the stand-in predicts for a stored image."""
    mean = float(image.mean())
    logits = np.zeros((1, 7), dtype=np.float32)
    logits[0, MELANOMA_INDEX] = (mean - 110) / 20
    heatmaps = np.full((1, 3, 4), float(mean < BRIGHT), dtype=np.float32)
    unusual = np.array([mean < DARK])
    return decider.interpret(logits, np.array([mean]), unusual, heatmaps)[0]


class _Metrics:
    """Stands in for Ray's metrics, which want a replica around them."""

    def __init__(self) -> None:
        self.decisions: list[str] = []

    def __call__(self) -> "_Metrics":
        return self

    def stage(self, name: str) -> Any:
        return contextlib.nullcontext()

    def decided(self, decision: str) -> None:
        self.decisions.append(decision)

    def refused(self, code: str, status: int) -> None:
        pass


@pytest.fixture(autouse=True)
def metrics(monkeypatch: pytest.MonkeyPatch) -> _Metrics:
    metrics = _Metrics()
    for module in ("model_client", "middleware"):
        monkeypatch.setattr(f"serve.{module}.request_metrics", metrics)
    # Ray Serve has copied the names of this module.
    names = Ingress._read.__globals__  # type: ignore[attr-defined]
    monkeypatch.setitem(names, "request_metrics", metrics)
    return metrics


def _client(classifier: _Classifier) -> TestClient:
    """Return a client of the ingress's own routes for images."""
    here: Any = object.__new__(Ingress)
    here._client = ModelClient(LocalModel(classifier, max_images=48), None)  # type: ignore[arg-type]
    here._timeout_s, here._parsing = 20, Lane("parse", num_threads=1)
    app = FastAPI()
    install_problem_handlers(app)
    install_middleware(app, max_body_bytes=MAX_BODY_BYTES)

    @app.post("/v1/predict")
    async def predict(request: Request, explain: str = "none") -> Response:
        return await here.predict(request, explain)

    @app.post("/v1/report")
    async def report(request: Request) -> Response:
        return await here.report(request)

    @app.post("/v2/models/melanoma/infer")
    async def infer(request: Request) -> Response:
        return await here.infer(request)

    @app.get("/v1/model")
    async def model() -> ModelResponse:
        return await here.model()

    return TestClient(app)


@pytest.fixture
def classifier() -> _Classifier:
    return _Classifier(FOR_LESIONS)


@pytest.fixture
def client(classifier: _Classifier) -> Iterator[TestClient]:
    with _client(classifier) as client:
        yield client


def _picture(mean: int) -> Image.Image:
    """Return a picture that is not empty, in the shape that the bundle stores."""
    pixels = np.full((96, 128, 3), mean, dtype=np.uint8)
    pixels[::2] -= 10
    pixels[1::2] += 10
    return Image.fromarray(pixels)


def _png(mean: int) -> bytes:
    buffer = io.BytesIO()
    _picture(mean).save(buffer, "PNG")
    return buffer.getvalue()


def _form(*means: int) -> dict[str, Any]:
    return {"files": [("image", (f"secret-{mean}.png", _png(mean))) for mean in means]}


def _expected(*means: int, here: Described = FOR_LESIONS) -> Any:
    images = [np.asarray(_picture(mean)) for mean in means]
    return here.decider.of_lesion([predicted(here.decider, image) for image in images])


def test_an_answer_is_that_of_the_decider(client: TestClient, metrics: _Metrics) -> None:
    means = (100, 150, 90)
    answer = client.post("/v1/predict", **_form(*means)).json()
    together = _expected(*means).together
    assert list(answer["probabilities"].values()) == pytest.approx(together.probabilities.tolist())
    assert answer["decision"] == together.decision
    assert answer["num_images"] == 3
    point = FOR_LESIONS.manifest.several_images
    assert point is not None
    assert answer["threshold"] == point.threshold
    assert answer["contract"]["unit"] == point.contract.unit == "up to 6 images of one lesion"
    assert answer["contract_sentence"] == FOR_LESIONS.several_images_sentence
    assert (answer["explanation"], answer["further_explanations"]) == (None, [])
    assert metrics.decisions == [together.decision]  # one, for one lesion


def test_one_image_is_answered_as_before(client: TestClient) -> None:
    raw, form = (
        client.post("/v1/predict?explain=grad_cam", **sent).json()
        for sent in ({"content": _png(100)}, _form(100))
    )
    assert raw | {"request_id": ""} == form | {"request_id": ""}
    assert (raw["num_images"], raw["further_explanations"]) == (1, [])
    assert raw["threshold"] == FOR_LESIONS.manifest.operating_point.threshold
    assert raw["contract_sentence"] == FOR_LESIONS.contract_sentence


def test_the_order_of_images_changes_no_decision(client: TestClient) -> None:
    found = [
        client.post("/v1/predict", **_form(*means)).json()
        for means in itertools.permutations((88, 121, 133))
    ]
    assert len({(each["decision"], *each["probabilities"].values()) for each in found}) == 1


def test_images_can_be_referred_together_that_are_not_alone() -> None:
    """The threshold is that for several images; near it they are judged otherwise than alone."""
    lesion = _expected(143, 144)
    assert [image.decision for image in lesion.images] == ["no_referral"] * 2
    assert lesion.together.decision == "refer"


def test_an_unusual_image_among_others_stops_the_decision(client: TestClient) -> None:
    answer = client.post("/v1/predict", **_form(150, 30, 151)).json()
    assert answer["decision"] == "cannot_assess"
    assert answer["warnings"] == [UNUSUAL]


def test_each_image_has_its_heatmap_in_the_order_of_the_request(client: TestClient) -> None:
    answer = client.post("/v1/predict?explain=grad_cam", **_form(210, 100, 150)).json()
    explanations = [answer["explanation"], *answer["further_explanations"]]
    assert [each["peak"] for each in explanations] == [0, 1, 1]
    assert answer["warnings"] == ["heatmap_empty"]


def test_seven_images_are_refused_before_any_is_decoded(
    client: TestClient, classifier: _Classifier
) -> None:
    refused = client.post("/v1/predict", **_form(*range(100, 107)))
    assert "1 to 6 images; there are 7" in is_problem(refused, 422, "too_many_images")["detail"]
    assert classifier.num_predicted == 0
    assert client.post("/v1/predict", **_form(*range(100, 106))).json()["num_images"] == 6


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/report"])
def test_an_image_that_is_sent_twice_does_not_count_twice(client: TestClient, path: str) -> None:
    refused = is_problem(client.post(path, **_form(100, 150, 100)), 422, "repeated_image")
    assert "images 1 and 3 are the same" in refused["detail"]


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/report"])
def test_a_bundle_for_single_images_says_so(path: str) -> None:
    classifier = _Classifier(described("v"))
    with _client(classifier) as client:
        refused = is_problem(client.post(path, **_form(100, 110)), 422, "one_image_only")
        assert "no threshold for several images" in refused["detail"]
        assert refused["detail"].endswith("Send one image.")
        assert classifier.num_predicted == 0
        assert client.post(path, **_form(100)).status_code == 200


def test_a_bad_image_is_named_by_its_number(client: TestClient) -> None:
    for bad, status, code in ((b"words", 415, "unsupported_format"), (_png(1)[:200], 422, None)):
        files = [("image", ("a.png", _png(100))), ("image", ("secret.png", bad))]
        refused = client.post("/v1/predict", files=[*files, ("image", _png(101))])
        told = is_problem(refused, status, code or refused.json()["code"])["detail"]
        assert told.startswith("Image 2 of 3: ")
        assert "secret" not in told


def test_all_images_together_have_a_limit(client: TestClient) -> None:
    buffer = io.BytesIO()
    Image.new("L", (5000, 4900)).save(buffer, "PNG")
    files = [("image", buffer.getvalue())] * 3
    refused = is_problem(client.post("/v1/predict", files=files), 413, "image_too_large")
    assert "together" in refused["detail"]


def test_all_images_are_decided_by_one_bundle() -> None:
    """Two bundles take turns; the one of the answer has read all images."""
    old = described("old", several_images=several_images())
    new = described("new", several_images=several_images(num_target=5))
    with _client(_Classifier(old, new, new, old, new)) as client:
        for _ in range(5):
            answer = client.post("/v1/predict", **_form(100, 150, 90)).json()
            is_old = answer["model"]["version"] == "old"
            assert answer["contract"]["status"] == ("met" if is_old else "unmet")
            assert (answer["decision"] == "cannot_assess") != is_old


def test_a_new_bundle_that_takes_lesions_is_asked_although_the_known_one_does_not() -> None:
    classifier = _Classifier(described("old"), *[FOR_LESIONS] * 9)
    with _client(classifier) as client:  # the first description is the old one's
        assert client.post("/v1/predict", **_form(100, 150)).json()["num_images"] == 2


def test_a_bundle_that_changes_while_images_are_read_is_not_believed() -> None:
    classifier = _Classifier(FOR_LESIONS, *[described("new")] * 9)
    with _client(classifier) as client:
        is_problem(client.post("/v1/predict", **_form(100, 150)), 422, "one_image_only")


def test_an_unmet_contract_decides_nothing_unless_the_operator_wants_it() -> None:
    """The two replicas differ in their settings only, as while such a change is taken up."""
    strict = described("v", several_images=several_images(num_target=5))
    lenient = dataclasses.replace(strict, allow_uncontracted=True)
    for here, decision, warning in (
        (strict, "cannot_assess", "contract_not_met"),
        (lenient, "refer", "uncontracted"),
    ):
        with _client(_Classifier(here)) as client:
            answer = client.post("/v1/predict", **_form(150, 151)).json()
            assert (answer["decision"], answer["warnings"]) == (decision, [warning])
            assert answer["contract"]["status"] == "unmet"
    with _client(_Classifier(*[strict] * 3, *[lenient] * 30)) as client:
        found = [client.post("/v1/predict", **_form(150, 151)).json() for _ in range(3)]
        assert found[-1]["decision"] == "refer"
        assert all((each["decision"] == "refer") == (each["warnings"] == ["uncontracted"])
                   for each in found)  # fmt: skip


def test_the_report_has_all_images_on_one_page(client: TestClient) -> None:
    response = client.post("/v1/report", **_form(100, 120, 140, 160))
    with pdfium.PdfDocument(response.content) as document:
        assert len(document) == 1
        text = " ".join(document[0].get_textpage().get_text_range().split())
    assert "4 images of one lesion, judged together." in text
    assert str(FOR_LESIONS.several_images_sentence) in text


def _infer(client: TestClient, means: tuple[int, ...], **parameters: Any) -> httpx.Response:
    pixels = np.stack([np.asarray(_picture(mean)) for mean in means])
    asked = {"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape)}
    body = {"inputs": [asked | {"data": pixels.ravel().tolist()}], "parameters": parameters}
    return client.post("/v2/models/melanoma/infer", json=body)


def test_the_protocol_answers_a_lesion_as_predict_does(
    client: TestClient, metrics: _Metrics
) -> None:
    means = (100, 150, 90)
    alone = client.post("/v1/predict", **_form(*means)).json()
    metrics.decisions.clear()
    answer = _infer(client, means, one_lesion=True).json()
    probabilities, decision = (output["data"] for output in answer["outputs"])
    assert probabilities == pytest.approx(list(alone["probabilities"].values()), abs=1e-6)
    assert decision == [alone["decision"]]
    assert answer["parameters"]["contract"] == alone["contract_sentence"]
    assert answer["parameters"]["threshold"] == alone["threshold"]
    assert len(metrics.decisions) == 1
    each = _infer(client, means).json()
    assert each["outputs"][0]["shape"] == [3, 7]
    assert each["parameters"]["contract"] == FOR_LESIONS.contract_sentence


def test_the_protocol_refuses_lesions_as_predict_does(client: TestClient) -> None:
    seven = tuple(range(100, 107))
    is_problem(_infer(client, seven, one_lesion=True), 400, "invalid_inference_request")
    assert _infer(client, seven).status_code == 200
    is_problem(_infer(client, (100, 100), one_lesion=True), 422, "repeated_image")
    assert _infer(client, (100, 100)).status_code == 200
    with _client(_Classifier(described("v"))) as other:
        is_problem(_infer(other, (100, 110), one_lesion=True), 422, "one_image_only")


def test_the_model_names_its_contract_for_several_images(client: TestClient) -> None:
    told = client.get("/v1/model").json()
    assert told["several_images"]["contract"]["unit"] == "up to 6 images of one lesion"
    assert told["several_images_sentence"] == FOR_LESIONS.several_images_sentence
    with _client(_Classifier(described("v"))) as other:
        told = other.get("/v1/model").json()
    assert (told["several_images"], told["several_images_sentence"]) == (None, None)


def test_the_schema_has_several_images() -> None:
    schema = ingress.app.openapi()
    form = schema["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert form == IMAGE["requestBody"]["content"]["multipart/form-data"]  # type: ignore[index]
    image = form["schema"]["properties"]["image"]
    assert (image["type"], image["maxItems"]) == ("array", 6)
    answer = schema["components"]["schemas"]["PredictResponse"]["properties"]
    assert {"num_images", "explanation", "further_explanations"} <= set(answer)
    asked = schema["paths"]["/v2/models/melanoma/infer"]["post"]["requestBody"]["content"]
    parameters = asked["application/json"]["schema"]["properties"]["parameters"]
    assert parameters["properties"]["one_lesion"]["type"] == "boolean"


def test_nothing_of_a_request_is_logged(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG", logger="ray.serve"):
        client.post("/v1/predict", **_form(100, 150))
        client.post("/v1/predict", **_form(*range(100, 107)))
        client.post("/v1/predict", files=[("image", ("secret.png", b"words"))] * 2)
    assert "/v1/predict" in caplog.text
    assert "secret" not in caplog.text


def test_one_image_is_not_checked_before_it_is_read() -> None:
    """The check would cost every request a question to the classifier."""
    refusing = ModelClient(LocalModel(_Classifier(described("v")), max_images=9), None)  # type: ignore[arg-type]
    asyncio.run(refusing.check_num_images(1))
    assert refusing._described is None
    with pytest.raises(OneImageOnlyError):
        asyncio.run(refusing.check_num_images(2))
