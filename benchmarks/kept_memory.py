"""Compares training and prediction in processes that keep freed memory and in those that do not.

A process measures the engine, and beside it a plain PyTorch loop; it is started again for each
round and each way, in turn. The images are random, because only the time is measured. Linux with
glibc only; on a GPU the setting changes little.

    python -m benchmarks.kept_memory [--rounds 3] [--json FILE] [--keep]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import torch

from benchmarks.figures import keep, write_pages
from benchmarks.machine import report
from benchmarks.training_speed import (
    ADAMW,
    PLAIN,
    Case,
    RandomImages,
    engine_loop,
    new_model,
    plain_loops,
    settings,
)
from melanoma.imaging.preprocess import Preprocess
from melanoma.training.distributed import World
from melanoma.training.engine import predict
from ray_jobs.memory import KEPT

CASES = (
    Case("convnext_atto", (192, 256), (120, 160), 64, 6),
    Case("tf_efficientnet_lite0", (192, 256), (144, 192), 32, 10),
    Case("tf_efficientnet_lite0", (192, 256), (192, 256), 32, 6),
)
PREDICTION, PEAK = "prediction", "peak, GiB"


def measure(case: Case) -> dict[str, float]:
    """Return the images per second of each loop, and the largest memory of the process."""
    device, world, images = torch.device("cpu"), World(), RandomImages(case)
    model = new_model(case, device)
    preprocess = Preprocess(case.stored, settings(case, "adamw").data)
    runs = {
        ADAMW: engine_loop(case, images, "adamw", device, world),
        PLAIN: plain_loops(case, images, device, world)[PLAIN],
        PREDICTION: lambda: predict(model, images, preprocess),  # type: ignore[arg-type]
    }
    found = {}
    for name, run in runs.items():
        run()
        started = time.perf_counter()
        run()
        found[name] = len(images) / (time.perf_counter() - started)
    return {**found, PEAK: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def _child(index: int) -> None:
    """Measure one case in a thread, as Ray Train does, and print what was found."""
    torch.manual_seed(0)
    torch.set_num_threads(joblib.cpu_count())
    with ThreadPoolExecutor(1) as threads:
        print(json.dumps(threads.submit(measure, CASES[index]).result()))


def _found(index: int, *, kept: bool) -> dict[str, float]:
    around = {name: value for name, value in os.environ.items() if name not in KEPT}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kept_memory", "--case", str(index)],
        env=around | (KEPT if kept else {}),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _row(case: Case, pairs: list[tuple[dict[str, float], dict[str, float]]]) -> dict[str, str]:
    def ratio(name: str) -> str:
        return f"{statistics.median(kept[name] / given[name] for kept, given in pairs):.2f}"

    def beside(way: int) -> str:
        return f"{statistics.median(pair[way][ADAMW] / pair[way][PLAIN] for pair in pairs):.2f}"

    height, width = case.size
    return {
        "network": case.backbone,
        "input, batch": f"{width} x {height} px, {case.batch}",
        "training, kept over given back": ratio(ADAMW),
        "prediction, kept over given back": ratio(PREDICTION),
        "engine over plain loop, both kept": beside(0),
        "both given back": beside(1),
        "largest memory, kept over given back": ratio(PEAK),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--keep", action="store_true", help="keep the figures for the docs")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case is not None:
        _child(args.case)
        return
    rows: list[dict[str, Any]] = []
    for index, case in enumerate(CASES):
        pairs = []
        for number in range(args.rounds):
            first = number % 2 == 0
            one, other = _found(index, kept=first), _found(index, kept=not first)
            pairs.append((one, other) if first else (other, one))
        rows.append(_row(case, pairs))
        print(rows[-1], file=sys.stderr, flush=True)
    report("kept_memory", {"rounds": args.rounds, "rows": rows}, args.json)
    if args.keep:
        keep("kept-memory", rows)
        write_pages()


if __name__ == "__main__":
    main()
