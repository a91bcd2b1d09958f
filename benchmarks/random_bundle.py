"""Writes a bundle whose network has random weights, for benchmarks of speed.

Its predictions mean nothing.

    python -m benchmarks.random_bundle OUT [--backbone convnext_atto] [--size 128x96] [--tta 4]
"""

import argparse
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from melanoma.bundle.backend import export_features
from melanoma.bundle.bundle import Extras, library_versions, load_bundle, save_bundle
from melanoma.bundle.drift import fit_reference, pooled
from melanoma.bundle.known_images import no_known_images
from melanoma.bundle.manifest import MANIFEST, ONNX_RUNTIME, BundleManifest, CpuBackend
from melanoma.bundle.probes import record_probes
from melanoma.bundle.usual_images import every_image
from melanoma.config import DataConfig, ModelConfig, TrainConfig
from melanoma.evidence.calibration import fit_calibrator
from melanoma.evidence.operating_point import Promise, select_operating_point
from melanoma.evidence.reference_models import INFORMATIVE_CONFIDENCE, Comparison
from melanoma.imaging.letterbox import letterbox_shape
from melanoma.imaging.preprocess import Preprocess
from melanoma.io.files import write_json
from melanoma.io.typed import to_plain
from melanoma.task import DEFAULT_TASK, TASKS
from melanoma.training.networks import build_model, features, tta_logits

NUM_IMAGES = 280


def other_shape(bundle_dir: Path, out: Path) -> Path:
    """Write a copy of a bundle that has another version and takes larger stored images.

    It stands for the bundle of a later training. Returns its folder.
    """
    shutil.copytree(bundle_dir, out)
    bundle = load_bundle(bundle_dir)
    height, width = bundle.preprocess.stored_shape
    preprocessing = Preprocess((2 * height, 2 * width), bundle.preprocess.data)
    probes = record_probes(bundle.model, preprocessing, bundle.manifest.tta)
    manifest = dataclasses.replace(
        bundle.manifest, preprocessing=preprocessing, probes=probes
    ).with_version()
    write_json(out / MANIFEST, to_plain(manifest))
    return out


def main() -> None:
    """Write one bundle."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--backbone", default="convnext_atto")
    parser.add_argument(
        "--size", default="128x96", help="size of the network's input, WIDTHxHEIGHT, px"
    )
    parser.add_argument("--tta", type=int, default=4)
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    config = TrainConfig(
        data=DataConfig(input_height=height, input_width=width, tta=args.tta),
        model=ModelConfig(args.backbone, layer_scale=None),
    )
    torch.manual_seed(0)
    model = build_model(config.model, TASKS[DEFAULT_TASK].num_classes).eval().requires_grad_(False)
    preprocess = Preprocess(letterbox_shape(width), config.data)
    images = preprocess(
        torch.randint(0, 256, (NUM_IMAGES, *preprocess.stored_shape, 3), dtype=torch.uint8)
    )
    with torch.no_grad():
        logits = torch.cat([tta_logits(model, part, args.tta) for part in images.split(8)]).numpy()
        maps = np.concatenate([pooled(features(model, part)) for part in images[:16].split(8)])
    task = TASKS[DEFAULT_TASK]
    labels = np.arange(NUM_IMAGES) % task.num_classes
    calibrator = fit_calibrator(logits, labels, np.arange(NUM_IMAGES))
    scores, is_target = task.target_scores(calibrator(logits)), task.is_target(labels)
    # The contract of noise would be unmet; a server that decides is what is to be measured.
    comparison = Comparison(
        1.0, 0.5, 0.5, INFORMATIVE_CONFIDENCE, ("source",), 1, NUM_IMAGES, NUM_IMAGES
    )
    promise = Promise(
        task.targets, config.target_sensitivity, comparison, "one image per lesion", "noise"
    )
    draft = BundleManifest(
        task=task,
        architecture=config.model,
        preprocessing=preprocess,
        calibrator=calibrator,
        operating_point=select_operating_point(scores[is_target], scores[~is_target], promise),
        reference_models=(comparison,),
        features=fit_reference(maps),
        usual_images=every_image(),
        cpu_backend=CpuBackend(ONNX_RUNTIME),
        group_columns=("lesion_id",),
        split_hash="0" * 64,
        training_config=config,
        best_epochs=(1,),
        validation={},
        versions=library_versions(),
    )
    rows = pd.DataFrame({"label": [task.classes[label] for label in labels], "score": scores})
    card = "# Random weights, for benchmarks of speed\n"
    onnx = export_features(model, (height, width))
    save_bundle(args.out, draft, model, Extras(rows, onnx, card, no_known_images()))
    print(f"Wrote {args.out}.")


if __name__ == "__main__":
    main()
