"""Trains a network in ways meant to keep it from recognising the camera, and compares them.

Every way trains with the same settings, the same epochs and the same seeds. Seed k is judged on
fold k, which chooses its epoch, so that both the network and the images vary. Calibration and test
are not looked at.

- base: the preset as it is.
- offset_half, offset: what the source says of the class is added to the logits while training
  (`loss.source_offset` 0.5 and 1).
- balance: images weighted so that each source has the class mix of all.
- colour: stronger changes of brightness, contrast, saturation and tint.
- constancy: colours scaled to those of a neutral light (shades of grey, norm 6; Finlayson and
  Trezzi, Shades of Gray and Colour Constancy, 2004).
- dro: images of the groups (source, target or not) with the largest loss weighted up after every
  epoch (group DRO; Sagawa et al., Distributionally Robust Neural Networks, 2020).

    python -m benchmarks.lesion_learning train DATASET OUT [--gpu] [--processes N]
    python -m benchmarks.lesion_learning table OUT [--keep NAME]
"""

import argparse
import copy
import dataclasses
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.special import softmax
from torch import Tensor

from benchmarks.figures import keep
from melanoma.config import TrainConfig
from melanoma.data.dataset import ImageDataset, PreparedData, open_prepared
from melanoma.evidence.metrics import specificity_at_sensitivity
from melanoma.evidence.reference_models import compare_within_sources
from melanoma.io.files import write_json, write_parquet
from melanoma.presets import preset
from melanoma.training.engine import (
    TrainState,
    fit,
    predict,
    start_state,
)
from melanoma.training.networks import start_model
from melanoma.training.plan import Training
from melanoma.training.selection import selection_score

NORM = 6
DRO_RATE = 1.0
DRO_IMAGES = 1500
MOST_WEIGHT = 20.0
SENSITIVITIES = (0.9, 0.95)
COLOUR = (
    "augment.brightness=0.3",
    "augment.contrast=0.3",
    "augment.saturation=0.5",
    "augment.tint=0.15",
)
WAYS: dict[str, tuple[str, ...]] = {
    "base": (),
    "offset_half": ("loss.source_offset=0.5",),
    "offset": ("loss.source_offset=1",),
    "balance": (),
    "colour": COLOUR,
    "constancy": (),
    "dro": (),
    "offset_colour": ("loss.source_offset=1", *COLOUR),
    "balance_colour": COLOUR,
}
"""Way -> settings that differ from the preset."""


