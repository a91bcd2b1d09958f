"""Bodies and forms as clients send them: packed, lost, cut, without a file name; with an
application of one route, without Ray."""

import gzip
import zlib
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from serve.answers import MAX_FIELDS, images_of
from serve.bodies import MAX_BODY_BYTES
from serve.middleware import install_middleware
from serve.problems import install_problem_handlers
from tests.problems import is_problem


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    install_problem_handlers(app)
    install_middleware(app, max_body_bytes=MAX_BODY_BYTES)

    @app.post("/read")
    async def read(request: Request) -> dict[str, Any]:
        first, *others = await images_of(request)
        sizes = {"sizes": [len(first), *map(len, others)]} if others else {}
        return {"size": len(first), "begins": first[:8].hex()} | sizes

    return TestClient(app)


def _raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", _raw_deflate),
    ],
)
def test_a_packed_body_is_unpacked(
    client: TestClient, image: bytes, encoding: str, pack: Any
) -> None:
    answer = client.post("/read", content=pack(image), headers={"Content-Encoding": encoding})
    assert answer.json() == {"size": len(image), "begins": image[:8].hex()}


def test_a_body_packed_in_parts_is_read_whole(client: TestClient, image: bytes) -> None:
    parts = gzip.compress(image[:1000]) + gzip.compress(image[1000:])
    assert client.post("/read", content=parts, headers={"Content-Encoding": "gzip"}).json()[
        "size"
    ] == len(image)
    is_problem(
        client.post("/read", content=parts + b"x", headers={"Content-Encoding": "gzip"}),
        400,
        "bad_encoding",
    )


def test_a_packed_body_is_bounded_when_it_is_unpacked(client: TestClient) -> None:
    bomb = gzip.compress(bytes(MAX_BODY_BYTES + 1))
    assert len(bomb) < 100_000
    is_problem(
        client.post("/read", content=bomb, headers={"Content-Encoding": "gzip"}),
        413,
        "body_too_large",
    )


@pytest.mark.parametrize(
    "data", [b"not packed", gzip.compress(b"x" * 999)[:-9], b""], ids=["plain", "cut", "empty"]
)
def test_a_broken_packed_body_is_refused(client: TestClient, data: bytes) -> None:
    is_problem(
        client.post("/read", content=data, headers={"Content-Encoding": "gzip"}),
        400,
        "bad_encoding",
    )


def test_another_encoding_is_refused_and_the_known_ones_named(
    client: TestClient, image: bytes
) -> None:
    refused = client.post("/read", content=image, headers={"Content-Encoding": "br"})
    is_problem(refused, 415, "unsupported_encoding")
    assert "gzip" in refused.headers["accept-encoding"]


def test_a_body_that_an_upgrade_has_lost_is_told(client: TestClient) -> None:
    """Java's HTTP client offers HTTP/2 with every request, and the server in front drops the body
    then."""
    offered = {
        "Connection": "Upgrade, HTTP2-Settings",
        "Upgrade": "h2c",
        "HTTP2-Settings": "AAMAAABk",
    }
    refused = client.post("/read", headers=offered | {"Content-Length": "8231"})
    is_problem(refused, 400, "body_lost")
    assert refused.headers["connection"] == "close"


def test_an_offered_upgrade_with_a_body_is_no_fault(client: TestClient, image: bytes) -> None:
    assert client.post("/read", content=image, headers={"Upgrade": "h2c"}).json()["size"] == len(
        image
    )


def test_the_image_of_a_form_needs_no_file_name(client: TestClient, image: bytes) -> None:
    for sent in ((None, image), ("a.jpg", image), ("ü\u202e.jpg", image)):
        assert client.post("/read", files={"image": sent}).json()["size"] == len(image)


def test_text_beside_the_image_does_no_harm(client: TestClient, image: bytes) -> None:
    fields = {f"field{number}": "x" for number in range(20)}
    assert client.post("/read", files={"image": image}, data=fields).status_code == 200


def test_a_question_in_a_form_is_not_passed_over(client: TestClient, image: bytes) -> None:
    refused = client.post("/read", files={"image": image}, data={"explain": "grad_cam"})
    assert "?explain=grad_cam" in is_problem(refused, 422, "invalid_request")["detail"]


def test_words_are_no_image(client: TestClient) -> None:
    is_problem(client.post("/read", files={"image": (None, "grüße €")}), 422, "no_image_field")
    is_problem(client.post("/read", files={"image": (None, "words")}), 422, "no_image_field")


def test_a_cut_form_is_told_from_one_without_an_image(client: TestClient, image: bytes) -> None:
    whole = httpx.Request("POST", "http://testserver/read", files={"image": ("a.jpg", image)})
    body = whole.read()
    headers = {"Content-Type": whole.headers["Content-Type"]}
    assert client.post("/read", content=body, headers=headers).status_code == 200
    is_problem(
        client.post("/read", content=body[: len(body) // 2], headers=headers), 400, "bad_request"
    )


def test_every_image_of_a_form_is_read_in_order(client: TestClient, image: bytes) -> None:
    others = [image + bytes(1), image + bytes(2)]
    sent = [("image", ("a.jpg", image)), *(("image", (None, other)) for other in others)]
    sizes = client.post("/read", files=sent).json()["sizes"]
    assert sizes == [len(image), len(image) + 1, len(image) + 2]


def test_an_image_that_would_be_left_out_is_told(client: TestClient, image: bytes) -> None:
    """An answer about fewer images than were sent would look like one about all of them."""
    refused = client.post("/read", files=[("image", image), ("image2", image)])
    assert "named image" in is_problem(refused, 422, "invalid_request")["detail"]
    refused = client.post("/read", files=[("image", image), ("image", (None, "words"))])
    is_problem(refused, 422, "no_image_field")


def test_a_form_that_is_cut_in_its_last_image_is_refused(client: TestClient, image: bytes) -> None:
    sent = [("image", ("a.jpg", image)), ("image", ("b.jpg", image))]
    whole = httpx.Request("POST", "http://testserver/read", files=sent)
    body = whole.read()
    headers = {"Content-Type": whole.headers["Content-Type"]}
    is_problem(client.post("/read", content=body[:-200], headers=headers), 400, "bad_request")


def test_a_flood_of_files_is_refused(client: TestClient) -> None:
    few, many = ([("image", bytes(9))] * num for num in (MAX_FIELDS, MAX_FIELDS + 1))
    assert len(client.post("/read", files=few).json()["sizes"]) == MAX_FIELDS
    is_problem(client.post("/read", files=many), 400, "bad_request")
