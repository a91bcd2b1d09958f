"""The report on one bundle and one set of images: report.json, its plots and its pages.

Knows nothing of how the images were scored.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from melanoma.arrays import IntArray
from melanoma.evidence.calibration import calibration_scores
from melanoma.evidence.evaluation_page import evaluation_page, evaluation_pdf
from melanoma.evidence.metrics import (
    METRICS,
    Predicted,
    auroc_interval,
    clopper_pearson,
    confusion,
    effective_number,
    group_bootstrap,
)
from melanoma.evidence.operating_point import OperatingPoint, check_contract, choose_units, decide
from melanoma.evidence.page import to_png
from melanoma.evidence.plots import (
    plot_confusion,
    plot_precision_recall,
    plot_reliability,
    plot_roc,
)
from melanoma.io.files import write_bytes, write_json, write_text
from melanoma.task import Task

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Predictions of a bundle on some images.

    Attributes:
        task: what the classes mean.
        operating_point: the bundle's threshold and contract.
        bundle_version: the version of the bundle that predicted.
        weights_sha256: the hash of its weights.
        predictions: the table of predictions.parquet.
        split: train, calibration, test or external.
        population: describes what the images are.
        accesses: every access to this test split so far, this one included.
        same_splits: whether the bundle was trained on the splits of this data set; if not, test may
            hold training images.
        left_out: images that could not be judged, or that were left out when the data set was
            prepared: reason -> class -> number.
    """

    task: Task
    operating_point: OperatingPoint
    bundle_version: str
    weights_sha256: str
    predictions: pd.DataFrame
    split: str
    population: str
    accesses: list[dict[str, Any]]
    same_splits: bool
    left_out: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Level:
    """Images, or lesions with the mean probabilities of their images.

    Attributes:
        units: the N units to measure.
        groups: ``(N,)`` integers, the group of each unit.
    """

    units: Predicted
    groups: IntArray


def write_report(evaluated: Evaluated, folder: Path) -> dict[str, Any]:
    """Write predictions.parquet, report.json, report.html, report.pdf and the plots.

    Args:
        evaluated: the predictions to report on.
        folder: an existing folder.

    Returns:
        The content of report.json.
    """
    evaluated.predictions.to_parquet(folder / "predictions.parquet", index=False)
    images, lesions = _levels(evaluated.predictions, evaluated.task)
    units, threshold = images.units, evaluated.operating_point.threshold
    report: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "task": evaluated.task.as_dict(),
        "population": evaluated.population,
        "split": evaluated.split,
        "bundle": {
            "version": evaluated.bundle_version,
            "weights_sha256": evaluated.weights_sha256,
            "threshold": threshold,
        },
        "same_splits_as_training": evaluated.same_splits,
        "left_out": {reason: dict(counts) for reason, counts in evaluated.left_out.items()},
        "image": _numbers(images, threshold),
        "lesion": _numbers(lesions, threshold),
        "confusion": confusion(units, np.ones(len(units))).astype(int).tolist(),
        "calibration": calibration_scores(units.labels, units.probabilities),
        "contract": _contract(evaluated, images),
        "accesses": evaluated.accesses,
    }
    report = _without_nan(report)
    write_json(folder / "report.json", report)
    noun = evaluated.task.noun[0]
    figures = {
        "roc.png": plot_roc(units.is_target, units.scores, threshold, noun=noun),
        "precision_recall.png": plot_precision_recall(
            units.is_target, units.scores, threshold, noun=noun
        ),
        "reliability.png": plot_reliability(units.is_target, units.scores, noun=noun),
        "confusion.png": plot_confusion(np.array(report["confusion"]), evaluated.task.classes),
    }
    drawn = {name: to_png(figure) for name, figure in figures.items()}
    for name, png in drawn.items():
        write_bytes(folder / name, png)
    promise = evaluated.operating_point.contract.sentence(evaluated.task)
    write_text(folder / "report.html", evaluation_page(report, drawn, promise))
    write_bytes(folder / "report.pdf", evaluation_pdf(report, drawn, promise))
    return report


