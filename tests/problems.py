"""What every refusal over HTTP must look like."""

from typing import Any

import httpx

FIELDS = {"type", "title", "status", "detail", "code", "request_id"}


def is_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is one problem of one kind, in a sentence that ends, and return it."""
    assert response.status_code == status, response.text[:500]
    # Clients of the Open Inference Protocol read an error from plain JSON only.
    kind = (
        "application/json"
        if response.request.url.path.startswith("/v2")
        else "application/problem+json"
    )
    assert response.headers["content-type"] == kind
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    body: dict[str, Any] = response.json()
    assert set(body) - {"error"} == FIELDS
    assert (body["status"], body["code"]) == (status, code)
    assert body["detail"].endswith(".")
    return body
