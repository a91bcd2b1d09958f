"""Compares torch, ONNX Runtime and OpenVINO for computing a network's feature map on this CPU.

All are timed in one run and printed as ratios, first with one thread, which is what a replica has,
and then with all threads.

    pip install openvino && python -m benchmarks.backends
"""

import functools
from collections.abc import Callable

import openvino
import torch

from benchmarks.timing import in_turn
from melanoma.bundle.backend import OnnxFeatures, export_features
from melanoma.config import ModelConfig
from melanoma.task import DEFAULT_TASK, TASKS
from melanoma.training.networks import build_model, features

REPEATS = 15
CASES = (
    ("convnext_atto", (96, 128)),
    ("convnext_tiny", (168, 224)),
    ("tf_efficientnet_lite0", (96, 128)),
)


def main() -> None:
    """Print one line for each case."""
    print(f"Eager torch in ms per image, then the others as speed-ups; medians of {REPEATS} runs.")
    for backbone, size in CASES:
        torch.manual_seed(0)
        model = (
            build_model(ModelConfig(backbone, layer_scale=None), TASKS[DEFAULT_TASK].num_classes)
            .eval()
            .requires_grad_(False)
        )
        onnx = export_features(model, size)
        for num_threads in sorted({1, torch.get_num_threads()}):
            for batch in (1, 8):
                _compare(backbone, model, onnx, torch.rand(batch, 3, *size), num_threads)


def _compare(
    backbone: str, model: torch.nn.Module, onnx: bytes, images: torch.Tensor, num_threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": num_threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(onnx), "CPU", settings)
    last = images.contiguous(memory_format=torch.channels_last)
    runs: dict[str, Callable[[], object]] = {
        "eager": functools.partial(features, model, images),
        "channels-last": functools.partial(features, model, last),
        "ONNX Runtime": functools.partial(OnnxFeatures(onnx, num_threads=num_threads), images),
        "OpenVINO": functools.partial(compiled, {"images": images.numpy()}),
    }
    seconds = dict(zip(runs, in_turn(list(runs.values()), repeats=REPEATS), strict=True))
    eager = seconds.pop("eager")
    ratios = "   ".join(f"{name} x {eager / value:.2f}" for name, value in seconds.items())
    size = f"{images.shape[3]} x {images.shape[2]} px"
    print(
        f"{backbone:22} {size:13} batch {len(images)}, {num_threads} threads:"
        f" {1000 * eager / len(images):6.1f} ms   {ratios}",
        flush=True,
    )
    torch.set_num_threads(before)


if __name__ == "__main__":
    main()
