"""Measures the cost of a prediction with Grad-CAM as a multiple of the plain prediction.

Compares our Grad-CAM, which uses the head alone, with pytorch-grad-cam, in one run.

    python -m benchmarks.grad_cam_cost [--gpu]
"""

import argparse

import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from benchmarks.timing import in_turn
from melanoma.config import ModelConfig
from melanoma.explain.grad_cam import explain_feature_maps
from melanoma.task import DEFAULT_TASK, TASKS
from melanoma.training.networks import build_model, features

TASK = TASKS[DEFAULT_TASK]
REPEATS = 15
CASES = (
    ("convnext_atto", (96, 128), 8),
    ("convnext_tiny", (168, 224), 1),
    ("convnext_tiny", (168, 224), 8),
)


def main() -> None:
    """Print one line for each case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", action="store_true")
    device = torch.device("cuda" if parser.parse_args().gpu else "cpu")
    on_gpu = device.type == "cuda"
    where = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads"
    print(f"{where}, medians of {REPEATS} runs, as multiples of the plain forward pass.")
    for backbone, size, batch in CASES:
        forward, ours, library = _measure(backbone, size, batch, device)
        print(
            f"{backbone:14} {size[1]} x {size[0]} px, batch {batch}: forward {1000 * forward:7.1f}"
            f" ms   with our Grad-CAM x {ours / forward:.2f}   with pytorch-grad-cam x"
            f" {library / forward:.2f}"
        )


def _measure(backbone: str, size: tuple[int, int], batch: int, device: torch.device) -> list[float]:
    model = build_model(ModelConfig(backbone), TASK.num_classes).eval().to(device)
    images = torch.rand(batch, 3, *size, device=device)
    theirs = GradCAM(model, [model.stages[-1]])
    targets = [ClassifierOutputTarget(TASK.target_indices[0])] * batch
    runs = [
        lambda: _finished(_forward(model, images), device),
        lambda: _finished(_explain(model, images), device),
        lambda: _finished(theirs(images, targets), device),
    ]
    return in_turn(runs, repeats=REPEATS)


def _explain(model: torch.nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad():
        feature_map = features(model, images)
    explain_feature_maps(model, [feature_map], class_indices=TASK.target_indices)


def _forward(model: torch.nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad():
        model(images)


def _finished(_: object, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
