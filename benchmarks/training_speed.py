"""Compares the training speed of the engine with that of a plain PyTorch loop, in one run.

The plain loop uses AdamW, random flips and weighted cross-entropy, and nothing else. The engine, at
the same image size, adds rotation, zoom, colour jitter, Muon or AdamW, the moving average and
gradient clipping. The images are random, because only the time is measured.

    python -m benchmarks.training_speed [--gpu]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from melanoma.config import TrainConfig
from melanoma.imaging.letterbox import Preprocess
from melanoma.presets import cpu
from melanoma.task import DEFAULT_TASK, TASKS
from melanoma.training.engine import Training, autocast, start_state, train_one_epoch
from melanoma.training.networks import build_model, start_model

TASK = TASKS[DEFAULT_TASK]
BATCH, STEPS, REPEATS = 32, 12, 5
STORED_SHAPE, SIZE = (192, 256), (96, 128)


class _Images:
    """Random images in memory, in place of `ImageDataset`."""

    def __init__(self) -> None:
        self.image_ids = [str(number) for number in range(BATCH * STEPS)]
        self.labels = torch.randint(0, TASK.num_classes, (BATCH * STEPS,))
        self._images = torch.randint(0, 256, (BATCH * STEPS, *STORED_SHAPE, 3), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: list[int]) -> Tensor:
        return self._images[indices]


def plain_epoch(model: nn.Module, images: _Images, device: torch.device) -> Callable[[], None]:
    """Return a function that runs one epoch of the plain loop, on images resized in advance."""
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")
    small = F.interpolate(
        images.images(list(range(len(images)))).permute(0, 3, 1, 2).float() / 255, SIZE
    )
    weights = torch.ones(TASK.num_classes, device=device)

    def run() -> None:
        model.train()
        for batch in torch.randperm(len(images)).split(BATCH):
            inputs = small[batch].to(device)
            if torch.rand(()) < 0.5:
                inputs = inputs.flip(3)
            optimizer.zero_grad()
            with autocast(device):
                logits = model(inputs)
            labels = images.labels[batch].to(device)
            F.cross_entropy(logits.float(), labels, weight=weights).backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def our_epoch(config: TrainConfig, images: _Images, device: torch.device) -> Callable[[], None]:
    """Return a function that runs one epoch of the engine."""
    model = start_model(config.model, TASK.num_classes, weights="none", seed=0, device=device)
    state = start_state(model, config)
    training = Training(
        config,
        images,
        images,
        Preprocess(STORED_SHAPE, config.data),
        torch.ones(len(images.labels)),
        torch.zeros(len(images.labels), TASK.num_classes),
        TASK,
    )  # type: ignore[arg-type]
    return lambda: _discard(train_one_epoch(training, model, state))


def _discard(_: float) -> None:
    pass


def measure(epochs: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Return the images per second of each loop in every repeat; the loops run in turn.

    A first round warms up and does not count.
    """
    rates: dict[str, list[float]] = {name: [] for name in epochs}
    for repeat in range(REPEATS + 1):
        for name, run in epochs.items():
            started = time.perf_counter()
            run()
            if repeat > 0:
                rates[name].append(BATCH * STEPS / (time.perf_counter() - started))
    return rates


def main() -> None:
    """Print one line for each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backbones", nargs="+", default=["convnext_atto", "tf_efficientnet_lite0"]
    )
    parser.add_argument("--gpu", action="store_true")
    args = parser.parse_args()
    device = torch.device("cuda" if args.gpu else "cpu")
    where = torch.cuda.get_device_name() if args.gpu else f"{torch.get_num_threads()} threads"
    print(
        f"{where}, {SIZE[1]} x {SIZE[0]} px, batch {BATCH}, median of"
        f" {REPEATS} epochs of {STEPS} steps"
    )
    for backbone in args.backbones:
        torch.manual_seed(0)
        optimizer = "muon" if backbone.startswith("convnext") else "adamw"
        config = cpu().with_overrides(
            [
                f"model.backbone={backbone}",
                "model.layer_scale=null",
                f"optim.optimizer={optimizer}",
                "optim.progressive_resizing=[]",
            ]
        )
        images = _Images()
        rates = measure(
            {
                "plain": plain_epoch(build_model(config.model, TASK.num_classes), images, device),
                "ours": our_epoch(config, images, device),
            }
        )
        plain, ours = (statistics.median(rates[name]) for name in ("plain", "ours"))
        print(
            f"{backbone:24} plain loop {plain:6.1f} images/s   engine ({optimizer}) {ours:6.1f}  "
            f" ratio {ours / plain:.2f}"
        )


if __name__ == "__main__":
    main()
