"""Safe defaults for a local Ray cluster: a token for every port, and no usage reports.

Ray listens on all addresses of a machine (scheduler, object store, every worker and replica), even
if the HTTP server listens on loopback only. Without a token, anyone who can reach one of those
ports can run code as the user who started Ray.
"""

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator

from melanoma.errors import DataError

MODE, TOKENS = "RAY_AUTH_MODE", ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
INSECURE = "MELANOMA_INSECURE_RAY"
"""Environment variable that allows a local cluster without a token if it is 1.

`--insecure-ray` sets it.
"""


def allow_insecure_ray() -> None:
    """Allow this process and its children to start Ray without a token."""
    os.environ |= {MODE: "disabled", INSECURE: "1"}


@contextlib.contextmanager
def safe_defaults() -> Iterator[None]:
    """Set the environment for a cluster that is started inside the block.

    Each process makes a new token, unless the environment names one.

    Raises:
        DataError: if RAY_AUTH_MODE disables the token although --insecure-ray was not passed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    mode = os.environ.get(MODE, "")
    if mode.lower() not in ("", "token") and os.environ.get(INSECURE) != "1":
        raise DataError(
            f"{MODE} must not disable the token; it is {mode}. Anyone who can reach this machine"
            " over the network could run code as you through Ray's ports. Unset it, or pass"
            " --insecure-ray to accept this."
        )
    if mode.lower() in ("", "token") and not any(os.environ.get(name) for name in TOKENS):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if not mode:
        # Without the variable Ray enables the token itself, even if it was imported before.
        os.environ.pop(MODE, None)
    from ray._private.node import Node

    # Without a dashboard the API server runs only Ray's usage reporter. It contacts the metadata
    # hosts of cloud providers even if usage reports are disabled.
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
    """Replace the start of the API server."""
