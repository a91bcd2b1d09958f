"""Predicts image files: decisions, heatmaps, and both as DICOM objects.

It runs in this process, because a few images need no cluster.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from melanoma.arrays import Uint8Array
from melanoma.bundle.bundle import Bundle, load_bundle
from melanoma.bundle.deciding import Prediction
from melanoma.bundle.predictor import Predictor
from melanoma.config import DISCLAIMER
from melanoma.data.names import without_suffix
from melanoma.dicom_objects import Finding, check_installed, overlay_of, report_of
from melanoma.errors import DataError, InvalidImageError, RepeatedImageError
from melanoma.evidence.operating_point import OperatingPoint
from melanoma.explain.methods import METHODS, check_method
from melanoma.explain.overlay import heatmap_on, overlay
from melanoma.explain.subject import Explainer
from melanoma.imaging.decode import check_content, decode_image, format_of
from melanoma.imaging.dicom import Dicom
from melanoma.imaging.png_writer import to_png
from melanoma.io.files import sha256_of, write_bytes
from melanoma.io.storage import AnyPath
from melanoma.task import Task

_WRITTEN = {"overlay": "heatmap", "report": "report", "overlay_dicom": "heatmap"}


def predict_files(
    bundle_dir: Path,
    paths: Sequence[Path],
    *,
    explain: str | None,
    out: Path | None,
    allow_uncontracted: bool,
    dicom: bool = False,
    one_lesion: bool = False,
) -> dict[str, Any]:
    """Predict some files and, if asked, write their heatmaps and DICOM objects.

    An unusable file gets an error; the others still get an answer.

    Args:
        bundle_dir: folder of the bundle.
        paths: the image files.
        explain: the kind of heatmap, a key of `METHODS`; None writes none.
        out: folder for the heatmaps and DICOM objects.
        allow_uncontracted: decide although the contract of the bundle is not met.
        dicom: write a report, and the heatmap if there is one, as DICOM for each DICOM image.
        one_lesion: judge all images together, as images of one lesion.

    Returns:
        results (for each file a dict with decision, warnings, probabilities, score and the paths of
        what was written, or with an error), target, threshold, contract, contract_sentence and
        disclaimer. Of one lesion, no image has a decision of its own; lesion is a dict with
        num_images, decision, warnings, probabilities and score, or None if an image has an error.

    Raises:
        BundleError: if the bundle cannot be loaded.
        DataError: if out is given and nothing to write, or the other way round, or if the images
            cannot be judged as one lesion.
        SettingError: if there is no such kind of heatmap, DICOM cannot be written, or the bundle
            judges embeddings.
    """
    _check_output(explain, out, dicom=dicom)
    if one_lesion and dicom:
        raise DataError(
            "--dicom writes a report for each image alone. Leave --one-lesion or --dicom out."
        )
    make = METHODS[check_method(explain)].make if explain else None
    bundle = load_bundle(bundle_dir)
    bundle.check_takes_images()
    predictor = Predictor(bundle, allow_uncontracted=allow_uncontracted)
    if one_lesion:
        predictor.decider.check_num_images(len(paths))
        _check_different_files(paths)
    explainer = make(predictor.bundle.subject()) if make else None
    writer = _Writer(predictor.bundle, out, explain, explainer, dicom)
    results, predictions = zip(
        *(
            _predict_file(predictor, path, stem, writer)
            for path, stem in zip(paths, _stems(paths), strict=True)
        ),
        strict=True,
    )
    if not one_lesion:
        return {"results": list(results), **_basis(predictor, predictor.bundle.operating_point)}
    point, answer = _judged_together(predictor, predictions)
    return {
        "results": [_without_decision(result) for result in results],
        "lesion": answer,
        **_basis(predictor, point),
    }


def _judged_together(
    predictor: Predictor, predictions: Sequence[Prediction | None]
) -> tuple[OperatingPoint, dict[str, Any] | None]:
    """Return what decided about a lesion and the answer, None if one of its images has none."""
    usable = [prediction for prediction in predictions if prediction is not None]
    if len(usable) < len(predictions):
        several = predictor.bundle.manifest.several_images if len(predictions) > 1 else None
        return several or predictor.bundle.operating_point, None
    found = predictor.decider.of_lesion(usable)
    answer = _answer(found.together, predictor.bundle.task)
    return found.operating_point, {"num_images": len(usable), **answer}


def _basis(predictor: Predictor, point: OperatingPoint) -> dict[str, Any]:
    """Return what the answers rest on."""
    task = predictor.bundle.task
    return {
        "target": task.noun[0],
        "threshold": point.threshold,
        "contract": dataclasses.asdict(point.contract),
        "contract_sentence": point.contract.sentence(task),
        "disclaimer": DISCLAIMER,
    }


def _check_different_files(paths: Sequence[AnyPath]) -> None:
    """Check that no image counts twice.

    Raises:
        RepeatedImageError: if one does.
    """
    seen: dict[str, AnyPath] = {}
    for path in paths:
        with contextlib.suppress(OSError):  # a file that cannot be read gets an error of its own
            first = seen.setdefault(sha256_of(path), path)
            if first is not path:
                raise RepeatedImageError(
                    f"The images of one lesion must differ; {first} and {path} are the same. Give"
                    " it once."
                )


def _without_decision(result: dict[str, Any]) -> dict[str, Any]:
    """Return the result of one of several images of a lesion: its decision counts for nothing."""
    return {name: value for name, value in result.items() if name != "decision"}


def _check_output(explain: str | None, out: Path | None, *, dicom: bool) -> None:
    if dicom:
        check_installed()
        if out is None:
            raise DataError("--dicom needs a folder for its objects; none is given. Add --out DIR.")
    if explain and out is None:
        raise DataError("--explain needs a folder for the heatmaps; none is given. Add --out DIR.")
    if out is not None and not (explain or dicom):
        raise DataError(
            "--out is the folder for heatmaps; none are requested. Add --explain grad_cam."
        )


def _stems(paths: Sequence[Path]) -> list[str]:
    """Return a name for each image; images of the same name in other folders get a number."""
    stems: list[str] = []
    for path in paths:
        numbers = itertools.chain([""], (f"_{number}" for number in itertools.count(2)))
        candidates = (f"{without_suffix(path.name)}{number}" for number in numbers)
        stems.append(next(stem for stem in candidates if stem not in stems))
    return stems


@dataclasses.dataclass(frozen=True)
class _Read:
    """One image file: its bytes, the image, as the bundle takes it, and what the bundle says."""

    data: bytes
    image: Image.Image
    stored: Uint8Array
    prediction: Prediction


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Writes what was asked for besides the answers.

    Attributes:
        bundle: what predicts.
        out: the folder; None if nothing was asked for.
        explain: the kind of heatmap, or None.
        explainer: what makes it, or None for the one that comes with the prediction.
        dicom: whether to write DICOM objects for DICOM images.
    """

    bundle: Bundle
    out: Path | None
    explain: str | None
    explainer: Explainer | None
    dicom: bool

    def write(self, stem: str, read: _Read) -> dict[str, str]:
        """Write the files of one image and return their paths by what they are.

        Raises:
            DataError: if no DICOM object can be derived from the image.
        """
        if self.out is None:
            return {}
        contents: dict[str, tuple[str, bytes]] = {}
        drawn = self._drawn(read)
        if drawn is not None:
            contents["overlay"] = (f"{stem}_{self.explain}.png", to_png(drawn))
        if self.dicom and format_of(read.data) is Dicom:
            finding = self._finding(read.prediction)
            contents["report"] = (f"{stem}.sr.dcm", report_of(read.data, finding))
            if drawn is not None and self.explain:
                capture = overlay_of(read.data, finding, drawn, self.explain)
                contents["overlay_dicom"] = (f"{stem}.overlay.dcm", capture)
        self.out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.values():
            write_bytes(self.out / name, content)
        return {kind: str(self.out / name) for kind, (name, _) in contents.items()}

    def _drawn(self, read: _Read) -> Uint8Array | None:
        """Return the image with its heatmap, ``(H, W, 3)``."""
        heatmap = read.prediction.heatmap
        if heatmap is None:
            return None
        if self.explainer is not None:
            heatmap = self.explainer.explain([read.stored], [heatmap])[0]
        return np.asarray(overlay(*heatmap_on(read.image, heatmap, self.bundle.preprocess)))

    def _finding(self, prediction: Prediction) -> Finding:
        manifest, point = self.bundle.manifest, self.bundle.operating_point
        return Finding(
            task=manifest.task,
            version=manifest.version,
            weights_sha256=manifest.weights_sha256,
            probabilities=_by_class(prediction, manifest.task),
            score=_score(prediction, manifest.task),
            threshold=point.threshold,
            decision=prediction.decision,
            warnings=tuple(prediction.warnings),
            contract_sentence=point.contract.sentence(manifest.task),
        )


