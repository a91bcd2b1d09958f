import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from melanoma.bundle import MANIFEST, load_bundle
from melanoma.data.dataset import PictureDataset, PreparedData
from melanoma.explain.overlay import heatmap_on
from melanoma.files import sha256_of
from melanoma.images import decode_image
from melanoma.predictor import GuidedExplainer, Predictor

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def client(bundle_dir: Path, ray_cluster: None) -> Iterator[httpx.Client]:
    import socket

    from ray import serve

    from serve.app import build_graph
    from serve.settings import AppArgs, deployment_options, read_config

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    args = AppArgs(bundle=str(bundle_dir), manifest_sha256=sha256_of(bundle_dir / MANIFEST), require_api_key=False)
    serve.run(build_graph(args, deployment_options(read_config())), name="melanoma", route_prefix="/")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client
    serve.shutdown()


@pytest.fixture(scope="module")
def picture(phantom_source: Path) -> bytes:
    return sorted((phantom_source / "images").iterdir())[0].read_bytes()


def _is_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert set(body) == {"type", "title", "status", "detail", "code", "request_id"}
    assert (body["status"], body["code"]) == (status, code)
    return body


def test_the_server_answers_what_evaluation_computes(
    client: httpx.Client, bundle_dir: Path, prepared: PreparedData, phantom_source: Path
) -> None:
    """One picture through the shards and through HTTP: the same probabilities and the same decision."""
    rows = prepared.rows("test").iloc[:8].reset_index(drop=True)
    stored = PictureDataset(prepared, rows).pictures(range(len(rows))).numpy()
    expected = Predictor(load_bundle(bundle_dir)).predict(list(stored))
    sources = [(phantom_source / "images" / f"{image_id}.jpg").read_bytes() for image_id in rows["image_id"]]
    with ThreadPoolExecutor(8) as pool:  # at once, so that they travel in batches
        answers = [
            response.json() for response in pool.map(lambda data: client.post("/v1/predict", content=data), sources)
        ]
    for answer, prediction in zip(answers, expected, strict=True):
        assert np.abs(np.array(list(answer["probabilities"].values())) - prediction.probabilities).max() < 1e-6
        assert answer["decision"] == prediction.decision


def test_the_answer_has_its_contract_and_its_disclaimer(client: httpx.Client, bundle_dir: Path, picture: bytes) -> None:
    answer = client.post("/v1/predict", content=picture, headers={"Content-Type": "image/jpeg"}).json()
    bundle = load_bundle(bundle_dir)
    assert answer["model"] == {"name": "melanoma", "version": bundle.version, "weights_sha256": bundle.weights_sha256}
    assert list(answer["probabilities"]) == ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert answer["contract"] == bundle.manifest["operating_point"]["contract"]
    assert answer["threshold"] == bundle.operating_point.threshold
    assert answer["explanation"] is None
    assert "Not a medical device" in answer["disclaimer"]


def test_a_heatmap_lies_in_the_frame_of_the_picture(client: httpx.Client, picture: bytes) -> None:
    answer = client.post("/v1/predict?explain=grad_cam", content=picture).json()
    explanation = answer["explanation"]
    assert (explanation["method"], explanation["class"], explanation["lesion_claim"]) == ("grad_cam", "mel", "none")
    size = Image.open(io.BytesIO(picture)).size
    for name in ("heatmap_png", "overlay_png"):
        image = Image.open(io.BytesIO(base64.b64decode(explanation[name])))
        assert image.size == size
        assert not image.info
    if explanation["peak"] == 0:
        assert "heatmap_empty" in answer["warnings"]


def test_a_guided_heatmap_is_the_explainers(client: httpx.Client, bundle_dir: Path, picture: bytes) -> None:
    bundle = load_bundle(bundle_dir)
    image = decode_image(picture)
    stored = bundle.preprocess.stored(image)
    (prediction,) = Predictor(bundle).predict([stored], explain=True)
    assert prediction.heatmap is not None
    expected = GuidedExplainer(bundle).explain([stored], [prediction.heatmap])[0]
    answer = client.post("/v1/predict?explain=guided_grad_cam", content=picture).json()
    explanation = answer["explanation"]
    assert (explanation["method"], explanation["lesion_claim"]) == ("guided_grad_cam", "none")
    assert explanation["peak"] == pytest.approx(float(expected.max()), rel=1e-4)
    with Image.open(io.BytesIO(base64.b64decode(explanation["heatmap_png"]))) as sent:
        assert sent.size == image.size
        _, shown = heatmap_on(image, expected, bundle.preprocess)
        assert np.abs(np.asarray(sent).astype(int) - shown.values).max() <= 3  # uint8 twice on the way
    assert answer["probabilities"] == client.post("/v1/predict", content=picture).json()["probabilities"]


def test_a_form_gives_what_a_raw_body_gives(client: httpx.Client, picture: bytes) -> None:
    raw = client.post("/v1/predict", content=picture).json()
    form = client.post("/v1/predict", files={"image": ("../../etc/passwd\r\n.jpg", picture, "text/plain")}).json()
    assert raw["probabilities"] == pytest.approx(form["probabilities"], abs=1e-6)
    assert raw["request_id"] != form["request_id"]


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "empty_image"),
        (b"GIF89a" + b"\0" * 64, 415, "unsupported_format"),
        (b"\xff\xd8\xff" + b"\0" * 64, 422, "image_truncated"),
        (b"\xff" * (21 * 1024 * 1024), 413, "body_too_large"),
    ],
    ids=["empty", "gif", "damaged", "too large"],
)
def test_bad_pictures_are_problems(client: httpx.Client, content: bytes, status: int, code: str) -> None:
    detail = _is_problem(client.post("/v1/predict", content=content), status, code)["detail"]
    assert detail.endswith(".")


def test_a_body_without_a_length_is_limited_too(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(25):
            yield b"\xff" * 1024 * 1024

    _is_problem(client.post("/v1/predict", content=chunks()), 413, "body_too_large")


def test_wrong_requests_are_problems(client: httpx.Client, picture: bytes) -> None:
    _is_problem(client.get("/v1/nowhere"), 404, "not_found")
    _is_problem(client.get("/v1/predict"), 405, "method_not_allowed")
    wrong = _is_problem(client.post("/v1/predict?explain=everything", content=picture), 422, "invalid_request")
    assert "'guided_grad_cam'" in wrong["detail"]
    assert "everything" not in wrong["detail"]
    _is_problem(client.post("/v1/predict", files={"picture": picture}), 422, "no_image_field")


def test_a_bad_picture_does_not_fail_its_neighbours(client: httpx.Client, picture: bytes) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = list(
            pool.map(lambda i: client.post("/v1/predict", content=picture if i % 3 else picture[:300]), range(12))
        )
    assert [answer.status_code for answer in answers] == [200 if i % 3 else 422 for i in range(12)]


def test_answers_are_neither_cached_nor_sniffed(client: httpx.Client, picture: bytes) -> None:
    response = client.post("/v1/predict", content=picture, headers={"X-Request-ID": "evil"})
    headers = response.headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert response.json()["request_id"] != "evil"


def test_the_model_describes_itself(client: httpx.Client, bundle_dir: Path) -> None:
    body = client.get("/v1/model").json()
    assert body["model"]["version"] == load_bundle(bundle_dir).version
    assert "Research use only" in body["model_card"]
    assert str(bundle_dir) not in json.dumps(body)


def test_it_is_alive_and_ready(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == client.get("/readyz").json() == {"status": "ok"}
    assert "/v1/predict" in client.get("/openapi.json").json()["paths"]
