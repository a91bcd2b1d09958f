"""A baseline for `melanoma train`: a plain PyTorch loop on the same prepared images.

`train` learns from every training fold but the first, as `melanoma train` does. It uses AdamW, a
one-cycle schedule, flips, cross-entropy weighted by n ** -0.5 and one learning rate for all layers.
It takes the last epoch and averages two mirrored copies on test. It uses test once and logs that
access.

`compare` prints the difference of each metric with its 95 % interval. It draws the groups of test
with replacement, the same for both, and compares the networks before calibration.

    python -m benchmarks.plain_loop train DATASET plain.parquet \\
        --backbone tf_efficientnet_lite0 --weights lite0.safetensors
    python -m benchmarks.plain_loop compare plain.parquet evidence/predictions.parquet
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.special import softmax
from torch import Tensor, nn

from melanoma.config import DataConfig, ModelConfig
from melanoma.data.dataset import ImageDataset, open_prepared
from melanoma.evidence.metrics import METRICS, Predicted, validation_scores
from melanoma.imaging.preprocess import Preprocess
from melanoma.io.files import write_parquet
from melanoma.task import DEFAULT_TASK, TASKS
from melanoma.training.engine import predict
from melanoma.training.losses import class_weights_from_counts
from melanoma.training.networks import build_model
from melanoma.training.weights import load_weights

NUM_DRAWS = 1000


def train(args: argparse.Namespace) -> None:
    """Train the baseline and write its predictions on test."""
    data = open_prepared(args.dataset)
    pixels = {"mean": (0.5,) * 3, "std": (0.5,) * 3} if args.weights else {}
    preprocess = Preprocess(
        data.stored_shape, DataConfig(input_height=96, input_width=128, **pixels)
    )
    learned = ImageDataset(data, data.rows("train", without_fold=0))
    validation = ImageDataset(data, data.rows("train", fold=0))
    torch.manual_seed(args.seed)
    model = build_model(ModelConfig(args.backbone), data.task.num_classes)
    if args.weights:
        load_weights(model, args.weights)
    started = time.monotonic()
    for epoch in _fit(model, learned, preprocess, args.epochs, args.batch_size, args.lr):
        seen = predict(model, validation, preprocess, tta=2)
        scores = validation_scores(data.task, seen.labels, seen.logits, validation.sources)
        print(f"epoch {epoch}: {scores}, {time.monotonic() - started:.0f} s", flush=True)
    rows = data.rows("test")
    data.log_access("test", {"bundle_version": "plain loop", "num": len(rows)})
    found = predict(model, ImageDataset(data, rows), preprocess, tta=2)
    write_parquet(
        args.out,
        rows[["image_id", "group", "label"]].join(
            pd.DataFrame(found.logits, columns=[f"logit_{name}" for name in data.task.classes])
        ),
    )


def _fit(
    model: nn.Module,
    learned: ImageDataset,
    preprocess: Preprocess,
    epochs: int,
    batch_size: int,
    lr: float,
):  # type: ignore[no-untyped-def]
    images = torch.cat(
        [
            preprocess(learned.images(part.tolist()))
            for part in torch.arange(len(learned)).split(256)
        ]
    )
    counts = torch.bincount(
        learned.labels,
        minlength=model.num_classes,  # type: ignore[arg-type]
    ).tolist()
    weights = class_weights_from_counts(counts, targets=[], tau=0.5)
    steps = len(learned) // batch_size
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=epochs * steps)
    for epoch in range(1, epochs + 1):
        model.train()
        for batch in torch.randperm(len(learned))[: steps * batch_size].split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(
                model(_flipped(images[batch])), learned.labels[batch], weight=weights
            ).backward()
            optimizer.step()
            schedule.step()
        yield epoch


def _flipped(images: Tensor) -> Tensor:
    """Flip each of ``(N, 3, H, W)`` images at random left-right, top-bottom, both or neither."""
    for axis in (2, 3):
        chosen = torch.rand(len(images)).lt(0.5).view(-1, 1, 1, 1)
        images = torch.where(chosen, images.flip(axis), images)
    return images.contiguous(memory_format=torch.channels_last)


def compare(plain: pd.DataFrame, ours: pd.DataFrame) -> None:
    """Print each metric of both networks, and the difference ours - plain with its interval."""
    plain, ours = (table.sort_values("image_id", ignore_index=True) for table in (plain, ours))
    if not plain["image_id"].equals(ours["image_id"]):
        raise SystemExit(
            "Both tables must hold the same images; these do not. Predict the same test split."
        )
    task, labels = TASKS[DEFAULT_TASK], plain["label"].to_numpy()
    logits = [
        table[[f"logit_{name}" for name in task.classes]].to_numpy(dtype=np.float64)
        for table in (plain, ours)
    ]
    theirs, mine = (Predicted(task, labels, softmax(values, axis=1)) for values in logits)
    member = pd.factorize(plain["group"])[0]
    num, rng = member.max() + 1, np.random.default_rng(0)
    drawn = [
        np.bincount(rng.integers(0, num, num), minlength=num)[member].astype(float)
        for _ in range(NUM_DRAWS)
    ]
    for name, metric in METRICS.items():
        values = [metric.value(units, np.ones(len(labels))) for units in (theirs, mine)]
        differences = [metric.value(mine, w) - metric.value(theirs, w) for w in drawn]
        low, high = np.nanquantile(differences, [0.025, 0.975])
        print(
            f"{name:32} plain {values[0]:.3f}   ours {values[1]:.3f}   ours - plain"
            f" {values[1] - values[0]:+.3f} [{low:+.3f}, {high:+.3f}]"
        )


def main() -> None:
    """Train or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(required=True)
    training = steps.add_parser("train")
    training.add_argument("dataset", type=Path)
    training.add_argument("out", type=Path)
    training.add_argument("--backbone", default="convnext_atto")
    training.add_argument("--weights", type=Path)
    training.add_argument("--epochs", type=int, default=6)
    training.add_argument("--batch-size", type=int, default=32)
    training.add_argument("--lr", type=float, default=1e-3)
    training.add_argument("--seed", type=int, default=0)
    training.set_defaults(run=train)
    comparing = steps.add_parser("compare")
    comparing.add_argument("plain", type=Path)
    comparing.add_argument("ours", type=Path)
    comparing.set_defaults(
        run=lambda args: compare(pd.read_parquet(args.plain), pd.read_parquet(args.ours))
    )
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
