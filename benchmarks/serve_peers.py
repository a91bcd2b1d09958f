"""Compares the service with plain FastAPI, LitServe and BentoML, in one run.

All use the same network, machine and image.

    pip install --target PEERS litserve bentoml
    python -m benchmarks.serve_peers BUNDLE IMAGE --peers PEERS

All servers are started first. Then they are asked in turn, for a few seconds each, in rounds,
because the speed of a machine may change from minute to minute. Each may use all cores. Eight
clients send requests at the same time, then one client. All are compared with the network alone: in
one process with two batches of four images under way, so that no core waits for the other, and then
with one image.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.http_load import Target, closed_loop, closed_rate, until_ready
from benchmarks.machine import report
from benchmarks.peers import BACKEND, BUNDLE, EXPLAIN, MAX_BATCH, Peer
from benchmarks.sample import image_or_phantom
from benchmarks.timing import side_by_side

CLIENTS = 8
NETWORK_AT_ONCE = 2
OURS, BARE = "this graph", "network alone"
START_SECONDS, WARM_UP_SECONDS = 180, 3.0
HERE = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Server:
    """One server.

    Attributes:
        command: its command line; the port follows it.
        path: path of the URL, with the query.
        backend: torch or onnxruntime.
        field: form field that holds the image; None sends the image as the body.
    """

    command: tuple[str, ...]
    path: str = "/predict"
    backend: str = "onnxruntime"
    field: str | None = None


def servers_of(bundle: Path, peers: Path | None, *, explain: bool) -> dict[str, Server]:
    python = sys.executable
    uvicorn = ["-m", "uvicorn", "benchmarks.peer_fastapi:app", "--log-level", "error", "--port"]
    ours = ("-m", "ray_jobs.cli", "serve", str(bundle), "--port")
    servers = {
        OURS: Server((python, *ours), "/v1/predict" + "?explain=grad_cam" * explain),
        "FastAPI, eager torch": Server((python, *uvicorn), backend="torch"),
        "FastAPI": Server((python, *uvicorn)),
    }
    if peers is not None:
        bento = (str(peers / "bin" / "bentoml"), "serve", "benchmarks.peer_bentoml:Service")
        servers |= {
            "LitServe": Server((python, "-m", "benchmarks.peer_litserve"), field="image"),
            "BentoML": Server((python, *bento, "--port"), field="images"),
        }
    return servers


@contextmanager
def running(server: Server, body: bytes | None, folders: list[Path]) -> Iterator[Target]:
    """Start a server on a free port, and end it with all its processes.

    Args:
        server: the server.
        body: the image that it is asked about until it answers; None asks /readyz instead.
        folders: where it finds its modules.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "BENTOML_DO_NOT_TRACK": "1",
        BACKEND: server.backend,
    }
    process = subprocess.Popen(
        [*server.command, str(port)],
        env=environment,
        cwd=HERE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    path = "/readyz" if body is None else server.path
    target = Target(port, path, body, server.field)
    try:
        asyncio.run(
            until_ready(target, is_running=lambda: process.poll() is None, seconds=START_SECONDS)
        )
        yield target
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with suppress(ProcessLookupError):  # end child processes that it left behind
            os.killpg(process.pid, signal.SIGKILL)


@dataclasses.dataclass
class Measured:
    """The measurements of one server, one entry for each round.

    Attributes:
        rates: images per second with many clients.
        many: median seconds of a request with many clients.
        one: median seconds of a request with a single client.
    """

    rates: list[float] = dataclasses.field(default_factory=list)
    many: list[float] = dataclasses.field(default_factory=list)
    one: list[float] = dataclasses.field(default_factory=list)

    def beside(self, bare: "Measured") -> dict[str, float]:
        """Return the figures of a server beside those of the network alone in the same rounds."""
        share = np.array(self.rates) / np.array(bare.rates)
        return {
            "images_per_second": round(float(np.median(self.rates)), 1),
            "share_of_network": round(float(np.median(share)), 2),
            "ms_with_8_clients": round(1000 * float(np.median(self.many)), 1),
            "ms_with_1_client": round(1000 * float(np.median(self.one)), 1),
            "ms_over_network": round(
                1000 * float(np.median(np.array(self.one) - np.array(bare.one))), 1
            ),
        }


def _ask(target: Target, measured: Measured, seconds: float) -> None:
    for clients, found in ((CLIENTS, measured.many), (1, measured.one)):
        asked = asyncio.run(closed_loop(target, clients=clients, seconds=seconds))
        if any(one.status != 200 for one in asked):
            raise RuntimeError("Every request must be answered 200; one was not.")
        found.append(float(np.median([one.seconds for one in asked])))
        if clients == CLIENTS:
            measured.rates.append(closed_rate(asked, clients=clients))


def _ask_network(peer: Peer, stored: Any, measured: Measured, seconds: float) -> None:
    batch = [stored] * (MAX_BATCH // NETWORK_AT_ONCE)
    times = side_by_side(lambda: peer.predict(batch), at_once=NETWORK_AT_ONCE, seconds=seconds)
    measured.rates.append(sum(len(batch) * len(each) / sum(each) for each in times))
    measured.many.append(float(np.median(np.concatenate(times))))
    (alone,) = side_by_side(lambda: peer.predict([stored]), at_once=1, seconds=seconds)
    measured.one.append(float(np.median(alone)))


def compare(
    bundle: Path, body: bytes, peers: Path | None, *, explain: bool, rounds: int, seconds: float
) -> dict[str, dict[str, float]]:
    """Return the figures of every server beside the network alone."""
    os.environ |= {BUNDLE: str(bundle), EXPLAIN: str(int(explain)), BACKEND: "onnxruntime"}
    peer = Peer()
    _, stored = peer.decode(body)
    servers = servers_of(bundle, peers, explain=explain)
    with contextlib.ExitStack() as stack:
        # Only the peers see their folder, because its libraries differ from those installed here.
        targets = {
            name: stack.enter_context(
                running(
                    server, body, [HERE] + ([] if server.field is None or not peers else [peers])
                )
            )
            for name, server in servers.items()
        }
        runs: dict[str, Callable[[Measured, float], None]] = {
            BARE: functools.partial(_ask_network, peer, stored),
            **{name: functools.partial(_ask, target) for name, target in targets.items()},
        }
        found = {name: Measured() for name in runs}
        peer.predict([stored] * MAX_BATCH)  # all warm up
        for target in targets.values():
            asyncio.run(closed_loop(target, clients=CLIENTS, seconds=WARM_UP_SECONDS))
        for number in range(1, rounds + 1):
            for name, run in runs.items():
                run(found[name], seconds)
            print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    return {name: measured.beside(found[BARE]) for name, measured in found.items()}


def main() -> None:
    """Print one line for each server, first without and then with explanations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("image", type=Path, nargs="?", help="default: a phantom of 600 x 450 px")
    parser.add_argument(
        "--peers", type=Path, help="folder into which LitServe and BentoML were installed"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.5, help="of each load in each round")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    bundle, peers = args.bundle.resolve(), args.peers and args.peers.resolve()
    figures = {}
    for explain in (False, True):
        name = "with Grad-CAM" if explain else "without explanation"
        figures[name] = compare(
            bundle,
            image_or_phantom(args.image),
            peers,
            explain=explain,
            rounds=args.rounds,
            seconds=args.seconds,
        )
    report("serve_peers", figures, args.json)


if __name__ == "__main__":
    main()
