"""Asks the service ten times what it can answer, and measures what it still answers.

    python -m benchmarks.overload BUNDLE IMAGE

The capacity is what eight clients get that ask one request after another. Then requests come at
random times at ten times that rate, whether or not earlier ones were answered. Meanwhile /healthz
is asked four times a second. The generator uses the same cores as the service; its share is given.
"""

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.http_load import Asked, Connection, Target, closed_loop, closed_rate, open_loop
from benchmarks.machine import report
from benchmarks.sample import image_or_phantom
from benchmarks.serve_peers import CLIENTS, OURS, running, servers_of

FACTOR = 10


async def _health(target: Target, asked: list[Asked], stop: asyncio.Event) -> None:
    connection = Connection(target)
    while not stop.is_set():
        asked.append(await connection.ask())
        await asyncio.sleep(0.25)


async def _overload(target: Target, rate: float, seconds: float) -> tuple[list[Asked], list[Asked]]:
    health: list[Asked] = []
    stop = asyncio.Event()
    watching = asyncio.create_task(_health(Target(target.port, "/healthz"), health, stop))
    asked = await open_loop(target, rate=rate, seconds=seconds)
    stop.set()
    await watching
    return asked, health


def _capacity(target: Target, seconds: float) -> float:
    """Return the answers per second to clients who wait for theirs.

    Raises:
        RuntimeError: if a request was not answered 200.
    """
    asked = asyncio.run(closed_loop(target, clients=CLIENTS, seconds=seconds))
    if any(one.status != 200 for one in asked):
        raise RuntimeError("Every request must be answered 200; one was not.")
    return closed_rate(asked, clients=CLIENTS)


def measure(target: Target, seconds: float) -> dict[str, Any]:
    """Return the capacity of a service, and what it does at ten times that."""
    asyncio.run(closed_loop(target, clients=CLIENTS, seconds=3))  # warms up
    capacity = _capacity(target, seconds)
    started, cpu = time.monotonic(), sum(os.times()[:2])
    asked, health = asyncio.run(_overload(target, FACTOR * capacity, seconds))
    ended = time.monotonic() - started
    generator = (sum(os.times()[:2]) - cpu) / ended
    capacity_after = _capacity(target, seconds)
    good = [one for one in asked if one.status == 200]
    refused = [one for one in asked if one.status == 503]
    within = [one for one in good if one.sent + one.seconds <= started + seconds]
    return {
        "capacity_per_second": round(capacity, 1),
        "capacity_after_per_second": round(capacity_after, 1),
        "asked_per_second": round(len(asked) / seconds, 1),
        "goodput": round(len(within) / seconds / ((capacity + capacity_after) / 2), 2),
        "statuses": {
            str(status): sum(one.status == status for one in asked)
            for status in sorted({one.status for one in asked})
        },
        "answered_ms_p50_p99": [
            round(1000 * float(value))
            for value in np.percentile([a.seconds for a in good] or [0], [50, 99])
        ],
        "refused_ms_p50_p99": [
            round(1000 * float(value), 1)
            for value in np.percentile([a.seconds for a in refused] or [0], [50, 99])
        ],
        "retry_after_seconds": sorted({one.retry_after for one in refused}, key=str),
        "health_ms_max": round(1000 * max(one.seconds for one in health)),
        "health_all_200": all(one.status == 200 for one in health),
        "cores_of_generator": round(generator, 2),
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("image", type=Path, nargs="?", help="default: a phantom of 600 x 450 px")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    bundle, body = args.bundle.resolve(), image_or_phantom(args.image)
    with running(servers_of(bundle, None, explain=False)[OURS], body, [Path.cwd()]) as target:
        print(f"serving at port {target.port}", file=sys.stderr, flush=True)
        report("overload", measure(target, args.seconds), args.json)


if __name__ == "__main__":
    main()