class _Held(ImageDataset):
    """The images of an `ImageDataset`, changed once and held on the device."""

    def __init__(
        self,
        data: PreparedData,
        rows: pd.DataFrame,
        device: torch.device,
        change: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__(data, rows)
        parts = torch.arange(len(self)).split(256)
        self._held = torch.cat(
            [change(super(_Held, self).images(part.tolist())).to(device) for part in parts]
        )

    def images(self, indices: Sequence[int]) -> Tensor:
        return self._held[torch.as_tensor(indices, device=self._held.device)]


def neutral(images: Tensor) -> Tensor:
    """Return ``(N, H, W, 3)`` uint8 images as under a neutral light."""
    pixels = images.float() / 255
    light = pixels.pow(NORM).mean(dim=(1, 2), keepdim=True).pow(1 / NORM) + 1e-6
    gains = light.pow(2).mean(dim=3, keepdim=True).sqrt() / light
    return (255 * (pixels * gains).clamp(0, 1)).round().to(torch.uint8)


def balanced(labels: Sequence[int], sources: Sequence[str]) -> Tensor:
    """Return a weight for each image, P(class) / P(class | source), at most MOST_WEIGHT."""
    counts = pd.crosstab(pd.Series(list(sources)), pd.Series(list(labels)))
    ratio = (counts.sum() / counts.to_numpy().sum()) / counts.div(counts.sum(axis=1), axis=0)
    found = [
        min(ratio.at[at, label], MOST_WEIGHT) for label, at in zip(labels, sources, strict=True)
    ]
    weights = torch.tensor(found, dtype=torch.float32)
    return weights / weights.mean()


class _Robust:
    """Weights the images of groups with a large loss up, after every epoch."""

    def __init__(self, training: Training) -> None:
        is_target = torch.isin(training.train.labels, torch.tensor(training.task.target_indices))
        names = [
            f"{source} {bool(target)}"
            for source, target in zip(training.train.sources, is_target, strict=True)
        ]
        _, self._group = np.unique(names, return_inverse=True)
        self._share = np.ones(self._group.max() + 1)
        self._training, self._targets = training, training.targets.clone()
        every = max(1, len(names) // DRO_IMAGES)
        self._seen = list(range(0, len(names), every))

    def __call__(self, state: TrainState) -> None:
        training, device = self._training, next(state.model.parameters()).device
        labels = training.train.labels
        with torch.no_grad():
            state.evaluated.eval()
            losses = [
                F.cross_entropy(
                    state.evaluated(
                        training.preprocess(training.train.images(part.tolist()).to(device))
                    ),
                    labels[part].to(device),
                    reduction="none",
                )
                for part in torch.tensor(self._seen).split(256)
            ]
        of_image = torch.cat(losses).cpu().numpy()
        groups = self._group[self._seen]
        for group in np.unique(groups):
            self._share[group] *= np.exp(DRO_RATE * of_image[groups == group].mean())
        self._share /= self._share.mean()
        sizes = np.bincount(self._group, minlength=len(self._share))
        weights = (self._share / np.maximum(sizes, 1))[self._group]
        weights = np.minimum(weights / weights.mean(), MOST_WEIGHT)
        factors = torch.from_numpy(weights / weights.mean()).float()
        training.targets.copy_(self._targets * factors[:, None])


def run(
    way: str,
    seed: int,
    dataset: Path,
    out: Path,
    *,
    base: TrainConfig,
    weights: str,
    gpu: bool,
    threads: int,
) -> str:
    """Train one network, write its predictions on its fold, and return a line that says so."""
    target = out / f"{way}-{seed}.parquet"
    if target.is_file():
        return f"{way} {seed}: there already"
    torch.set_num_threads(threads)
    started = time.monotonic()
    device = torch.device("cuda" if gpu else "cpu")
    data = open_prepared(dataset)
    config = base.with_overrides([*WAYS[way], f"seed={seed}", f"data.validation_fold={seed}"])
    change = neutral if way == "constancy" else torch.Tensor.contiguous
    held = {
        "train": _Held(data, data.rows("train", without_fold=seed), device, change),
        "validation": _Held(data, data.rows("train", fold=seed), device, change),
    }
    training = dataclasses.replace(Training.on(config, data), **held)  # type: ignore[arg-type]
    if way.startswith("balance"):
        training = dataclasses.replace(
            training,
            targets=training.targets
            * balanced(training.train.labels.tolist(), training.train.sources)[:, None],
        )
    model = start_model(
        config.model, data.task.num_classes, weights=weights, seed=seed, device=device
    )
    state = start_state(model, config)
    robust = _Robust(training) if way == "dro" else None
    best: dict[str, Tensor] = {}

    def on_epoch_end(state: TrainState) -> None:
        scores = [selection_score(row) for row in state.history]
        if scores[-1] == max(scores):
            best.update(copy.deepcopy(state.evaluated.state_dict()))
        if robust is not None:
            robust(state)

    fit(training, model, state, on_epoch_end)
    model.load_state_dict(best)
    seen = predict(model, training.validation, training.preprocess, tta=config.data.tta)
    found = data.rows("train", fold=seed)[["image_id", "group", "source", "dx_type"]].assign(
        way=way,
        seed=seed,
        is_target=data.task.is_target(seen.labels),
        score=data.task.target_scores(softmax(seen.logits.astype(np.float64), axis=1)),
        seconds=time.monotonic() - started,
    )
    write_parquet(target, found)
    return f"{way} {seed}: {time.monotonic() - started:.0f} s"


def train(args: argparse.Namespace) -> None:
    """Train every way with every seed."""
    base = preset(args.preset).with_overrides(args.set)
    args.out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.processes, mp_context=context) as pool:
        tasks = [
            pool.submit(
                run,
                way,
                seed,
                args.dataset,
                args.out,
                base=base,
                weights=args.weights,
                gpu=args.gpu,
                threads=max(1, torch.get_num_threads() // args.processes),
            )
            for seed in range(args.seeds)
            for way in args.ways
        ]
        for task in tasks:
            print(task.result(), flush=True)
    table(args)


def scores(found: pd.DataFrame) -> dict[str, float]:
    """Return what one network scored on its fold; specificities are those of its own thresholds."""
    is_target, score = found["is_target"].to_numpy(), found["score"].to_numpy()
    nothing, one = np.zeros(len(found)), [""] * len(found)
    places = {"within sources": found["source"].tolist(), "AUROC": one}
    row = {
        name: compare_within_sources(is_target, score, nothing, sources, columns=()).auroc
        for name, sources in places.items()
    }
    for standard in ("histology", "follow_up"):
        kept = is_target | (found["dx_type"] == standard).to_numpy()
        for share in SENSITIVITIES:
            row[f"{standard} {share:.0%}"] = specificity_at_sensitivity(
                is_target[kept], score[kept], np.ones(int(kept.sum())), sensitivity=share
            )
    return row


def table(args: argparse.Namespace) -> None:
    """Print the mean over the seeds of each way, the difference to base, and its spread."""
    parts = [pd.read_parquet(path) for path in sorted(args.out.glob("*.parquet"))]
    rows = [
        {"way": way, "seed": seed, "seconds": part["seconds"].iloc[0], **scores(part)}
        for (way, seed), part in pd.concat(parts).groupby(["way", "seed"])
    ]
    found = pd.DataFrame(rows).set_index(["way", "seed"])
    write_json(args.out / "table.json", json.loads(found.reset_index().to_json(orient="records")))
    difference = found - found.xs("base", level="way").reindex(found.index, level="seed")
    summary = found.groupby("way").mean()
    for name in ("within sources", "histology 95%"):
        by_way = difference[name].groupby("way")
        summary[f"{name}, gain"] = by_way.mean()
        summary[f"{name}, least"], summary[f"{name}, most"] = by_way.min(), by_way.max()
    print(summary.round(3).to_string())
    if args.keep:
        keep(args.keep, [_cells(str(way), row) for way, row in summary.iterrows()])


def _cells(way: str, row: pd.Series) -> dict[str, str]:
    """Return the row of one way as cells for the docs."""

    def gain(name: str) -> str:
        if way == "base":
            return "-"
        found = (row[f"{name}, {part}"] for part in ("gain", "least", "most"))
        return "{:+.3f} ({:+.3f} to {:+.3f})".format(*found)

    return {
        "way": way,
        "AUROC within sources": f"{row['within sources']:.3f}",
        "gain (least to most)": gain("within sources"),
        "AUROC": f"{row['AUROC']:.3f}",
        "specificity, histology": f"{row['histology 95%']:.3f}",
        "gain (least to most) ": gain("histology 95%"),
        "specificity, follow-up": f"{row['follow_up 95%']:.3f}",
    }


def main() -> None:
    """Train, or print the table of what was trained."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("train")
    command.add_argument("dataset", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("--preset", default="cpu")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    command.add_argument("--weights", default="none")
    command.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--processes", type=int, default=1)
    command.add_argument("--gpu", action="store_true")
    command.set_defaults(run=train, keep=None)
    command = commands.add_parser("table")
    command.add_argument("out", type=Path)
    command.add_argument("--keep", metavar="NAME", help="keep the figures for the docs as NAME")
    command.set_defaults(run=table)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
