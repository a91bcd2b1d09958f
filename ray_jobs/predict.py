"""Pictures from files -> decisions and heatmaps, in this process: a handful of pictures needs no cluster."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from melanoma.bundle import load_bundle
from melanoma.errors import DataError
from melanoma.explain.overlay import write_overlay
from melanoma.images import decode_image
from melanoma.predictor import Predictor


def predict_files(
    bundle_dir: Path, paths: Sequence[Path], *, explain: str | None, out: Path | None, allow_uncontracted: bool
) -> dict[str, Any]:
    """Predict some files and, if asked, write their heatmaps into out.

    Returns:
        results (one dict a file), threshold, contract and contract_sentence.

    Raises:
        BundleError: if the bundle cannot be loaded.
        DataError: if a file is missing or no usable picture.
    """
    if explain and out is None:
        raise DataError("--explain needs --out DIR, the folder for the heatmaps.")
    predictor = Predictor(load_bundle(bundle_dir), allow_uncontracted=allow_uncontracted)
    point = predictor.bundle.operating_point
    return {
        "results": [_predict_file(predictor, path, explain, out) for path in paths],
        "threshold": point.threshold,
        "contract": point.as_dict()["contract"],
        "contract_sentence": point.contract.sentence(),
    }


def _predict_file(predictor: Predictor, path: Path, explain: str | None, out: Path | None) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"IMAGE must be a picture, {path} is not a file.")
    preprocess = predictor.bundle.preprocess
    image = decode_image(path.read_bytes())
    (prediction,) = predictor.predict([preprocess.stored(image)], explain=explain is not None)
    classes = predictor.bundle.manifest["classes"]
    result: dict[str, Any] = {
        "image": str(path),
        "decision": prediction.decision,
        "warnings": list(prediction.warnings),
        "probabilities": {name: float(p) for name, p in zip(classes, prediction.probabilities, strict=True)},
    }
    if prediction.heatmap is not None and out is not None:
        out.mkdir(parents=True, exist_ok=True)
        overlay = write_overlay(out / f"{path.stem}_{explain}.png", image, prediction.heatmap, preprocess)
        result["overlay"] = str(overlay)
    return result
