"""What a Ray cluster that this machine starts for itself must have: a token for every port, and nothing sent to anybody.

Ray listens on all addresses of a machine (scheduler, object store, every worker and replica),
whatever the address of the HTTP server. Without a token everybody who reaches one of those ports
can run code as the user that started it.
"""

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator

from melanoma.errors import DataError

MODE, TOKENS = "RAY_AUTH_MODE", ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
INSECURE = "MELANOMA_INSECURE_RAY"
"""Environment variable: 1 allows a local cluster without a token; `--insecure-ray` sets it."""


def allow_insecure_ray() -> None:
    """Let this process and its children start Ray without a token."""
    os.environ |= {MODE: "disabled", INSECURE: "1"}


@contextlib.contextmanager
def safe_defaults() -> Iterator[None]:
    """Set the environment for a cluster that is started inside; the token is new for each process unless one is named.

    Raises:
        DataError: if RAY_AUTH_MODE switches the token off and nobody asked for that danger by name.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    mode = os.environ.get(MODE, "")
    if mode.lower() not in ("", "token") and os.environ.get(INSECURE) != "1":
        raise DataError(
            f"{MODE}={mode} would let everybody who reaches this machine's network run code as you"
            " through Ray's ports; unset it, or pass --insecure-ray if that is what you want."
        )
    if mode.lower() in ("", "token") and not any(os.environ.get(name) for name in TOKENS):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if not mode:
        os.environ.pop(
            MODE, None
        )  # Ray then turns the token on itself, also where it was imported before
    from ray._private.node import Node

    # Without a dashboard this starts nothing but Ray's usage reporter, which asks clouds' metadata
    # hosts although it is switched off.
    start_api_server = Node.start_api_server
    Node.start_api_server = _start_nothing  # type: ignore[method-assign]
    notices = logging.getLogger("ray._private.authentication.authentication_token_setup")
    level = notices.level
    notices.setLevel(logging.ERROR)
    try:
        yield
    finally:
        notices.setLevel(level)
        Node.start_api_server = start_api_server  # type: ignore[method-assign]


def _start_nothing(*_: object, **__: object) -> None:
    """Stand in for the start of a dashboard that nobody asked for."""
