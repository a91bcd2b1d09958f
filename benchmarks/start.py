"""Times how long commands take to start, beside a bare Ray.

    python -m benchmarks.start BUNDLE

Help and refusals are the median of five runs. `serve` is timed until /readyz answers 200; the
limit is the start of a bare Ray with Ray Serve, in the same run, plus the loading of the bundle.
`train` is timed until its first step is recorded; the limit is a bare Ray Train with one worker
that builds the same network.
"""

import argparse
import contextlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.http_load import Target
from benchmarks.machine import report
from benchmarks.serve_peers import OURS, running, servers_of

REPEATS, ROUNDS = 5, 2
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
BARE_TRAIN = """
import ray
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
def build():
    import timm
    timm.create_model("test_convnext", num_classes=7)
ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
TorchTrainer(build, scaling_config=ScalingConfig(num_workers=1)).fit()
"""
LOAD = "from pathlib import Path; import sys; from melanoma import Predictor, load_bundle;"
LOAD += " Predictor(load_bundle(Path(sys.argv[1])))"


def _seconds(*command: str, code: int = 0) -> float:
    """Return the seconds of a command that must end with an exit code."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode != code:
        raise RuntimeError(f"{command} must end with {code}; it ended so: {done.stderr[-500:]}")
    return seconds


def _ready(bundle: Path) -> float:
    server = servers_of(bundle, None, explain=False)[OURS]
    started = time.perf_counter()
    with running(server, None, [Path.cwd()]) as target:
        assert isinstance(target, Target)
        return time.perf_counter() - started


def _first_step(dataset: Path) -> float:
    """Return the seconds until a training records its first step; it is then stopped."""
    with tempfile.TemporaryDirectory() as out:
        words = ["-m", "ray_jobs.cli", "train", str(dataset), out, "--preset", "smoke"]
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *words, "--name", "run"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not (Path(out) / "run" / "progress.json").is_file():
                if process.poll() is not None:
                    raise RuntimeError("The training ended before its first step.")
                time.sleep(0.02)
            return time.perf_counter() - started
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()


def _dataset(folder: Path) -> Path:
    command = [sys.executable, "-m", "ray_jobs.cli", "data"]
    source, dataset = folder / "source", folder / "dataset"
    subprocess.run([*command, "phantom", str(source), "--lesions", "200"], check=True)
    subprocess.run([*command, "prepare", str(source), str(dataset), "--size", "64"], check=True)
    return dataset


def measure(bundle: Path, dataset: Path) -> dict[str, Any]:
    """Return the seconds of each start, and ratios to what it stands on."""
    command = ("-m", "ray_jobs.cli")
    short = {
        "--help": (*command, "--help"),
        "train --help": (*command, "train", "--help"),
        "a missing data set": (*command, "train", "nowhere", "out"),
        "a missing bundle": (*command, "serve", "nowhere"),
        "a size out of range": (*command, "data", "prepare", ".", "out", "--size", "1"),
        "no such setting": (*command, "train", str(dataset), "out", "--set", "loss.none=1"),
        "no such objective": (*command, "tune", str(dataset), "out", "--objective", "loss"),
    }
    figures: dict[str, Any] = {
        name: round(
            statistics.median(
                _seconds(*words, code=0 if "--help" in words else 2) for _ in range(REPEATS)
            ),
            2,
        )
        for name, words in short.items()
    }
    rounds = [
        (_seconds("-c", BARE_RAY), _seconds("-c", LOAD, str(bundle)), _ready(bundle))
        for _ in range(ROUNDS)
    ]
    ray, loading, ready = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(ready / (ray + loading) for ray, loading, ready in rounds)
    trainings = [(_seconds("-c", BARE_TRAIN), _first_step(dataset)) for _ in range(ROUNDS)]
    bare, first = (statistics.median(column) for column in zip(*trainings, strict=True))
    return figures | {
        "bare Ray with Serve": round(ray, 1),
        "loading the bundle": round(loading, 1),
        "serve, ready": round(ready, 1),
        "serve over both": round(ratio, 2),
        "bare Ray Train": round(bare, 1),
        "train, first step": round(first, 1),
        "train over bare Ray Train": round(
            statistics.median(step / bare for bare, step in trainings), 2
        ),
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(args.bundle.resolve(), _dataset(Path(folder)))
    report("start, seconds", figures, args.json)


if __name__ == "__main__":
    main()
