"""Compares `melanoma score` on a local folder with the bundle's network alone, in one run.

    python -m benchmarks.score_speed BUNDLE FOLDER [--images N] [--pairs N] [--workers N]
        [--keep TITLE]

The network alone gets tensors that are ready in memory, in batches as large as those of `score`,
with the library that the bundle uses on a CPU: one batch after the other, and two side by side. The
ratios are those of each pair of measurements; the order changes from pair to pair, because other
work on the machine changes the speed too. The CPU time of this process is hardly disturbed by it:
its ratio is what a machine without idle CPUs can reach. With --workers, `score` runs on Ray Data,
whose start and whose workers' start count, and no CPU time is given.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.figures import FIGURES, keep, write_pages
from benchmarks.machine import report
from melanoma.bundle.bundle import load_bundle
from melanoma.bundle.predictor import Predictor
from melanoma.evaluation import BATCH
from melanoma.executor import Executor, LocalExecutor
from melanoma.judging import BATCHES_AT_ONCE, read_stored
from melanoma.scoring import score
from ray_jobs.executor import RayExecutor
from ray_jobs.memory import keep_memory

NAME = "score-speed"
TWO = "network, two batches"
READY_BATCHES = 8
"""Different batches of tensors in memory; they are used again and again."""


@dataclasses.dataclass(frozen=True)
class Bare:
    """The network on tensors in memory.

    Attributes:
        predictor: of the bundle.
        batches: network inputs, ``(BATCH, 3, h, w)`` each.
        num_images: how many images are predicted.
    """

    predictor: Predictor
    batches: list[torch.Tensor]
    num_images: int

    def run(self, at_once: int) -> float:
        """Return the images per second with some batches side by side."""
        num = -(-self.num_images // BATCH)
        started = time.perf_counter()
        with ThreadPoolExecutor(at_once) as threads:
            list(threads.map(self._batch, range(num)))
        return num * BATCH / (time.perf_counter() - started)

    def _batch(self, number: int) -> None:
        inputs = self.batches[number % len(self.batches)]
        self.predictor.logits(self.predictor.feature_maps(inputs))


def _ready(predictor: Predictor, paths: list[Path]) -> list[torch.Tensor]:
    found = [
        read_stored(str(path), predictor.bundle) for path in paths[: 2 * READY_BATCHES * BATCH]
    ]
    stored = [image for image in found if isinstance(image, np.ndarray)]
    stored = (stored * (READY_BATCHES * BATCH // len(stored) + 1))[: READY_BATCHES * BATCH]
    return [
        predictor.inputs(np.stack(stored[start : start + BATCH]))
        for start in range(0, len(stored), BATCH)
    ]


def _scored(bundle: Path, folder: Path, num: int, workers: int, executor: Executor) -> float:
    """Return the images per second of a whole scoring, its table included."""
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        score(bundle, folder, Path(out) / "scores", num_workers=workers, executor=executor)
        return num / (time.perf_counter() - started)


def measure(bundle: Path, folder: Path, *, images: int, pairs: int, workers: int) -> dict[str, Any]:
    """Return the rates of each pair of measurements, and their ratios."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())[:images]
    predictor = Predictor(load_bundle(bundle))
    bare = Bare(predictor, _ready(predictor, paths), min(len(paths), 2048))
    executor: Executor = RayExecutor() if workers else LocalExecutor()
    executor.start(workers or 1)
    rates: dict[str, list[float]] = {"network": [], TWO: [], "score": []}
    cpu_ms: dict[str, list[float]] = {name: [] for name in rates}
    with tempfile.TemporaryDirectory() as place:
        few = Path(place)
        for number, path in enumerate(paths):
            (few / f"{number:06d}{path.suffix}").symlink_to(path.resolve())
        runs: dict[str, tuple[int, Callable[[], float]]] = {
            "network": (bare.num_images, lambda: bare.run(1)),
            TWO: (bare.num_images, lambda: bare.run(BATCHES_AT_ONCE)),
            "score": (
                len(paths),
                lambda: _scored(bundle, few, len(paths), workers or 1, executor),
            ),
        }
        bare.run(1)  # a warm-up
        for pair in range(pairs):
            for name in list(runs) if pair % 2 == 0 else reversed(runs):
                print(f"pair {pair + 1}: {name}", file=sys.stderr, flush=True)
                (num, run), started = runs[name], time.process_time()
                rates[name].append(run())
                cpu_ms[name].append(1000 * (time.process_time() - started) / num)

    def ratios(other: str) -> dict[str, Any]:
        each = [ours / theirs for ours, theirs in zip(rates["score"], rates[other], strict=True)]
        return {
            "median": round(statistics.median(each), 3),
            "pairs": [round(ratio, 3) for ratio in each],
        }

    least = {name: min(values) for name, values in cpu_ms.items()}
    return {
        "images": len(paths),
        "workers": workers or "this process",
        "threads": torch.get_num_threads(),
        "backend": predictor.bundle.manifest.cpu_backend.name,
        "images/s": {name: [round(rate, 1) for rate in found] for name, found in rates.items()},
        "score over network": ratios("network"),
        f"score over {TWO}": ratios(TWO),
        **(
            {}
            if workers
            else {
                "least CPU ms an image": {name: round(value, 2) for name, value in least.items()},
                "CPU time, network over score": round(least["network"] / least["score"], 3),
            }
        ),
    }


def row_of(title: str, found: dict[str, Any]) -> dict[str, str]:
    """Return what the docs show of a measurement."""
    rates = {name: statistics.median(values) for name, values in found["images/s"].items()}
    ratios = [found[f"score over {other}"]["median"] for other in ("network", TWO)]
    return {
        "network": title,
        "images": f"{found['images']:,}",
        "network alone, images/s": f"{rates['network']:.0f}",
        "`score`, images/s": f"{rates['score']:.0f}",
        "`score` over network": f"{ratios[0]:.2f}",
        "over two batches side by side": f"{ratios[1]:.2f}",
    }


def keep_row(title: str, found: dict[str, Any]) -> None:
    """Keep a measurement for the docs, in place of an older one of the same title."""
    path = FIGURES / f"{NAME}.json"
    rows = json.loads(path.read_text()) if path.is_file() else []
    kept = {row["network"]: row for row in rows} | {title: row_of(title, found)}
    keep(NAME, list(kept.values()))
    write_pages()


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path, help="folder of images")
    parser.add_argument("--images", type=int, default=10_000, help="at most (default %(default)s)")
    parser.add_argument("--pairs", type=int, default=5, help="(default %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="on Ray Data; 0: in this process")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--keep", metavar="TITLE", help="keep the figures for the docs")
    args = parser.parse_args()
    keep_memory()  # as the processes of a local Ray do
    found = measure(
        args.bundle.resolve(),
        args.folder.resolve(),
        images=args.images,
        pairs=args.pairs,
        workers=args.workers,
    )
    report("score_speed", found, args.json)
    if args.keep:
        keep_row(args.keep, found)


if __name__ == "__main__":
    main()
