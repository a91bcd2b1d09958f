import base64
import contextlib
import dataclasses
import io
import json
import os
import re
import secrets
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pypdfium2 as pdfium
import pytest
import ray
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

from melanoma.bundle.bundle import load_bundle
from melanoma.bundle.predictor import Predictor
from melanoma.data.dataset import ImageDataset, PreparedData
from melanoma.explain.methods import METHODS
from melanoma.explain.overlay import heatmap_on
from melanoma.imaging.decode import decode_image
from tests import manifests
from tests.manifests import series_asked_for
from tests.serving import Service

# The graph of a cluster, and that of one machine.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.parametrize("service", ["deployment", "alone"], indirect=True, scope="module"),
]


def test_the_server_answers_what_evaluation_computes(
    client: httpx.Client, bundle_dir: Path, prepared: PreparedData, phantom_source: Path
) -> None:
    """One image through the shards and through HTTP: the same probabilities and the same
    decision."""
    rows = prepared.rows("test").iloc[:8].reset_index(drop=True)
    stored = ImageDataset(prepared, rows).images(range(len(rows))).numpy()
    expected = Predictor(load_bundle(bundle_dir)).predict(list(stored))
    sources = [
        (phantom_source / "images" / f"{image_id}.jpg").read_bytes()
        for image_id in rows["image_id"]
    ]
    with ThreadPoolExecutor(8) as pool:  # at once, so that they travel in batches
        answers = [
            response.json()
            for response in pool.map(lambda data: client.post("/v1/predict", content=data), sources)
        ]
    for answer, prediction in zip(answers, expected, strict=True):
        assert (
            np.abs(
                np.array(list(answer["probabilities"].values())) - prediction.probabilities
            ).max()
            < 1e-6
        )
        assert answer["decision"] == prediction.decision


def test_the_answer_has_its_contract_and_its_disclaimer(
    client: httpx.Client, bundle_dir: Path, image: bytes
) -> None:
    answer = client.post(
        "/v1/predict", content=image, headers={"Content-Type": "image/jpeg"}
    ).json()
    bundle = load_bundle(bundle_dir)
    assert answer["model"] == {
        "name": "melanoma",
        "version": bundle.manifest.version,
        "weights_sha256": bundle.manifest.weights_sha256,
    }
    assert list(answer["probabilities"]) == ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert answer["contract"] == json.loads(
        json.dumps(dataclasses.asdict(bundle.operating_point.contract))
    )
    assert answer["threshold"] == bundle.operating_point.threshold
    assert answer["explanation"] is None
    assert "Not a medical device" in answer["disclaimer"]


def test_a_heatmap_lies_in_the_frame_of_the_image(client: httpx.Client, image: bytes) -> None:
    answer = client.post("/v1/predict?explain=grad_cam", content=image).json()
    explanation = answer["explanation"]
    assert (explanation["method"], explanation["class"], explanation["lesion_claim"]) == (
        "grad_cam",
        "mel",
        "none",
    )
    size = Image.open(io.BytesIO(image)).size
    for name in ("heatmap_png", "overlay_png"):
        sent = Image.open(io.BytesIO(base64.b64decode(explanation[name])))
        assert sent.size == size
        assert not sent.info
    if explanation["peak"] == 0:
        assert "heatmap_empty" in answer["warnings"]


def test_a_guided_heatmap_is_the_explainers(
    client: httpx.Client, bundle_dir: Path, image: bytes
) -> None:
    bundle = load_bundle(bundle_dir)
    decoded = decode_image(image)
    stored = bundle.preprocess.stored(decoded)
    (prediction,) = Predictor(bundle).predict([stored], explain=True)
    assert prediction.heatmap is not None
    make = METHODS["guided_grad_cam"].make
    assert make is not None
    expected = make(bundle.subject()).explain([stored], [prediction.heatmap])[0]
    answer = client.post("/v1/predict?explain=guided_grad_cam", content=image).json()
    explanation = answer["explanation"]
    assert (explanation["method"], explanation["lesion_claim"]) == ("guided_grad_cam", "none")
    assert explanation["peak"] == pytest.approx(float(expected.max()), rel=1e-4)
    with Image.open(io.BytesIO(base64.b64decode(explanation["heatmap_png"]))) as sent:
        assert sent.size == decoded.size
        _, shown = heatmap_on(decoded, expected, bundle.preprocess)
        assert np.abs(np.asarray(sent).astype(int) - shown.values).max() <= 1
    assert (
        answer["probabilities"] == client.post("/v1/predict", content=image).json()["probabilities"]
    )


