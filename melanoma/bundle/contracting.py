"""Opens the calibration split, once, and makes the contracts of a network.

One is for one image, the other for several images of one lesion. Each spends the error of this
access, so each keeps its promise with the confidence that it names; that at least one of the two is
broken can be nearly twice as likely.

All else that follows from data was decided before (melanoma/bundle/held_out.py).
"""

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from melanoma.arrays import BoolArray, FloatArray
from melanoma.bundle.bundle import weights_of
from melanoma.bundle.held_out import Fixed, all_images, group_codes
from melanoma.config import TrainConfig
from melanoma.data.accesses import calibration_access, declared_accesses
from melanoma.data.dataset import ImageDataset, PreparedData
from melanoma.errors import DataError
from melanoma.evidence.calibration import Calibrator
from melanoma.evidence.contract import SEVERAL_IMAGES, error_at, targets_needed, unit_of
from melanoma.evidence.operating_point import (
    OperatingPoint,
    Promise,
    choose_units,
    select_operating_point,
)
from melanoma.evidence.reference_models import hardest
from melanoma.evidence.several_images import Units, lesion_units
from melanoma.imaging.preprocess import Preprocess
from melanoma.task import Task
from melanoma.training.engine import predict


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """What the calibration split gave, or the held-out images in its place.

    Attributes:
        operating_point: the threshold and the contract.
        several_images: those for several images of one lesion; None if no assessed target has
            several.
        units: label, score and number of images of the units that they rest on.
        images: the images by which the CPU's library is chosen.
        logits: ``(N, C)`` of those images.
    """

    operating_point: OperatingPoint
    several_images: OperatingPoint | None
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
    if len(fixed.held.folds) > 1 and is_too_small(config, data):
        return _calibrate_out_of_fold(model, config, data, fixed)
    return _calibrate_on_split(model, config, data, fixed)


def is_too_small(config: TrainConfig, data: PreparedData) -> bool:
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
    logits = predict(model, images, preprocess, tta=config.data.tta).logits
    promise = _promise(config, data, fixed, access=access, accesses_declared=declared)
    draw = _Draw(data.task, fixed.calibrator, promise, config.seed)
    return Calibrated(*draw.contracts(rows, logits, unusual), images, logits)


def _calibrate_out_of_fold(
    model: nn.Module, config: TrainConfig, data: PreparedData, fixed: Fixed
) -> Calibrated:
    """Place the threshold on the held-out images, and leave the calibration split closed.

    The contract is approximate: its scores are those of single networks, not of the ensemble, and
    the same images chose the epochs.
    """
    promise = _promise(config, data, fixed, basis="out_of_fold")
    draw = _Draw(data.task, fixed.calibrator, promise, config.seed)
    contracts = draw.contracts(fixed.held.rows, fixed.held.logits, fixed.unusual)
    images = ImageDataset(data, data.rows("train", fold=fixed.held.folds[0]))
    preprocess = Preprocess(data.stored_shape, config.data)
    logits = predict(model, images, preprocess, tta=config.data.tta).logits
    return Calibrated(*contracts, images, logits)


def _promise(config: TrainConfig, data: PreparedData, fixed: Fixed, **spent: Any) -> Promise:
    return Promise(
        data.task.targets,
        config.target_sensitivity,
        hardest(fixed.comparisons),
        unit_of(data.manifest.group_columns),
        data.manifest.population,
        target_share=fixed.target_share,
        **spent,
    )


@dataclasses.dataclass(frozen=True)
class _Draw:
    """Draws one target and one other unit of each group, and makes their contract.

    Attributes:
        task: the classes.
        calibrator: from logits to probabilities.
        promise: the requirements of the contract for one image.
        seed: seed of the draw.
    """

    task: Task
    calibrator: Calibrator
    promise: Promise
    seed: int

    def contracts(
        self, rows: pd.DataFrame, logits: FloatArray, unusual: BoolArray
    ) -> tuple[OperatingPoint, OperatingPoint | None, pd.DataFrame]:
        """Return the contract for one image, that for several of one lesion, and their units.

        Args:
            rows: the records of N images.
            logits: ``(N, C)``.
            unusual: ``(N,)``, which images are not assessed.

        Raises:
            DataError: if no target is assessed.
        """
        places, ones = np.arange(len(rows)), np.ones(len(rows), dtype=int)
        images = Units(logits, rows["label"].to_numpy(), group_codes(rows), unusual, ones, places)
        of_images = self._contract(images, self.promise)
        if of_images is None:
            raise DataError(
                f"The images that place the threshold must hold {self.task.noun[1]} like those of"
                " the train split; all that were drawn differ in light, colour or sharpness. Draw"
                " the splits at random, or leave --splits out."
            )
        lesions = lesion_units(rows, logits, unusual, self.task, seed=self.seed)
        of_lesions = self._contract(lesions, dataclasses.replace(self.promise, unit=SEVERAL_IMAGES))
        if of_lesions is None:
            return of_images[0], None, of_images[1]
        both = pd.concat([of_images[1], of_lesions[1]], ignore_index=True)
        return of_images[0], of_lesions[0], both

    def _contract(
        self, units: Units, promise: Promise
    ) -> tuple[OperatingPoint, pd.DataFrame] | None:
        """Return the contract on some units and the units drawn; None if no target is assessed."""
        is_target = self.task.is_target(units.labels)
        drawn, others = choose_units(is_target, units.groups, seed=self.seed)
        targets, others = (each[~units.unusual[each]] for each in (drawn, others))
        if not len(targets):
            return None
        scores = self.task.target_scores(self.calibrator(units.logits))
        promise = dataclasses.replace(promise, num_target_unassessed=len(drawn) - len(targets))
        chosen = np.concatenate([targets, others])
        table = pd.DataFrame(
            {
                "label": [self.task.classes[label] for label in units.labels[chosen]],
                "score": scores[chosen],
                "num_images": units.num_images[chosen],
            }
        )
        return select_operating_point(scores[targets], scores[others], promise), table
