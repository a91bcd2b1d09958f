import http.server
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from melanoma.errors import DataError
from ray_jobs import preflight
from ray_jobs.preflight import check_address, check_temp_dir


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(preflight, "TIMEOUT_SECONDS", 0.5)


@pytest.fixture
def unused() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        yield taken.getsockname()[1]


@pytest.fixture
def web_server() -> Iterator[int]:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "http://127.0.0.1:{}", "https://localhost:{}"]
)
def test_a_ray_that_is_gone_is_told_at_once(form: str, unused: int) -> None:
    address = form.format(unused)
    with pytest.raises(
        ConnectionError,
        match=rf"Ray does not answer at {address} \(.*\)\. Start it, or unset RAY_ADDRESS",
    ):
        check_address(address)


def test_a_name_that_nobody_knows_is_told() -> None:
    with pytest.raises(
        ConnectionError,
        match=r"not answer at head\.invalid:6379 \(the host name head\.invalid is unknown\)",
    ):
        check_address("head.invalid:6379")


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_something_else_that_listens_is_no_ray(form: str, web_server: int) -> None:
    with pytest.raises(ConnectionError, match="another program listens there"):
        check_address(form.format(web_server))


def test_the_dashboard_is_named_as_what_it_is(web_server: int) -> None:
    with pytest.raises(DataError, match=r"is a dashboard\. Unset it and pass --address http"):
        check_address(f"http://127.0.0.1:{web_server}")


@pytest.mark.parametrize("address", ["head", "head:port", "head:99999999", "s3://bucket", ":6379"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(DataError, match="must be HOST:PORT"):
        check_address(address)


@pytest.mark.parametrize("address", ["auto", "local"])
def test_words_that_ray_understands_are_left_to_it(address: str) -> None:
    check_address(address)


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_whose_sockets_would_have_too_long_names_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, f"/{'x' * 119}")
    with pytest.raises(
        DataError,
        match=rf"{name} must have at most \d+ bytes; it has 120\. .* 107 bytes\. Set RAY_TMPDIR",
    ):
        check_temp_dir()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_temp_dir()


def test_the_longest_folder_that_ray_takes_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    session = f"/ray/session_2026-01-01_00-00-00_000000_{os.getpid():07d}/sockets/plasma_store"
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * (106 - len(session)))
    check_temp_dir()
    monkeypatch.setenv("RAY_TMPDIR", "/" + "ä" * (106 - len(session)))
    with pytest.raises(DataError, match="RAY_TMPDIR"):
        check_temp_dir()
