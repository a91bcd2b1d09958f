"""Measures how fast images are drawn, prepared and predicted, beside what a machine can do at most.

    python -m benchmarks.pipelines BUNDLE

Draws some phantoms. Then prepares, scores and evaluates as many images of noise as HAM10000 has,
at 200 x 150 px, and predicts a few hundred of them. All use all cores. The limit of preparing is
the rate at which one core decodes the same files, times the cores. The limit of the others is the
bundle's network on images in memory, with batches side by side, measured before and after each. Ray
is started before preparing is timed; its workers are not. What each step of an image takes in one
thread is measured too.
"""

import argparse
import dataclasses
import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import joblib
import numpy as np
import torch
from PIL import Image

from benchmarks.machine import report
from benchmarks.noise_images import draw_images
from benchmarks.timing import side_by_side
from melanoma.bundle.bundle import load_bundle
from melanoma.bundle.predictor import Predictor
from melanoma.data.phantom.config import PhantomConfig
from melanoma.data.phantom.layout import write_phantom
from melanoma.data.prepare import prepare
from melanoma.data.prepare_config import PrepareConfig
from melanoma.data.shards import write_shard
from melanoma.evaluation import evaluate
from melanoma.executor import Item, Progress, Row, Work
from melanoma.imaging.decode import check_content, decode_image
from melanoma.imaging.fingerprint import fingerprint
from melanoma.imaging.letterbox import letterbox, letterbox_shape
from melanoma.imaging.skin_tone import skin_tone
from melanoma.predict import predict_files
from melanoma.scoring import score
from ray_jobs.executor import RayExecutor

NUM_LESIONS, NUM_IMAGES, NUM_FEW, SIZE = 1000, 10_015, 400, (200, 150)
BATCH, NETWORK_AT_ONCE, NETWORK_SECONDS, REPEATS = 4, 2, 4.0, 3
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class _TimedExecutor(RayExecutor):
    """Ray's executor, and how many seconds each map took."""

    seconds: list[float] = dataclasses.field(default_factory=list)

    def map(
        self,
        work: Work,
        items: Sequence[Item],
        *,
        num_workers: int | None = None,
        progress: Progress | None = None,
        total: int | None = None,
    ) -> list[Row]:
        """Do some work for every item, and time it."""
        started = time.perf_counter()
        rows = super().map(work, items, num_workers=num_workers, progress=progress, total=total)
        self.seconds.append(time.perf_counter() - started)
        return rows


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _milliseconds(step: Callable[[_T], object], items: Sequence[_T]) -> float:
    """Return the median time of a step for one item, after a first round that does not count."""
    rounds = [_seconds(lambda: [step(item) for item in items]) for _ in range(REPEATS + 1)]
    return 1000 * statistics.median(rounds[1:]) / len(items)


def _decode(data: bytes) -> Image.Image:
    image = decode_image(data)
    check_content(image)
    return image


def _network_rate(predictor: Predictor, stored: Sequence[np.ndarray]) -> float:
    """Return the images per second of the network alone, with batches side by side."""
    times = side_by_side(
        lambda: predictor.predict(stored[:BATCH]), at_once=NETWORK_AT_ONCE, seconds=NETWORK_SECONDS
    )
    return sum(BATCH * len(each) / sum(each) for each in times)


def _steps(predictor: Predictor, files: Sequence[bytes], folder: Path) -> dict[str, float]:
    """Return the milliseconds that each step of an image takes in one thread."""
    shape, preprocess = letterbox_shape(SIZE[0]), predictor.bundle.preprocess
    images = [decode_image(data) for data in files]
    framed = [letterbox(image, shape) for image in images]
    stored = [preprocess.stored(image) for image in images]
    names = [f"image_{index}" for index in range(len(files))]
    shard = folder / "steps.arrow"
    torch.set_num_threads(1)
    network = Predictor(predictor.bundle)
    batches = [stored[:BATCH]] * 5
    steps = {
        "decoding and checking": _milliseconds(_decode, files),
        "hashing the file": _milliseconds(lambda data: hashlib.sha256(data).digest(), files),
        "hashing the pixels": _milliseconds(
            lambda image: hashlib.sha256(image.tobytes()).digest(), images
        ),
        "fitting into the stored size": _milliseconds(
            lambda image: letterbox(image, shape), images
        ),
        "writing two shards": 2
        / len(names)
        * _milliseconds(lambda _: write_shard(shard, names, framed), [None]),
        "reducing to the bundle's size": _milliseconds(preprocess.stored, images),
        "fingerprint and skin's tone": _milliseconds(
            lambda image: (fingerprint(image), skin_tone(image)), stored
        ),
        "the network": _milliseconds(network.predict, batches) / BATCH,
    }
    return {name: round(value, 2) for name, value in steps.items()}


def _works(
    bundle: Path, folder: Path, executor: _TimedExecutor
) -> dict[str, tuple[int, Callable[[], object]]]:
    """Return for each pipeline the number of images, and what is timed."""
    source, config = folder / "source", PrepareConfig(size=SIZE[0])
    dataset, scores, evidence = folder / "dataset", folder / "scores", folder / "evidence"
    few = sorted((source / "images").iterdir())[:NUM_FEW]
    return {
        "prepared": (NUM_IMAGES, lambda: prepare(source, dataset, config, executor=executor)),
        "scored": (NUM_IMAGES, lambda: score(bundle, source / "images", scores, executor=executor)),
        "evaluated": (NUM_IMAGES, lambda: evaluate(bundle, source, evidence, executor=executor)),
        "predicted": (
            NUM_FEW,
            lambda: predict_files(bundle, few, explain=None, out=None, allow_uncontracted=True),
        ),
    }


def measure(bundle: Path, folder: Path) -> dict[str, Any]:
    """Return the images per second of each pipeline and its share of the limit."""
    cores, source, phantoms = joblib.cpu_count(), folder / "source", folder / "phantom"
    drawing = _seconds(lambda: write_phantom(PhantomConfig(num_lesions=NUM_LESIONS), phantoms))
    num_drawn = len(list((phantoms / "images").iterdir()))
    draw_images(NUM_IMAGES, source, size=SIZE)
    files = [path.read_bytes() for path in sorted((source / "images").iterdir())[:NUM_FEW]]
    predictor = Predictor(load_bundle(bundle))
    stored = [predictor.bundle.preprocess.stored(decode_image(data)) for data in files]
    executor = _TimedExecutor()
    executor.start(cores)
    decoding = 1000 * cores / _milliseconds(_decode, files)
    network = [_network_rate(predictor, stored)]
    figures: dict[str, Any] = {"drawn": {"images_per_second": round(num_drawn / drawing, 1)}}
    for name, (num, work) in _works(bundle, folder, executor).items():
        executor.seconds.clear()
        seconds = _seconds(work)
        network.append(_network_rate(predictor, stored))
        limit = decoding if name == "prepared" else float(np.mean(network[-2:]))
        figures[name] = {
            "images_per_second": round(num / seconds, 1),
            "limit": round(limit, 1),
            "share_of_limit": round(num / seconds / limit, 2),
            "seconds_outside_workers": round(seconds - sum(executor.seconds), 1),
        }
    return {"images": NUM_IMAGES, **figures, "steps_ms": _steps(predictor, files, folder)}


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    print("drawing, preparing, scoring and evaluating", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        report("pipelines", measure(args.bundle.resolve(), Path(folder)), args.json)


if __name__ == "__main__":
    main()
