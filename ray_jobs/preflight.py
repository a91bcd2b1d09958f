"""Checks a Ray cluster before Ray is used.

Ray itself waits for minutes before it reports these errors.
"""

import os
import socket
import sys
import time
from urllib.parse import urlsplit

from melanoma.errors import DataError

ATTEMPTS, TIMEOUT_SECONDS, PAUSE_SECONDS = 3, 5.0, 1.0
_SOCKET_PATH_BYTES = (104 if sys.platform == "darwin" else 108) - 1
_SESSION = "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
"""The longest path of a socket that Ray creates below its temporary folder."""
_LEFT_TO_RAY = ("auto", "local")
_DEFAULT_PORTS = {"ray": 10001, "http": 80, "https": 443}


def check_address(address: str) -> None:
    """Check that Ray answers at the address in RAY_ADDRESS.

    Raises:
        DataError: if the address is not valid, or is that of a dashboard.
        ConnectionError: if Ray does not answer there.
    """
    if address in _LEFT_TO_RAY:
        return
    scheme, host, port = _parse(address)
    problem = _connect(host, port) or (
        "" if scheme in ("http", "https") else _speaks_grpc(host, port)
    )
    if problem:
        raise ConnectionError(
            f"Ray does not answer at {address} ({problem}). Start it, or unset RAY_ADDRESS."
        )
    if scheme in ("http", "https"):
        raise DataError(
            f"RAY_ADDRESS must be HOST:PORT of the head (usually port 6379); {address} is a"
            f" dashboard. Unset it and pass --address {address}."
        )


def _parse(address: str) -> tuple[str, str, int]:
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        host = port = None
    if not host or not port or parts.scheme not in ("", *_DEFAULT_PORTS):
        raise DataError(
            f"RAY_ADDRESS must be HOST:PORT, ray://HOST:PORT or auto; it is {address!r}. Correct"
            " it, or unset it to start a local Ray."
        )
    return parts.scheme, host, port


def _connect(host: str, port: int) -> str:
    """Return why a port cannot be reached, or "".

    It tries several times, because a head may be just starting.
    """
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        try:
            socket.create_connection((host, port), timeout=TIMEOUT_SECONDS).close()
            return ""
        except socket.gaierror:
            problem = f"the host name {host} is unknown"
        except OSError as error:
            problem = error.strerror or "no answer in time"
    return problem


def _speaks_grpc(host: str, port: int) -> str:
    """Return why the program at a port is not Ray, or ""."""
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return ""
    import grpc  # imported late, because a local Ray does not need it

    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with grpc.insecure_channel(where, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=2 * TIMEOUT_SECONDS)
        except grpc.FutureTimeoutError:
            return "another program listens there"
    return ""


def check_temp_dir() -> None:
    """Raise DataError if the path of the temporary folder is too long for Ray's sockets."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    if name is None:
        return
    room = _SOCKET_PATH_BYTES - len(os.fsencode(os.path.join("", _SESSION))) - 1
    length = len(os.fsencode(os.environ[name].rstrip("/")))
    if length > room:
        raise DataError(
            f"{name} must have at most {room} bytes; it has {length}. Ray creates sockets below it,"
            f" whose paths may have at most {_SOCKET_PATH_BYTES} bytes. Set RAY_TMPDIR to a shorter"
            " folder, such as /tmp."
        )
