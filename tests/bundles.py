"""Manifests of bundles for tests: one made up, and changed ones signed again as a forger would."""

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np

from melanoma.bundle.drift import FeatureReference
from melanoma.bundle.manifest import TORCH, WEIGHTS, BundleManifest, CpuBackend
from melanoma.bundle.usual_images import every_image
from melanoma.config import DataConfig, ModelConfig, TrainConfig
from melanoma.evidence.calibration import Calibrator
from melanoma.evidence.contract import SEVERAL_IMAGES
from melanoma.evidence.operating_point import OperatingPoint, Promise, select_operating_point
from melanoma.evidence.reference_models import INFORMATIVE_CONFIDENCE, Comparison
from melanoma.imaging.preprocess import Preprocess
from serve.described import Described
from tests.tasks import HAM

INFORMATIVE = Comparison(0.85, 0.65, 0.1, INFORMATIVE_CONFIDENCE, ("source", "age"), 2, 100, 500)


def sign(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with the version that follows from its other fields."""
    content = json.dumps({**manifest, "version": ""}, sort_keys=True)
    return {**manifest, "version": hashlib.sha256(content.encode()).hexdigest()[:16]}


def made_up_manifest(**changes: Any) -> BundleManifest:
    """Return the manifest of a bundle that nobody trained; its contract is met."""
    promise = Promise(HAM.targets, 0.9, INFORMATIVE, "one image per lesion", "made up")
    manifest = BundleManifest(
        task=HAM,
        architecture=ModelConfig(),
        preprocessing=Preprocess((96, 128), DataConfig()),
        calibrator=Calibrator.identity(HAM.num_classes),
        operating_point=select_operating_point(np.full(60, 0.9), np.full(60, 0.1), promise),
        reference_models=(INFORMATIVE,),
        features=FeatureReference((0.0,), (1.0,), 1.0),
        usual_images=every_image(),
        cpu_backend=CpuBackend(TORCH),
        group_columns=("lesion_id",),
        split_hash="0" * 64,
        training_config=TrainConfig(),
        best_epochs=(1,),
        validation={"auroc": 0.9, "within_source_auroc": 0.9},
        versions={},
        files={WEIGHTS: "0" * 64},
    )
    return dataclasses.replace(manifest, **changes)


def several_images(*, num_target: int = 60) -> OperatingPoint:
    """Return a threshold and a contract for several images of one lesion, which is met if there
    are enough lesions with melanoma."""
    promise = Promise(HAM.targets, 0.9, INFORMATIVE, SEVERAL_IMAGES, "made up")
    return select_operating_point(np.full(num_target, 0.7), np.full(60, 0.1), promise)


def described(version: str, stored_shape: tuple[int, int] = (96, 128), **changes: Any) -> Described:
    """Return what a classifier says of such a bundle."""
    preprocessing = Preprocess(stored_shape, DataConfig())
    manifest = made_up_manifest(version=version, preprocessing=preprocessing, **changes)
    return Described(manifest, "# Model card")
