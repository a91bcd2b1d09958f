"""Object storage that fails on demand: a server in front of a good one, which is slow, full, or answers with errors as long as it is told to."""

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>a drill</Message></Error>"
WRITES = ("PUT", "POST")


class Trouble:
    """What is wrong with a storage; state: set while a test runs.

    Attributes:
        write_seconds: how long each write takes longer.
        failing: whether everything is answered 503.
        full: whether every write is answered 507.
        refused: how many requests were.
    """

    def __init__(self) -> None:
        self.write_seconds, self.failing, self.full, self.refused = 0.0, False, False, 0

    def answer(self, method: str) -> tuple[int, str] | None:
        """Return the status and the code with which a request is refused, or None."""
        if method in WRITES:
            time.sleep(self.write_seconds)
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
def in_front_of(query: str) -> Iterator[tuple[str, Trouble]]:
    """Give the query that makes s3:// addresses reach a storage through trouble, and the trouble.

    Args:
        query: that of the good storage.
    """
    good, trouble = parse_qs(query)["endpoint_override"][0], Trouble()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            refusal = trouble.answer(self.command)
            if refusal is not None:
                self._reply(refusal[0], [("Content-Type", "application/xml")], ERROR.format(refusal[1]).encode())
                return
            connection = http.client.HTTPConnection(good, timeout=60)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            self._reply(answer.status, answer.getheaders(), answer.read())
            connection.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815

        def _reply(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response(status)
            # Of the body of an answer to HEAD there is only the length.
            kept = [
                (n, v) for n, v in headers if n.lower() not in ("transfer-encoding", "connection", "content-length")
            ]
            length = dict(headers).get("Content-Length", str(len(body))) if self.command == "HEAD" else str(len(body))
            for name, value in [*kept, ("Content-Length", length)]:
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield query.replace(good, f"127.0.0.1:{server.server_port}"), trouble
    finally:
        server.shutdown()
        server.server_close()
