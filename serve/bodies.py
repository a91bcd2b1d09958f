"""Reads the body of a request: complete, decompressed and limited. Knows nothing of its content."""

import asyncio
import contextlib
import zlib

from fastapi import Request

MAX_BODY_BYTES = 20 * 1024 * 1024
UPLOAD_SECONDS = 120
"""How long a body may take to arrive. In front of a cluster, Ray's proxy gives up earlier."""
_WINDOWS = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}
"""zlib's window bits by Content-Encoding. Clients send deflate with and without a zlib header."""


class RefusedError(Exception):
    """A request is refused with its own status and code.

    Attributes:
        status: the HTTP status.
        code: a stable machine-readable name of the reason.
        headers: extra headers of the response.
    """

    def __init__(
        self, status: int, code: str, detail: str, *, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.headers = status, code, headers or {}


async def read_body(request: Request) -> bytes:
    """Return the body of a request, decompressed if it is gzip or deflate.

    Raises:
        RefusedError: if the body is too slow, was lost, has another Content-Encoding, is damaged,
            or is too large.
    """
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            data = await request.body()
    except TimeoutError:
        raise RefusedError(
            408,
            "upload_too_slow",
            f"The whole request must arrive within {UPLOAD_SECONDS} s; it did not. Send a smaller"
            " image.",
            headers={"Connection": "close"},
        ) from None
    if not data and _has_lost_its_body(request):
        # After an Upgrade header, the HTTP server reads the body as another protocol. The
        # connection cannot be used again.
        raise RefusedError(
            400,
            "body_lost",
            "The body was lost, because the request offered to change the protocol (Upgrade). Send"
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
            "The Content-Encoding must be gzip, deflate or none. Send the body uncompressed.",
            headers={"Accept-Encoding": "gzip, deflate, identity"},
        )
    return await asyncio.to_thread(_decompressed, data, encoding)


def _has_lost_its_body(request: Request) -> bool:
    length = request.headers.get("content-length", "")
    return "upgrade" in request.headers and (
        length.strip("0") != "" or "transfer-encoding" in request.headers
    )


def _all_members(data: bytes, window: int) -> bytes:
    """Return the decompressed content of one or several consecutive members.

    Args:
        data: the compressed body.
        window: zlib's window bits.

    Raises:
        zlib.error: if there is no member, or one is damaged or cut off.
        RefusedError: if the content is too large.
    """
    if not data:
        raise zlib.error
    whole = b""
    while data:
        reader = zlib.decompressobj(window)
        # Stop one byte after the limit, so that a small body cannot expand to fill the memory.
        whole += reader.decompress(data, MAX_BODY_BYTES + 1 - len(whole))
        if len(whole) > MAX_BODY_BYTES:
            raise RefusedError(
                413,
                "body_too_large",
                f"The decompressed body must have at most {MAX_BODY_BYTES // 2**20} MiB. Send a"
                " smaller image.",
            )
        if not reader.eof:
            raise zlib.error
        data = reader.unused_data
    return whole


def _decompressed(data: bytes, encoding: str) -> bytes:
    for window in _WINDOWS[encoding]:
        with contextlib.suppress(zlib.error):
            return _all_members(data, window)
    raise RefusedError(
        400,
        "bad_encoding",
        "The body must be complete and match its Content-Encoding. Send it uncompressed.",
    )
