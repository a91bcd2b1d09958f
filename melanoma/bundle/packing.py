"""From a trained network to a contracted bundle, in the one order that keeps the contract valid.

The validation fold has chosen the epoch; here it fits the calibrator; only then is the calibration split opened, once.
"""

import dataclasses
import json
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from melanoma.arrays import FloatArray
from melanoma.bundle.backend import OnnxFeatures, export_features
from melanoma.bundle.bundle import ONNX_RUNTIME, TORCH, BundleParts, save_bundle
from melanoma.bundle.drift import reference_of
from melanoma.config import CLASSES, MELANOMA_INDEX, TrainConfig
from melanoma.data.dataset import ImageDataset, PreparedData
from melanoma.evidence.calibration import fit_calibrator
from melanoma.evidence.metrics import validation_scores
from melanoma.evidence.operating_point import OperatingPoint, choose_units, select_operating_point
from melanoma.imaging.letterbox import Preprocess
from melanoma.io.storage import AnyPath
from melanoma.training.engine import predict

MAX_DIFFERENCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Packed:
    """What packing found."""

    operating_point: OperatingPoint
    validation: dict[str, float]


def pack(model: nn.Module, config: TrainConfig, data: PreparedData, folder: AnyPath, *, best_epoch: int) -> Packed:
    """Fit the calibrator, make the contract and write the bundle.

    Args:
        model: the network of the best epoch.
        config: its run's settings.
        data: the data set it was trained on.
        folder: of the bundle.
        best_epoch: named on the model card.

    Raises:
        DataError: if the data set has no calibration split, or it holds no melanoma.
    """
    preprocess = Preprocess(data.stored_shape, config.data)
    rows = data.rows("train", fold=config.data.validation_fold)
    validation = predict(model, ImageDataset(data, rows), preprocess, tta=config.data.tta)
    calibrator = fit_calibrator(validation.logits, validation.labels, group_codes(rows))
    features = reference_of(model, ImageDataset(data, rows), preprocess, seed=config.seed)
    onnx = _export(model, (config.data.input_height, config.data.input_width))
    num_accesses = len(data.log_access("calibration", {"by": "train", "best_epoch": best_epoch}))
    rows = data.rows("calibration")
    calibration = predict(model, ImageDataset(data, rows), preprocess, tta=config.data.tta)
    probabilities = calibrator(calibration.logits)
    scores = probabilities[:, MELANOMA_INDEX]
    melanomas, others = choose_units(calibration.labels, group_codes(rows), seed=config.seed)
    point = select_operating_point(
        scores[melanomas],
        scores[others],
        target_sensitivity=config.target_sensitivity,
        min_specificity=config.min_specificity,
        population=f"{data.manifest['name']}, calibration split",
    )
    chosen = np.concatenate([melanomas, others])
    cpu_backend: dict[str, Any] = {"name": TORCH, "reason": "the network cannot be exported"}
    if onnx is not None:
        extract = OnnxFeatures(onnx, num_threads=torch.get_num_threads())
        again = predict(model, ImageDataset(data, rows), preprocess, tta=config.data.tta, extract=extract)
        cpu_backend = compare_backend(probabilities, calibrator(again.logits), point.threshold)
    found = Packed(point, validation_scores(validation.labels, validation.logits))
    save_bundle(
        BundleParts(
            model=model,
            config=config,
            stored_shape=data.stored_shape,
            calibrator=calibrator,
            operating_point=point,
            features=features,
            cpu_backend=cpu_backend,
            features_onnx=onnx if cpu_backend["name"] == ONNX_RUNTIME else None,
            calibration_rows=pd.DataFrame(
                {"label": [CLASSES[label] for label in calibration.labels[chosen]], "score": scores[chosen]}
            ),
            group_columns=tuple(data.manifest["group_columns"]),
            split_hash=data.manifest["split_hash"],
            model_card=_model_card(
                config, data, found, best_epoch=best_epoch, num_accesses=num_accesses, backend=cpu_backend
            ),
        ),
        folder,
    )
    return found


def _export(model: nn.Module, input_size: tuple[int, int]) -> bytes | None:
    """Return the network for ONNX Runtime, or None if it cannot be said in ONNX; torch serves it then."""
    try:
        return export_features(model, input_size)
    except torch.onnx.OnnxExporterError:
        return None


def compare_backend(probabilities: FloatArray, again: FloatArray, threshold: float) -> dict[str, Any]:
    """Say what may compute feature maps on a CPU: ONNX Runtime, if it changes no decision on the calibration images and little else.

    Args:
        probabilities: ``(N, C)`` of the calibration images, by torch.
        again: the same by ONNX Runtime.
        threshold: of the contract.

    Returns:
        The backend's name and how far the two lie apart, for the manifest.
    """
    furthest = float(np.abs(again - probabilities).max())
    referred, referred_again = (p[:, MELANOMA_INDEX] >= threshold for p in (probabilities, again))
    num_other = int((referred != referred_again).sum())
    same = furthest <= MAX_DIFFERENCE and num_other == 0
    return {
        "name": ONNX_RUNTIME if same else TORCH,
        "num_images": len(probabilities),
        "max_probability_difference": furthest,
        "num_other_decisions": num_other,
    }


def group_codes(rows: pd.DataFrame) -> np.ndarray:
    """Return the groups of some records as integers, ``(N,)``."""
    return np.asarray(pd.factorize(rows["group"], sort=True)[0])


def _model_card(
    config: TrainConfig,
    data: PreparedData,
    found: Packed,
    *,
    best_epoch: int,
    num_accesses: int,
    backend: dict[str, Any],
) -> str:
    counts = ", ".join(
        f"{split}: {sum(by_class.values())} ({by_class['mel']} mel)"
        for split, by_class in sorted(data.manifest["counts"].items())
    )
    contract = found.operating_point.contract
    return f"""# Model card

**Research use only. Not a medical device; not a diagnosis.**

- Network: {config.model.backbone}, input {config.data.input_width} x {config.data.input_height} px, {config.data.tta} tta averaged.
- Data: {data.manifest["name"]}, grouped by {", ".join(data.manifest["group_columns"])}; images by split: {counts};
  split hash `{data.manifest["split_hash"][:16]}`.
- Chosen on validation fold {config.data.validation_fold}: epoch {best_epoch} of {config.optim.epochs},
  melanoma AUROC {found.validation["auroc"]:.3f} there (flattered by the choice).
- On a CPU its features are computed by: {json.dumps(backend)}.
- Contract: **{contract.status}**. {contract.sentence()}
  Look number {num_accesses} at this calibration split; choosing among runs by their contracts weakens the promise.
- Not evaluated: other clinics, cameras, skin tones, age groups. A threshold does not carry over to them.

Training settings:

```json
{json.dumps(dataclasses.asdict(config), indent=2)}
```
"""
