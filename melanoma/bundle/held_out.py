"""Predictions of images from which a network did not learn, and what they decide.

They fit the calibrator and show whether the network is informative, before the calibration split is
opened. Knows nothing of contracts.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
import torch
from torch import nn

from melanoma.arrays import BoolArray, FloatArray, IntArray, Uint8Array
from melanoma.bundle.drift import FeatureReference, fit_reference, pooled
from melanoma.bundle.usual_images import UsualImages, fit_usual
from melanoma.config import TrainConfig
from melanoma.data.dataset import ImageDataset, PreparedData
from melanoma.evidence.calibration import Calibrator, fit_calibrator
from melanoma.evidence.levels import Level, contract_level, image_level, with_predictions
from melanoma.evidence.metrics import validation_scores
from melanoma.evidence.operating_point import choose_units
from melanoma.evidence.reference_models import (
    Comparison,
    compare_with_references,
    known_columns,
    reference_scores,
)
from melanoma.imaging.descriptors import descriptors
from melanoma.imaging.preprocess import Preprocess
from melanoma.task import Task
from melanoma.training.engine import predict
from melanoma.training.ensemble import networks_of
from melanoma.training.networks import features

MAX_REFERENCE_IMAGES, _BATCH = 1024, 64
"""The held-out images that describe the features, and the training images that are usual."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Images of some folds, each predicted by a network that was trained without it.

    Attributes:
        rows: the N records, in the order of the data set within each fold.
        logits: ``(N, C)`` float32.
        folds: the folds that they are of.
    """

    rows: pd.DataFrame
    logits: FloatArray
    folds: tuple[int, ...]

    @property
    def labels(self) -> IntArray:
        """``(N,)`` class indices."""
        labels: IntArray = self.rows["label"].to_numpy()
        return labels


def hold_out(
    model: nn.Module, config: TrainConfig, data: PreparedData, *, is_new: bool = False
) -> HeldOut:
    """Predict the validation fold, or with an ensemble every fold by the network that lacks it.

    Args:
        model: a network, or an ensemble whose k-th network was trained without fold k.
        config: the settings of the run.
        data: the data set.
        is_new: whether the whole ensemble was trained on other data; one fold then suffices.
    """
    networks = networks_of(model)
    one = len(networks) == 1 or is_new
    pairs = (
        [(model, config.data.validation_fold)]
        if one
        else [(network, fold) for fold, network in enumerate(networks)]
    )
    preprocess, tta = Preprocess(data.stored_shape, config.data), config.data.tta
    rows = [data.rows("train", fold=fold) for _, fold in pairs]
    logits = [
        predict(network, ImageDataset(data, of_fold), preprocess, tta=tta).logits
        for (network, _), of_fold in zip(pairs, rows, strict=True)
    ]
    return HeldOut(
        pd.concat(rows, ignore_index=True),
        np.concatenate(logits),
        tuple(fold for _, fold in pairs),
    )


def compare_held_out(
    data: PreparedData, held: HeldOut, probabilities: FloatArray, *, seed: int
) -> tuple[Comparison, ...]:
    """Compare the network with models that see no image, which are fitted without the same folds.

    Args:
        data: the data set.
        held: the N images.
        probabilities: ``(N, C)``, calibrated.
        seed: seed of the draw of one target and one other image of each group.
    """
    task, rows = data.task, held.rows
    is_target = task.is_target(held.labels)
    reference = np.zeros(len(rows))
    for fold in held.folds:
        train, inside = data.rows("train", without_fold=fold), (rows["fold"] == fold).to_numpy()
        of_target = task.is_target(train["label"].to_numpy())
        reference[inside] = reference_scores(train, of_target, rows[inside])
    chosen = np.concatenate(choose_units(is_target, group_codes(rows), seed=seed))
    return compare_with_references(
        is_target[chosen],
        task.target_scores(probabilities)[chosen],
        reference[chosen],
        _strata(held).iloc[chosen].tolist(),
        columns=_known(data, held.folds),
    )


def _strata(held: HeldOut) -> pd.Series:
    """Return the source of each image, and with several folds its fold too.

    Scores of different networks, and of reference models fitted without different folds, are not on
    one scale: a model that saw fewer targets gives lower scores to a fold that has more of them.
    Only images of one fold are therefore compared with each other.
    """
    sources = held.rows["source"]
    if len(held.folds) == 1:
        return sources
    return sources + " fold " + held.rows["fold"].astype(str)


def _known(data: PreparedData, folds: Iterable[int]) -> tuple[str, ...]:
    """Return the columns that the reference models of all folds can use."""
    known = [known_columns(data.rows("train", without_fold=fold)) for fold in folds]
    return tuple(name for name in known[0] if all(name in others for others in known))


@dataclasses.dataclass(frozen=True)
class Fixed:
    """What is decided before the calibration split is opened, on train and its validation fold.

    Attributes:
        held: the images that decide, with their logits.
        calibrator: from logits to probabilities.
        features: describes the features of usual images, to notice drift.
        usual_images: decides which images are assessed.
        unusual: ``(N,)``, which of the held-out images are not assessed.
        comparisons: the network beside models that see no image.
        validation: the scores of the held-out images that are defined; JSON has no NaN.
        target_share: share of targets among them.
    """

    held: HeldOut
    calibrator: Calibrator
    features: FeatureReference
    usual_images: UsualImages
    unusual: BoolArray
    comparisons: tuple[Comparison, ...]
    validation: dict[str, float]
    target_share: float

    @property
    def probabilities(self) -> FloatArray:
        """``(N, C)``, calibrated, of the held-out images."""
        return self.calibrator(self.held.logits)

    def level(self, task: Task) -> Level:
        """Return the drawn units of the held-out images, for the model card."""
        rows = with_predictions(self.held.rows, self.probabilities, self.unusual, task)
        return contract_level(image_level(rows, task))[0]


def before_calibration(
    model: nn.Module, config: TrainConfig, data: PreparedData, *, is_new: bool
) -> Fixed:
    """Decide all that may be decided before the calibration split is opened.

    Args:
        model: a network, or an ensemble whose k-th network was trained without fold k.
        config: the settings of the run.
        data: the data set.
        is_new: whether the network was trained on other data.
    """
    task, preprocess = data.task, Preprocess(data.stored_shape, config.data)
    held = hold_out(model, config, data, is_new=is_new)
    calibrator = fit_calibrator(held.logits, held.labels, group_codes(held.rows))
    usual = _usual_images(data, config)
    scores = validation_scores(task, held.labels, held.logits, held.rows["source"].tolist())
    # The first network of an ensemble has not learnt from the first fold.
    network = model if is_new else networks_of(model)[0]
    first = ImageDataset(data, data.rows("train", fold=held.folds[0]))
    return Fixed(
        held=held,
        calibrator=calibrator,
        features=reference_of(network, first, preprocess, seed=config.seed),
        usual_images=usual,
        unusual=usual.are_unusual(all_images(ImageDataset(data, held.rows))),
        comparisons=compare_held_out(data, held, calibrator(held.logits), seed=config.seed),
        validation={name: value for name, value in scores.items() if np.isfinite(value)},
        target_share=float(task.is_target(held.labels).mean()),
    )


def _usual_images(data: PreparedData, config: TrainConfig) -> UsualImages:
    """Describe the training images, with a limit that the validation fold sets."""
    fold = config.data.validation_fold
    found = []
    for rows in (data.rows("train", without_fold=fold), data.rows("train", fold=fold)):
        order = np.random.default_rng(config.seed).permutation(len(rows))
        some = ImageDataset(data, rows.iloc[np.sort(order[:MAX_REFERENCE_IMAGES])])
        found.append(np.stack([descriptors(image) for image in all_images(some)]))
    return fit_usual(*found)


def all_images(dataset: ImageDataset) -> Iterator[Uint8Array]:
    """Return the stored images of a data set one by one."""
    return (dataset.images([position])[0].numpy() for position in range(len(dataset)))


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
    if dataset.embeddings is not None:
        return fit_reference(dataset.embeddings.astype(np.float64))
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


def group_codes(rows: pd.DataFrame) -> IntArray:
    """Return the groups of N records as integers, ``(N,)``."""
    return np.asarray(pd.factorize(rows["group"], sort=True)[0])
