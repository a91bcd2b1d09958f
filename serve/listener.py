"""An HTTP server inside a replica, for a service of one replica on one machine.

Behind Ray Serve's proxy every request crosses two processes and is copied between them, which takes
a good part of what a small network takes. Knows nothing of routes or images.
"""

import asyncio
import contextlib
import dataclasses
import socket

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclasses.dataclass(frozen=True)
class Listen:
    """Where a replica listens.

    Attributes:
        host: address to listen on.
        port: port to listen on.
        max_requests: how many requests it takes at once; the others get 503.
        keep_alive_seconds: how long an idle connection stays open.
    """

    host: str
    port: int
    max_requests: int
    keep_alive_seconds: int


class Listener:
    """The HTTP server of one replica. It listens from the first `ensure_running` on."""

    def __init__(self, listen: Listen) -> None:
        self._listen = listen
        self._serving: asyncio.Task[None] | None = None

    async def ensure_running(self, app: ASGIApp) -> None:
        """Start the server if it was not started yet.

        Args:
            app: answers the requests.

        Raises:
            OSError: if the address is not available.
            RuntimeError: if the server has ended.
        """
        if self._serving is None:
            server = uvicorn.Server(
                uvicorn.Config(
                    _CancelledWithClient(app),
                    timeout_keep_alive=self._listen.keep_alive_seconds,
                    lifespan="off",
                    ws="none",
                    access_log=False,
                    log_config=None,
                    server_header=False,
                    proxy_headers=False,
                )
            )
            self._serving = asyncio.create_task(server.serve([self._socket()]))
        elif self._serving.done():
            cause = None if self._serving.cancelled() else self._serving.exception()
            raise RuntimeError("The HTTP server of this replica has ended.") from cause

    def _socket(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._listen.host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        # Connections of a replica before this one may still be closing.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((self._listen.host, self._listen.port))
            listening.listen()
        except OSError:
            listening.close()
            raise
        return listening


class _CancelledWithClient:
    """Cancels the work for a request whose client has gone, as Ray Serve's proxy does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        working = asyncio.current_task()
        assert working is not None
        watching: asyncio.Task[None] | None = None

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            working.cancel()

        async def receive_whole() -> Message:
            nonlocal watching
            if watching is not None:  # the body is complete; the watch has the next message
                await asyncio.shield(watching)
                return {"type": "http.disconnect"}
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                watching = asyncio.create_task(watch())
            return message

        try:
            await self._app(scope, receive_whole, send)
        except asyncio.CancelledError:
            if watching is None or not watching.done():
                raise
        finally:
            if watching is not None:
                watching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watching
