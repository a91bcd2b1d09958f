"""What can be known of a Ray cluster before Ray is asked, which waits for minutes where it could say no at once."""

import os
import socket
import sys
import time
from urllib.parse import urlsplit

from melanoma.errors import DataError

ATTEMPTS, TIMEOUT_SECONDS, PAUSE_SECONDS = 3, 5.0, 1.0
_SOCKET_PATH_BYTES = (104 if sys.platform == "darwin" else 108) - 1
_SESSION = "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
"""The longest path of a socket that Ray makes below its temporary folder."""
_LEFT_TO_RAY = ("auto", "local")
_DEFAULT_PORTS = {"ray": 10001, "http": 80, "https": 443}


def check_address(address: str) -> None:
    """Check that a Ray answers at the address in RAY_ADDRESS.

    Raises:
        DataError: if it is not an address that Ray takes.
        ConnectionError: if no Ray answers there.
    """
    if address in _LEFT_TO_RAY:
        return
    scheme, host, port = _parse(address)
    problem = _connect(host, port) or (
        "" if scheme in ("http", "https") else _speaks_grpc(host, port)
    )
    if problem:
        raise ConnectionError(
            f"no Ray answers at {address} ({problem}); unset RAY_ADDRESS or start it."
        )
    if scheme in ("http", "https"):
        raise DataError(
            f"RAY_ADDRESS must be HOST:PORT of the head (6379 as a rule), {address} is a dashboard;"
            f" unset it and pass --address {address}."
        )


def _parse(address: str) -> tuple[str, str, int]:
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        host = port = None
    if not host or not port or parts.scheme not in ("", *_DEFAULT_PORTS):
        raise DataError(
            f"RAY_ADDRESS must be HOST:PORT, ray://HOST:PORT or auto, got {address!r}; unset it to"
            " start a Ray here."
        )
    return parts.scheme, host, port


def _connect(host: str, port: int) -> str:
    """Return why nothing can be reached at a port, or ""; a head that is just starting gets some seconds."""
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        try:
            socket.create_connection((host, port), timeout=TIMEOUT_SECONDS).close()
            return ""
        except socket.gaierror:
            problem = f"the name {host} is not known"
        except OSError as error:
            problem = error.strerror or "no answer in time"
    return problem


def _speaks_grpc(host: str, port: int) -> str:
    """Return why what listens at a port cannot be Ray, or ""."""
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return ""
    import grpc  # not for those who start a Ray of their own

    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with grpc.insecure_channel(where, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=2 * TIMEOUT_SECONDS)
        except grpc.FutureTimeoutError:
            return "something else listens there"
    return ""


def check_temp_dir() -> None:
    """Raise DataError if the sockets that a local Ray makes in its temporary folder would have too long a path."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    if name is None:
        return
    room = _SOCKET_PATH_BYTES - len(os.fsencode(os.path.join("", _SESSION))) - 1
    length = len(os.fsencode(os.environ[name].rstrip("/")))
    if length > room:
        raise DataError(
            f"{name} must have at most {room} bytes, it has {length}: paths of sockets that Ray"
            f" makes below it may have {_SOCKET_PATH_BYTES}; set RAY_TMPDIR to a shorter folder,"
            " such as /tmp."
        )
