"""What /openapi.json says beyond what the routes say themselves, and /docs, which shows it without any outside address."""

from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

from serve.schemas import Problem

DESCRIPTION = """Melanoma triage of dermoscopic images. **Research use only; not a medical device.**

Every error of the service is an `application/problem+json` (under `/v2` an `application/json`) with
a `code` and the `request_id`; Ray's proxy in front of it tells a full
queue (503) or a body that takes too long (408) in plain words. How often one may ask is the
gateway's business."""
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
                for kind in ("image/jpeg", "image/png", "image/webp")
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}


async def refuse_unknown_query(request: Request) -> None:
    """Refuse a query field that the route does not know: mistyped, it would be passed over in silence."""
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    if set(request.query_params) - known:
        raise RequestValidationError(
            [{"type": "extra_forbidden", "loc": ("query", "an unknown field"), "msg": ""}]
        )


async def refuse_other_types(request: Request) -> None:
    """Refuse a client that takes none of the types all answers here have."""
    taken = [
        part.partition(";")[0].strip().lower()
        for part in (request.headers.get("accept") or "*/*").split(",")
    ]
    if not _ANSWERED.intersection(taken):
        raise HTTPException(406)


# All of them async: FastAPI sends any other to a thread, which costs more than what they do.
# The bearer says in the schema that a key may be asked for; the frame is what asks.
GUARDED: Any = [
    Depends(HTTPBearer(auto_error=False, description="an API key; see MELANOMA_API_KEYS_FILE")),
    Depends(refuse_unknown_query),
    Depends(refuse_other_types),
]


def errors(
    *statuses: int, kind: str = "application/problem+json"
) -> dict[int | str, dict[str, Any]]:
    """Return the description of some errors."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"model": Problem, "content": {kind: {"schema": schema}}} for status in statuses
    }


def install_docs(app: FastAPI) -> None:
    """Add /docs: Swagger UI out of a package, started by a script of our own, for the policy allows none inside a page."""
    app.mount(
        "/docs/assets", StaticFiles(directory=str(resources.files("fastapi_offline") / "static"))
    )

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(PAGE / "docs.html")
