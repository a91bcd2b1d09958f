"""What /openapi.json says beyond what the routes say themselves, and /docs, which shows it without any outside address."""

from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

from serve.schemas import Problem

DESCRIPTION = """Melanoma triage of dermoscopic pictures. **Research use only; not a medical device.**

Every error is an `application/problem+json` with a `code` and the `request_id`. How often one may ask is the gateway's business."""
PAGE = Path(__file__).with_name("page")
# Says in the schema that a key may be asked for; the frame is what asks.
KEYED: Any = [Depends(HTTPBearer(auto_error=False, description="an API key; see MELANOMA_API_KEYS_FILE"))]
PICTURE = {
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


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of some errors."""
    return {
        status: {
            "model": Problem,
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


def install_docs(app: FastAPI) -> None:
    """Add /docs: Swagger UI out of a package, started by a script of our own, for the policy allows none inside a page."""
    app.mount("/docs/assets", StaticFiles(directory=str(resources.files("fastapi_offline") / "static")))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(PAGE / "docs.html")
