"""From a trained network to a bundle with its contract, in the only order that keeps it valid.

The validation fold has chosen the epoch. Here it also fits the calibrator and decides whether the
network is informative. Only then is the calibration split opened, once; it places the threshold and
decides nothing else.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from melanoma.arrays import FloatArray, IntArray, Uint8Array
from melanoma.bundle.backend import OnnxFeatures, export_features
from melanoma.bundle.bundle import Extras, library_versions, weights_of, write_bundle
from melanoma.bundle.drift import FeatureReference, fit_reference, pooled
from melanoma.bundle.known_images import known_images
from melanoma.bundle.manifest import ONNX_RUNTIME, TORCH, BundleManifest, CpuBackend
from melanoma.bundle.model_card import model_card
from melanoma.bundle.usual_images import UsualImages, fit_usual
from melanoma.config import TrainConfig
from melanoma.data.accesses import calibration_access, declared_accesses
from melanoma.data.dataset import ImageDataset, PreparedData
from melanoma.errors import DataError
from melanoma.evidence.calibration import fit_calibrator
from melanoma.evidence.contract import unit_of
from melanoma.evidence.metrics import validation_scores
from melanoma.evidence.operating_point import (
    Promise,
    choose_units,
    is_referred,
    select_operating_point,
)
from melanoma.evidence.reference_models import Comparison, compare_with_references
from melanoma.imaging.descriptors import descriptors
from melanoma.imaging.letterbox import Preprocess
from melanoma.task import Task
from melanoma.training.engine import predict
from melanoma.training.networks import features

MAX_DIFFERENCE = 1e-4
MAX_REFERENCE_IMAGES, _BATCH = 1024, 64
"""The validation images that describe the features, and the training images that are usual."""


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
    on_fold = data.rows("train", fold=config.data.validation_fold)
    validation = predict(model, ImageDataset(data, on_fold), preprocess, tta=tta)
    calibrator = fit_calibrator(validation.logits, validation.labels, group_codes(on_fold))
    reference = reference_of(model, ImageDataset(data, on_fold), preprocess, seed=config.seed)
    usual = _usual_images(data, config)
    onnx = _export(model, (config.data.input_height, config.data.input_width))
    comparisons = compare_on_validation(
        data, config, calibrator(validation.logits), validation.labels
    )
    declared = declared_accesses(data, config.accesses)
    network = (weights_of(model), repr((preprocess, calibrator, config)).encode())
    access = calibration_access(data, _hash_of(network), declared=declared)
    rows, num_target_unassessed = _assessed(data, usual)
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
            min(comparisons, key=lambda comparison: comparison.difference_low),
            unit_of(data.manifest.group_columns),
            data.manifest.population,
            access=access,
            accesses_declared=declared,
            num_target_unassessed=num_target_unassessed,
            target_share=float(task.is_target(validation.labels).mean()),
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
        reference_models=comparisons,
        features=reference,
        usual_images=usual,
        cpu_backend=cpu_backend,
        group_columns=data.manifest.group_columns,
        split_hash=data.manifest.split_hash,
        training_config=config,
        best_epoch=best_epoch,
        validation=_finite(
            validation_scores(
                task, validation.labels, validation.logits, on_fold["source"].tolist()
            )
        ),
        versions=library_versions(),
    )
    labels = [task.classes[label] for label in calibration.labels[chosen]]
    extras = Extras(
        calibration_rows=pd.DataFrame({"label": labels, "score": scores[chosen]}),
        features_onnx=onnx if cpu_backend.name == ONNX_RUNTIME else None,
        model_card=model_card(draft, data),
        known_images=known_images(data),
    )
    return write_bundle(work, draft, model, extras)


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


def _hash_of(parts: tuple[bytes, ...]) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _finite(scores: dict[str, float]) -> dict[str, float]:
    """Return the scores that are defined; JSON has no NaN."""
    return {name: value for name, value in scores.items() if np.isfinite(value)}


def _assessed(data: PreparedData, usual: UsualImages) -> tuple[pd.DataFrame, int]:
    """Return the calibration rows that the bundle assesses.

    Returns:
        The rows, and the number of groups that hold targets, but none that is assessed.

    Raises:
        DataError: if no target is assessed.
    """
    rows = data.rows("calibration")
    unusual = usual.are_unusual(all_images(ImageDataset(data, rows)))
    is_target = data.task.is_target(rows["label"].to_numpy())
    groups, assessed = (
        set(rows.loc[chosen, "group"]) for chosen in (is_target, is_target & ~unusual)
    )
    if not assessed:
        raise DataError(
            f"The calibration split must hold {data.task.noun[1]} like those of the train split;"
            f" all {len(groups)} differ in light, colour or sharpness. Draw the splits at random,"
            " or leave --splits out."
        )
    return rows[~unusual], len(groups - assessed)


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
