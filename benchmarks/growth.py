"""Measures whether the cost per image and the memory of the driver stay flat as data sets grow.

    python -m benchmarks.growth [--sizes 1000 10000 100000] [--keep]

Draws small images of coloured noise, and prepares, trains one epoch, evaluates and scores each
number of them. Every step runs in a new process with a new local Ray, which is started before its
time begins. The cost of a further image is the difference in time between two sizes, divided by the
difference in images.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import joblib
import ray

from benchmarks.figures import keep, rows_table, write_pages
from benchmarks.noise_images import draw_images
from melanoma.data.prepare import prepare
from melanoma.data.prepare_config import PrepareConfig
from melanoma.evaluation import evaluate
from melanoma.presets import smoke
from melanoma.scoring import score
from melanoma.training.job import TrainJob
from melanoma.training.run import run_job
from ray_jobs.executor import RayExecutor

SIZES = (1_000, 10_000, 100_000)
SIZE = (64, 48)
SETTINGS = [
    "optim.epochs=1",
    "optim.warmup_epochs=0",
    "data.input_height=48",
    "data.input_width=64",
    "data.tta=1",
]


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
    draw_images(num, folder / "source", size=SIZE)
    found = {}
    for name in STEPS:
        print(f"{num} images: {name}", file=sys.stderr, flush=True)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[name] = pool.apply(_timed, (name, folder))
    return found


def rows(found: dict[int, dict[str, tuple[float, float]]]) -> list[dict[str, str]]:
    """Return a row for each step and size.

    Args:
        found: seconds and driver memory, MB, by number of images and step.
    """
    table = []
    for name in STEPS:
        before: int | None = None
        for num, steps in found.items():
            seconds, memory = steps[name]
            each = None if before is None else (seconds - found[before][name][0]) / (num - before)
            table.append(
                {
                    "step": name,
                    "images": f"{num:,}",
                    "seconds": f"{seconds:.1f}",
                    "ms for each further image": "-" if each is None else f"{1000 * each:.2f}",
                    "memory of the driver, MB": f"{memory:.0f}",
                    "10 million at this rate, hours": (
                        "-" if each is None else f"{each * 1e7 / 3600:.1f}"
                    ),
                }
            )
            before = num
    return table


def main() -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--keep", action="store_true", help="put them into the documentation")
    args = parser.parse_args()
    found = {}
    for num in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            found[num] = measure(num, Path(folder))
    print(rows_table(table := rows(found)))
    if args.keep:
        keep("growth", table)
        write_pages()


if __name__ == "__main__":
    main()
