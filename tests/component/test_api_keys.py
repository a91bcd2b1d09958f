import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from melanoma.errors import SettingError
from serve import middleware
from serve.api_keys import VARIABLE, ApiKeys, check_keys, key_of, keys_of_environment
from serve.metrics import request_metrics
from serve.middleware import install_middleware
from serve.problems import install_problem_handlers
from tests.problems import is_problem

TYPED = "a-key-in-clear-text"


def _line(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of two keys, which was written some time ago."""
    path = tmp_path / "keys"
    path.write_text(f"# clinic A\n{_line('one')} ward 3\n\n{_line('two')}\n")
    return path


@pytest.fixture
def log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    monkeypatch.setattr("serve.api_keys.logger.propagate", True)
    return caplog


def _allowed(keys: ApiKeys) -> set[str]:
    keys.refresh()
    return {key for key in ("one", "two", "three", TYPED) if keys.allow(key)}


def test_a_key_of_the_file_is_allowed_and_no_other(path: Path) -> None:
    keys = ApiKeys(path)
    assert _allowed(keys) == {"one", "two"}
    assert not keys.allow("")
    assert not keys.allow(_line("one"))


def test_a_withdrawn_key_lets_nobody_in_whatever_else_is_wrong(
    path: Path, log: pytest.LogCaptureFixture
) -> None:
    keys = ApiKeys(path)
    path.write_text(f"{TYPED}\n{_line('two')}\n{_line('three')[:-1]}\n{_line('three')}x\n")
    assert _allowed(keys) == {"two"}
    assert keys.invalid_lines == [1, 3, 4]
    assert "Line 1, 3, 4 of the API keys" in log.text
    assert TYPED not in log.text
    path.write_text(f"{_line('three')}\n")
    assert _allowed(keys) == {"three"}
    assert keys.invalid_lines == []


@pytest.mark.parametrize(
    "content",
    [b"", b"# none\n", b"\n\n", TYPED.encode(), b"\xff\xfe\x00\x01", _line("one").encode("utf-16")],
)
def test_a_file_without_a_key_lets_nobody_in(
    content: bytes, path: Path, log: pytest.LogCaptureFixture
) -> None:
    keys = ApiKeys(path)
    path.write_bytes(content)
    assert _allowed(keys) == set()
    assert "at least one key" in keys.trouble
    assert "Until then all requests are refused" in log.text
    assert TYPED not in log.text + keys.trouble
    path.write_text(_line("one"))
    assert _allowed(keys) == {"one"}
    assert keys.trouble == ""


def test_a_file_that_is_not_there_lets_nobody_in(path: Path) -> None:
    keys = ApiKeys(path)
    path.unlink()
    assert _allowed(keys) == set()
    assert "readable" in keys.trouble
    path.mkdir()
    assert _allowed(keys) == set()
    path.rmdir()
    path.write_text(_line("two"))
    assert _allowed(keys) == {"two"}


def test_a_file_that_cannot_be_read_lets_nobody_in(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ApiKeys(path)
    path.write_text(_line("one"))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        assert _allowed(keys) == set()
        assert "Permission denied" in keys.trouble
    assert _allowed(keys) == {"one"}


def test_a_change_within_a_tick_of_the_clock_is_seen(path: Path) -> None:
    """Of one size, in the same file, and with the time of the other set back."""
    keys = ApiKeys(path)
    for _ in range(20):
        for key in ("one", "two"):
            path.write_text(_line(key))
            os.utime(path, ns=(1, 1))
            assert _allowed(keys) == {key}


def test_a_file_behind_another_link_is_seen(tmp_path: Path) -> None:
    """As Kubernetes changes a mounted secret."""
    for key in ("one", "two"):
        (tmp_path / key).mkdir()
        (tmp_path / key / "keys").write_text(_line(key))
        os.utime(tmp_path / key / "keys", ns=(1, 1))
    (tmp_path / "data").symlink_to("one")
    keys = ApiKeys(tmp_path / "data" / "keys")
    assert _allowed(keys) == {"one"}
    (tmp_path / "new").symlink_to("two")
    os.replace(tmp_path / "new", tmp_path / "data")
    assert _allowed(keys) == {"two"}


def test_a_file_that_stays_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.api_keys.time.time_ns", lambda: 10**20)  # long after it was written
    keys = ApiKeys(path)
    monkeypatch.setattr(Path, "open", None)
    assert _allowed(keys) == {"one", "two"}


def test_trouble_is_logged_once(path: Path, log: pytest.LogCaptureFixture) -> None:
    keys = ApiKeys(path)
    path.write_text("bad")
    for _ in range(5):
        keys.refresh()
    assert len(log.records) == 1


@pytest.mark.parametrize(
    ("content", "rule"),
    [(TYPED, "at least one key"), ("# none", "at least one key"), (None, "readable")],
)
def test_nothing_is_served_without_a_key(
    content: str | None, rule: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(path))
    assert check_keys()
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(SettingError, match=rule) as caught:
        check_keys()
    assert TYPED not in str(caught.value)


def test_a_bad_line_at_the_start_warns(
    path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    path.write_text(f"{_line('one')}\n{TYPED}\n")
    monkeypatch.setenv(VARIABLE, str(path))
    assert check_keys()
    assert "Line 2 of the API keys" in log.text


def test_without_a_file_everybody_may_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert keys_of_environment() is None
    assert not check_keys()


@pytest.fixture
def client(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setenv(VARIABLE, str(path))
    middleware._keys.cache_clear()
    app = FastAPI()
    install_problem_handlers(app)
    install_middleware(app, max_body_bytes=1000)

    @app.post("/read")
    async def read(request: Request) -> int:
        return len(await request.body())

    @app.get("/healthz")
    async def healthz() -> str:
        return "ok"

    yield TestClient(app, headers={"X-API-Key": "one"})
    middleware._keys.cache_clear()


def test_the_service_lets_nobody_in_until_the_file_is_mended(
    client: TestClient, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    monkeypatch.setattr(request_metrics()._invalid_key_lines, "set", counted.append)
    assert client.post("/read", content=b"x").status_code == 200
    for break_it in (lambda: path.write_text(TYPED), path.unlink):
        break_it()
        for headers in ({"X-API-Key": "one"}, {"X-API-Key": "three"}):
            refused = client.post("/read", content=b"x", headers=headers)
            is_problem(refused, 503, "keys_unavailable")
            assert int(refused.headers["retry-after"]) >= 1
    assert client.get("/healthz").status_code == 200
    path.write_text(f"{_line('two')}\nbad\n")
    is_problem(client.post("/read", content=b"x"), 403, "wrong_key")
    assert client.post("/read", content=b"x", headers={"X-API-Key": "two"}).status_code == 200
    assert counted == [0, 1, 1, 0, 0, 1, 1]


def test_a_service_whose_file_goes_before_the_first_request_lets_nobody_in(
    client: TestClient, path: Path
) -> None:
    path.unlink()
    is_problem(client.post("/read", content=b"x"), 503, "keys_unavailable")


def test_a_key_stands_in_a_header() -> None:
    assert key_of({"authorization": "Bearer abc"}) == "abc"
    assert key_of({"x-api-key": "abc"}) == "abc"
    assert key_of({"authorization": "Basic abc"}) is None
    assert key_of({}) is None
