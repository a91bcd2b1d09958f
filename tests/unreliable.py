"""Object storage that fails on demand: one server that is good, and another with the same objects,
which is slow, full or failing when told to."""

import contextlib
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

ERROR = (
    "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>a drill</Message></Error>"
)
WRITES = ("PUT", "POST")


class Trouble:
    """What is wrong with a storage; state: set while a test runs.

    Attributes:
        write_seconds: how long each write takes longer.
        failing: whether everything is answered 503.
        full: whether every write is answered 507.
        refused: how many requests were.
        delayed: how many writes were.
    """

    def __init__(self) -> None:
        self.write_seconds, self.failing, self.full = 0.0, False, False
        self.refused = self.delayed = 0

    def answer(self, method: str) -> tuple[int, str] | None:
        """Return the status and the code with which a request is refused, or None."""
        if method in WRITES and self.write_seconds:
            time.sleep(self.write_seconds)
            self.delayed += 1
        found = (
            (503, "SlowDown")
            if self.failing
            else (507, "InsufficientStorage")
            if self.full and method in WRITES
            else None
        )
        self.refused += found is not None
        return found


@contextlib.contextmanager
def unreliable_storage(bucket: str) -> Iterator[tuple[str, str, Trouble]]:
    """Give the queries that make s3:// addresses reach a storage with one bucket, plainly and
    through trouble, and the trouble."""
    storage, trouble = DomainDispatcherApplication(create_backend_app), Trouble()

    def troubled(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        refusal = trouble.answer(environ["REQUEST_METHOD"])
        if refusal is None:
            return storage(environ, start_response)
        Request(
            environ
        ).get_data()  # what is not read would break the connection, and that is another trouble
        return Response(ERROR.format(refusal[1]), refusal[0], mimetype="application/xml")(
            environ, start_response
        )

    servers = [make_server("127.0.0.1", 0, app, threaded=True) for app in (storage, troubled)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{servers[0].server_port}"
        for path, method in (
            ("moto-api/reset", "POST"),
            (bucket, "PUT"),
        ):  # what is stored outlives its servers
            urllib.request.urlopen(
                urllib.request.Request(f"{address}/{path}", method=method), timeout=10
            ).close()
        good, bad = (
            f"endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=us-east-1"
            for server in servers
        )
        yield good, bad, trouble
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
