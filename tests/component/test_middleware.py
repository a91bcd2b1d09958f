"""What surrounds a request, and how each failure behind it is told: with an application of test
routes, without Ray."""

import asyncio
import logging

import pytest
from fastapi import FastAPI, Request
from ray.exceptions import ActorDiedError, RayTaskError
from starlette.datastructures import UploadFile
from starlette.testclient import TestClient

from serve import answers, middleware
from serve.bodies import MAX_BODY_BYTES
from serve.classifier import Classifier, Job
from serve.in_flight import MAX_RETRY_SECONDS, InFlight
from serve.lanes import OverloadedError
from serve.metrics import BatchMetrics
from serve.middleware import HEADERS, install_middleware
from serve.model_client import BundleChangingError
from serve.models import NotReadyError
from serve.problems import install_problem_handlers
from tests.problems import is_problem

SECRET = "the words of a client"
FAILURES = {
    "overloaded": (503, OverloadedError()),
    "not_ready": (503, NotReadyError()),
    "replica_lost": (503, ActorDiedError()),
    "bundle_changing": (503, BundleChangingError()),
    "timeout": (504, TimeoutError()),
    "model_error": (500, FloatingPointError(SECRET)),
    "internal_error": (500, RuntimeError(SECRET)),
}


@pytest.fixture
def client() -> TestClient:
    app = FastAPI(redirect_slashes=False)
    install_problem_handlers(app)
    install_middleware(app, max_body_bytes=1000)

    @app.post("/fail/{code}")
    async def fail(code: str) -> None:
        raise FAILURES[code][1]

    @app.post("/remote")
    async def remote() -> None:
        raise RayTaskError("predict", SECRET, FloatingPointError(SECRET)).as_instanceof_cause()

    @app.post("/read")
    async def read(request: Request) -> int:
        return len(await request.body())

    @app.get("/status")
    async def status() -> str:
        return "ok"

    @app.post("/under-way")
    async def under_way() -> int:
        return middleware.in_flight().num

    return TestClient(app)


