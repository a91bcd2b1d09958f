"""Times how long commands take to start, beside a bare Ray.

    python -m benchmarks.start BUNDLE

Help and refusals are the median of five runs. `serve` is timed until /readyz answers 200; the
limit is the start of a bare Ray with Ray Serve, in the same run, plus the loading of the bundle.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.http_load import Target
from benchmarks.machine import report
from benchmarks.serve_peers import OURS, running, servers_of

REPEATS, ROUNDS = 5, 3
BARE_RAY = """
import ray
from ray import serve
ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
@serve.deployment
class Empty:
    def __call__(self):
        return "ok"
serve.run(Empty.bind(), route_prefix="/")
"""
LOAD = "from pathlib import Path; import sys; from melanoma import Predictor, load_bundle;"
LOAD += " Predictor(load_bundle(Path(sys.argv[1])))"


def _seconds(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], capture_output=True, check=False)
    return time.perf_counter() - started


def _ready(bundle: Path) -> float:
    server = servers_of(bundle, None, explain=False)[OURS]
    started = time.perf_counter()
    with running(server, None, [Path.cwd()]) as target:
        assert isinstance(target, Target)
        return time.perf_counter() - started


def measure(bundle: Path) -> dict[str, Any]:
    """Return the seconds of each start, and of `serve` as a ratio to what it stands on."""
    command = ("-m", "ray_jobs.cli")
    short = {
        "--help": (*command, "--help"),
        "train --help": (*command, "train", "--help"),
        "a missing data set": (*command, "train", "nowhere", "out"),
        "a missing bundle": (*command, "serve", "nowhere"),
    }
    figures: dict[str, Any] = {
        name: round(statistics.median(_seconds(*words) for _ in range(REPEATS)), 2)
        for name, words in short.items()
    }
    rounds = [
        (_seconds("-c", BARE_RAY), _seconds("-c", LOAD, str(bundle)), _ready(bundle))
        for _ in range(ROUNDS)
    ]
    ray, loading, ready = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(ready / (ray + loading) for ray, loading, ready in rounds)
    return figures | {
        "bare Ray with Serve": round(ray, 1),
        "loading the bundle": round(loading, 1),
        "serve, ready": round(ready, 1),
        "serve over both": round(ratio, 2),
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    report("start, seconds", measure(args.bundle.resolve()), args.json)


if __name__ == "__main__":
    main()
