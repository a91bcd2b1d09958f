"""Completes /openapi.json and serves /docs without any outside address."""

from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

from melanoma.evidence.several_images import MAX_IMAGES
from serve.schemas import Problem

DESCRIPTION = """Melanoma triage of dermoscopic images. **Research use only; not a medical device.**

Every error of the service is an `application/problem+json` (under `/v2` an `application/json`) with
a `code` and the `request_id`. In a cluster, Ray's proxy in front of the service reports a full
queue (503) or a body that takes too long (408) as plain text. The gateway sets rate limits."""
_ANSWERED = {
    "*/*",
    "application/*",
    "application/json",
    "application/pdf",
    "application/octet-stream",
}
PAGE = Path(__file__).with_name("page")
IMAGE = {
    "requestBody": {
        "required": True,
        "content": {
            **{
                kind: {"schema": {"type": "string", "format": "binary"}}
                for kind in ("image/jpeg", "image/png", "image/webp", "application/dicom")
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {
                            "type": "array",
                            "description": "images of one lesion, each in a field of this name",
                            "items": {"type": "string", "format": "binary"},
                            "minItems": 1,
                            "maxItems": MAX_IMAGES,
                        }
                    },
                }
            },
        },
    }
}


async def refuse_unknown_query(request: Request) -> None:
    """Refuse a query field that the route does not know; FastAPI would ignore a mistyped one."""
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    if set(request.query_params) - known:
        raise RequestValidationError(
            [{"type": "extra_forbidden", "loc": ("query", "an unknown field"), "msg": ""}]
        )


async def refuse_other_types(request: Request) -> None:
    """Refuse a client that accepts none of the content types of this service.

    Raises:
        HTTPException: 406.
    """
    taken = [
        part.partition(";")[0].strip().lower()
        for part in (request.headers.get("accept") or "*/*").split(",")
    ]
    if not _ANSWERED.intersection(taken):
        raise HTTPException(406)


# All of them are async, because FastAPI runs other functions in a thread, which costs more than
# their work. HTTPBearer only documents the key in the schema; the middleware checks it.
GUARDED: Any = [
    Depends(HTTPBearer(auto_error=False, description="An API key; see MELANOMA_API_KEYS_FILE.")),
    Depends(refuse_unknown_query),
    Depends(refuse_other_types),
]


def errors(
    *statuses: int, kind: str = "application/problem+json"
) -> dict[int | str, dict[str, Any]]:
    """Return the description of some errors for a route's `responses`.

    Args:
        *statuses: HTTP statuses of the errors.
        kind: their content type.
    """
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"model": Problem, "content": {kind: {"schema": schema}}} for status in statuses
    }


def install_docs(app: FastAPI) -> None:
    """Add /docs: Swagger UI from a package.

    A script file of this project starts it, because the content security policy forbids inline
    scripts.
    """
    app.mount(
        "/docs/assets", StaticFiles(directory=str(resources.files("fastapi_offline") / "static"))
    )

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(PAGE / "docs.html")