@pytest.mark.parametrize("code", FAILURES)
def test_every_failure_is_told_in_words_of_our_own(
    client: TestClient, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ray.serve")
    status, _ = FAILURES[code]
    response = client.post(f"/fail/{code}")
    is_problem(response, status, code)
    assert SECRET not in response.text + caplog.text
    assert ("retry-after" in response.headers) == (status == 503)
    assert (
        response.headers.items() >= {name.lower(): value for name, value in HEADERS.items()}.items()
    )


def test_an_error_of_another_replica_is_told_as_here(client: TestClient) -> None:
    is_problem(client.post("/remote"), 500, "model_error")


def test_a_form_is_never_spooled_to_a_file() -> None:
    """An unlinked temporary file leaves no name behind, so that only the upload itself can tell."""
    app = FastAPI()

    @app.post("/form")
    async def form(request: Request) -> bool:
        assert answers.MultiPartParser.spool_max_size > MAX_BODY_BYTES
        async with request.form(max_part_size=MAX_BODY_BYTES) as fields:
            upload = fields["image"]
            assert isinstance(upload, UploadFile)
            return bool(upload.file._rolled)  # type: ignore[attr-defined]

    whole = TestClient(app).post("/form", files={"image": bytes(MAX_BODY_BYTES)})
    assert whole.json() is False


def test_a_crash_is_logged_by_kind_and_place_only(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    answer = client.post("/fail/internal_error").json()
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage().startswith("RuntimeError at test_middleware.py:")
    assert answer["request_id"] in record.getMessage()
    assert SECRET not in caplog.text


def test_the_log_has_the_route_and_not_the_address(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ray.serve")
    client.post("/fail/timeout?name=patient")
    client.post("/elsewhere/patient")
    assert [record.getMessage().split(" in ")[0] for record in caplog.records] == [
        "POST /fail/{code} 504 timeout",
        "POST no route 404 not_found",
    ]
    assert "patient" not in caplog.text


def test_an_address_that_is_no_text_is_answered_too(client: TestClient) -> None:
    is_problem(client.request("POST", "/elsewhere?%ff%fe"), 404, "not_found")


def test_a_body_is_refused_by_its_stated_length_and_by_its_real_one(client: TestClient) -> None:
    assert client.post("/read", content=bytes(1000)).json() == 1000
    is_problem(client.post("/read", content=bytes(1001)), 413, "body_too_large")
    is_problem(client.post("/read", content=iter([bytes(600), bytes(600)])), 413, "body_too_large")


def test_a_host_that_is_none_is_refused(client: TestClient) -> None:
    assert client.post("/read", headers={"Host": "[::1]:8000"}).status_code == 200
    is_problem(client.post("/read", headers={"Host": "evil/.."}), 400, "bad_host")


@pytest.mark.parametrize(("method", "expected"), [("HEAD", 200), ("GET", 200)])
def test_what_can_be_got_answers_head_too(client: TestClient, method: str, expected: int) -> None:
    assert client.request(method, "/status").status_code == expected


def test_a_service_that_stops_refuses_new_requests_and_counts_those_under_way(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = InFlight()
    monkeypatch.setattr("serve.middleware.in_flight", lambda: state)
    assert client.post("/under-way").json() == state.num + 1 == 1
    state.is_stopping = True
    refused = client.post("/read", content=b"x")
    is_problem(refused, 503, "stopping")
    assert refused.headers["connection"] == "close"
    assert int(refused.headers["retry-after"]) > 0
    assert (
        client.get("/healthz").status_code == 404
    )  # let through to the routes, which this application lacks
    assert state.num == 0


def test_a_full_service_refuses_what_computes_and_still_says_that_it_lives(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ray.serve")
    state = InFlight()
    state.limit = 2
    monkeypatch.setattr("serve.middleware.in_flight", lambda: state)
    assert client.post("/under-way").json() == 1
    state.num_computing = 2
    monkeypatch.setattr("serve.middleware.OVERLOAD_LOG_SECONDS", 0)
    for _ in range(20):
        refused = client.post("/read", content=b"x")
        is_problem(refused, 503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
    assert client.get("/status").status_code == 200
    assert state.num == 0


def test_the_time_to_ask_again_follows_from_the_queue_and_the_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    state = InFlight()
    assert state.retry_after() == 1  # nothing waits
    state.num_computing = 3
    assert state.retry_after() == 10  # and nothing is answered
    for _ in range(10):  # two a second
        now += 0.5
        state.answered()
    state.num_computing = 40
    assert 16 <= state.retry_after() <= 20
    state.num_computing = 1
    assert state.retry_after() == 1
    state.num_computing = 100_000
    assert state.retry_after() == MAX_RETRY_SECONDS


def test_refusals_for_overload_share_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ray.serve")

    async def burst() -> None:
        log = middleware._OverloadLog()
        for _ in range(50):
            log.refused()
        await asyncio.sleep(middleware.OVERLOAD_LOG_SECONDS + 0.1)
        log.refused()
        await asyncio.sleep(middleware.OVERLOAD_LOG_SECONDS + 0.1)

    asyncio.run(burst())
    assert [record.getMessage() for record in caplog.records] == [
        "50 requests answered 503 overloaded",
        "1 requests answered 503 overloaded",
    ]


class _Network:
    """Stands in for a predictor: one of its images breaks it."""

    def predict(self, images: list[int], *, explain: bool) -> list[int]:
        if 13 in images:
            raise FloatingPointError
        return images


def test_an_image_that_breaks_the_network_does_not_fail_its_neighbours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(BatchMetrics, "computed", lambda *_: None)
    monkeypatch.setattr(BatchMetrics, "__init__", lambda _: None)
    classifier = object.__new__(Classifier)
    classifier._predictor, classifier._metrics = _Network(), BatchMetrics()  # type: ignore[assignment]
    found = classifier._predict([Job(i, explain=True, known="") for i in (1, 13, 2)])  # type: ignore[arg-type]
    assert [found[0], found[2]] == [1, 2]
    assert isinstance(found[1], FloatingPointError)
