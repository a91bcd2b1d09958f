"""Opens the calibration split, once, and makes the contract of a network.

All else that follows from data was decided before (melanoma/bundle/held_out.py).
"""

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from melanoma.arrays import BoolArray, FloatArray, IntArray
from melanoma.bundle.bundle import weights_of
from melanoma.bundle.held_out import Fixed, all_images, group_codes
from melanoma.config import TrainConfig
from melanoma.data.accesses import calibration_access, declared_accesses
from melanoma.data.dataset import ImageDataset, PreparedData
from melanoma.errors import DataError
from melanoma.evidence.contract import error_at, targets_needed, unit_of
from melanoma.evidence.operating_point import (
    OperatingPoint,
    Promise,
    choose_units,
    select_operating_point,
)
from melanoma.evidence.reference_models import hardest
from melanoma.imaging.preprocess import Preprocess
from melanoma.task import Task
from melanoma.training.engine import predict


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """What the calibration split gave, or the held-out images in its place.

    Attributes:
        operating_point: the threshold and the contract.
        units: label and score of the units that it rests on.
        images: the images by which the CPU's library is chosen.
        logits: ``(N, C)`` of those images.
    """

    operating_point: OperatingPoint
    units: pd.DataFrame
    images: ImageDataset
    logits: FloatArray


def calibrate(
    model: nn.Module, config: TrainConfig, data: PreparedData, fixed: Fixed
) -> Calibrated:
    """Place the threshold and make the contract.

    An ensemble whose calibration split is too small for a promise takes the held-out images.

    Args:
        model: the network, or the ensemble.
        config: the settings of the run.
        data: the data set.
        fixed: what was decided before.

    Raises:
        DataError: if the data set has no calibration split, or if that split holds no target.
    """
    if len(fixed.held.folds) > 1 and _is_too_small(config, data):
        return _calibrate_out_of_fold(model, config, data, fixed)
    return _calibrate_on_split(model, config, data, fixed)


def _is_too_small(config: TrainConfig, data: PreparedData) -> bool:
    """Return whether the calibration split has too few targets for a promise at any access."""
    if not data.manifest.num_targets("calibration"):
        return True
    rows = data.rows("calibration")
    is_target = data.task.is_target(rows["label"].to_numpy())
    error = error_at(1, declared=declared_accesses(data, config.accesses))
    needed = targets_needed(target_sensitivity=config.target_sensitivity, error=error)
    return len(choose_units(is_target, group_codes(rows), seed=config.seed)[0]) < needed


def _calibrate_on_split(
    model: nn.Module, config: TrainConfig, data: PreparedData, fixed: Fixed
) -> Calibrated:
    preprocess = Preprocess(data.stored_shape, config.data)
    declared = declared_accesses(data, config.accesses)
    network = (weights_of(model), repr((preprocess, fixed.calibrator, config)).encode())
    access = calibration_access(
        data, hashlib.sha256(b"".join(network)).hexdigest(), declared=declared
    )
    rows = data.rows("calibration")
    images = ImageDataset(data, rows)
    unusual = fixed.usual_images.are_unusual(all_images(images))
    drawn = _draw_units(data, rows, unusual, seed=config.seed)
    promise = _promise(config, data, fixed, drawn, access=access, accesses_declared=declared)
    logits = predict(model, images, preprocess, tta=config.data.tta).logits
    point, units = _operating_point(data.task, rows, fixed.calibrator(logits), drawn, promise)
    return Calibrated(point, units, images, logits)


def _calibrate_out_of_fold(
    model: nn.Module, config: TrainConfig, data: PreparedData, fixed: Fixed
) -> Calibrated:
    """Place the threshold on the held-out images, and leave the calibration split closed.

    The contract is approximate: its scores are those of single networks, not of the ensemble, and
    the same images chose the epochs.
    """
    drawn = _draw_units(data, fixed.held.rows, fixed.unusual, seed=config.seed)
    promise = _promise(config, data, fixed, drawn, basis="out_of_fold")
    point, units = _operating_point(data.task, fixed.held.rows, fixed.probabilities, drawn, promise)
    images = ImageDataset(data, data.rows("train", fold=fixed.held.folds[0]))
    preprocess = Preprocess(data.stored_shape, config.data)
    logits = predict(model, images, preprocess, tta=config.data.tta).logits
    return Calibrated(point, units, images, logits)


def _promise(
    config: TrainConfig, data: PreparedData, fixed: Fixed, drawn: "_Drawn", **spent: Any
) -> Promise:
    return Promise(
        data.task.targets,
        config.target_sensitivity,
        hardest(fixed.comparisons),
        unit_of(data.manifest.group_columns),
        data.manifest.population,
        num_target_unassessed=drawn.num_target_unassessed,
        target_share=fixed.target_share,
        **spent,
    )


def _operating_point(
    task: Task, rows: pd.DataFrame, probabilities: FloatArray, drawn: "_Drawn", promise: Promise
) -> tuple[OperatingPoint, pd.DataFrame]:
    """Return the operating point, and label and score of the units that it rests on."""
    scores, labels = task.target_scores(probabilities), rows["label"].to_numpy()
    chosen = np.concatenate([drawn.targets, drawn.others])
    return (
        select_operating_point(scores[drawn.targets], scores[drawn.others], promise),
        pd.DataFrame(
            {"label": [task.classes[label] for label in labels[chosen]], "score": scores[chosen]}
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """The units of a contract.

    Attributes:
        targets: the positions of the assessed target images.
        others: the positions of the other assessed images.
        num_target_unassessed: number of targets that were drawn and are not assessed.
    """

    targets: IntArray
    others: IntArray
    num_target_unassessed: int


def _draw_units(data: PreparedData, rows: pd.DataFrame, unusual: BoolArray, *, seed: int) -> _Drawn:
    """Draw one target image and one other image of each group, and keep those that are assessed.

    Args:
        data: the data set.
        rows: N of its records.
        unusual: ``(N,)``, which images are not assessed.
        seed: seed of the draw.

    Raises:
        DataError: if no target is assessed.
    """
    is_target = data.task.is_target(rows["label"].to_numpy())
    drawn, others = choose_units(is_target, group_codes(rows), seed=seed)
    targets = drawn[~unusual[drawn]]
    if not len(targets):
        raise DataError(
            f"The calibration split must hold {data.task.noun[1]} like those of the train split;"
            f" all {len(drawn)} differ in light, colour or sharpness. Draw the splits at random,"
            " or leave --splits out."
        )
    return _Drawn(targets, others[~unusual[others]], len(drawn) - len(targets))
