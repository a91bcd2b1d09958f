"""Turns every error into problem+json. No message holds a path, a stack, a file name or input."""

import http
import uuid

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, RayError
from ray.serve.exceptions import RayServeException
from starlette.exceptions import HTTPException

from melanoma.errors import (
    InvalidImageError,
    NumImagesError,
    OneImageOnlyError,
    RepeatedImageError,
)
from serve.bodies import RefusedError
from serve.in_flight import in_flight
from serve.lanes import OverloadedError
from serve.model_client import BundleChangingError
from serve.models import NotReadyError
from serve.open_inference import InferenceRequestError
from serve.schemas import Problem

RETRY_AFTER_SECONDS, KEYS_RETRY_AFTER_SECONDS = "1", "10"
_MESSAGES = {
    400: (
        "bad_request",
        "The body must be an image, or a complete multipart form with images. See /openapi.json.",
    ),
    404: ("not_found", "The address must be one of those at /openapi.json."),
    405: ("method_not_allowed", "The method must be allowed for this address. See /openapi.json."),
    406: (
        "not_acceptable",
        (
            "Accept must allow application/json, or application/pdf for a report. Leave it out to"
            " accept any type."
        ),
    ),
    413: ("body_too_large", "The body must be smaller. Send a smaller image."),
}


def new_request_id() -> str:
    """Return a new id. A client's own id is never echoed, because it may contain anything."""
    return uuid.uuid4().hex


