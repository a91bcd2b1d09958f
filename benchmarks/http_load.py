"""Sends HTTP requests to a service and times the answers, with little work of its own.

The generator shares the cores with the service, so a full HTTP client would cost the service a
twentieth of its speed. This one writes requests that were built in advance, and reads of an answer
only its status, its Retry-After and its length.
"""

import asyncio
import dataclasses
import time
from collections.abc import Callable

import numpy as np

LOST = 0
"""The status of a request to which no answer came."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Where requests go.

    Attributes:
        port: port on this machine.
        path: path with the query.
        body: the body; None makes a GET request.
        field: form field that holds the body; None sends it raw.
    """

    port: int
    path: str
    body: bytes | None = None
    field: str | None = None

    @property
    def request(self) -> bytes:
        """The whole request as it is sent."""
        kind, body = "image/jpeg", self.body or b""
        if self.field is not None:
            kind = "multipart/form-data; boundary=limit"
            head = f'--limit\r\nContent-Disposition: form-data; name="{self.field}";'
            head += ' filename="p.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
            body = head.encode() + body + b"\r\n--limit--\r\n"
        start = f"{'GET' if self.body is None else 'POST'} {self.path} HTTP/1.1\r\n"
        start += f"Host: 127.0.0.1:{self.port}\r\n"
        if self.body is not None:
            start += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        return start.encode() + b"\r\n" + body


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        sent: when it was sent, s on the monotonic clock.
        seconds: how long it took, s.
        status: the HTTP status, or `LOST`.
        retry_after: the value of Retry-After, s; None if the answer has none.
    """

    sent: float
    seconds: float
    status: int
    retry_after: int | None = None


class Connection:
    """One connection that is kept open, and opened again after an error."""

    def __init__(self, target: Target) -> None:
        self._port, self._request = target.port, target.request
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, *, timeout_seconds: float = 60) -> Asked:
        """Send the request once."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(timeout_seconds):
                status, retry_after = await self._ask()
        except (OSError, EOFError, TimeoutError, ValueError):
            self.close()
            status, retry_after = LOST, None
        return Asked(started, time.monotonic() - started, status, retry_after)

    async def _ask(self) -> tuple[int, int | None]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
        reader, writer = self._streams
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *lines = head.split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        wait = headers.get("retry-after")
        return int(status_line.split(" ")[1]), None if wait is None else int(wait)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


async def closed_loop(target: Target, *, clients: int, seconds: float) -> list[Asked]:
    """Let some clients ask, each one again as soon as it has its answer."""
    stop = time.monotonic() + seconds

    async def client() -> list[Asked]:
        connection, asked = Connection(target), []
        while time.monotonic() < stop:
            asked.append(await connection.ask())
            if asked[-1].status == 503:
                await asyncio.sleep(asked[-1].retry_after or 1)
        connection.close()
        return asked

    return [
        one for each in await asyncio.gather(*(client() for _ in range(clients))) for one in each
    ]


def closed_rate(asked: list[Asked], *, clients: int) -> float:
    """Return the answers per second in a closed loop.

    Each client always waits for one answer, so it is their number divided by the mean time of an
    answer. The number of answers divided by the length of the loop would be too high, because those
    under way at its end count too. The first answer of each client is left out, because the first
    requests find no others before them.

    Raises:
        ValueError: if the clients were answered less than twice, on average.
    """
    if len(asked) < 2 * clients:
        raise ValueError(
            f"{clients} clients must get {2 * clients} answers at least; they got {len(asked)}. Ask"
            " for longer."
        )
    later = sorted(asked, key=lambda one: one.sent)[clients:]
    return clients / float(np.mean([one.seconds for one in later]))


async def open_loop(target: Target, *, rate: float, seconds: float) -> list[Asked]:
    """Send requests at Poisson times, whether or not earlier ones were answered.

    Args:
        target: where they go.
        rate: requests per second, on average.
        seconds: how long.
    """
    rng = np.random.default_rng(0)
    started, at = time.monotonic(), 0.0
    idle: list[Connection] = []
    tasks: list[asyncio.Task[Asked]] = []

    async def ask() -> Asked:
        connection = idle.pop() if idle else Connection(target)
        asked = await connection.ask()
        idle.append(connection)
        return asked

    while at < seconds:
        at += float(rng.exponential(1 / rate))
        await asyncio.sleep(max(0.0, started + at - time.monotonic()))
        tasks.append(asyncio.create_task(ask()))
    asked = list(await asyncio.gather(*tasks))
    for connection in idle:
        connection.close()
    return asked


async def until_ready(target: Target, *, is_running: Callable[[], bool], seconds: float) -> None:
    """Ask until the service answers 200.

    Raises:
        RuntimeError: if the service ends, or does not answer in time.
    """
    deadline = time.monotonic() + seconds
    connection = Connection(target)
    while (await connection.ask()).status != 200:
        if not is_running() or time.monotonic() > deadline:
            raise RuntimeError(f"The service at port {target.port} must answer 200; it does not.")
        await asyncio.sleep(0.5)
    connection.close()
