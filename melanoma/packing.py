"""From a trained network to a contracted bundle, in the one order that keeps the contract valid.

The validation fold has chosen the epoch; here it fits the probability map; only then is the calibration split opened, once.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from melanoma.bundle import BundleParts, save_bundle
from melanoma.config import CLASSES, MELANOMA_INDEX, TrainConfig
from melanoma.data.dataset import PictureDataset, PreparedData
from melanoma.drift import reference_of
from melanoma.engine import predict
from melanoma.evidence.calibration import fit_probability_map
from melanoma.evidence.metrics import validation_scores
from melanoma.evidence.operating_point import OperatingPoint, choose_units, select_operating_point
from melanoma.images import Preprocess


@dataclasses.dataclass(frozen=True)
class Packed:
    """What packing found."""

    operating_point: OperatingPoint
    validation: dict[str, float]


def pack(model: nn.Module, config: TrainConfig, data: PreparedData, folder: Path, *, best_epoch: int) -> Packed:
    """Fit the probability map, make the contract and write the bundle.

    Args:
        model: the network of the best epoch.
        config: its run's settings.
        data: the data set it was trained on.
        folder: of the bundle.
        best_epoch: named on the model card.

    Raises:
        DataError: if the data set has no calibration split.
        ValueError: if that split holds no melanoma.
    """
    preprocess = Preprocess(data.canvas, config.data)
    rows = data.rows("train", fold=config.data.validation_fold)
    validation = predict(model, PictureDataset(data, rows), preprocess, views=config.data.views)
    probability_map = fit_probability_map(validation.logits, validation.labels, group_codes(rows))
    features = reference_of(model, PictureDataset(data, rows), preprocess, seed=config.seed)
    num_looks = len(data.log_access("calibration", {"by": "train", "best_epoch": best_epoch}))
    rows = data.rows("calibration")
    calibration = predict(model, PictureDataset(data, rows), preprocess, views=config.data.views)
    scores = probability_map(calibration.logits)[:, MELANOMA_INDEX]
    melanomas, others = choose_units(calibration.labels, group_codes(rows), seed=config.seed)
    point = select_operating_point(
        scores[melanomas],
        scores[others],
        target_sensitivity=config.target_sensitivity,
        min_specificity=config.min_specificity,
        population=f"{data.manifest['name']}, calibration split",
    )
    chosen = np.concatenate([melanomas, others])
    found = Packed(point, validation_scores(validation.labels, validation.logits))
    save_bundle(
        BundleParts(
            model=model,
            config=config,
            canvas=data.canvas,
            probability_map=probability_map,
            operating_point=point,
            features=features,
            calibration_rows=pd.DataFrame(
                {"label": [CLASSES[label] for label in calibration.labels[chosen]], "score": scores[chosen]}
            ),
            group_columns=tuple(data.manifest["group_columns"]),
            split_hash=data.manifest["split_hash"],
            model_card=_model_card(config, data, found, best_epoch=best_epoch, num_looks=num_looks),
        ),
        folder,
    )
    return found


def group_codes(rows: pd.DataFrame) -> np.ndarray:
    """Return the groups of some records as integers, ``(N,)``."""
    return np.asarray(pd.factorize(rows["group"], sort=True)[0])


def _model_card(config: TrainConfig, data: PreparedData, found: Packed, *, best_epoch: int, num_looks: int) -> str:
    counts = ", ".join(
        f"{split}: {sum(by_class.values())} ({by_class['mel']} mel)"
        for split, by_class in sorted(data.manifest["counts"].items())
    )
    contract = found.operating_point.contract
    return f"""# Model card

**Research use only. Not a medical device; not a diagnosis.**

- Network: {config.model.backbone}, input {config.data.input_width} x {config.data.input_height} px, {config.data.views} views averaged.
- Data: {data.manifest["name"]}, grouped by {", ".join(data.manifest["group_columns"])}; pictures by split: {counts};
  split hash `{data.manifest["split_hash"][:16]}`.
- Chosen on validation fold {config.data.validation_fold}: epoch {best_epoch} of {config.optim.epochs},
  melanoma AUROC {found.validation["auroc"]:.3f} there (flattered by the choice).
- Contract: **{contract.status}**. {contract.sentence()}
  Look number {num_looks} at this calibration split; choosing among runs by their contracts weakens the promise.
- Not evaluated: other clinics, cameras, skin tones, age groups. A threshold does not carry over to them.

Training settings:

```json
{json.dumps(dataclasses.asdict(config), indent=2)}
```
"""
