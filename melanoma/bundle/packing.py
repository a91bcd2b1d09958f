"""From a trained network to a bundle with its contract, in the only order that keeps it valid.

The validation fold has chosen the epoch. Here it also fits the calibrator and decides whether the
network is informative; with an ensemble every fold does, for the network trained without it. Only
then is the calibration split opened, once; it places the threshold and decides nothing else.
"""

from pathlib import Path

import torch
from torch import nn

from melanoma.bundle.backend import OnnxFeatures, export_features
from melanoma.bundle.bundle import Bundle, Extras, library_versions, write_bundle
from melanoma.bundle.contracting import Calibrated, calibrate
from melanoma.bundle.cpu_backend import compare_backend
from melanoma.bundle.held_out import Fixed, before_calibration
from melanoma.bundle.known_images import joined, known_images
from melanoma.bundle.manifest import ONNX_RUNTIME, TORCH, BundleManifest, CpuBackend, Origin
from melanoma.bundle.model_card import model_card
from melanoma.config import TrainConfig
from melanoma.data.dataset import PreparedData
from melanoma.imaging.preprocess import Preprocess
from melanoma.io.files import write_parquet
from melanoma.io.storage import AnyPath
from melanoma.training.embedded import EmbeddingHead
from melanoma.training.engine import predict
from melanoma.training.teacher import teacher_table

MAX_ONNX_BYTES = 2_000_000_000
"""An ONNX model is one message of protobuf, at most 2 GiB long. Larger networks run in torch."""


def pack(
    model: nn.Module,
    config: TrainConfig,
    data: PreparedData,
    work: Path,
    *,
    best_epochs: tuple[int, ...],
    weights: str = "none",
    teacher_sha256: str = "",
    origin: Bundle | None = None,
    table: AnyPath | None = None,
) -> BundleManifest:
    """Fit the calibrator, make the contract and write the bundle.

    Args:
        model: the network of the best epoch, or an ensemble of one for each fold.
        config: the settings of its run.
        data: the data set on which it was trained, or, with an origin, that of the new contract.
        work: folder of this node for the files of the bundle.
        best_epochs: the epoch of each network, from 1, for the manifest.
        weights: what the run started from (none, imagenet or a file), for the model card.
        teacher_sha256: hash of the table from which the network learned too; empty without one.
        origin: the bundle of the network, if it was trained on other data.
        table: file for the probabilities of the held-out images, as a teacher's table.

    Raises:
        DataError: if the data set has no calibration split, or if that split holds no target.
    """
    task, preprocess = data.task, Preprocess(data.stored_shape, config.data)
    fixed = before_calibration(model, config, data, is_new=origin is not None)
    if table is not None:
        ids = fixed.held.rows["image_id"].tolist()
        write_parquet(table, teacher_table(ids, fixed.probabilities, data))
    onnx = _export(model, (config.data.input_height, config.data.input_width))
    calibrated = calibrate(model, config, data, fixed)
    cpu_backend = _choose_backend(
        model, config, data, fixed=fixed, calibrated=calibrated, onnx=onnx
    )
    draft = BundleManifest(
        task=task,
        architecture=config.model,
        preprocessing=preprocess,
        calibrator=fixed.calibrator,
        operating_point=calibrated.operating_point,
        several_images=calibrated.several_images,
        reference_models=fixed.comparisons,
        features=fixed.features,
        usual_images=fixed.usual_images,
        cpu_backend=cpu_backend,
        group_columns=data.manifest.group_columns,
        split_hash=data.manifest.split_hash,
        training_config=config,
        best_epochs=best_epochs,
        validation=fixed.validation,
        teacher_sha256=teacher_sha256,
        versions=library_versions(),
        origin=None if origin is None else _origin(origin.manifest),
    )
    extras = Extras(
        calibration_rows=calibrated.units,
        features_onnx=onnx if cpu_backend.name == ONNX_RUNTIME else None,
        model_card=model_card(draft, data, fixed.level(task), weights=weights),
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


def _choose_backend(
    model: nn.Module,
    config: TrainConfig,
    data: PreparedData,
    *,
    fixed: Fixed,
    calibrated: Calibrated,
    onnx: bytes | None,
) -> CpuBackend:
    """Choose the library that computes feature maps on a CPU, by the images of `calibrated`."""
    if onnx is None:
        return CpuBackend(TORCH)
    extract = OnnxFeatures(onnx, num_threads=torch.get_num_threads())
    preprocess = Preprocess(data.stored_shape, config.data)
    again = predict(model, calibrated.images, preprocess, tta=config.data.tta, extract=extract)
    return compare_backend(
        data.task,
        fixed.calibrator(calibrated.logits),
        fixed.calibrator(again.logits),
        calibrated.operating_point.threshold,
    )


def _export(model: nn.Module, input_size: tuple[int, int]) -> bytes | None:
    """Return the network for ONNX Runtime, or None if it needs none or ONNX cannot hold it."""
    num_bytes = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    if isinstance(model, EmbeddingHead) or num_bytes > MAX_ONNX_BYTES:
        return None
    try:
        return export_features(model, input_size)
    except torch.onnx.OnnxExporterError:
        return None
