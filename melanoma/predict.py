"""Predicts image files: decisions and heatmaps.

It runs in this process, because a few images need no cluster.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from melanoma.bundle.bundle import load_bundle
from melanoma.bundle.predictor import Predictor
from melanoma.config import DISCLAIMER
from melanoma.errors import DataError, InvalidImageError
from melanoma.explain.methods import METHODS, check_method
from melanoma.explain.overlay import write_overlay
from melanoma.explain.subject import Explainer
from melanoma.imaging.decode import check_content, decode_image


def predict_files(
    bundle_dir: Path,
    paths: Sequence[Path],
    *,
    explain: str | None,
    out: Path | None,
    allow_uncontracted: bool,
) -> dict[str, Any]:
    """Predict some files and, if asked, write their heatmaps.

    An unusable file gets an error; the others still get an answer.

    Args:
        bundle_dir: folder of the bundle.
        paths: the image files.
        explain: the kind of heatmap, a key of `METHODS`; None writes none.
        out: folder for the heatmaps.
        allow_uncontracted: decide although the contract of the bundle is not met.

    Returns:
        results (for each file a dict with decision, warnings, probabilities, score and overlay, or
        with an error), target, threshold, contract, contract_sentence and disclaimer.

    Raises:
        BundleError: if the bundle cannot be loaded.
        DataError: if only one of explain and out is given.
        SettingError: if there is no such kind of heatmap.
    """
    if explain and out is None:
        raise DataError("--explain needs a folder for the heatmaps; none is given. Add --out DIR.")
    if out is not None and not explain:
        raise DataError(
            "--out is the folder for heatmaps; none are requested. Add --explain grad_cam."
        )
    make = METHODS[check_method(explain)].make if explain else None
    predictor = Predictor(load_bundle(bundle_dir), allow_uncontracted=allow_uncontracted)
    explainer = make(predictor.bundle.subject()) if make else None
    point = predictor.bundle.operating_point
    names = _overlay_names(paths, explain) if explain and out else [None] * len(paths)
    return {
        "results": [
            _predict_file(predictor, path, out / name if out and name else None, explainer)
            for path, name in zip(paths, names, strict=True)
        ],
        "target": predictor.bundle.task.noun[0],
        "threshold": point.threshold,
        "contract": dataclasses.asdict(point.contract),
        "contract_sentence": point.contract.sentence(predictor.bundle.task),
        "disclaimer": DISCLAIMER,
    }


def _overlay_names(paths: Sequence[Path], explain: str) -> list[str]:
    """Return a file name for each image; images of the same name in other folders get a number."""
    names: list[str] = []
    for path in paths:
        numbers = itertools.chain([""], (f"_{number}" for number in itertools.count(2)))
        candidates = (f"{path.stem}{number}_{explain}.png" for number in numbers)
        names.append(next(name for name in candidates if name not in names))
    return names


def _predict_file(
    predictor: Predictor, path: Path, overlay: Path | None, explainer: Explainer | None
) -> dict[str, Any]:
    if not path.is_file():
        return {"image": str(path), "error": "IMAGE must be an image file; this is not a file."}
    preprocess = predictor.bundle.preprocess
    try:
        image = decode_image(path.read_bytes())
        check_content(image)
    except (InvalidImageError, OSError) as error:
        return {"image": str(path), "error": str(error)}
    stored = preprocess.stored(image)
    (prediction,) = predictor.predict([stored], explain=overlay is not None)
    classes = predictor.bundle.task.classes
    result: dict[str, Any] = {
        "image": str(path),
        "decision": prediction.decision,
        "warnings": list(prediction.warnings),
        "probabilities": {
            name: float(p) for name, p in zip(classes, prediction.probabilities, strict=True)
        },
        "score": float(predictor.bundle.task.target_scores(prediction.probabilities[None])[0]),
    }
    if prediction.heatmap is not None and overlay is not None:
        overlay.parent.mkdir(parents=True, exist_ok=True)
        heatmap = (
            prediction.heatmap
            if explainer is None
            else explainer.explain([stored], [prediction.heatmap])[0]
        )
        result["overlay"] = str(write_overlay(overlay, image, heatmap, preprocess))
    return result


def describe_predictions(found: dict[str, Any]) -> str:
    """Return the answers of `predict_files` as text for people, with contract and disclaimer."""
    answers = [_describe(result, found) for result in found["results"] if "error" not in result]
    return "\n".join([*answers, found["contract_sentence"], found["disclaimer"]])


def _describe(result: dict[str, Any], found: dict[str, Any]) -> str:
    said = f"{found['target']} {result['score']:.3f} (threshold {found['threshold']:.3f})"
    line = f"{result['decision']:14} {said}  {result['image']}"
    warnings = [f"warnings: {', '.join(result['warnings'])}"] if result["warnings"] else []
    overlay = [f"heatmap: {result['overlay']}"] if "overlay" in result else []
    return "\n".join([line, *(f"{'':14} {more}" for more in warnings + overlay)])
