"""What surrounds every request: its id, its key, the limit of its body, its line in the log and the headers of its answer."""

import functools
import logging
import re
import time
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from serve.api_keys import ApiKeys, key_of, keys_of_environment
from serve.in_flight import in_flight
from serve.logs import kind_and_place
from serve.metrics import request_metrics
from serve.problems import (
    body_too_large,
    crashed,
    keys_unavailable,
    new_request_id,
    problem,
    stopping,
)

# What says nothing about images or the model: anybody may ask, as probes and the page must.
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
"""What still says that the process is alive while it stops."""
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
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{0,255}")
logger = logging.getLogger("ray.serve")


def install_middleware(app: FastAPI, *, max_body_bytes: int) -> None:
    """Surround every request of an application."""
    app.add_middleware(
        RequestBodyLimitMiddleware, max_body_size=max_body_bytes
    )  # counts bodies that state no length

    @app.middleware("http")
    async def frame(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        # The id stands in the body; the header X-Request-ID belongs to Ray Serve's proxy, which
        # takes over what the client sent.
        request.state.request_id, started = new_request_id(), time.perf_counter()
        if (
            request.method == "HEAD"
        ):  # of any address that can be got; the HTTP server leaves the body out
            request.scope["method"] = "GET"
        try:
            response = _refusal(request, max_body_bytes)
            if response is None:
                with in_flight().counted():
                    response = await call_next(request)
        except Exception as error:
            # The outermost frame: the kind and the place are for the log, the words may be the
            # client's.
            logger.error("%s, request %s", kind_and_place(error), request.state.request_id)
            response = crashed(request)
        response.headers.update(HEADERS)
        outcome = str(response.status_code)
        if response.status_code >= 400:
            code = getattr(request.state, "code", "unknown")
            request_metrics().refused(code, response.status_code)
            outcome += f" {code}"
        seconds = time.perf_counter() - started
        # The pattern of the route: what a client wrote in an unknown address stays out of the log.
        logger.info(
            "%s %s %s in %.0f ms, request %s",
            request.method, getattr(request.scope.get("route"), "path", "no route"), outcome, 1000 * seconds, request.state.request_id,
        )  # fmt: skip
        return response


def _refusal(request: Request, max_body_bytes: int) -> Response | None:
    """Return why a request is refused before its body is read, None if it is not."""
    if in_flight().is_stopping and request.scope["path"] not in ALIVE:
        return stopping(request)
    if not _HOST.fullmatch(request.headers.get("host", "")):
        return problem(
            request,
            400,
            "bad_host",
            "The Host header must be a name or an address; send that of the service.",
        )
    if (refused := _key_refusal(request, _keys())) is not None:
        return refused
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
    path = request.scope["path"]  # what routing goes by
    if keys is None or path in OPEN or path.startswith(("/page/", "/docs/assets/")):
        return None
    keys.refresh()
    request_metrics().read_keys(len(keys.invalid_lines))
    if keys.trouble:
        return keys_unavailable(request)
    key = key_of(request.headers)
    if key is None:
        detail = "The request must carry an API key; send it as Authorization: Bearer KEY."
        return problem(request, 401, "no_key", detail, headers={"WWW-Authenticate": "Bearer"})
    if keys.allow(key):
        return None
    return problem(
        request,
        403,
        "wrong_key",
        "The API key must be valid here; ask the operator of the service for another.",
    )
