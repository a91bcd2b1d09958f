"""The body of a request as bytes: whole, unpacked, and never larger than allowed. Knows nothing of what it holds."""

import asyncio
import contextlib
import zlib

from fastapi import Request

MAX_BODY_BYTES = 20 * 1024 * 1024
_WINDOWS = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}
"""zlib's window bits by Content-Encoding; of deflate both forms are in use, with zlib's frame and without."""


class RefusedError(Exception):
    """A request that is refused for a reason of its own.

    Attributes:
        status: the HTTP status.
        code: a stable machine-readable name of the reason.
        headers: of the answer.
    """

    def __init__(
        self, status: int, code: str, detail: str, *, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.headers = status, code, headers or {}


async def read_body(request: Request) -> bytes:
    """Return the body of a request, unpacked if it came as gzip or deflate.

    Raises:
        RefusedError: if it was lost on the way, or comes in another encoding or a broken one.
    """
    data = await request.body()
    if not data and _has_lost_its_body(request):
        # Ray's HTTP server reads what follows an offered upgrade as another protocol; the
        # connection is of no more use.
        raise RefusedError(
            400,
            "body_lost",
            "The request offered to change the protocol (Upgrade), and its body was lost; send"
            " HTTP/1.1 without an Upgrade header.",
            headers={"Connection": "close"},
        )
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return data
    if encoding not in _WINDOWS:
        raise RefusedError(
            415,
            "unsupported_encoding",
            "The Content-Encoding must be gzip, deflate or none; send the body as it is.",
            headers={"Accept-Encoding": "gzip, deflate, identity"},
        )
    return await asyncio.to_thread(_unpacked, data, encoding)


def _has_lost_its_body(request: Request) -> bool:
    length = request.headers.get("content-length", "")
    return "upgrade" in request.headers and (
        length.strip("0") != "" or "transfer-encoding" in request.headers
    )


def _all_members(data: bytes, window: int) -> bytes:
    """Return what one or several packed members behind each other hold; raise zlib.error unless they are whole."""
    if not data:
        raise zlib.error
    whole = b""
    while data:
        reader = zlib.decompressobj(window)
        whole += reader.decompress(data, MAX_BODY_BYTES + 1 - len(whole))
        if len(whole) > MAX_BODY_BYTES:
            raise RefusedError(
                413,
                "body_too_large",
                f"The unpacked body must have at most {MAX_BODY_BYTES // 2**20} MiB.",
            )
        if not reader.eof:
            raise zlib.error
        data = reader.unused_data
    return whole


def _unpacked(data: bytes, encoding: str) -> bytes:
    for window in _WINDOWS[encoding]:
        with contextlib.suppress(zlib.error):
            return _all_members(data, window)
    raise RefusedError(
        400, "bad_encoding", "The body must be whole and in its Content-Encoding; send it as it is."
    )
