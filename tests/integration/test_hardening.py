"""Bad input over the real HTTP server: each is refused with its own status and code, or read as
documented; nothing dies of it."""

import base64
import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image, PngImagePlugin

from benchmarks.hostile_files import (
    HOSTILE,
    LARGEST,
    chunk,
    dicom,
    png,
    png_with,
    refined_scans,
    scan_bomb,
    segment,
)
from tests.dicom_files import rgb_file
from tests.problems import is_problem
from tests.serving import Service

# The HTTP server of `melanoma serve`; in the drills also Ray's proxy.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.parametrize(
        "service",
        ["alone", pytest.param("deployment", marks=pytest.mark.drill)],
        indirect=True,
        scope="module",
    ),
]
PREDICT = "/v1/predict"


def _png_head(width: int, height: int, *, bits: int = 8, colour: int = 2) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    )


def _encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _blank(width: int, height: int) -> bytes:
    return _encoded(Image.new("RGB", (width, height), (200, 150, 130)))


def _text_bomb() -> bytes:
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"A" * 100_000_000, 9))
    whole = _blank(64, 64)
    return whole[:33] + text + whole[33:]


def _other_format(kind: str) -> bytes:
    return _encoded(Image.new("RGB", (64, 64)), kind)


def _bilevel(side: int) -> bytes:
    rows = b"".join(b"\0" + bytes((side + 7) // 8) for _ in range(side))
    return (
        _png_head(side, side, bits=1, colour=0)
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("image.jpg", b"\xff\xd8\xff")
    return buffer.getvalue()


def _damaged_crc(data: bytes) -> bytes:
    place = data.index(b"IDAT") + 10
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def _deep_dark() -> bytes:
    """Return a grey ramp of 12 bits in a PNG of 16."""
    rows = b"".join(b"\0" + (np.arange(64) * 64 + row).astype(">u2").tobytes() for row in range(64))
    return png(zlib.compress(rows), side=64, bits=16, colour=0)


REFUSED: dict[str, tuple[Callable[[bytes], bytes], int, str]] = {
    "nothing": (lambda _: b"", 400, "empty_image"),
    "body over the limit": (lambda jpeg: jpeg + bytes(21 * 2**20), 413, "body_too_large"),
    "text": (lambda _: b"an image of a lesion" * 9, 415, "unsupported_format"),
    "HTML": (lambda _: b"<!doctype html><script>alert(1)</script>", 415, "unsupported_format"),
    "SVG": (lambda _: b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "unsupported_format"),
    "PDF": (lambda _: b"%PDF-1.7\n" + bytes(90), 415, "unsupported_format"),
    "ZIP": (lambda _: _zip(), 415, "unsupported_format"),
    "ELF": (lambda _: b"\x7fELF" + bytes(90), 415, "unsupported_format"),
    **{
        kind: (lambda _, kind=kind: _other_format(kind), 415, "unsupported_format")  # type: ignore[misc]
        for kind in ("GIF", "BMP", "TIFF", "EPS", "JPEG2000")
    },
    "FITS": (lambda _: b"SIMPLE  =                    T".ljust(2880), 415, "unsupported_format"),
    "PSD": (lambda _: b"8BPS\0\1" + bytes(90), 415, "unsupported_format"),
    "HEIC": (lambda _: b"\0\0\0\x18ftypheic" + bytes(90), 415, "unsupported_format"),
    "AVIF": (lambda _: b"\0\0\0\x18ftypavif" + bytes(90), 415, "unsupported_format"),
    "DICOM of nothing": (lambda _: bytes(128) + b"DICM" + bytes(90), 422, "invalid_dicom"),
    "half a DICOM": (lambda _: dicom()[:9000], 422, "image_truncated"),
    "DICOM of empty items": (
        lambda _: HOSTILE["DICOM, empty items, 20 MB"](),
        422,
        "too_many_parts",
    ),
    "other RIFF": (lambda _: b"RIFF\x24\0\0\0WAVEfmt " + bytes(90), 415, "unsupported_format"),
    "half a JPEG": (lambda jpeg: jpeg[: len(jpeg) // 2], 422, "image_truncated"),
    "JPEG without its end": (lambda jpeg: jpeg[:-400], 422, "image_truncated"),
    "JPEG header": (lambda jpeg: jpeg[:300], 422, "image_truncated"),
    "JPEG of nothing": (lambda _: b"\xff\xd8\xff" + bytes(64), 422, "image_truncated"),
    "PNG with a wrong checksum": (lambda _: _damaged_crc(_blank(64, 64)), 422, "image_truncated"),
    "JPEG of a thousand scans": (lambda _: scan_bomb(1000), 422, "too_many_scans"),
    "JPEG of scans behind a fill byte": (
        lambda _: scan_bomb(1000, hidden=b"\xff"),
        422,
        "too_many_scans",
    ),
    "JPEG of scans behind a restart marker": (
        lambda _: scan_bomb(1000, hidden=b"\xff\xd0"),
        422,
        "too_many_scans",
    ),
    "JPEG of 100 scans over 25 megapixels": (lambda _: refined_scans(100), 422, "too_many_scans"),
    "JPEG of empty segments": (
        lambda _: HOSTILE["JPEG, empty segments, 20 MB"](),
        422,
        "too_many_parts",
    ),
    "JPEG of comments": (
        lambda jpeg: jpeg[:2] + segment(0xFE) * 9999 + jpeg[2:],
        422,
        "too_many_parts",
    ),
    "JPEG of fill bytes": (
        lambda jpeg: jpeg[:2] + b"\xff" * 9999 + jpeg[2:],
        422,
        "image_truncated",
    ),
    "JPEG with stray bytes": (
        lambda jpeg: jpeg[:2] + segment(0xFE) + b"\0" + jpeg[2:],
        422,
        "image_truncated",
    ),
    "JPEG cut and closed": (
        lambda jpeg: jpeg[: len(jpeg) // 2] + b"\xff\xd9",
        422,
        "image_truncated",
    ),
    "JPEG sent as text": (lambda jpeg: jpeg.replace(b"\n", b"\r\n"), 422, "image_truncated"),
    "PNG of empty chunks": (lambda _: HOSTILE["PNG, empty chunks, 20 MB"](), 422, "too_many_parts"),
    "PNG of texts": (lambda _: png_with(chunk(b"tEXt", b"a\0b") * 19_999), 422, "too_many_parts"),
    "PNG with endless pixels": (
        lambda _: HOSTILE["PNG, 64 x 64 with 10 GB of pixels"](),
        422,
        "image_truncated",
    ),
    "PNG of 12 bits in 16": (lambda _: _deep_dark(), 422, "bit_depth_unclear"),
    "PNG without its end": (lambda _: _blank(64, 64)[:-12], 422, "image_truncated"),
    "WebP of a quarter million frames": (
        lambda _: HOSTILE["WebP, 250,000 frames"](),
        422,
        "too_many_parts",
    ),
    "WebP of 268 megapixels": (
        lambda _: HOSTILE["WebP, canvas of 268 megapixels"](),
        413,
        "image_too_large",
    ),
    "PNG header": (lambda _: _png_head(64, 64), 422, "image_truncated"),
    "PNG without a size": (lambda _: _png_head(0, 0), 422, "bad_dimensions"),
    "PNG with a text bomb": (lambda _: _text_bomb(), 422, "image_truncated"),
    "half a WebP": (
        lambda _: _encoded(Image.effect_noise((64, 64), 50), "WEBP")[:200],
        422,
        "image_truncated",
    ),
    "900 megapixels in a header": (lambda _: _png_head(30_000, 30_000), 413, "image_too_large"),
    "88 megapixels in few bytes": (lambda _: _bilevel(9_400), 413, "image_too_large"),
    "100000 x 1": (lambda _: _png_head(100_000, 1), 422, "bad_dimensions"),
    "an even page": (lambda _: _blank(640, 480), 422, "blank_image"),
    "1 x 1": (lambda _: _blank(1, 1), 422, "bad_dimensions"),
    "8 x 8": (lambda _: _blank(8, 8), 422, "bad_dimensions"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_is_refused(name: str, client: httpx.Client, image: bytes) -> None:
    make, status, code = REFUSED[name]
    is_problem(client.post(PREDICT, content=make(image)), status, code)


def test_a_body_without_a_length_is_limited_too(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(25):
            yield b"\xff" * 2**20

    is_problem(client.post(PREDICT, content=chunks()), 413, "body_too_large")


MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ({"files": {"photo": b"\xff\xd8\xff"}}, 422, "no_image_field"),
        ({"files": {"other": ("", b"x")}, "data": {"image": "words"}}, 422, "no_image_field"),
        ({"json": {"image": "words"}}, 422, "no_image_field"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "bad_request"),
        ({"content": b"garbage" * 9, "headers": MULTIPART}, 400, "bad_request"),
        (
            {
                "content": b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\nx\r\n--b--\r\n',
                "headers": {"Content-Type": MULTIPART["Content-Type"] + "; charset=undefined"},
            },
            400,
            "bad_request",
        ),
        (
            {"data": {f"field{i}": "x" for i in range(1500)}, "files": {"image": b"\xff\xd8\xff"}},
            400,
            "bad_request",
        ),
        ({"files": [("image", b"\xff\xd8\xff")] * 7}, 422, "too_many_images"),
        ({"files": [("image", b"\xff\xd8\xff")] * 65}, 400, "bad_request"),
        ({"files": [("image", b""), ("image", b"x")]}, 400, "empty_image"),
    ],
    ids=[
        "another field",
        "words in the field",
        "JSON",
        "no boundary",
        "garbage",
        "no charset",
        "1500 fields",
        "seven files",
        "65 files",
        "an empty file",
    ],
)
def test_a_form_that_holds_no_image_is_refused(
    client: httpx.Client, sent: dict[str, object], status: int, code: str
) -> None:
    is_problem(client.post(PREDICT, **sent), status, code)  # type: ignore[arg-type]


def test_wrong_addresses_and_methods_are_refused(client: httpx.Client, image: bytes) -> None:
    is_problem(client.get("/v1/nowhere"), 404, "not_found")
    is_problem(client.get("/v2/models/another"), 404, "not_found")
    is_problem(client.get("/page/%2e%2e/ingress.py"), 404, "not_found")
    is_problem(client.get(PREDICT), 405, "method_not_allowed")
    is_problem(
        client.options(PREDICT, headers={"Origin": "https://elsewhere.example"}),
        405,
        "method_not_allowed",
    )
    for kind in ("image/png", "application/xml"):
        is_problem(
            client.post(PREDICT, content=image, headers={"Accept": kind}), 406, "not_acceptable"
        )


def test_questions_the_service_does_not_know_are_refused(
    client: httpx.Client, image: bytes
) -> None:
    wrong = is_problem(
        client.post(f"{PREDICT}?explain=everything", content=image), 422, "invalid_request"
    )
    assert "'guided_grad_cam'" in wrong["detail"]
    assert "everything" not in wrong["detail"]
    wrong = is_problem(
        client.post(f"{PREDICT}?explian=grad_cam", content=image), 422, "invalid_request"
    )
    assert "explian" not in wrong["detail"]


def test_no_other_origin_is_let_in(client: httpx.Client, image: bytes) -> None:
    response = client.post(PREDICT, content=image, headers={"Origin": "https://elsewhere.example"})
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_only_keys_open_the_service(service: Service, image: bytes) -> None:
    with httpx.Client(base_url=service.url, timeout=60) as stranger:
        no_key = stranger.post(PREDICT, content=image)
        is_problem(no_key, 401, "no_key")
        assert no_key.headers["www-authenticate"] == "Bearer"
        is_problem(stranger.post(f"{PREDICT}?key={service.key}", content=image), 401, "no_key")
        is_problem(
            stranger.post(PREDICT, headers={"Authorization": "Bearer wrong"}), 403, "wrong_key"
        )
        for path in ("/v1/model", "/v2/models/melanoma"):
            is_problem(stranger.get(path), 401, "no_key")
        for path in ("/v1/report", "/v2/models/melanoma/infer"):
            is_problem(stranger.post(path, content=image), 401, "no_key")
        for path in (
            "//v1/model",
            "/V1/model",
            "/page/%2e%2e/v1/model",
            "/docs/assets/../../v1/model",
        ):
            assert stranger.get(path).status_code in (401, 404), path
        for path in ("/", "/healthz", "/readyz", "/page/page.js", "/openapi.json", "/docs"):
            assert stranger.get(path).status_code == 200, path
        assert (
            stranger.post(PREDICT, content=image, headers={"X-API-Key": service.key}).status_code
            == 200
        )


@pytest.mark.parametrize("host", ["evil.example/..", "a b", "evil@melanoma", "<script>"])
def test_a_host_that_is_none_is_refused(client: httpx.Client, host: str) -> None:
    is_problem(client.get("/v1/model", headers={"Host": host}), 400, "bad_host")


@pytest.mark.parametrize("client_id", ["<script>evil</script>", "x" * 10_000])
def test_a_clients_request_id_is_never_the_answers(
    client: httpx.Client, client_id: str, image: bytes
) -> None:
    answer = client.post(PREDICT, content=image, headers={"X-Request-ID": client_id}).json()
    assert re.fullmatch("[0-9a-f]{32}", answer["request_id"])


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        (
            b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length:"
            b" 6\r\n\r\nhello!"
        ),
        (
            b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding:"
            b" chunked\r\n\r\n0\r\n\r\n"
        ),
        b"what is this\r\n\r\n",
    ],
    ids=["negative length", "two lengths", "a length and chunks", "no request line"],
)
def test_broken_http_is_refused(
    service: Service, client: httpx.Client, request_bytes: bytes
) -> None:
    assert b" 400 " in _first_line(service, request_bytes)
    assert client.get("/healthz").status_code == 200


@pytest.mark.drill
def test_a_body_that_never_ends_is_given_up(service: Service) -> None:
    head = (
        f"POST {PREDICT} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer"
        f" {service.key}\r\nContent-Length: 100\r\n\r\n"
    )
    answer = _first_line(service, head.encode() + b"\xff\xd8\xff", timeout=60)
    assert b" 408 " in answer or b" 504 " in answer


def _first_line(service: Service, sent: bytes, *, timeout: float = 20) -> bytes:
    """Send bytes as they are and return the first line of the answer."""
    address = urlsplit(service.url)
    with socket.create_connection(
        (str(address.hostname), int(address.port or 0)), timeout=timeout
    ) as connection:
        connection.sendall(sent)
        return connection.recv(4096).split(b"\r\n")[0]


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "a\r\nX-Evil: 1", "nul\0.jpg", "x" * 4096, "\u202egpj.exe", "<script>"],
)
def test_a_file_name_is_ignored(client: httpx.Client, name: str, image: bytes) -> None:
    response = client.post(PREDICT, files={"image": (name, image, "text/plain")})
    assert response.status_code == 200, response.text
    assert "x-evil" not in response.headers
    assert "passwd" not in response.text
    assert "x" * 99 not in response.text


def _probabilities(client: httpx.Client, data: bytes, **headers: str) -> np.ndarray:
    response = client.post(PREDICT, content=data, headers=headers)
    assert response.status_code == 200, response.text
    return np.array(list(response.json()["probabilities"].values()))


@pytest.fixture(scope="module")
def upright(image: bytes) -> Image.Image:
    with Image.open(io.BytesIO(image)) as opened:
        return opened.convert("RGB")


def test_the_first_bytes_decide_the_format(client: httpx.Client, upright: Image.Image) -> None:
    png = _encoded(upright)
    expected = _probabilities(client, png)
    for kind in ("image/jpeg", "text/html", "application/json", "application/x-evil"):
        assert np.array_equal(_probabilities(client, png, **{"Content-Type": kind}), expected)


def _deep_grey(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def _palette(image: Image.Image) -> Image.Image:
    return image.quantize(256)


TWINS: dict[str, tuple[Callable[[Image.Image], bytes], Callable[[Image.Image], Image.Image]]] = {
    "grey": (lambda im: _encoded(im.convert("L")), lambda im: im.convert("L").convert("RGB")),
    "black and white": (
        lambda im: _encoded(im.convert("1")),
        lambda im: im.convert("1").convert("RGB"),
    ),
    "grey with alpha": (
        lambda im: _encoded(im.convert("L").convert("LA")),
        lambda im: im.convert("L").convert("RGB"),
    ),
    "opaque alpha": (lambda im: _encoded(im.convert("RGBA")), lambda im: im),
    "transparent": (
        lambda im: _encoded(
            Image.merge(
                "RGBA",
                (
                    *im.split(),
                    Image.linear_gradient("L").resize(im.size).point(lambda v: 255 * (v > 99)),
                ),
            )
        ),
        lambda im: Image.composite(
            im,
            Image.new("RGB", im.size, (255, 255, 255)),
            Image.linear_gradient("L").resize(im.size).point(lambda v: 255 * (v > 99)),
        ),
    ),
    "palette": (lambda im: _encoded(_palette(im)), lambda im: _palette(im).convert("RGB")),
    "16 bits": (lambda im: _encoded(_deep_grey(im)), lambda im: im.convert("L").convert("RGB")),
    "lossless WebP": (lambda im: _encoded(im, "WEBP", lossless=True), lambda im: im),
    "animated PNG": (
        lambda im: _encoded(im, save_all=True, append_images=[Image.new("RGB", im.size)]),
        lambda im: im,
    ),
    "animated WebP": (
        lambda im: _encoded(
            im, "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", im.size)]
        ),
        lambda im: im,
    ),
    "ZIP behind the image": (lambda im: _encoded(im) + _zip(), lambda im: im),
    "DICOM": (lambda im: rgb_file(np.asarray(im)), lambda im: im),
}


@pytest.mark.parametrize("name", TWINS)
def test_unusual_images_answer_as_their_twins(
    name: str, client: httpx.Client, upright: Image.Image
) -> None:
    unusual, twin = TWINS[name]
    answer = _probabilities(client, unusual(upright))
    assert np.abs(answer - _probabilities(client, _encoded(twin(upright)))).max() < 1e-6


def test_cmyk_is_read(client: httpx.Client, upright: Image.Image) -> None:
    data = _encoded(upright.convert("CMYK"), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        twin = _encoded(image.convert("RGB"))
    assert np.abs(_probabilities(client, data) - _probabilities(client, twin)).max() < 1e-6


_UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", sorted(_UNDO))
def test_the_camera_may_lie_on_its_side(
    client: httpx.Client, upright: Image.Image, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = _encoded(upright.transpose(_UNDO[orientation]), exif=exif)
    assert (
        np.abs(_probabilities(client, turned) - _probabilities(client, _encoded(upright))).max()
        < 1e-6
    )
    answer = client.post(f"{PREDICT}?explain=grad_cam", content=turned).json()
    with Image.open(io.BytesIO(base64.b64decode(answer["explanation"]["heatmap_png"]))) as heatmap:
        assert heatmap.size == upright.size


def test_what_a_file_says_of_its_patient_goes_nowhere(
    client: httpx.Client, upright: Image.Image
) -> None:
    exif, text = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x010E], exif[0x8825] = "Jane Canary, 1 Canary Road", {1: "N", 2: (47.0, 22.0, 9.0)}
    text.add_text("Comment", "<script>canary()</script>")
    text.add_itxt("XML:com.adobe.xmp", "<x>Canary</x>")
    data = _encoded(upright, exif=exif, pnginfo=text, icc_profile=b"canary" * 20)
    assert b"Canary" in data
    response = client.post(f"{PREDICT}?explain=grad_cam", content=data)
    assert response.status_code == 200
    assert "canary" not in response.text.lower()
    for name in ("heatmap_png", "overlay_png"):
        with Image.open(
            io.BytesIO(base64.b64decode(response.json()["explanation"][name]))
        ) as image:
            assert not image.info
    pdf = client.post("/v1/report", content=data)
    assert pdf.status_code == 200
    assert b"canary" not in pdf.content.lower()


def _infer(client: httpx.Client, data: list[str]) -> httpx.Response:
    asked = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data}]}
    return client.post("/v2/models/melanoma/infer", content=json.dumps(asked))