def test_a_form_gives_what_a_raw_body_gives(client: httpx.Client, image: bytes) -> None:
    raw = client.post("/v1/predict", content=image).json()
    form = client.post(
        "/v1/predict", files={"image": ("../../etc/passwd\r\n.jpg", image, "text/plain")}
    ).json()
    assert raw["probabilities"] == pytest.approx(form["probabilities"], abs=1e-6)
    assert raw["request_id"] != form["request_id"]


def test_a_bad_image_does_not_fail_its_neighbours(client: httpx.Client, image: bytes) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = list(
            pool.map(
                lambda i: client.post("/v1/predict", content=image if i % 3 else image[:300]),
                range(12),
            )
        )
    assert [answer.status_code for answer in answers] == [200 if i % 3 else 422 for i in range(12)]


def test_several_images_of_a_lesion_are_answered_as_the_predictor_does(
    client: httpx.Client, bundle_dir: Path, phantom_source: Path
) -> None:
    paths = sorted((phantom_source / "images").iterdir())[:3]
    bundle = load_bundle(bundle_dir)
    assert bundle.manifest.several_images is not None
    expected = Predictor(bundle).predict_lesion(paths, explain=True)
    files = [("image", (path.name, path.read_bytes())) for path in paths]
    answer = client.post("/v1/predict?explain=guided_grad_cam", files=files).json()
    found = np.array(list(answer["probabilities"].values()))
    assert np.abs(found - expected.together.probabilities).max() < 1e-6
    assert answer["decision"] == expected.together.decision
    assert answer["warnings"][: len(expected.together.warnings)] == [*expected.together.warnings]
    assert answer["num_images"] == 3
    assert answer["threshold"] == expected.operating_point.threshold
    assert answer["contract"]["unit"] == "up to 6 images of one lesion"
    explanations = [answer["explanation"], *answer["further_explanations"]]
    assert [each["method"] for each in explanations] == ["guided_grad_cam"] * 3
    for path, explanation in zip(paths, explanations, strict=True):
        alone = client.post("/v1/predict?explain=guided_grad_cam", content=path.read_bytes())
        assert explanation["peak"] == pytest.approx(alone.json()["explanation"]["peak"], rel=1e-3)
    with pdfium.PdfDocument(client.post("/v1/report", files=files).content) as document:
        assert len(document) == 1
        assert "3 images of one lesion" in document[0].get_textpage().get_text_range()


def test_the_triton_client_asks_about_one_lesion(service: Service, phantom_source: Path) -> None:
    paths = sorted((phantom_source / "images").iterdir())[:2]
    encoded = triton.InferInput("image", [2], "BYTES")
    encoded.set_data_from_numpy(np.array([path.read_bytes() for path in paths], dtype=object))
    with _triton(service) as asked:
        headers = dict(service.authorization)
        result = asked.infer(
            "melanoma", [encoded], headers=headers, parameters={"one_lesion": True}
        )
        assert result.as_numpy("probabilities").shape == (1, 7)
        assert result.as_numpy("decision").shape == (1,)
        told = result.get_response()["parameters"]["contract"]
        described = asked.get_model_metadata("melanoma", headers=dict(service.authorization))
        assert told == described["parameters"]["one_lesion_contract"]


def test_the_model_describes_itself(client: httpx.Client, bundle_dir: Path) -> None:
    body = client.get("/v1/model").json()
    assert body["model"]["version"] == load_bundle(bundle_dir).manifest.version
    assert "Research use only" in body["model_card"]
    assert str(bundle_dir) not in json.dumps(body)


