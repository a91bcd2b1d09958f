"""From a trained network to a bundle with its contract, in the only order that keeps it valid.

The validation fold has chosen the epoch. Here it also fits the calibrator and decides whether the
network is informative. Only then is the calibration split opened, once; it places the threshold and
decides nothing else.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from melanoma.arrays import FloatArray, IntArray, Uint8Array
from melanoma.bundle.backend import OnnxFeatures, export_features
from melanoma.bundle.bundle import Bundle, Extras, library_versions, weights_of, write_bundle
from melanoma.bundle.cpu_backend import compare_backend
from melanoma.bundle.drift import FeatureReference, fit_reference, pooled
from melanoma.bundle.known_images import joined, known_images
from melanoma.bundle.manifest import ONNX_RUNTIME, TORCH, BundleManifest, CpuBackend, Origin
from melanoma.bundle.model_card import model_card
from melanoma.bundle.usual_images import UsualImages, fit_usual
from melanoma.config import TrainConfig
from melanoma.data.accesses import calibration_access, declared_accesses
from melanoma.data.dataset import ImageDataset, PreparedData
from melanoma.errors import DataError
from melanoma.evidence.calibration import Calibrator, fit_calibrator
from melanoma.evidence.contract import unit_of
from melanoma.evidence.levels import Level, contract_level, image_level, with_predictions
from melanoma.evidence.metrics import validation_scores
from melanoma.evidence.operating_point import (
    OperatingPoint,
    Promise,
    choose_units,
    select_operating_point,
)
from melanoma.evidence.reference_models import Comparison, compare_with_references, hardest
from melanoma.imaging.descriptors import descriptors
from melanoma.imaging.preprocess import Preprocess
from melanoma.training.engine import predict
from melanoma.training.networks import features

MAX_REFERENCE_IMAGES, _BATCH = 1024, 64
"""The validation images that describe the features, and the training images that are usual."""


def pack(
    model: nn.Module,
    config: TrainConfig,
    data: PreparedData,
    work: Path,
    *,
    best_epoch: int,
    weights: str = "none",
    origin: Bundle | None = None,
) -> BundleManifest:
    """Fit the calibrator, make the contract and write the bundle.

    Args:
        model: the network of the best epoch.
        config: the settings of its run.
        data: the data set on which it was trained, or, with an origin, that of the new contract.
        work: folder of this node for the files of the bundle.
        best_epoch: the epoch of the network, from 1, for the manifest.
        weights: what the run started from (none, imagenet or a file), for the model card.
        origin: the bundle of the network, if it was trained on other data.

    Raises:
        DataError: if the data set has no calibration split, or if that split holds no target.
    """
    task, preprocess = data.task, Preprocess(data.stored_shape, config.data)
    fixed = _before_calibration(model, config, data)
    onnx = _export(model, (config.data.input_height, config.data.input_width))
    calibrated = _calibrate(model, config, data, fixed)
    cpu_backend = CpuBackend(TORCH)
    if onnx is not None:
        extract = OnnxFeatures(onnx, num_threads=torch.get_num_threads())
        images = ImageDataset(data, data.rows("calibration"))
        again = predict(model, images, preprocess, tta=config.data.tta, extract=extract)
        cpu_backend = compare_backend(
            task,
            calibrated.probabilities,
            fixed.calibrator(again.logits),
            calibrated.operating_point.threshold,
        )
    draft = BundleManifest(
        task=task,
        architecture=config.model,
        preprocessing=preprocess,
        calibrator=fixed.calibrator,
        operating_point=calibrated.operating_point,
        reference_models=fixed.comparisons,
        features=fixed.features,
        usual_images=fixed.usual_images,
        cpu_backend=cpu_backend,
        group_columns=data.manifest.group_columns,
        split_hash=data.manifest.split_hash,
        training_config=config,
        best_epoch=best_epoch,
        validation=fixed.validation,
        versions=library_versions(),
        origin=None if origin is None else _origin(origin.manifest),
    )
    extras = Extras(
        calibration_rows=calibrated.units,
        features_onnx=onnx if cpu_backend.name == ONNX_RUNTIME else None,
        model_card=model_card(draft, data, fixed.fold, weights=weights),
        known_images=joined(known_images(data), *([] if origin is None else [origin.known_images])),
    )
    return write_bundle(work, draft, model, extras)


def _origin(manifest: BundleManifest) -> Origin:
    """Return the bundle that trained the network, also if its contract was made elsewhere too."""
    return manifest.origin or Origin(
        manifest.version,
        manifest.operating_point.contract.population,
        manifest.split_hash,
        manifest.operating_point,
    )


@dataclasses.dataclass(frozen=True)
class _Fixed:
    """What is decided before the calibration split is opened, on train and its validation fold.

    Attributes:
        calibrator: from logits to probabilities.
        features: describes the features of usual images, to notice drift.
        usual_images: decides which images are assessed.
        comparisons: the network beside models that see no image.
        validation: the scores of the fold that are defined; JSON has no NaN.
        target_share: share of targets among the images of the fold.
        fold: the drawn units of the fold, for the model card.
    """

    calibrator: Calibrator
    features: FeatureReference
    usual_images: UsualImages
    comparisons: tuple[Comparison, ...]
    validation: dict[str, float]
    target_share: float
    fold: Level


def _before_calibration(model: nn.Module, config: TrainConfig, data: PreparedData) -> _Fixed:
    task, preprocess = data.task, Preprocess(data.stored_shape, config.data)
    rows = data.rows("train", fold=config.data.validation_fold)
    images = ImageDataset(data, rows)
    seen = predict(model, images, preprocess, tta=config.data.tta)
    calibrator = fit_calibrator(seen.logits, seen.labels, group_codes(rows))
    probabilities, usual = calibrator(seen.logits), _usual_images(data, config)
    unusual = usual.are_unusual(all_images(images))
    scores = validation_scores(task, seen.labels, seen.logits, rows["source"].tolist())
    return _Fixed(
        calibrator=calibrator,
        features=reference_of(model, images, preprocess, seed=config.seed),
        usual_images=usual,
        comparisons=compare_on_validation(data, config, probabilities, seen.labels),
        validation={name: value for name, value in scores.items() if np.isfinite(value)},
        target_share=float(task.is_target(seen.labels).mean()),
        fold=contract_level(
            image_level(with_predictions(rows, probabilities, unusual, task), task)
        )[0],
    )


@dataclasses.dataclass(frozen=True)
class _Calibrated:
    """What the calibration split gave.

    Attributes:
        operating_point: the threshold and the contract.
        units: label and score of the units that it rests on.
        probabilities: ``(N, C)`` of all calibration images.
    """

    operating_point: OperatingPoint
    units: pd.DataFrame
    probabilities: FloatArray


def _calibrate(
    model: nn.Module, config: TrainConfig, data: PreparedData, fixed: _Fixed
) -> _Calibrated:
    task, preprocess = data.task, Preprocess(data.stored_shape, config.data)
    declared = declared_accesses(data, config.accesses)
    network = (weights_of(model), repr((preprocess, fixed.calibrator, config)).encode())
    access = calibration_access(
        data, hashlib.sha256(b"".join(network)).hexdigest(), declared=declared
    )
    rows = data.rows("calibration")
    targets, others, num_target_unassessed = _calibration_units(
        data, rows, fixed.usual_images, seed=config.seed
    )
    seen = predict(model, ImageDataset(data, rows), preprocess, tta=config.data.tta)
    probabilities = fixed.calibrator(seen.logits)
    scores = task.target_scores(probabilities)
    promise = Promise(
        task.targets,
        config.target_sensitivity,
        hardest(fixed.comparisons),
        unit_of(data.manifest.group_columns),
        data.manifest.population,
        access=access,
        accesses_declared=declared,
        num_target_unassessed=num_target_unassessed,
        target_share=fixed.target_share,
    )
    chosen = np.concatenate([targets, others])
    labels = [task.classes[label] for label in seen.labels[chosen]]
    return _Calibrated(
        select_operating_point(scores[targets], scores[others], promise),
        pd.DataFrame({"label": labels, "score": scores[chosen]}),
        probabilities,
    )


def compare_on_validation(
    data: PreparedData, config: TrainConfig, probabilities: FloatArray, labels: IntArray
) -> tuple[Comparison, ...]:
    """Compare the network with models that see no image, on units of the validation fold.

    Args:
        data: the data set.
        config: the settings of the run.
        probabilities: ``(N, C)``, calibrated, of the images of the validation fold.
        labels: ``(N,)`` class indices of them.
    """
    task, fold = data.task, config.data.validation_fold
    rows, train = data.rows("train", fold=fold), data.rows("train", without_fold=fold)
    is_target = task.is_target(labels)
    chosen = np.concatenate(choose_units(is_target, group_codes(rows), seed=config.seed))
    return compare_with_references(
        is_target[chosen],
        task.target_scores(probabilities)[chosen],
        rows.iloc[chosen],
        train,
        task.is_target(train["label"].to_numpy()),
    )


def _calibration_units(
    data: PreparedData, rows: pd.DataFrame, usual: UsualImages, *, seed: int
) -> tuple[IntArray, IntArray, int]:
    """Draw one target image and one other image of each group, and keep those that are assessed.

    Args:
        data: the data set.
        rows: its N calibration rows.
        usual: decides which images are assessed.
        seed: seed of the draw.

    Returns:
        The positions of the targets, those of the others, and the number of targets that were drawn
        and are not assessed.

    Raises:
        DataError: if no target is assessed.
    """
    unusual = usual.are_unusual(all_images(ImageDataset(data, rows)))
    is_target = data.task.is_target(rows["label"].to_numpy())
    drawn, others = choose_units(is_target, group_codes(rows), seed=seed)
    targets = drawn[~unusual[drawn]]
    if not len(targets):
        raise DataError(
            f"The calibration split must hold {data.task.noun[1]} like those of the train split;"
            f" all {len(drawn)} differ in light, colour or sharpness. Draw the splits at random,"
            " or leave --splits out."
        )
    return targets, others[~unusual[others]], len(drawn) - len(targets)


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


def group_codes(rows: pd.DataFrame) -> np.ndarray:
    """Return the groups of N records as integers, ``(N,)``."""
    return np.asarray(pd.factorize(rows["group"], sort=True)[0])
