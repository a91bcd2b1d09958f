"""From a trained network to a bundle with its contract, in the only order that keeps it valid.

The validation fold has chosen the epoch. Here it also fits the calibrator. Only then is the
calibration split opened, once.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from melanoma.arrays import FloatArray
from melanoma.bundle.backend import OnnxFeatures, export_features
from melanoma.bundle.bundle import Extras, library_versions, write_bundle
from melanoma.bundle.drift import FeatureReference, fit_reference, pooled
from melanoma.bundle.manifest import ONNX_RUNTIME, TORCH, BundleManifest, CpuBackend
from melanoma.config import DISCLAIMER, TrainConfig
from melanoma.data.dataset import ImageDataset, PreparedData
from melanoma.evidence.calibration import fit_calibrator
from melanoma.evidence.metrics import validation_scores
from melanoma.evidence.operating_point import (
    Promise,
    choose_units,
    is_referred,
    select_operating_point,
)
from melanoma.imaging.letterbox import Preprocess
from melanoma.task import Task
from melanoma.training.engine import predict
from melanoma.training.networks import features

MAX_DIFFERENCE = 1e-4
MAX_REFERENCE_IMAGES, _BATCH = 1024, 64


def pack(
    model: nn.Module, config: TrainConfig, data: PreparedData, work: Path, *, best_epoch: int
) -> BundleManifest:
    """Fit the calibrator, make the contract and write the bundle.

    Args:
        model: the network of the best epoch.
        config: the settings of its run.
        data: the data set on which it was trained.
        work: folder of this node for the files of the bundle.
        best_epoch: the epoch of the network, from 1, for the manifest.

    Raises:
        DataError: if the data set has no calibration split, or if that split holds no target.
    """
    task, preprocess, tta = data.task, Preprocess(data.stored_shape, config.data), config.data.tta
    rows = data.rows("train", fold=config.data.validation_fold)
    validation = predict(model, ImageDataset(data, rows), preprocess, tta=tta)
    calibrator = fit_calibrator(validation.logits, validation.labels, group_codes(rows))
    reference = reference_of(model, ImageDataset(data, rows), preprocess, seed=config.seed)
    onnx = _export(model, (config.data.input_height, config.data.input_width))
    num_accesses = len(data.log_access("calibration", {"by": "train", "best_epoch": best_epoch}))
    rows = data.rows("calibration")
    calibration = predict(model, ImageDataset(data, rows), preprocess, tta=tta)
    probabilities = calibrator(calibration.logits)
    scores, is_target = task.target_scores(probabilities), task.is_target(calibration.labels)
    targets, others = choose_units(is_target, group_codes(rows), seed=config.seed)
    point = select_operating_point(
        scores[targets],
        scores[others],
        Promise(
            task.targets,
            config.target_sensitivity,
            config.min_specificity,
            population=f"{data.manifest.population}, calibration split",
        ),
    )
    chosen = np.concatenate([targets, others])
    cpu_backend = CpuBackend(TORCH)
    if onnx is not None:
        extract = OnnxFeatures(onnx, num_threads=torch.get_num_threads())
        again = predict(model, ImageDataset(data, rows), preprocess, tta=tta, extract=extract)
        cpu_backend = compare_backend(
            task, probabilities, calibrator(again.logits), point.threshold
        )
    draft = BundleManifest(
        task=task,
        architecture=config.model,
        preprocessing=preprocess,
        calibrator=calibrator,
        operating_point=point,
        features=reference,
        cpu_backend=cpu_backend,
        group_columns=data.manifest.group_columns,
        split_hash=data.manifest.split_hash,
        training_config=config,
        best_epoch=best_epoch,
        validation=validation_scores(task, validation.labels, validation.logits),
        versions=library_versions(),
    )
    labels = [task.classes[label] for label in calibration.labels[chosen]]
    extras = Extras(
        calibration_rows=pd.DataFrame({"label": labels, "score": scores[chosen]}),
        features_onnx=onnx if cpu_backend.name == ONNX_RUNTIME else None,
        model_card=_model_card(draft, data, num_accesses=num_accesses),
    )
    return write_bundle(work, draft, model, extras)


def reference_of(
    model: nn.Module, dataset: ImageDataset, preprocess: Preprocess, *, seed: int
) -> FeatureReference:
    """Fit the feature reference to at most 1,024 images, on the device of the network.

    Args:
        model: the network.
        dataset: the images to draw from.
        preprocess: from stored images to network input.
        seed: seed of the draw.
    """
    device = next(model.parameters()).device
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:MAX_REFERENCE_IMAGES].tolist()
    model.eval()
    with torch.no_grad():
        values = [
            pooled(
                features(
                    model, preprocess(dataset.images(chosen[start : start + _BATCH]).to(device))
                )
            )
            for start in range(0, len(chosen), _BATCH)
        ]
    return fit_reference(np.concatenate(values))


def _export(model: nn.Module, input_size: tuple[int, int]) -> bytes | None:
    """Return the network for ONNX Runtime, or None if ONNX cannot express it."""
    try:
        return export_features(model, input_size)
    except torch.onnx.OnnxExporterError:
        return None


def compare_backend(
    task: Task, probabilities: FloatArray, again: FloatArray, threshold: float
) -> CpuBackend:
    """Choose the library that computes feature maps on a CPU.

    It is ONNX Runtime if that changes no decision on the calibration images and no probability by
    more than 1e-4, and torch otherwise.

    Args:
        task: the classes.
        probabilities: ``(N, C)`` of the calibration images, by torch.
        again: ``(N, C)`` of the same images, by ONNX Runtime.
        threshold: the threshold of the operating point, in [0, 1].

    Returns:
        The library's name and the differences between the two, for the manifest.
    """
    furthest = float(np.abs(again - probabilities).max())
    referred, referred_again = (
        is_referred(task.target_scores(p), threshold) for p in (probabilities, again)
    )
    num_other = int((referred != referred_again).sum())
    same = furthest <= MAX_DIFFERENCE and num_other == 0
    return CpuBackend(ONNX_RUNTIME if same else TORCH, len(probabilities), furthest, num_other)


def group_codes(rows: pd.DataFrame) -> np.ndarray:
    """Return the groups of N records as integers, ``(N,)``."""
    return np.asarray(pd.factorize(rows["group"], sort=True)[0])


def _model_card(draft: BundleManifest, data: PreparedData, *, num_accesses: int) -> str:
    config, task, manifest = draft.training_config, draft.task, data.manifest
    counts = ", ".join(
        f"{split}: {sum(by_class.values())} ({manifest.num_targets(split)} {task.target_name})"
        for split, by_class in sorted(manifest.counts.items())
    )
    contract = draft.operating_point.contract
    return f"""# Model card

**{DISCLAIMER}**

- Network: {config.model.backbone}, input {config.data.input_width} x {config.data.input_height} px,
  averaged over {config.data.tta} mirrored copies.
- Classes ({task.name}): {", ".join(task.classes)}. Targets: {", ".join(task.targets)}.
- Data: {manifest.population}, grouped by {", ".join(manifest.group_columns)}.
  Images by split: {counts}. Split hash: `{manifest.split_hash[:16]}`.
- Chosen on validation fold {config.data.validation_fold}: epoch {draft.best_epoch} of
  {config.optim.epochs}. AUROC of the targets there: {draft.validation["auroc"]:.3f}, which is
  optimistic because it chose the epoch.
- Feature maps on a CPU: {json.dumps(dataclasses.asdict(draft.cpu_backend))}.
- Contract: **{contract.status}**. {contract.sentence(task)}
  This was access number {num_accesses} to this calibration split. Choosing among runs by their
  contracts weakens the promise.
- Not evaluated: other clinics, cameras, skin tones and age groups. The threshold is not valid for
  them without new calibration.

Training settings:

```json
{json.dumps(dataclasses.asdict(config), indent=2)}
```
"""