def problem(
    request: Request, status: int, code: str, detail: str, *, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Return one error.

    Under /v2 it is plain JSON, with the message also in the field `error`, because clients of that
    protocol read it there.

    Args:
        request: the request that failed.
        status: the HTTP status.
        code: a stable machine-readable name of the reason.
        detail: what is wrong and what to do about it.
        headers: extra headers of the response.
    """
    request.state.code = code  # for the middleware, which counts and logs refusals
    is_v2 = request.scope["path"].startswith("/v2")
    body = Problem(
        title=http.HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        request_id=request.state.request_id,
        error=detail if is_v2 else None,
    )
    return JSONResponse(
        body.model_dump(exclude_none=True),
        status_code=status,
        headers=headers,
        media_type="application/json" if is_v2 else "application/problem+json",
    )


def stopping(request: Request) -> JSONResponse:
    """Return the refusal of a request that arrives while the service is stopping."""
    detail = "The service is stopping. Try another one, or try again after the time in Retry-After."
    return problem(
        request, 503, "stopping", detail, headers={"Retry-After": "10", "Connection": "close"}
    )


def overloaded(request: Request, *, seconds: int) -> JSONResponse:
    """Return the refusal of a request that would wait too long.

    Args:
        request: the refused request.
        seconds: when to ask again.
    """
    detail = "The service is at its limit. Try again after the time in Retry-After."
    return problem(request, 503, "overloaded", detail, headers={"Retry-After": str(seconds)})


def body_too_large(request: Request, limit: int) -> JSONResponse:
    """Return the refusal of a body whose stated length is over the limit; it is not read."""
    return problem(
        request,
        413,
        "body_too_large",
        f"The body must have at most {limit // 2**20} MiB. Send a smaller image.",
    )


def keys_unavailable(request: Request) -> JSONResponse:
    """Return the refusal of every request while the file of API keys cannot be used."""
    detail = (
        "The service cannot check API keys, because its key file cannot be used. Try again after"
        " the time in Retry-After."
    )
    return problem(
        request, 503, "keys_unavailable", detail, headers={"Retry-After": KEYS_RETRY_AFTER_SECONDS}
    )


async def _bundle_changing(request: Request, error: Exception) -> JSONResponse:
    detail = "A new model is being rolled out. Try again after the time in Retry-After."
    return problem(
        request, 503, "bundle_changing", detail, headers={"Retry-After": RETRY_AFTER_SECONDS}
    )


async def _invalid_inference(request: Request, error: Exception) -> JSONResponse:
    return problem(request, 400, "invalid_inference_request", str(error))


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedError)
    return problem(request, error.status, error.code, str(error), headers=error.headers)


async def _invalid_image(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InvalidImageError)
    return problem(request, error.status, error.code, str(error))


async def _too_many_images(request: Request, error: Exception) -> JSONResponse:
    return problem(request, 422, "too_many_images", str(error))


async def _one_image_only(request: Request, error: Exception) -> JSONResponse:
    return problem(request, 422, "one_image_only", str(error))


async def _repeated_image(request: Request, error: Exception) -> JSONResponse:
    return problem(request, 422, "repeated_image", str(error))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code, detail = _MESSAGES.get(
        error.status_code, ("error", f"{http.HTTPStatus(error.status_code).phrase}.")
    )
    return problem(request, error.status_code, code, detail, headers=dict(error.headers or {}))


async def _validation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # Only the message of a choice, which lists the allowed words, is safe to return. Others might
    # repeat the client's input.
    places = sorted(
        {
            ".".join(str(part) for part in item["loc"])
            + (f" ({item['msg']})" if item["type"] == "literal_error" else "")
            for item in error.errors()
        }
    )
    return problem(
        request,
        422,
        "invalid_request",
        f"The request must follow the schema at /openapi.json. Wrong: {', '.join(places)}.",
    )


async def _not_ready(request: Request, error: Exception) -> JSONResponse:
    detail = "No replica with loaded weights answers. Try again after the time in Retry-After."
    return problem(request, 503, "not_ready", detail, headers={"Retry-After": RETRY_AFTER_SECONDS})


async def _busy(request: Request, error: Exception) -> JSONResponse:
    return overloaded(request, seconds=in_flight().retry_after())


async def _too_slow(request: Request, error: Exception) -> JSONResponse:
    return problem(
        request,
        504,
        "timeout",
        "The service did not answer in time after it received the whole image. Try again when it is"
        " less busy.",
    )


async def _model_failed(request: Request, error: Exception) -> JSONResponse:
    return problem(
        request,
        500,
        "model_error",
        "The network's scores for this image are not finite. Send another image.",
    )


async def _ray_failed(request: Request, error: Exception) -> JSONResponse:
    """Answer an error that Ray passes on from another replica.

    Ray raises an error of this project's code as an instance of both its own and the original
    class.
    """
    if isinstance(error, FloatingPointError):
        return await _model_failed(request, error)
    if isinstance(error, (ActorDiedError, ActorUnavailableError, NodeDiedError)):
        detail = (
            "A part of the service was lost during this request. Try again after the time in"
            " Retry-After."
        )
        return problem(
            request, 503, "replica_lost", detail, headers={"Retry-After": RETRY_AFTER_SECONDS}
        )
    return crashed(request)


def crashed(request: Request) -> JSONResponse:
    """Return the answer to a request that failed with an unexpected error."""
    detail = (
        "The service failed on this request. Try again, and report the request_id if it fails"
        " again."
    )
    return problem(request, 500, "internal_error", detail)


def install_problem_handlers(app: FastAPI) -> None:
    """Register the handlers that answer every error as problem+json."""
    app.add_exception_handler(InvalidImageError, _invalid_image)
    app.add_exception_handler(NumImagesError, _too_many_images)
    app.add_exception_handler(OneImageOnlyError, _one_image_only)
    app.add_exception_handler(RepeatedImageError, _repeated_image)
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(BundleChangingError, _bundle_changing)
    app.add_exception_handler(InferenceRequestError, _invalid_inference)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(OverloadedError, _busy)
    app.add_exception_handler(NotReadyError, _not_ready)
    app.add_exception_handler(TimeoutError, _too_slow)
    app.add_exception_handler(FloatingPointError, _model_failed)
    app.add_exception_handler(RayError, _ray_failed)
    app.add_exception_handler(RayServeException, _ray_failed)
