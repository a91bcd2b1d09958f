"""Measures whether the cost per image and the memory of the driver stay flat as data sets grow.

    python -m benchmarks.growth [--sizes 1000 10000 100000]

Draws small images of coloured noise, and prepares, trains one epoch, evaluates and scores each
number of them. Every step runs in a new process with a new local Ray, which is started before its
time begins. Marginal cost leaves out what does not depend on the number of images.
"""

import argparse
import itertools
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import ray
from PIL import Image

from benchmarks.machine import report
from melanoma.data.prepare import prepare
from melanoma.data.prepare_config import PrepareConfig
from melanoma.evaluation import evaluate
from melanoma.presets import smoke
from melanoma.scoring import score
from melanoma.task import DEFAULT_TASK, TASKS
from melanoma.training.job import TrainJob
from melanoma.training.run import run_job
from ray_jobs.executor import RayExecutor

SIZES = (1_000, 10_000, 100_000)
WIDTH, HEIGHT = 64, 48
SETTINGS = [
    "optim.epochs=1",
    "optim.warmup_epochs=0",
    "data.input_height=48",
    "data.input_width=64",
    "data.tta=1",
]


def draw_images(num: int, folder: Path) -> None:
    """Write small JPEGs of coloured noise and their metadata; each lesion has one image."""
    (folder / "images").mkdir(parents=True)
    classes, rng = TASKS[DEFAULT_TASK].classes, np.random.default_rng(num)
    labels = rng.choice(len(classes), num, p=[0.05, 0.05, 0.1, 0.02, 0.11, 0.65, 0.02])
    for index, label in enumerate(labels):
        small = rng.integers(40, 216, (6, 8, 3)).astype(np.uint8)
        small[..., label % 3] >>= int(label) // 3  # so that there is something to learn
        image = Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        image.save(folder / "images" / f"image_{index:06d}.jpg", quality=90)
    table = {
        "image_id": [f"image_{index:06d}" for index in range(num)],
        "lesion_id": [f"lesion_{index:06d}" for index in range(num)],
        "dx": [classes[label] for label in labels],
        "dataset": "noise",
    }
    pd.DataFrame(table).to_csv(folder / "metadata.csv", index=False)


def _prepare(folder: Path, executor: RayExecutor) -> None:
    prepare(folder / "source", folder / "dataset", PrepareConfig(size=64), executor=executor)


def _train(folder: Path, executor: RayExecutor) -> None:
    config = smoke().with_overrides(SETTINGS)
    run_job(TrainJob(folder / "dataset", folder / "run", config, num_workers=2), executor)


def _evaluate(folder: Path, executor: RayExecutor) -> None:
    evaluate(folder / "run" / "bundle", folder / "dataset", folder / "test", executor=executor)


def _score(folder: Path, executor: RayExecutor) -> None:
    source = folder / "source" / "images"
    score(folder / "run" / "bundle", source, folder / "scores", executor=executor)


STEPS: dict[str, Callable[[Path, RayExecutor], None]] = {
    "prepare": _prepare,
    "train": _train,
    "evaluate": _evaluate,
    "score": _score,
}


def _timed(name: str, folder: Path) -> tuple[float, float]:
    """Return the seconds of a step and the largest memory of its driver, MB; for a new process."""
    executor = RayExecutor()
    executor.start(joblib.cpu_count())
    started = time.perf_counter()
    STEPS[name](folder, executor)
    seconds = time.perf_counter() - started
    ray.shutdown()  # so that nothing of it runs beside the next step
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(num: int, folder: Path) -> dict[str, tuple[float, float]]:
    """Return seconds and driver memory of each step."""
    draw_images(num, folder / "source")
    found = {}
    for name in STEPS:
        print(f"{num} images: {name}", file=sys.stderr, flush=True)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[name] = pool.apply(_timed, (name, folder))
    return found


def growth(sizes: list[int]) -> dict[str, Any]:
    """Return for each step seconds, driver memory, and the marginal cost between the sizes, ms."""
    found = {}
    for num in sizes:
        with tempfile.TemporaryDirectory() as folder:
            found[num] = measure(num, Path(folder))
    return {
        name: {
            "seconds": {num: round(found[num][name][0], 1) for num in sizes},
            "driver_mb": {num: round(found[num][name][1]) for num in sizes},
            "marginal_ms_per_image": {
                f"{few} to {many}": round(
                    (found[many][name][0] - found[few][name][0]) / (many - few) * 1000, 2
                )
                for few, many in itertools.pairwise(sizes)
            },
        }
        for name in STEPS
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    report("growth", growth(args.sizes), args.json)


if __name__ == "__main__":
    main()