def _predict_file(
    predictor: Predictor, path: Path, stem: str, writer: _Writer
) -> tuple[dict[str, Any], Prediction | None]:
    """Return the result of a file and the prediction, or a result with an error and None."""
    if not path.is_file():
        error = "IMAGE must be an image file; this is not a file."
        return {"image": str(path), "error": error}, None
    try:
        data = path.read_bytes()
        image = decode_image(data)
        check_content(image)
    except (InvalidImageError, OSError) as error:
        return {"image": str(path), "error": str(error)}, None
    stored = predictor.bundle.preprocess.stored(image)
    (prediction,) = predictor.predict([stored], explain=writer.explain is not None)
    try:
        written = writer.write(stem, _Read(data, image, stored, prediction))
    except DataError as error:
        return {"image": str(path), "error": str(error)}, None
    answer = _answer(prediction, predictor.bundle.task)
    return {"image": str(path), **answer, **written}, prediction


def _answer(prediction: Prediction, task: Task) -> dict[str, Any]:
    return {
        "decision": prediction.decision,
        "warnings": list(prediction.warnings),
        "probabilities": _by_class(prediction, task),
        "score": _score(prediction, task),
    }


def _by_class(prediction: Prediction, task: Task) -> dict[str, float]:
    return {name: float(p) for name, p in zip(task.classes, prediction.probabilities, strict=True)}


