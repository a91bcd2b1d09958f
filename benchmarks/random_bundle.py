"""Writes a bundle around a network of random weights, for benchmarks of speed; what it says of images means nothing.

python -m benchmarks.random_bundle OUT [--backbone convnext_atto] [--size 128x96] [--tta 4]
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from melanoma.bundle.backend import export_features
from melanoma.bundle.bundle import (
    MANIFEST,
    ONNX_RUNTIME,
    BundleParts,
    load_bundle,
    read_manifest,
    save_bundle,
    version_of,
)
from melanoma.bundle.drift import fit_reference, pooled
from melanoma.bundle.probes import record_probes
from melanoma.config import DataConfig, ModelConfig, TrainConfig
from melanoma.evidence.calibration import fit_calibrator
from melanoma.evidence.operating_point import select_operating_point
from melanoma.imaging.letterbox import Preprocess, letterbox_shape
from melanoma.io.files import write_json
from melanoma.training.networks import build_model, features, tta_logits
from tests.tasks import CLASSES, MELANOMA_INDEX

NUM_IMAGES = 210


def other_canvas(bundle_dir: Path, out: Path) -> Path:
    """Write a bundle's network under another version and on a larger stored_shape, as a later training might; return its folder."""
    shutil.copytree(bundle_dir, out)
    bundle, manifest = load_bundle(bundle_dir), read_manifest(out)
    height, width = bundle.preprocess.stored_shape
    stored_shape = (2 * height, 2 * width)
    manifest["preprocessing"]["stored_shape"] = list(stored_shape)
    manifest["probes"] = record_probes(bundle.model, Preprocess(stored_shape, bundle.preprocess.data), bundle.tta)
    write_json(out / MANIFEST, manifest | {"version": version_of(manifest)})
    return out


def main() -> None:
    """Write one bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--backbone", default="convnext_atto")
    parser.add_argument("--size", default="128x96", help="of the network's input, WIDTHxHEIGHT")
    parser.add_argument("--tta", type=int, default=4)
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    config = TrainConfig(
        data=DataConfig(input_height=height, input_width=width, tta=args.tta),
        model=ModelConfig(args.backbone, layer_scale=None),
        min_specificity=0.0,
    )
    torch.manual_seed(0)
    model = build_model(config.model, len(CLASSES)).eval().requires_grad_(False)
    stored_shape = letterbox_shape(height)
    images = Preprocess(stored_shape, config.data)(
        torch.randint(0, 256, (NUM_IMAGES, *stored_shape, 3), dtype=torch.uint8)
    )
    with torch.no_grad():
        logits = torch.cat([tta_logits(model, part, args.tta) for part in images.split(8)]).numpy()
        maps = np.concatenate([pooled(features(model, part)) for part in images[:16].split(8)])
    labels = np.arange(NUM_IMAGES) % len(CLASSES)
    calibrator = fit_calibrator(logits, labels, np.arange(NUM_IMAGES))
    scores = calibrator(logits)[:, MELANOMA_INDEX]
    is_melanoma = labels == MELANOMA_INDEX
    point = select_operating_point(
        scores[is_melanoma],
        scores[~is_melanoma],
        target_sensitivity=config.target_sensitivity,
        min_specificity=config.min_specificity,
        population="noise",
    )
    save_bundle(
        BundleParts(
            model=model,
            config=config,
            stored_shape=stored_shape,
            calibrator=calibrator,
            operating_point=point,
            features=fit_reference(maps),
            cpu_backend={"name": ONNX_RUNTIME},
            features_onnx=export_features(model, (height, width)),
            calibration_rows=pd.DataFrame({"label": [CLASSES[label] for label in labels], "score": scores}),
            group_columns=("lesion_id",),
            split_hash="0" * 64,
            model_card="# Random weights, for benchmarks of speed\n",
        ),
        args.out,
    )
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