def test_it_is_alive_and_ready(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == client.get("/readyz").json() == {"status": "ok"}
    assert "/v1/predict" in client.get("/openapi.json").json()["paths"]


def test_the_report_is_one_page_of_the_same_prediction(client: httpx.Client, image: bytes) -> None:
    response = client.post("/v1/report", content=image)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/pdf"
    with pdfium.PdfDocument(response.content) as document:
        assert len(document) == 1
        text = document[0].get_textpage().get_text_range()
        # The image, its overlay and the scale; an empty heatmap has none.
        assert len(list(document[0].get_objects(filter=[pdfium.raw.FPDF_PAGEOBJ_IMAGE]))) == 3
    answer = client.post("/v1/predict", content=image).json()
    words = " ".join(text.split())
    for expected in (
        {"refer": "Refer", "no_referral": "No referral"}[answer["decision"]],
        f"{answer['probabilities']['mel']:.1%}",
        f"{answer['threshold']:.1%}",
        answer["contract_sentence"],
        answer["disclaimer"],
        answer["model"]["version"],
        "raised it most in this image",
        "this image's own peak",
    ):
        assert expected in words


def test_the_schema_is_shown_without_outside_addresses(client: httpx.Client) -> None:
    assert "/v1/predict" in client.get("/openapi.json").json()["paths"]
    for path in ("/", "/page/page.js", "/page/page.css", "/docs", "/page/docs.js"):
        response = client.get(path)
        assert response.status_code == 200
        assert not re.search(
            r"""(src|href|url\(|fetch\()\s*=?\s*["']?(https?:)?//""", response.text
        ), path
        assert "default-src 'none'" in response.headers["content-security-policy"]


def _triton(service: Service) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(url=service.url.removeprefix("http://"))


def test_the_triton_client_works_unchanged(
    service: Service, client: httpx.Client, image: bytes
) -> None:
    """Encoded images as binary data; pixels as binary data and as JSON: all of them answer as
    /v1/predict does."""
    headers = service.authorization
    with Image.open(io.BytesIO(image)) as opened:
        pixels = np.asarray(opened.convert("RGB"))[None]
    png = io.BytesIO()
    Image.fromarray(pixels[0]).save(png, "PNG")
    expected = client.post("/v1/predict", content=png.getvalue()).json()
    encoded = triton.InferInput("image", [2], "BYTES")
    encoded.set_data_from_numpy(np.array([png.getvalue(), png.getvalue()], dtype=object))
    inputs = [encoded]
    for binary in (True, False):
        inputs.append(triton.InferInput("pixels", list(pixels.shape), "UINT8"))
        inputs[-1].set_data_from_numpy(pixels, binary_data=binary)
    with _triton(service) as asked:
        assert asked.is_server_live(headers)
        assert asked.is_server_ready(headers)
        assert asked.is_model_ready("melanoma", headers=headers)
        described = asked.get_model_metadata("melanoma", headers=headers)
        assert described["versions"] == [expected["model"]["version"]]
        for sent in inputs:
            result = asked.infer(
                "melanoma", [sent], headers=dict(headers), request_id="7"
            )  # it writes into them
            probabilities = result.as_numpy("probabilities")
            assert probabilities.shape == (sent.shape()[0], 7)
            assert np.abs(probabilities - list(expected["probabilities"].values())).max() < 1e-6
            assert set(result.as_numpy("decision").tolist()) == {expected["decision"].encode()}
            assert result.get_response()["id"] == "7"
        with pytest.raises(InferenceServerException, match="must carry an API key"):
            asked.infer("melanoma", [encoded])


def _metrics() -> str:
    (node,) = ray.nodes()
    return httpx.get(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=20).text


def test_the_service_counts_itself(client: httpx.Client, image: bytes) -> None:
    client.post("/v1/predict?explain=guided_grad_cam", content=image)
    client.post("/v1/predict", content=b"GIF89a")
    wanted = [
        r'ray_melanoma_decisions_total\{.*decision="(refer|no_referral)"',
        r'ray_melanoma_refusals_total\{.*code="unsupported_format"',
        *(
            rf'ray_melanoma_stage_seconds_count\{{.*stage="{stage}"'
            for stage in ("decode", "predict", "explain", "encode")
        ),
        r"ray_melanoma_batch_size_count",
        r"ray_melanoma_batch_seconds_count",
        r"ray_melanoma_feature_distance_bucket",
    ]
    deadline = time.monotonic() + 60  # Ray hands metrics over every few seconds
    while missing := [pattern for pattern in wanted if not re.search(pattern, _metrics())]:
        assert time.monotonic() < deadline, missing
        time.sleep(1)


def test_what_alerts_and_panels_ask_for_is_exported(
    service: Service, client: httpx.Client, image: bytes
) -> None:
    """By the very names and labels: Prometheus takes a series that does not exist for one that is
    quiet."""
    client.post("/v1/predict", content=image)
    client.post("/v1/predict", content=b"GIF89a")  # the proxy counts refusals too
    asked = list(series_asked_for(manifests.render("cpu/serve")))
    if service.where == "alone":  # the proxy counts HTTP, and here is none
        asked = [series for series in asked if not series[0].startswith("ray_serve_num_http")]
    assert len({name for name, _ in asked}) >= 7

    def is_exported(name: str, labels: set[str]) -> bool:
        samples = re.findall(rf"^{name}\{{([^}}]*)\}}", exported, re.MULTILINE)
        return any(labels <= set(re.findall(r'(\w+)="', sample)) for sample in samples)

    deadline, exported = time.monotonic() + 60, ""
    while missing := [series for series in asked if not is_exported(*series)]:
        assert time.monotonic() < deadline, missing
        time.sleep(1)
        exported = _metrics()


def _log_lines() -> list[str]:
    session = Path(ray.nodes()[0]["ObjectStoreSocketName"]).parents[1]
    return [
        line
        for path in (session / "logs" / "serve").glob("*.log")
        for line in path.read_text().splitlines()
        if line
    ]


def test_the_log_is_json_with_the_id_and_nothing_of_the_request(
    client: httpx.Client, image: bytes
) -> None:
    answer = client.post(
        "/v1/predict?explain=grad_cam", content=image, headers={"User-Agent": "secret-agent"}
    ).json()
    client.get("/nowhere/secret-place?secret=question")
    deadline = time.monotonic() + 20
    while not (found := [line for line in _log_lines() if answer["request_id"] in line]):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    (line,) = found
    entry = json.loads(line)
    assert entry["levelname"] == "INFO"
    assert entry["message"].startswith("POST /v1/predict 200 in ")
    assert not [line for line in _log_lines() if "secret" in line]


def _files_with(needles: list[bytes], since: float) -> list[str]:
    """Return the files written since a time, wherever a service could write, that hold one of some
    byte strings."""
    session = Path(ray.nodes()[0]["ObjectStoreSocketName"]).resolve().parents[1]
    folders = {
        Path(tempfile.gettempdir()),
        Path("/tmp"),
        Path("/var/tmp"),
        session,
        Path.home(),
        Path.cwd(),
    }
    # Other processes take their files and folders away meanwhile: os.walk passes over those.
    walked = (
        Path(folder, name) for top in folders for folder, _, names in os.walk(top) for name in names
    )
    found = []
    for path in walked:
        with contextlib.suppress(FileNotFoundError):
            if ".venv" in path.parts or not path.is_file() or path.stat().st_mtime < since:
                continue
            if any(needle in path.read_bytes() for needle in needles):
                found.append(str(path))
    return found


def _canary_image(canary: bytes, side: int) -> bytes:
    """Return a PNG that holds a canary in its pixels, uncompressed, and in its EXIF."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    pixels[:, : len(canary) // 3] = np.frombuffer(canary, dtype=np.uint8).reshape(-1, 3)
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x010E] = canary.decode()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0, exif=exif)
    return buffer.getvalue()


def test_nothing_of_an_image_is_ever_written(client: httpx.Client, tmp_path: Path) -> None:
    """A canary in pixels, EXIF and file name, in bodies small and large: no file and no metric
    holds it afterwards."""
    started = time.time() - 1
    canary = secrets.token_hex(24).encode()
    needles = [
        canary,
        base64.b64encode(canary),
        base64.b64encode(b"\0" + canary)[4:-4],
        canary[:24],
    ]
    for side in (
        80,
        2400,
    ):  # 20 KB, and 17 MB, which would not stay in memory by itself in starlette's forms
        data = _canary_image(canary, side)
        assert canary in data
        name = f"{canary.decode()}.png"
        one, other = (_canary_image(canary, size) for size in (96, 112))
        several = [("image", (name, data)), ("image", (name, one)), ("image", (None, other))]
        for response in (
            client.post("/v1/predict?explain=guided_grad_cam", content=data),
            client.post("/v1/predict", files={"image": (name, data, "image/png")}),
            client.post("/v1/predict", files={"image": (name, data[:-100], "image/png")}),
            client.post("/v1/predict?explain=grad_cam", files=several),
            client.post("/v1/report", files=several),
            client.post("/v1/predict", files=[*several, *several[1:] * 3]),  # too many
            client.post("/v1/report", content=data),
            client.post(f"/v1/predict?{canary.decode()}=1", content=data),
            client.get(f"/{canary.decode()}"),
        ):
            assert response.status_code in (200, 404, 422), response.text
    time.sleep(6)  # logs and metrics are written late
    assert _files_with(needles, started) == []
    assert not [needle for needle in needles if needle.decode() in _metrics()]
    (tmp_path / "control").write_bytes(b"what a spilled object would be " + canary)
    assert _files_with(needles, started) == [str(tmp_path / "control")]