def _score(prediction: Prediction, task: Task) -> float:
    return float(task.target_scores(prediction.probabilities[None])[0])


def describe_predictions(found: dict[str, Any]) -> str:
    """Return the answers of `predict_files` as text for people, with contract and disclaimer."""
    answers = [_describe(result, found) for result in found["results"] if "error" not in result]
    if "lesion" in found:
        answers.append(_describe_lesion(found))
    return "\n".join([*answers, found["contract_sentence"], found["disclaimer"]])


def _describe_lesion(found: dict[str, Any]) -> str:
    if found["lesion"] is None:
        num = sum("error" in result for result in found["results"])
        total = len(found["results"])
        return f"{'':14} the lesion is not judged, because {num} of {total} images cannot be used"
    num = found["lesion"]["num_images"]
    images = f"{num} images of one lesion, judged together" if num > 1 else "1 image"
    return _describe({"image": images, **found["lesion"]}, found)


def _describe(result: dict[str, Any], found: dict[str, Any]) -> str:
    said = f"{found['target']} {result['score']:.3f} (threshold {found['threshold']:.3f})"
    if "decision" not in result:  # one of several images of a lesion
        said = f"{found['target']} {result['score']:.3f}"
    line = f"{result.get('decision', ''):14} {said}  {result['image']}"
    warnings = [f"warnings: {', '.join(result['warnings'])}"] if result["warnings"] else []
    written = [f"{what}: {result[key]}" for key, what in _WRITTEN.items() if key in result]
    return "\n".join([line, *(f"{'':14} {more}" for more in warnings + written)])
