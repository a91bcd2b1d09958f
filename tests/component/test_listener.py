"""The HTTP server inside a replica: with an application of test routes, without Ray."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.listener import Listen, Listener
from tests.clusters import free_ports


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
async def _listening(app: ASGIApp) -> AsyncIterator[tuple[Listener, httpx.AsyncClient]]:
    (port,) = free_ports(1)
    listener = Listener(Listen("127.0.0.1", port, max_requests=8))
    await listener.ensure_running(app)
    await asyncio.sleep(0.1)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
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
