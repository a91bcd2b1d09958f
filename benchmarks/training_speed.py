"""Compares the training speed of the engine with that of a plain PyTorch loop, in one run.

The plain loop uses AdamW, random flips and weighted cross-entropy, and nothing else. The engine, at
the same image size, adds rotation, zoom, colour jitter, the moving average and gradient clipping,
once with AdamW and once with Muon. The upper limit is forward and backward pass alone, on tensors
in memory. The images are random, because only the time is measured.

    python -m benchmarks.training_speed [--gpu]
    torchrun --nproc-per-node 2 -m benchmarks.training_speed [--gpu]

Under torchrun the plain loop is wrapped in DDP, and the engine shares the same batches among the
same processes; Ray Train would start the same engine.
"""

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import report
from melanoma.config import TrainConfig
from melanoma.imaging.preprocess import Preprocess
from melanoma.presets import cpu
from melanoma.task import DEFAULT_TASK, TASKS
from melanoma.training.distributed import World
from melanoma.training.engine import start_state, train_one_epoch
from melanoma.training.networks import start_model
from melanoma.training.plan import Training
from melanoma.training.precision import autocast

TASK = TASKS[DEFAULT_TASK]
REPEATS = 4
BOUND, PLAIN, ADAMW, MUON = "forward and backward", "plain loop", "engine, AdamW", "engine, Muon"


@dataclasses.dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        backbone: a timm model name.
        stored: (H, W) of the stored images, px.
        size: (H, W) of the network's input, px.
        batch: images in a step.
        steps: steps in an epoch.
    """

    backbone: str
    stored: tuple[int, int]
    size: tuple[int, int]
    batch: int
    steps: int


CASES = (
    Case("convnext_atto", (192, 256), (96, 128), 32, 8),
    Case("tf_efficientnet_lite0", (192, 256), (96, 128), 32, 8),
    Case("convnext_tiny", (192, 256), (168, 224), 8, 3),
)


class RandomImages:
    """Random images in memory, in place of `ImageDataset`, and read in the same way."""

    def __init__(self, case: Case) -> None:
        num = case.batch * case.steps
        self.image_ids = [str(number) for number in range(num)]
        self.labels = torch.randint(0, TASK.num_classes, (num,))
        self._images = torch.randint(0, 256, (num, *case.stored, 3), dtype=torch.uint8).numpy()

    def __len__(self) -> int:
        return len(self.labels)

    def feature_map(self, indices: Sequence[int]) -> None:
        """Return that these images are not embeddings."""

    def images(self, indices: Sequence[int]) -> Tensor:
        """Return images ``(N, H, W, 3)``."""
        return torch.from_numpy(np.stack([self._images[index] for index in indices]))


def settings(case: Case, optimizer: str) -> TrainConfig:
    """Return the preset `cpu` with the network, the sizes and the optimizer of a case."""
    height, width = case.size
    return cpu().with_overrides(
        [
            f"model.backbone={case.backbone}",
            "model.layer_scale=null",
            f"optim.optimizer={optimizer}",
            f"optim.batch_size={case.batch}",
            "optim.progressive_resizing=[]",
            f"data.input_height={height}",
            f"data.input_width={width}",
        ]
    )


def new_model(case: Case, device: torch.device) -> nn.Module:
    """Return a case's network with random weights."""
    config = settings(case, "adamw").model
    return start_model(config, TASK.num_classes, weights="none", seed=0, device=device).train()


def plain_loops(
    case: Case, images: RandomImages, device: torch.device, world: World
) -> dict[str, Callable[[], None]]:
    """Return the passes alone and the plain loop, one epoch each, on images resized in advance."""
    stored = images.images(list(range(len(images))))
    small = F.interpolate(stored.permute(0, 3, 1, 2).float() / 255, case.size)
    small = small.contiguous(memory_format=torch.channels_last)
    weights = torch.ones(TASK.num_classes, device=device)

    def loop(*, is_plain: bool) -> Callable[[], None]:
        model = new_model(case, device)
        model = world.wrap(model) if is_plain else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        kept = small.to(device)

        def run() -> None:
            for whole in torch.randperm(len(images)).split(case.batch):
                batch = whole[world.rank :: world.size]
                inputs = kept[batch] if not is_plain else small[batch].to(device)
                if is_plain and torch.rand(()) < 0.5:
                    inputs = inputs.flip(3)
                optimizer.zero_grad()
                with autocast(device):
                    logits = model(inputs)
                labels = images.labels[batch].to(device)
                F.cross_entropy(logits.float(), labels, weight=weights).backward()
                if is_plain:
                    optimizer.step()

        return run

    return {BOUND: loop(is_plain=False), PLAIN: loop(is_plain=True)}


def engine_loop(
    case: Case, images: Any, optimizer: str, device: torch.device, world: World
) -> Callable[[], None]:
    """Return a function that runs one epoch of the engine."""
    config, model = settings(case, optimizer), new_model(case, device)
    state, wrapped = start_state(model, config, world), world.wrap(model)
    training = Training(
        config,
        images,
        images,
        Preprocess(case.stored, config.data),
        F.one_hot(images.labels, TASK.num_classes).float(),
        torch.zeros(len(images), TASK.num_classes),
        TASK,
        world=world,
    )

    def run() -> None:
        train_one_epoch(training, wrapped, state)

    return run


def measure(case: Case, device: torch.device, world: World) -> dict[str, Any]:
    """Return the images per second of each loop, and ratios within the same repeat.

    The loops run in turn; a first round warms up and does not count.
    """
    torch.manual_seed(0)
    images = RandomImages(case)
    runs = plain_loops(case, images, device, world) | {
        ADAMW: engine_loop(case, images, "adamw", device, world),
        MUON: engine_loop(case, images, "muon", device, world),
    }
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(REPEATS + 1):
        for name, run in runs.items():
            if world.size > 1:
                dist.barrier()
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if world.size > 1:
                dist.barrier()
            if repeat > 0:
                rates[name].append(len(images) / (time.perf_counter() - started))

    def ratio(one: str, other: str) -> float:
        pairs = zip(rates[one], rates[other], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 2)

    return {
        **{name: round(statistics.median(values), 1) for name, values in rates.items()},
        "engine with AdamW over plain loop": ratio(ADAMW, PLAIN),
        "engine with AdamW over forward and backward": ratio(ADAMW, BOUND),
        "engine with Muon over engine with AdamW": ratio(MUON, ADAMW),
    }


def main() -> None:
    """Print the figures of every network as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    world, device = _world(use_gpu=args.gpu)
    figures = {}
    for case in CASES:
        print(f"training {case.backbone}", file=sys.stderr, flush=True)
        figures[case.backbone] = {**dataclasses.asdict(case), **measure(case, device, world)}
    if world.rank == 0:
        each = {"processes": world.size, "threads each": torch.get_num_threads()}
        report("training_speed", {**each, "images/s": figures}, args.json)
    if world.size > 1:
        dist.destroy_process_group()


def _world(*, use_gpu: bool) -> tuple[World, torch.device]:
    """Return the processes that torchrun started, or one, and the device of this one."""
    device = torch.device("cpu")
    if use_gpu:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if use_gpu else "gloo")
    world = World.current()
    torch.set_num_threads(max(1, joblib.cpu_count() // world.size))
    return world, device


if __name__ == "__main__":
    main()
