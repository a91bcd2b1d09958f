"""Tests the service under load: overload, a killed replica, a rolling update and autoscaling.

    python -m benchmarks.serve_load BUNDLE IMAGE [--seconds S]

The load is open-loop: requests are sent at random times, whether or not earlier ones were answered.
The generator and the service share the machine, so the rates are not comparable with other
machines. The results are the status codes, the lost requests and the time to recover.
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import ray

from serve.environment import ENVIRONMENT

os.environ.update(ENVIRONMENT)

from ray import serve

from benchmarks.random_bundle import other_shape
from melanoma.bundle.manifest import MANIFEST
from melanoma.io.files import sha256_of
from serve.app import build_graph
from serve.settings import AppArgs, deployment_options, read_config

LOST = "lost"
CLOSED_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        sent: when it was sent, s on the monotonic clock.
        seconds: how long it took, s.
        status: the HTTP status, or ``LOST`` if no answer came.
    """

    sent: float
    seconds: float
    status: int | str


class Service:
    """The service on its own local cluster.

    The cluster has 12 logical CPUs, which may be more than the machine has; replicas share the
    cores.
    """

    def __init__(self, bundle: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1/predict"
        ray.init(
            address="local",
            num_cpus=12,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
        )
        config = read_config()
        serve.start(
            http_options=config["http_options"] | {"host": "127.0.0.1", "port": port},
            logging_config=config["logging_config"],
        )
        self._options = deployment_options(config)
        self.deploy(bundle, max_replicas=1)

    def deploy(self, bundle: Path, *, others: int = 1, **scaling: Any) -> None:
        """Deploy a bundle, or replace the deployed one.

        Args:
            bundle: the folder of the bundle.
            others: the largest number of replicas of every other deployment.
            scaling: autoscaling options of the classifier.
        """
        options = {name: dict(values) for name, values in self._options.items()}
        for name, values in options.items():
            more = scaling if name == "Classifier" else {"max_replicas": others}
            values["autoscaling_config"] = values["autoscaling_config"] | more
        args = AppArgs(
            bundle=str(bundle), manifest_sha256=sha256_of(bundle / MANIFEST), require_api_key=False
        )
        serve.run(build_graph(args, options), name="melanoma", route_prefix="/")

    def replicas(self) -> list[psutil.Process]:
        """Return the processes of all classifier replicas."""
        return [
            process
            for process, words in self._processes()
            if words.startswith("ray::ServeReplica:melanoma:Classifier")
        ]

    def megabytes(self) -> float:
        """Return the memory of the proxy and all replicas, MiB, with shared pages divided (PSS)."""
        return (
            float(sum(process.memory_full_info().pss for process, _ in self._processes())) / 2**20
        )

    @staticmethod
    def _processes() -> Iterator[tuple[psutil.Process, str]]:
        """Yield each process of the service and its title."""
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # the process has ended in the meantime
                words = " ".join(process.cmdline())
                if "ServeReplica" in words or "ProxyActor" in words:
                    yield process, words


async def _ask(session: aiohttp.ClientSession, url: str, body: bytes) -> Asked:
    started = time.monotonic()
    try:
        async with session.post(url, data=body) as response:
            await response.read()
            status: int | str = response.status
            if status in (429, 503) and "Retry-After" not in response.headers:
                status = f"{status} without Retry-After"
    except (aiohttp.ClientError, TimeoutError):
        status = LOST
    return Asked(started, time.monotonic() - started, status)


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60)
    )


async def _closed_loop(url: str, body: bytes, seconds: float, at_once: int) -> list[Asked]:
    async def client(session: aiohttp.ClientSession) -> list[Asked]:
        asked = []
        while time.monotonic() < stop:
            asked.append(await _ask(session, url, body))
            if asked[-1].status == 503:
                await asyncio.sleep(1)  # as Retry-After asks
        return asked

    stop = time.monotonic() + seconds
    async with _session() as session:
        return [
            one
            for each in await asyncio.gather(*(client(session) for _ in range(at_once)))
            for one in each
        ]


async def _open_loop(url: str, body: bytes, seconds: float, rate: float) -> list[Asked]:
    """Send requests at Poisson times, ``rate`` per second on average."""
    rng = np.random.default_rng(0)
    started, at, tasks = time.monotonic(), 0.0, []
    async with _session() as session:
        while at < seconds:
            at += float(rng.exponential(1 / rate))
            await asyncio.sleep(max(0.0, started + at - time.monotonic()))
            tasks.append(asyncio.create_task(_ask(session, url, body)))
        return list(await asyncio.gather(*tasks))


