"""Compares the service with plain FastAPI, LitServe and BentoML, in one run.

All use the same network, machine and image.

    pip install --target PEERS litserve bentoml
    python -m benchmarks.serve_peers BUNDLE IMAGE --peers PEERS

Each server has all cores. Eight clients send requests at the same time, then one client. The bare
network, in one process with eight images at a time and then one, is the upper limit of any server.
"""

import argparse
import asyncio
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import aiohttp
import numpy as np

from benchmarks.peers import BACKEND, BUNDLE, EXPLAIN, MAX_BATCH, Peer

CLIENTS = 8
HERE = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Server:
    """One server.

    Attributes:
        name: the name to print.
        command: port -> command line.
        path: path of the URL, with the query.
        backend: torch or onnxruntime.
        field: form field that holds the image; None sends the image as the body.
    """

    name: str
    command: Callable[[int], list[str]]
    path: str = "/predict"
    backend: str = "onnxruntime"
    field: str | None = None


def _servers(bundle: Path, peers: Path | None, *, explain: bool) -> list[Server]:
    def fastapi(port: int) -> list[str]:
        module = "benchmarks.peer_fastapi:app"
        return [
            sys.executable,
            "-m",
            "uvicorn",
            module,
            "--port",
            str(port),
            "--log-level",
            "error",
        ]

    servers = [
        Server(
            "this graph",
            lambda port: [
                sys.executable,
                "-m",
                "ray_jobs.cli",
                "serve",
                str(bundle),
                "--port",
                str(port),
            ],
            "/v1/predict?explain=grad_cam" if explain else "/v1/predict",
        ),
        Server("FastAPI, eager torch", fastapi, backend="torch"),
        Server("FastAPI", fastapi),
    ]
    if peers is not None:
        bento = str(peers / "bin" / "bentoml")
        servers += [
            Server(
                "LitServe",
                lambda port: [sys.executable, "-m", "benchmarks.peer_litserve", str(port)],
                field="image",
            ),
            Server(
                "BentoML",
                lambda port: [
                    sys.executable,
                    bento,
                    "serve",
                    "benchmarks.peer_bentoml:Service",
                    "--port",
                    str(port),
                ],
                field="images",
            ),
        ]
    return servers


@contextmanager
def _running(server: Server, environment: dict[str, str], port: int) -> Iterator[str]:
    process = subprocess.Popen(
        server.command(port),
        env=environment | {BACKEND: server.backend},
        cwd=HERE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield f"http://127.0.0.1:{port}{server.path}"
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with suppress(ProcessLookupError):  # end child processes that it left behind
            os.killpg(process.pid, signal.SIGKILL)


async def _ask(session: aiohttp.ClientSession, url: str, body: bytes, field: str | None) -> float:
    started = time.perf_counter()
    data: bytes | aiohttp.FormData = body
    if field is not None:
        data = aiohttp.FormData()
        data.add_field(field, body, filename="p.jpg", content_type="image/jpeg")
    async with session.post(url, data=data) as response:
        await response.read()
        response.raise_for_status()
    return time.perf_counter() - started


async def _load(
    url: str, body: bytes, field: str | None, *, clients: int, seconds: float
) -> list[float]:
    stop = time.perf_counter() + seconds

    async def client(session: aiohttp.ClientSession) -> list[float]:
        found = []
        while time.perf_counter() < stop:
            found.append(await _ask(session, url, body, field))
        return found

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        return [
            one
            for each in await asyncio.gather(*(client(session) for _ in range(clients)))
            for one in each
        ]


async def _until_ready(url: str, body: bytes, field: str | None) -> None:
    deadline = time.monotonic() + 120
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        while True:
            try:
                await _ask(session, url, body, field)
                return
            except aiohttp.ClientError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.5)


@dataclasses.dataclass(frozen=True)
class Measured:
    """The measurements of one server.

    Attributes:
        rate: images per second with many clients.
        many: seconds of each request with many clients.
        one: seconds of each request with a single client.
    """

    rate: float
    many: list[float]
    one: list[float]

    def line(self, name: str, bare: "Measured") -> str:
        """Return a line of text that compares the server with the bare network."""
        p50, p99 = 1000 * np.percentile(self.many, [50, 99])
        alone, bare_alone = 1000 * np.median(self.one), 1000 * np.median(bare.one)
        return (
            f"  {name:21} {self.rate:6.1f} per second (x {self.rate / bare.rate:.2f})   {CLIENTS}"
            f" clients: p50 {p50:5.0f} ms, p99 {p99:5.0f} ms   one client: p50 {alone:6.1f} ms (+"
            f" {alone - bare_alone:.1f})"
        )


def _measure_bare(body: bytes, seconds: float) -> Measured:
    """Measure the network alone, without decoding and encoding."""
    peer = Peer()
    _, stored = peer.decode(body)

    def passes(batch: int) -> list[float]:
        peer.predict([stored] * batch)
        found, stop = [], time.perf_counter() + seconds
        while time.perf_counter() < stop:
            started = time.perf_counter()
            peer.predict([stored] * batch)
            found.append(time.perf_counter() - started)
        return found

    many = passes(MAX_BATCH)
    return Measured(MAX_BATCH / float(np.median(many)), many, passes(1))


def _measure(server: Server, environment: dict[str, str], body: bytes, seconds: float) -> Measured:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with _running(server, environment, port) as url:
        asyncio.run(_until_ready(url, body, server.field))
        asyncio.run(_load(url, body, server.field, clients=CLIENTS, seconds=5))
        many = asyncio.run(_load(url, body, server.field, clients=CLIENTS, seconds=seconds))
        one = asyncio.run(_load(url, body, server.field, clients=1, seconds=seconds / 2))
    return Measured(len(many) / seconds, many, one)


def main() -> None:
    """Print one line for each server, first without and then with explanations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument(
        "--peers", type=Path, help="folder into which LitServe and BentoML were installed"
    )
    parser.add_argument("--seconds", type=float, default=20, help="seconds of load for each server")
    args = parser.parse_args()
    bundle, peers, body = (
        args.bundle.resolve(),
        args.peers and args.peers.resolve(),
        args.image.read_bytes(),
    )
    for explain in (False, True):
        os.environ |= {BUNDLE: str(bundle), EXPLAIN: str(int(explain)), BACKEND: "onnxruntime"}
        print("with Grad-CAM" if explain else "without explanation")
        bare = _measure_bare(body, args.seconds / 2)
        print(bare.line("bare network", bare), flush=True)
        for server in _servers(bundle, peers, explain=explain):
            # Only the peers see their folder, because its libraries differ from those installed
            # here.
            folders = [HERE] if server.field is None else [HERE, peers]
            environment = os.environ | {
                "PYTHONPATH": os.pathsep.join(map(str, folders)),
                "BENTOML_DO_NOT_TRACK": "1",
            }
            print(
                _measure(server, environment, body, args.seconds).line(server.name, bare),
                flush=True,
            )


if __name__ == "__main__":
    main()
