"""Measures how fast images are drawn, prepared and predicted, beside what a machine can do at most.

    python -m benchmarks.pipelines BUNDLE

Draws some phantoms. Then prepares, scores and evaluates as many images of noise as HAM10000 has,
at 200 x 150 px, and predicts a few hundred of them. All use all cores. The limit of preparing is
the rate at which one core decodes the same files, times the cores. The limit of the others is the
bundle's network on images in memory, measured before, between and after them. Ray is started before
preparing is timed; its workers are not. What each step of an image takes in one thread is measured
too.
"""

import argparse
import dataclasses
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from benchmarks.machine import report
from benchmarks.noise_images import draw_images
from melanoma.bundle.bundle import load_bundle
from melanoma.bundle.predictor import Predictor
from melanoma.data.phantom.config import PhantomConfig
from melanoma.data.phantom.layout import write_phantom
from melanoma.data.prepare import prepare
from melanoma.data.prepare_config import PrepareConfig
from melanoma.data.shards import write_shard
from melanoma.evaluation import evaluate
from melanoma.executor import Row
from melanoma.imaging.decode import check_content, decode_image
from melanoma.imaging.fingerprint import fingerprint
from melanoma.imaging.letterbox import letterbox, letterbox_shape
from melanoma.imaging.skin_tone import skin_tone
from melanoma.predict import predict_files
from melanoma.scoring import score
from ray_jobs.executor import RayExecutor

NUM_LESIONS, NUM_IMAGES, SIZE = 1000, 10_015, (200, 150)
NUM_DECODED, BATCH = 400, 8


@dataclasses.dataclass(frozen=True)
class _Timed(RayExecutor):
    """Ray's executor, and for how many seconds its workers were waited for."""

    seconds: list[float] = dataclasses.field(default_factory=list)

    def map(self, *args: Any, **kwargs: Any) -> list[Row]:
        """Do what the executor does."""
        started = time.perf_counter()
        rows = super().map(*args, **kwargs)
        self.seconds.append(time.perf_counter() - started)
        return rows


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _decoding_rate(files: list[bytes]) -> float:
    def decode() -> None:
        for data in files:
            check_content(decode_image(data))

    decode()
    return len(files) / _seconds(decode)


def _network_rate(bundle: Path, files: list[bytes]) -> float:
    predictor = Predictor(load_bundle(bundle))
    stored = [predictor.bundle.preprocess.stored(decode_image(data)) for data in files]
    batches = [stored[start : start + BATCH] for start in range(0, len(stored), BATCH)]
    predictor.predict(batches[0])

    def predict() -> None:
        for batch in batches:
            predictor.predict(batch)

    return len(stored) / _seconds(predict)


def _steps(bundle: Path, files: list[bytes], folder: Path) -> dict[str, float]:
    """Return the milliseconds that each step of an image takes in one thread, but the network."""
    shape, preprocess = letterbox_shape(SIZE[0]), load_bundle(bundle).preprocess
    images = [decode_image(data) for data in files]
    framed = [letterbox(image, shape) for image in images]
    stored = [preprocess.stored(image) for image in images]
    names = [f"image_{index}" for index in range(len(files))]

    seconds = {
        "decoding and checking": _seconds(
            lambda: [check_content(decode_image(data)) for data in files]
        ),
        "hashing the file and its pixels": _seconds(
            lambda: [
                (hashlib.sha256(data).digest(), hashlib.sha256(image.tobytes()).digest())
                for data, image in zip(files, images, strict=True)
            ]
        ),
        "fitting into the stored size": _seconds(
            lambda: [letterbox(image, shape) for image in images]
        ),
        "writing two shards": 2
        * _seconds(lambda: write_shard(folder / "steps.arrow", names, framed)),
        "fingerprint and skin's tone": _seconds(
            lambda: [(fingerprint(image), skin_tone(image)) for image in stored]
        ),
        "reducing to the bundle's size": _seconds(
            lambda: [preprocess.stored(image) for image in images]
        ),
    }
    return {name: round(1000 * value / len(files), 2) for name, value in seconds.items()}


def measure(bundle: Path, folder: Path) -> dict[str, Any]:
    """Return the images per second of each pipeline and its share of the limit."""
    cores, source, phantoms = joblib.cpu_count(), folder / "source", folder / "phantom"
    drawing = _seconds(lambda: write_phantom(PhantomConfig(num_lesions=NUM_LESIONS), phantoms))
    num_drawn = len(list((phantoms / "images").iterdir()))
    draw_images(NUM_IMAGES, source, size=SIZE)
    files = [path.read_bytes() for path in sorted((source / "images").iterdir())[:NUM_DECODED]]
    executor = _Timed()
    executor.start(cores)
    config = PrepareConfig(size=SIZE[0])
    works: dict[str, tuple[int, Callable[[], object]]] = {
        "prepared": (
            NUM_IMAGES,
            lambda: prepare(source, folder / "dataset", config, executor=executor),
        ),
        "scored": (
            NUM_IMAGES,
            lambda: score(bundle, source / "images", folder / "scores", executor=executor),
        ),
        "evaluated": (
            NUM_IMAGES,
            lambda: evaluate(bundle, source, folder / "evidence", executor=executor),
        ),
        "predicted": (
            NUM_DECODED,
            lambda: predict_files(
                bundle,
                sorted((source / "images").iterdir())[:NUM_DECODED],
                explain=None,
                out=None,
                allow_uncontracted=True,
            ),
        ),
    }
    rates, outside, network = {}, {}, [_network_rate(bundle, files)]
    for name, (num, work) in works.items():
        executor.seconds.clear()
        seconds = _seconds(work)
        rates[name], outside[name] = num / seconds, round(seconds - sum(executor.seconds), 1)
        network.append(_network_rate(bundle, files))
    decoding, predicting = _decoding_rate(files) * cores, float(np.mean(network))
    return {
        "images": NUM_IMAGES,
        "drawn": {"images_per_second": round(num_drawn / drawing, 1)},
        **{
            name: {
                "images_per_second": round(rate, 1),
                "limit": round(limit, 1),
                "share_of_limit": round(rate / limit, 2),
                "seconds_outside_workers": outside[name],
            }
            for name, rate in rates.items()
            for limit in [decoding if name == "prepared" else predicting]
        },
        "steps_ms": _steps(bundle, files, folder)
        | {"the network": round(1000 * cores / predicting, 2)},
    }


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
