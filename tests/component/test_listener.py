"""The HTTP server inside a replica: with an application of test routes, without Ray."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.bodies import read_body
from serve.in_flight import InFlight
from serve.listener import Listen, Listener
from serve.middleware import install_middleware
from serve.problems import install_problem_handlers
from tests.clusters import free_ports
from tests.problems import is_problem


class _Waits:
    """Answers a request when it is told to, and remembers which of them were cancelled."""

    def __init__(self) -> None:
        self.begun, self.cancelled, self.go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


@contextlib.asynccontextmanager
async def _listening(
    app: ASGIApp, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[Listener, httpx.AsyncClient]]:
    (port,) = free_ports(1)
    listener = Listener(Listen(host, port, max_requests=8, keep_alive_seconds=5))
    await listener.ensure_running(app)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
        yield listener, client
    assert listener._serving is not None
    listener._serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await listener._serving


def test_it_answers_and_keeps_running() -> None:
    async def ask() -> str:
        app = _Waits()
        app.go_on.set()
        async with _listening(app) as (listener, client):
            await listener.ensure_running(app)
            return (await client.post("/", content=b"x" * 100_000)).text

    assert asyncio.run(ask()) == "done"


def test_the_work_for_a_client_that_has_gone_is_cancelled() -> None:
    async def ask() -> None:
        app = _Waits()
        async with _listening(app) as (_, client):
            asked = asyncio.create_task(client.post("/", content=b"x"))
            await asyncio.wait_for(app.begun.wait(), 10)
            asked.cancel()
            await asyncio.wait_for(app.cancelled.wait(), 10)

    asyncio.run(ask())


def _application() -> FastAPI:
    app = FastAPI()
    install_problem_handlers(app)
    install_middleware(app, max_body_bytes=1000)

    @app.get("/status")
    async def status() -> str:
        return "ok"

    @app.post("/read")
    async def read(request: Request) -> int:
        return len(await read_body(request))

    return app


def test_after_an_answer_to_head_the_connection_can_be_used_again() -> None:
    """The body of an answer to HEAD would be read as the start of the next answer."""

    async def ask() -> bytes:
        async with _listening(_application()) as (listener, _):
            place = listener._listen
            reader, writer = await asyncio.open_connection(place.host, place.port)
            writer.write(b"HEAD /status HTTP/1.1\r\nHost: a\r\n\r\n")
            writer.write(b"GET /status HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            answers = await reader.read()
            writer.close()
            return answers

    answers = asyncio.run(ask())
    head, _, rest = answers.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert rest.startswith(b"HTTP/1.1 200")


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "ray.serve")

    async def ask() -> None:
        async with _listening(_application()) as (listener, client):
            place = listener._listen
            _, writer = await asyncio.open_connection(place.host, place.port)
            writer.write(b"POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
            await writer.drain()
            await asyncio.sleep(0.2)
            writer.close()
            await asyncio.sleep(0.2)
            assert (await client.get("/status")).status_code == 200

    asyncio.run(ask())
    assert [record.levelname for record in caplog.records] == ["INFO"]


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
def test_it_listens_on_an_address_of_ipv6() -> None:
    async def ask() -> httpx.Response:
        async with _listening(_application(), "::1") as (_, client):
            return await client.get("/status")

    assert asyncio.run(ask()).status_code == 200


def test_a_large_body_is_refused_for_overload_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answer comes although hardly any of the body does; the connection is then closed."""
    full = InFlight()
    full.limit = full.num_computing = 2
    monkeypatch.setattr("serve.middleware.in_flight", lambda: full)

    async def ask() -> bytes:
        async with _listening(_application()) as (listener, _):
            place = listener._listen
            reader, writer = await asyncio.open_connection(place.host, place.port)
            stated = b"Content-Length: 20971520"
            writer.write(b"POST /read HTTP/1.1\r\nHost: a\r\n" + stated + b"\r\n\r\n")
            writer.write(b"x" * 1000)
            answer = await asyncio.wait_for(reader.read(), 10)  # to the end of the connection
            writer.close()
            return answer

    head = asyncio.run(ask()).lower()
    assert head.startswith(b"http/1.1 503")
    assert b"\nretry-after: " in head


def test_an_upload_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.bodies.UPLOAD_SECONDS", 0.1)

    async def slowly() -> AsyncIterator[bytes]:
        yield b"half"
        await asyncio.sleep(5)

    async def ask() -> httpx.Response:
        async with _listening(_application()) as (_, client):
            return await client.post("/read", content=slowly())

    is_problem(asyncio.run(ask()), 408, "upload_too_slow")


def test_a_server_that_has_ended_is_not_healthy() -> None:
    async def ask() -> None:
        app = _Waits()
        async with _listening(app) as (listener, _):
            assert listener._serving is not None
            listener._serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listener._serving
            with pytest.raises(RuntimeError, match="has ended"):
                await listener.ensure_running(app)

    asyncio.run(ask())


def test_a_taken_port_is_an_error() -> None:
    async def ask() -> None:
        app = _Waits()
        async with _listening(app) as (listener, _):
            with pytest.raises(OSError, match="in use"):
                await Listener(listener._listen).ensure_running(app)

    asyncio.run(ask())
