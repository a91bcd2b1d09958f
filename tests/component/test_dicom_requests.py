"""DICOM over HTTP, as a body and in a form; with an application of one route, without Ray."""

import logging
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from benchmarks.hostile_files import HOSTILE
from serve.answers import images_of
from serve.bodies import MAX_BODY_BYTES
from serve.middleware import install_middleware
from serve.openapi import IMAGE
from serve.problems import install_problem_handlers
from serve.uploads import Upload
from tests.dicom_files import dicom_file, planted_in, rgb_file, smooth
from tests.problems import is_problem

PIXELS = smooth()
DICOM = {"Content-Type": "application/dicom"}


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    install_problem_handlers(app)
    install_middleware(app, max_body_bytes=MAX_BODY_BYTES)

    @app.post("/read")
    async def read(request: Request) -> dict[str, Any]:
        (data,) = await images_of(request)
        image = Upload(data).decode()
        return {"mean": float(np.asarray(image).mean()), "size": image.size}

    return TestClient(app)


def test_a_dicom_is_read_however_it_is_sent(client: TestClient) -> None:
    """The content decides, not the type or a file name."""
    data, expected = rgb_file(PIXELS), {"mean": float(PIXELS.mean()), "size": [80, 60]}
    for sent in (
        {"content": data, "headers": DICOM},
        {"content": data},
        {"files": {"image": ("lesion.dcm", data, "application/dicom")}},
        {"files": {"image": ("", data)}},
    ):
        answer = client.post("/read", **sent)  # type: ignore[arg-type]
        assert answer.status_code == 200, answer.text
        assert answer.json() == expected


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (rgb_file(PIXELS)[:-1000], 422, "image_truncated"),
        (rgb_file(PIXELS, Rows=None), 422, "invalid_dicom"),
        (rgb_file(PIXELS, NumberOfFrames=3), 422, "several_frames"),
        (rgb_file(PIXELS, BitsAllocated=16), 415, "unsupported_format"),
        (rgb_file(PIXELS, SOPClassUID="1.2.840.10008.5.1.4.1.1.2"), 415, "unsupported_format"),
        (dicom_file(bytes(99), (9000, 9000)), 413, "image_too_large"),
        (HOSTILE["DICOM, 500,000 sequences in one another"](), 422, "too_many_parts"),
        (rgb_file(np.full_like(PIXELS, 90)), 422, "blank_image"),
    ],
)
def test_a_bad_dicom_is_refused_without_a_word_of_it(
    data: bytes, status: int, code: str, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for sent in (
        {"content": data, "headers": DICOM},
        {"files": {"image": ("planted.dcm", data, "application/dicom")}},
    ):
        answer = client.post("/read", **sent)  # type: ignore[arg-type]
        is_problem(answer, status, code)
        assert not planted_in(f"{answer.text}{answer.headers}")
    assert not planted_in(caplog.text)


def test_the_schema_names_the_type() -> None:
    assert "application/dicom" in IMAGE["requestBody"]["content"]  # type: ignore[operator]