def _levels(table: pd.DataFrame, task: Task) -> tuple[_Level, _Level]:
    columns = [f"probability_{name}" for name in task.classes]
    groups = pd.factorize(table["group"], sort=True)[0]
    images = _Level(Predicted(task, table["label"].to_numpy(), table[columns].to_numpy()), groups)
    lesion = table["lesion_id"].where(table["lesion_id"] != "", table["group"])
    by_lesion = table.assign(lesion=lesion, code=groups).groupby(["lesion", "label"], sort=True)
    means = by_lesion[columns].mean().reset_index()
    lesions = Predicted(task, means["label"].to_numpy(), means[columns].to_numpy())
    return images, _Level(lesions, by_lesion["code"].first().to_numpy())


def _numbers(level: _Level, threshold: float) -> dict[str, Any]:
    units, groups = level.units, level.groups
    is_target = units.is_target
    referred = np.array([decide(float(score), threshold) == "refer" for score in units.scores])
    numbers = {
        "num": len(units),
        "num_target": int(is_target.sum()),
        "sensitivity": _proportion(referred[is_target], groups[is_target]),
        "specificity": _proportion(~referred[~is_target], groups[~is_target]),
        **group_bootstrap(units, groups),
    }
    for name, metric in METRICS.items():
        if metric.share is not None:
            # Exact bounds hold even if all units are right; a bootstrap interval has no width then.
            counted, right = metric.share(units)
            numbers[name] = _proportion(right[counted], groups[counted])
    auroc = METRICS["auroc"].value(units, np.ones(len(units)))
    low, high = auroc_interval(
        auroc,
        effective_number(groups[is_target]),
        effective_number(groups[~is_target]),
    )
    numbers["auroc"] = {"value": auroc, "low": low, "high": high}
    return numbers


def _proportion(right: np.ndarray, groups: IntArray) -> dict[str, float]:
    """Return a proportion with its Clopper-Pearson interval over groups."""
    if len(right) == 0:
        return {"value": float("nan"), "low": 0.0, "high": 1.0}
    num, value = effective_number(groups), float(right.mean())
    low, high = clopper_pearson(value * num, num)
    return {"value": value, "low": low, "high": high}


def _contract(evaluated: Evaluated, images: _Level) -> dict[str, Any]:
    point, units = evaluated.operating_point, images.units
    targets, _ = choose_units(units.is_target, images.groups, seed=0)
    referred = sum(decide(float(units.scores[i]), point.threshold) == "refer" for i in targets)
    target = point.contract.target_sensitivity
    promised, unseen = point.contract.status == "met", _is_unseen(evaluated)
    status = (
        check_contract(referred, len(targets), target_sensitivity=target)
        if promised and unseen
        else "none"
    )
    low, high = clopper_pearson(
        referred, len(targets), confidence=2 * point.contract.confidence - 1
    )
    words = (
        f"{referred} of {len(targets)} {evaluated.task.noun[1]} were referred, one image per group "
        f"(one-sided 95 % bounds {low:.3f} and {high:.3f}; promised {target:.2f})."
    )
    return {
        "status": status,
        "bundle_status": point.contract.status,
        "target_sensitivity": target,
        "num_target": len(targets),
        "referred": referred,
        "sensitivity_low": low,
        "sensitivity_high": high,
        "sentence": _sentence(words, promised=promised, unseen=unseen, split=evaluated.split),
    }


def _sentence(words: str, *, promised: bool, unseen: bool, split: str) -> str:
    """Return the count of a contract, with a sentence on what it can prove here."""
    if not promised:
        return f"The bundle promises nothing. {words}"
    if not unseen:
        return (
            f"No verdict: the bundle may have been trained or calibrated on these images. {words}"
        )
    return (
        f"{words} Only the name of the folder shows that none of them were used for training."
        if split == "external"
        else words
    )


def _is_unseen(evaluated: Evaluated) -> bool:
    """Return whether these images can judge the contract.

    The bundle must not have been trained on them, and its threshold must not have been chosen on
    them. An external folder is assumed to hold the bundle's own images if it has the same name as
    the folder they came from.
    """
    if evaluated.split == "external":
        own = evaluated.operating_point.contract.population
        return evaluated.population.split(",")[0] != own.split(",")[0]
    return evaluated.split == "test" and evaluated.same_splits


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None, for undefined numbers."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