def test_images_inside_json_are_held_to_the_same_rules(client: httpx.Client, image: bytes) -> None:
    whole = base64.b64encode(image).decode()
    assert _infer(client, [whole]).status_code == 200
    is_problem(_infer(client, [whole[:-3]]), 400, "invalid_inference_request")
    is_problem(
        _infer(client, ["data:image/jpeg;base64," + whole]), 400, "invalid_inference_request"
    )
    bomb = base64.b64encode(_png_head(30_000, 30_000)).decode()
    assert (
        "Image 2 of 3"
        in is_problem(_infer(client, [whole, bomb, whole]), 413, "image_too_large")["error"]
    )
    damaged = base64.b64encode(image[: len(image) // 2] + b"\xff\xd9").decode()
    assert (
        "Image 3 of 3"
        in is_problem(_infer(client, [whole, whole, damaged]), 422, "image_truncated")["error"]
    )
    is_problem(
        client.post("/v2/models/melanoma/infer", content="[" * 100_000),
        400,
        "invalid_inference_request",
    )


def test_the_images_of_one_request_have_a_limit_together(client: httpx.Client) -> None:
    """Refused by their headers: nothing is decoded."""
    large = base64.b64encode(LARGEST["PNG, 25 megapixels, 8 bits, transparent"]()).decode()
    assert (
        "50 megapixels" in is_problem(_infer(client, [large] * 32), 413, "image_too_large")["error"]
    )


def test_broken_exif_says_nothing_against_the_pixels(client: httpx.Client, image: bytes) -> None:
    expected = _probabilities(client, image)
    for block in (b"", b"This is not valid EXIF", b"II\0\0\x08\0\0\0", b"MM\0*\0\0\0\x08\xff\xff"):
        broken = image[:2] + segment(0xE1, b"Exif\0\0" + block) + image[2:]
        assert np.array_equal(_probabilities(client, broken), expected)


def test_the_schema_tells_the_truth(service: Service, tmp_path: Path) -> None:
    """Schemathesis finds nothing: every answer to what it makes up is one that /openapi.json
    describes.

    One check is left out, that what fits the schema is accepted: no schema can say which bytes are
    an image.
    """
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        f"{service.url}/openapi.json",
        "--max-examples=8",
        "--seed=1",
        "--no-color",
        f"--header=Authorization: Bearer {service.key}",
        "--generation-database=none",
        "--exclude-checks=positive_data_acceptance",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Tested: 14" in done.stdout


def _mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Return a file with some bytes changed, cut out, doubled or put elsewhere."""
    values = bytearray(data)
    for _ in range(int(rng.integers(1, 8))):
        start, length = int(rng.integers(0, len(values))), int(rng.integers(1, 64))
        part = values[start : start + length]
        kind = int(rng.integers(0, 4))
        if kind == 0:
            values[start : start + length] = rng.bytes(len(part))
        elif kind == 1:
            del values[start : start + length]
        elif kind == 2:
            values[start:start] = part
        else:
            values[start : start + 1] = bytes([values[start] ^ (1 << int(rng.integers(0, 8)))])
        if len(values) < 2:
            break
    return bytes(values)


def _resident_megabytes() -> float:
    """Return what the processes of all replicas of this machine's Serve hold in memory."""
    own = psutil.Process(os.getpid()).children(recursive=True)
    return (
        float(sum(p.memory_info().rss for p in own if "ServeReplica" in " ".join(p.cmdline())))
        / 2**20
    )


def _fuzz(client: httpx.Client, seeds: list[bytes], num: int) -> dict[int, int]:
    rng = np.random.default_rng(0)
    counts: dict[int, int] = {}
    with ThreadPoolExecutor(4) as pool:
        mutants = (_mutated(seeds[i % len(seeds)], rng) for i in range(num))
        for response in pool.map(lambda data: client.post(PREDICT, content=data), mutants):
            counts[response.status_code] = counts.get(response.status_code, 0) + 1
            assert response.status_code == 200 or 400 <= response.status_code < 500, response.text[
                :300
            ]
    return counts


@pytest.fixture(scope="module")
def seeds(upright: Image.Image) -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    small = upright.resize((64, 48))
    return [
        _encoded(small, "JPEG", exif=exif),
        _encoded(small, "JPEG", progressive=True),
        _encoded(small.convert("CMYK"), "JPEG"),
        _encoded(small),
        _encoded(small.quantize(16)),
        _encoded(_deep_grey(small)),
        _encoded(small.convert("RGBA")),
        _encoded(small, "WEBP"),
        _encoded(small, "WEBP", lossless=True),
        rgb_file(np.asarray(small)),
    ]


def test_mutated_images_are_answered(client: httpx.Client, seeds: list[bytes]) -> None:
    counts = _fuzz(client, seeds, 400)
    assert counts[422] > 50
    assert client.get("/readyz").status_code == 200


@pytest.mark.drill
@pytest.mark.timeout(3600)
def test_ten_thousand_mutated_images_leave_memory_flat(
    client: httpx.Client, seeds: list[bytes]
) -> None:
    _fuzz(client, seeds, 1_000)  # caches fill first
    before = _resident_megabytes()
    counts = _fuzz(client, seeds, 10_000)
    grown = _resident_megabytes() - before
    print(
        f"\n10,000 mutated images: answers by status {counts}, replicas grew by {grown:.0f} of"
        f" {before:.0f} MB"
    )
    assert before > 100
    assert grown < 0.1 * before
    assert client.get("/readyz").status_code == 200
