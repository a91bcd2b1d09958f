"""Measures how fast images are drawn, prepared and predicted, beside what a machine can do at most.

    python -m benchmarks.pipelines BUNDLE

Draws some phantoms. Then prepares, scores and evaluates as many images of noise as HAM10000 has,
at 200 x 150 px. All use all cores. The limit of preparing is the rate at which one core decodes the
same files, times the cores. The limit of the others is the bundle's network on images in memory,
measured before, between and after them. Ray is started before preparing is timed; its workers are
not.
"""

import argparse
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
from melanoma.evaluation import evaluate
from melanoma.imaging.decode import check_content, decode_image
from melanoma.scoring import score
from ray_jobs.executor import RayExecutor

NUM_LESIONS, NUM_IMAGES, SIZE = 1000, 10_015, (200, 150)
NUM_DECODED, BATCH = 400, 8


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


def measure(bundle: Path, folder: Path) -> dict[str, Any]:
    """Return the images per second of each pipeline and its share of the limit."""
    cores, source, phantoms = joblib.cpu_count(), folder / "source", folder / "phantom"
    drawing = _seconds(lambda: write_phantom(PhantomConfig(num_lesions=NUM_LESIONS), phantoms))
    num_drawn = len(list((phantoms / "images").iterdir()))
    draw_images(NUM_IMAGES, source, size=SIZE)
    files = [path.read_bytes() for path in sorted((source / "images").iterdir())[:NUM_DECODED]]
    executor = RayExecutor()
    executor.start(cores)
    config = PrepareConfig(size=SIZE[0])
    preparing = _seconds(lambda: prepare(source, folder / "dataset", config, executor=executor))
    decoding = _decoding_rate(files) * cores
    predicting, network = {}, [_network_rate(bundle, files)]
    for name, work in {
        "scored": lambda: score(bundle, source / "images", folder / "scores", executor=executor),
        "evaluated": lambda: evaluate(bundle, source, folder / "evidence", executor=executor),
    }.items():
        predicting[name] = _seconds(work)
        network.append(_network_rate(bundle, files))
    limit = float(np.mean(network))
    figures = {
        "drawn": (num_drawn / drawing, None),
        "prepared": (NUM_IMAGES / preparing, decoding),
        **{name: (NUM_IMAGES / seconds, limit) for name, seconds in predicting.items()},
    }
    return {
        "images": NUM_IMAGES,
        **{
            name: {
                "images_per_second": round(rate, 1),
                "limit": limit and round(limit, 1),
                "share_of_limit": limit and round(float(np.divide(rate, limit)), 2),
            }
            for name, (rate, limit) in figures.items()
        },
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
