"""Measures what each step of an answer takes in one thread, with a bundle of your own.

    python -m benchmarks.answer_steps BUNDLE [IMAGE]

What is not the network limits how close a server of a small network can come to it.
"""

import argparse
import base64
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import report
from benchmarks.sample import image_or_phantom
from melanoma.bundle.bundle import load_bundle
from melanoma.bundle.predictor import Predictor
from melanoma.explain.overlay import heatmap_on, overlay
from melanoma.imaging.decode import check_content, decode_image
from melanoma.imaging.png_writer import to_png
from serve.schemas import Explanation

REPEATS = 30


def _milliseconds(step: Callable[[], object]) -> float:
    step()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return round(1000 * statistics.median(times), 2)


def measure(bundle_dir: Path, body: bytes) -> dict[str, float]:
    """Return the milliseconds of each step for one image."""
    torch.set_num_threads(1)
    predictor = Predictor(load_bundle(bundle_dir))
    preprocess = predictor.bundle.preprocess
    image = decode_image(body)
    stored = preprocess.stored(image)
    (prediction,) = predictor.predict([stored], explain=True)
    values = prediction.heatmap
    assert values is not None  # it was asked for
    shown, heatmap = heatmap_on(image, values, preprocess)
    drawn = np.asarray(overlay(shown, heatmap))
    pngs = to_png(heatmap.values), to_png(drawn)

    def text() -> str:
        heatmap_png, overlay_png = (base64.b64encode(png).decode() for png in pngs)
        return Explanation(  # type: ignore[call-arg]  # mypy knows only the alias of class_name
            method="grad_cam",
            class_name=predictor.bundle.task.target_name,
            heatmap_png=heatmap_png,
            overlay_png=overlay_png,
            peak=heatmap.peak,
        ).model_dump_json()

    steps: dict[str, Callable[[], object]] = {
        "decoding and checking": lambda: check_content(decode_image(body)),
        "reducing to the stored size": lambda: preprocess.stored(image),
        "the network, four mirrored copies": lambda: predictor.predict([stored]),
        "the network with Grad-CAM": lambda: predictor.predict([stored], explain=True),
        "heatmap and overlay at the size of the image": lambda: overlay(
            *heatmap_on(image, values, preprocess)
        ),
        "two PNGs": lambda: (to_png(heatmap.values), to_png(drawn)),
        "base64 and JSON": text,
    }
    return {name: _milliseconds(step) for name, step in steps.items()}


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("image", type=Path, nargs="?", help="default: a phantom of 600 x 450 px")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    steps = measure(args.bundle.resolve(), image_or_phantom(args.image))
    report("answer_steps", {"ms": steps}, args.json)


if __name__ == "__main__":
    main()