def _summary(asked: list[Asked]) -> str:
    counts = collections.Counter(str(one.status) for one in asked)
    good = [1000 * one.seconds for one in asked if one.status == 200]
    times = (
        f"; 200 in ms: p50 {np.percentile(good, 50):.0f}, p99 {np.percentile(good, 99):.0f}"
        if good
        else ""
    )
    return (
        f"{len(asked)} requests:"
        f" {', '.join(f'{status} x {num}' for status, num in sorted(counts.items()))}{times}"
    )


def _overload(service: Service, body: bytes, capacity: float, seconds: float) -> None:
    idle = asyncio.run(_closed_loop(service.url, body, 5, 1))
    usual, before = float(np.median([one.seconds for one in idle])), service.megabytes()
    print(f"idle          {_summary(idle)}")
    held: list[float] = []
    stop = threading.Event()
    watch = threading.Thread(
        target=lambda: [held.append(service.megabytes()) for _ in iter(lambda: stop.wait(2), True)]
    )
    watch.start()
    asked = asyncio.run(_open_loop(service.url, body, seconds, 10 * capacity))
    ended = time.monotonic()
    stop.set()
    watch.join()
    print(f"10 x capacity {_summary(asked)}")
    while time.monotonic() < ended + 60:
        again = asyncio.run(_closed_loop(service.url, body, 1, 1))
        good = [one.seconds for one in again if one.status == 200]
        if len(good) == len(again) and np.median(good) <= 2 * usual:
            break
    print(
        f"              normal again {time.monotonic() - ended:.0f} s later; memory {before:.0f} ->"
        f" at most {max(held):.0f} -> {service.megabytes():.0f} MB"
    )


def _while_asked(
    service: Service, body: bytes, rate: float, seconds: float, act: Any
) -> list[Asked]:
    """Send requests, and call ``act`` after a third of the time.

    Raises:
        RuntimeError: if ``act`` ends after the last request; its own errors are raised too.
    """
    ended: list[float] = []

    def later() -> None:
        time.sleep(seconds / 3)
        act()
        ended.append(time.monotonic())

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(later)
        asked = asyncio.run(_open_loop(service.url, body, seconds, rate))
        last = max(one.sent for one in asked)
        done.result()
    if ended[0] > last:
        raise RuntimeError(
            "The action under load must end before the load does; it ended"
            f" {ended[0] - last:.0f} s later. Raise --seconds."
        )
    return asked


def _watch(service: Service, counts: list[int], stop: threading.Event) -> None:
    while not stop.wait(1):
        num = len(service.replicas())
        if not counts or counts[-1] != num:
            counts.append(num)


def main() -> None:
    """Run all phases, and print one or two lines for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--seconds", type=float, default=30)
    args = parser.parse_args()
    bundle, body = args.bundle.resolve(), args.image.read_bytes()
    service = Service(bundle)
    asyncio.run(_closed_loop(service.url, body, 5, CLOSED_AT_ONCE))
    closed = asyncio.run(_closed_loop(service.url, body, 10, CLOSED_AT_ONCE))
    capacity = sum(one.status == 200 for one in closed) / 10
    print(f"capacity      {capacity:.0f} images per second; {_summary(closed)}", flush=True)
    _overload(service, body, capacity, args.seconds)
    service.deploy(bundle, min_replicas=2, max_replicas=2)
    killed = _while_asked(
        service, body, 0.7 * capacity, args.seconds, lambda: service.replicas()[0].kill()
    )
    print(
        f"replica killed at {0.7 * capacity:.0f} requests per second: {_summary(killed)}",
        flush=True,
    )
    rate = capacity / 4  # starting replicas share the cores with those that answer
    with tempfile.TemporaryDirectory() as folder:
        other = other_shape(bundle, Path(folder) / "bundle")
        updated = _while_asked(
            service,
            body,
            rate,
            2 * args.seconds,
            lambda: service.deploy(other, min_replicas=2, max_replicas=2),
        )
        print(f"new bundle    {_summary(updated)}", flush=True)
        back = _while_asked(
            service,
            body,
            rate,
            2 * args.seconds,
            lambda: service.deploy(bundle, min_replicas=2, max_replicas=2),
        )
        print(f"and back      {_summary(back)}", flush=True)
    service.deploy(bundle, others=4, min_replicas=1, max_replicas=4, downscale_delay_s=30)
    time.sleep(10)  # until the earlier replicas are gone
    counts: list[int] = []
    stop = threading.Event()
    watch = threading.Thread(target=_watch, args=(service, counts, stop))
    watch.start()
    asyncio.run(_closed_loop(service.url, body, 90, 40))
    time.sleep(120)
    stop.set()
    watch.join()
    print(
        "autoscaling   classifiers over 90 s of load and 120 s without, downscale_delay_s 30:"
        f" {' -> '.join(map(str, counts))}"
    )
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
