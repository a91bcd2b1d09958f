"""Tries recipes for small data one at a time, with equal minutes, on folds only.

Every recipe changes the base in one way and trains with the same seeds; seed k is judged on fold k,
with the network of the last epoch. Its number of epochs is what fits into the minutes at the speed
measured at the start, in time of the processor, which other work on the machine disturbs least.
Calibration and test are not looked at.

    python -m benchmarks.recipes train DATASET OUT --minutes 6 --lite LITE0 [LITE1 LITE2]
    python -m benchmarks.recipes table OUT [--keep NAME]
"""

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.figures import keep
from benchmarks.machine import machine
from melanoma.config import TrainConfig
from melanoma.data.dataset import PreparedData, open_prepared
from melanoma.evidence.calibration import fit_calibrator
from melanoma.evidence.metrics import negative_log_likelihood, validation_scores
from melanoma.io.files import write_json, write_parquet
from melanoma.presets import preset
from melanoma.training.engine import fit, input_size, predict, start_state, train_one_epoch
from melanoma.training.networks import start_model
from melanoma.training.plan import Training

LITE0 = (
    "model.backbone=tf_efficientnet_lite0",
    "model.layer_scale=null",
    "model.drop_path=0.2",
    "data.mean=[0.5,0.5,0.5]",
    "data.std=[0.5,0.5,0.5]",
    "optim.optimizer=adamw",
    "optim.lr=0.001",
    "optim.layer_decay=0.85",
    "optim.batch_size=32",
    "optim.frozen_layers=4",
    "optim.progressive_resizing=[[0.5,0.75]]",
    "data.input_height=96",
    "data.input_width=128",
)
RECIPES: dict[str, tuple[str, ...]] = {
    "base": (),
    "mixup": ("augment.mixup=0.5",),
    "cutmix": ("augment.cutmix=0.5",),
    "random_ops": ("augment.random_ops=2",),
    "stronger": (
        "augment.zoom=1.5",
        "augment.brightness=0.2",
        "augment.contrast=0.25",
        "augment.saturation=0.3",
        "augment.tint=0.08",
    ),
    "no_average": ("optim.ema_decay=0",),
    "smoothing": ("loss.smoothing=0.1",),
    "class_sampling": ("optim.class_sampling=0.5", "loss.tau=0"),
    "no_weights": ("loss.tau=0",),
    "larger_late": (
        "data.input_height=144",
        "data.input_width=192",
        "optim.progressive_resizing=[[0.4,0.5],[0.8,0.67]]",
    ),
    "all_layers": ("optim.frozen_layers=0",),
    "lite1": ("model.backbone=tf_efficientnet_lite1",),
    "lite2": ("model.backbone=tf_efficientnet_lite2",),
}
"""Recipe -> settings that differ from the base."""
NAMES = {
    "auroc": "AUROC",
    "within_source_auroc": "within sources",
    "specificity_at_sensitivity_90": "specificity at 90 %",
    "macro_f1": "macro-F1",
    "nll": "nll, calibrated",
}
_WARM_UP, _TIMED = 2, 8


def epochs_for(
    config: TrainConfig, data: PreparedData, *, seconds: float, weights: str
) -> TrainConfig:
    """Return the settings with as many epochs as fit into some seconds of one core's time."""
    longest = config.with_overrides(["optim.epochs=100"])
    sizes = [input_size(longest, epoch) for epoch in range(100)]
    spent = 0.0
    for size in sorted(set(sizes)):
        height, width = size
        at_size = config.with_overrides(
            [
                f"data.input_height={height}",
                f"data.input_width={width}",
                "optim.progressive_resizing=[]",
            ]
        )
        spent += sizes.count(size) / 100 * _epoch_seconds(at_size, data, weights)
    return config.with_overrides([f"optim.epochs={max(2, round(seconds / spent))}"])


def _epoch_seconds(config: TrainConfig, data: PreparedData, weights: str) -> float:
    """Return the processor's time of an epoch, from a few steps."""
    training, times = Training.on(config, data), []
    training = dataclasses.replace(training, on_step=lambda *_: times.append(time.process_time()))
    size = config.optim.batch_size * (_WARM_UP + _TIMED)
    short = dataclasses.replace(training, train=_First(training, size))
    model = start_model(
        config.model,
        data.task.num_classes,
        weights=weights,
        seed=0,
        device=torch.device("cpu"),
    )
    train_one_epoch(short, model, start_state(model, config))
    # The last step reads no batch ahead.
    return float(np.median(np.diff(times[_WARM_UP - 1 : -1]))) * training.steps_per_epoch


class _First:
    """The first images of a training, for a few steps."""

    def __init__(self, training: Training, num: int) -> None:
        self._images, self._num = training.train, num

    def __len__(self) -> int:
        return self._num

    def __getattr__(self, name: str) -> object:
        found = getattr(self._images, name)
        return found[: self._num] if name in ("image_ids", "labels", "groups", "sources") else found


