"""The middleware of every request: request id, API key, body limit, log line, response headers."""

import asyncio
import functools
import logging
import re
import time
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from starlette.datastructures import MutableHeaders
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api_keys import ApiKeys, key_of, keys_of_environment
from serve.in_flight import in_flight
from serve.logs import kind_and_place
from serve.metrics import request_metrics
from serve.problems import (
    body_too_large,
    crashed,
    keys_unavailable,
    new_request_id,
    overloaded,
    problem,
    stopping,
)

# Routes that need no API key. They reveal nothing about images or the model, and probes and the
# page use them.
OPEN = (
    "/",
    "/healthz",
    "/readyz",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/melanoma/ready",
    "/openapi.json",
    "/docs",
)
ALIVE = ("/healthz", "/v2/health/live")
"""Routes that still answer while the service stops, because the process is alive."""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
OVERLOAD_LOG_SECONDS = 1.0
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{0,255}")
logger = logging.getLogger("ray.serve")


def install_middleware(app: FastAPI, *, max_body_bytes: int) -> None:
    """Add the middleware to an application."""
    # Counts the bytes of bodies that state no length; `_refusal` checks the stated lengths.
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=max_body_bytes)
    app.add_middleware(_Surround, max_body_bytes=max_body_bytes)


class _Surround:
    """Gives a request its id, refuses it or passes it on, logs it and completes its answer.

    It is plain ASGI, because starlette's middleware of functions runs each request in tasks of its
    own, which takes as long as everything else that is done for a request here.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app, self._max_body_bytes = app, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, started, answer = scope["method"], time.perf_counter(), _Answer(send)
        # Answer HEAD like GET. The HTTP server, which keeps its own scope, leaves out the body.
        scope = {**scope, "method": "GET"} if method == "HEAD" else scope
        request = Request(scope, receive)
        # The id is returned in the body. The header X-Request-ID belongs to Ray Serve's proxy,
        # which echoes the client's value.
        request.state.request_id = new_request_id()
        try:
            await self._refuse_or_pass_on(request, receive, answer.send)
        except ClientDisconnect:
            return  # in the middle of its body; nobody waits for an answer
        except Exception as error:
            # The outermost frame. Log only the class and the place, because the message may
            # contain the client's input.
            logger.error("%s, request %s", kind_and_place(error), request.state.request_id)
            if answer.status == 0:  # nothing was sent yet
                await crashed(request)(scope, receive, answer.send)
        if answer.status == HTTPStatus.OK and _computes(request):
            in_flight().answered()
        _log(request, method, answer.status, time.perf_counter() - started)

    async def _refuse_or_pass_on(self, request: Request, receive: Receive, send: Send) -> None:
        refusal = _refusal(request, self._max_body_bytes)
        if refusal is not None:
            await refusal(request.scope, receive, send)
            return
        with in_flight().counted(computes=_computes(request)):
            await self._app(request.scope, receive, send)


class _Answer:
    """What is sent for one request. Adds the headers of every answer.

    Attributes:
        status: the HTTP status; 0 as long as nothing was sent.
    """

    def __init__(self, send: Send) -> None:
        self._send, self.status = send, 0

    async def send(self, message: Message) -> None:
        """Send a message of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message).update(HEADERS)
        await self._send(message)


def _computes(request: Request) -> bool:
    """Return whether a request needs the network; all that do are POST."""
    return request.method == "POST"


def _log(request: Request, method: str, status: int, seconds: float) -> None:
    """Count and log a request that was answered with a status."""
    outcome = str(status)
    if status >= 400:
        code = getattr(request.state, "code", "unknown")
        request_metrics().refused(code, status)
        if code == "overloaded":
            _overload_log().refused()
            return
        outcome += f" {code}"
    # Log the route's pattern and not the address, which may contain anything.
    logger.info(
        "%s %s %s in %.0f ms, request %s",
        method,
        getattr(request.scope.get("route"), "path", "no route"),
        outcome,
        1000 * seconds,
        request.state.request_id,
    )


class _OverloadLog:
    """Logs one line a second about refusals for overload.

    A line for each would take time from the answers of a service that is asked far too much.
    """

    def __init__(self) -> None:
        self._num = 0

    def refused(self) -> None:
        """Count one refused request."""
        self._num += 1
        if self._num == 1:
            asyncio.get_running_loop().call_later(OVERLOAD_LOG_SECONDS, self._write)

    def _write(self) -> None:
        logger.info("%d requests answered 503 overloaded", self._num)
        self._num = 0


@functools.cache
def _overload_log() -> _OverloadLog:
    return _OverloadLog()


def _refusal(request: Request, max_body_bytes: int) -> Response | None:
    """Return the refusal of a request before its body is read, or None if it is accepted."""
    if in_flight().is_stopping and request.scope["path"] not in ALIVE:
        return stopping(request)
    if not _HOST.fullmatch(request.headers.get("host", "")):
        return problem(
            request,
            400,
            "bad_host",
            "The Host header must be a name or an address. Send that of the service.",
        )
    if (refused := _key_refusal(request, _keys())) is not None:
        return refused
    # Questions about health are answered however busy it is.
    if in_flight().is_full and _computes(request):
        return overloaded(request, seconds=in_flight().retry_after())
    length = request.headers.get("content-length", "")
    return (
        body_too_large(request, max_body_bytes)
        if length.isdigit() and int(length) > max_body_bytes
        else None
    )


@functools.cache
def _keys() -> ApiKeys | None:
    return keys_of_environment()


def _key_refusal(request: Request, keys: ApiKeys | None) -> Response | None:
    path = request.scope["path"]  # the path that routing uses
    if keys is None or path in OPEN or path.startswith(("/page/", "/docs/assets/")):
        return None
    keys.refresh()
    request_metrics().read_keys(len(keys.invalid_lines))
    if keys.trouble:
        return keys_unavailable(request)
    key = key_of(request.headers)
    if key is None:
        detail = "The request must carry an API key. Send it as Authorization: Bearer KEY."
        return problem(request, 401, "no_key", detail, headers={"WWW-Authenticate": "Bearer"})
    if keys.allow(key):
        return None
    return problem(
        request,
        403,
        "wrong_key",
        "The API key must be valid here. Ask the operator of the service for another.",
    )