def run(name: str, seed: int, args: argparse.Namespace) -> None:
    """Train one recipe with one seed and write its predictions on its fold."""
    target = args.out / f"{name}-{seed}.parquet"
    if target.is_file():
        return
    data = open_prepared(args.dataset)
    fold = f"data.validation_fold={seed + args.first_fold}"
    config = preset("cpu").with_overrides([*LITE0, *RECIPES[name], f"seed={seed}", fold])
    weights = args.lite[{"lite1": 1, "lite2": 2}.get(name, 0)]
    threads = torch.get_num_threads()
    config = epochs_for(config, data, seconds=60 * args.minutes * threads, weights=weights)
    training = Training.on(config, data)
    started, spent = time.monotonic(), time.process_time()
    model = start_model(
        config.model,
        data.task.num_classes,
        weights=weights,
        seed=seed,
        device=torch.device("cpu"),
    )
    state = fit(training, model, start_state(model, config), lambda _: None)
    minutes = (time.process_time() - spent) / threads / 60
    seen = predict(state.evaluated, training.validation, training.preprocess, tta=config.data.tta)
    write_parquet(
        target,
        pd.DataFrame(seen.logits, columns=[f"logit_{each}" for each in data.task.classes]).assign(
            label=seen.labels,
            group=training.validation.groups,
            source=training.validation.sources,
            minutes=minutes,
            epochs=config.optim.epochs,
        ),
    )
    print(
        f"{name} {seed}: {config.optim.epochs} epochs, {minutes:.1f} minutes of {threads} cores,"
        f" {time.monotonic() - started:.0f} s",
        flush=True,
    )


def train(args: argparse.Namespace) -> None:
    """Train every recipe with every seed, seed by seed; what is there already stays."""
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "machine.json", machine())
    for seed in range(args.seeds):
        for name in args.recipes:
            if len(args.lite) <= {"lite1": 1, "lite2": 2}.get(name, 0):
                continue
            run(name, seed, args)


def scores(found: pd.DataFrame, data: PreparedData) -> dict[str, float]:
    """Return what one network scored on its fold.

    The nll is that after calibration, which each half of the groups gets from the other half.
    """
    logits = found[[f"logit_{name}" for name in data.task.classes]].to_numpy()
    labels, groups = found["label"].to_numpy(), pd.factorize(found["group"], sort=True)[0]
    values = validation_scores(data.task, labels, logits, found["source"].tolist())
    half = np.random.default_rng(0).random(groups.max() + 1)[groups] < 0.5
    probabilities = np.empty(logits.shape)
    for side in (half, ~half):
        calibrator = fit_calibrator(logits[~side], labels[~side], groups[~side])
        probabilities[side] = calibrator(logits[side])
    return {**values, "nll": negative_log_likelihood(labels, probabilities)}


def table(args: argparse.Namespace) -> None:
    """Print the mean over the seeds of each recipe, and its gain over the base seed by seed."""
    data = open_prepared(args.dataset)
    rows = []
    for path in sorted(args.out.glob("*-*.parquet")):
        found = pd.read_parquet(path)
        name, seed = path.stem.rsplit("-", 1)
        spent = {"epochs": found["epochs"].iloc[0], "minutes": found["minutes"].iloc[0]}
        rows.append({"recipe": name, "seed": int(seed), **spent, **scores(found, data)})
    found = pd.DataFrame(rows).set_index(["recipe", "seed"])
    gains = found - found.xs("base", level="recipe").reindex(found.index, level="seed")
    order = [name for name in RECIPES if name in found.index.get_level_values("recipe")]
    cells = [_cells(name, found.loc[name], gains.loc[name]) for name in order]
    print(pd.DataFrame(cells).to_string(index=False))
    if args.keep:
        keep(args.keep, cells)


def _cells(name: str, found: pd.DataFrame, gains: pd.DataFrame) -> dict[str, str]:
    cells = {"recipe": name, "epochs": f"{np.mean(found['epochs']):.0f}"}
    for column, title in NAMES.items():
        by_seed = ", ".join(f"{gain:+.3f}" for gain in gains[column])
        shown = f"{found[column].mean():.3f}"
        cells[title] = shown if name == "base" else f"{shown} ({by_seed})"
    return cells


def main() -> None:
    """Train, or print the table of what was trained."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("train")
    command.add_argument("dataset", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("--lite", nargs="+", required=True, metavar="WEIGHTS")
    command.add_argument("--minutes", type=float, default=6)
    command.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--first-fold", type=int, default=0)
    command.set_defaults(run=train)
    command = commands.add_parser("table")
    command.add_argument("dataset", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("--keep", metavar="NAME", help="keep the figures for the docs as NAME")
    command.set_defaults(run=table)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
