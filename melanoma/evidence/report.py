"""The report on one bundle and one set of images: report.json, its plots and its pages.

Knows nothing of how the images were scored.
"""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from melanoma.evidence.beside_reference import beside_reference
from melanoma.evidence.calibration import calibration_scores
from melanoma.evidence.decision_curve import decision_curve
from melanoma.evidence.evaluated import Evaluated
from melanoma.evidence.evaluation_page import evaluation_page, evaluation_pdf
from melanoma.evidence.lesion_report import several_images_report
from melanoma.evidence.levels import UNIT_SEED, Level, contract_level, image_level, lesion_level
from melanoma.evidence.metrics import confusion
from melanoma.evidence.numbers import BOOTSTRAP_DRAWS, BOOTSTRAP_SEED, numbers_of
from melanoma.evidence.operating_point import is_referred
from melanoma.evidence.page import to_png
from melanoma.evidence.plots import (
    plot_confusion,
    plot_decision_curve,
    plot_precision_recall,
    plot_reliability,
    plot_roc,
)
from melanoma.evidence.prevalence import at_prevalences
from melanoma.evidence.reference_models import SOURCE, within_source_auroc
from melanoma.evidence.strata import by_class, by_column, proportion, subgroups
from melanoma.evidence.target_calibration import target_calibration
from melanoma.evidence.verdict import verdict
from melanoma.io.files import write_bytes, write_json, write_text
from melanoma.io.typed import without_nan

FORMAT_VERSION = 2


def write_report(evaluated: Evaluated, folder: Path) -> dict[str, Any]:
    """Write predictions.parquet, report.json, report.html, report.pdf and the plots.

    Args:
        evaluated: the predictions to report on.
        folder: an existing folder.

    Returns:
        The content of report.json.
    """
    predictions = evaluated.predictions.assign(known=evaluated.is_known)
    predictions.to_parquet(folder / "predictions.parquet", index=False)
    images = image_level(evaluated.judged, evaluated.task)
    lesions = lesion_level(images)
    report: dict[str, Any] = without_nan(_content(evaluated, images, lesions))
    write_json(folder / "report.json", report)
    plots = _plots(report, images, lesions or images, evaluated.operating_point.threshold)
    for name, png in plots.items():
        write_bytes(folder / name, png)
    promise = evaluated.operating_point.contract.sentence(evaluated.task)
    write_text(folder / "report.html", evaluation_page(report, plots, promise))
    write_bytes(folder / "report.pdf", evaluation_pdf(report, plots, promise))
    return report


def _content(evaluated: Evaluated, images: Level, lesions: Level | None) -> dict[str, Any]:
    contract_units, refused = contract_level(image_level(evaluated.new, evaluated.task))
    units, judged = images.units, contract_units.units
    threshold = evaluated.operating_point.threshold
    levels = {"image": images, "lesion": lesions, "contract_unit": contract_units}
    rows = contract_units.rows
    return {
        "format_version": FORMAT_VERSION,
        "task": evaluated.task.as_dict(),
        "population": evaluated.population,
        "split": evaluated.split,
        "bundle": {
            "version": evaluated.bundle_version,
            "weights_sha256": evaluated.weights_sha256,
            "threshold": threshold,
        },
        "provenance": {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "data_hash": evaluated.data_hash,
            "split_hash": evaluated.split_hash,
            "versions": dict(evaluated.versions),
            "unit_seed": UNIT_SEED,
            "bootstrap_seed": BOOTSTRAP_SEED,
            "bootstrap_draws": BOOTSTRAP_DRAWS,
        },
        "same_splits_as_training": evaluated.same_splits,
        "flow": {
            "images": len(evaluated.predictions),
            "known_to_the_bundle": int(evaluated.is_known.sum()),
            "cannot_assess": int((~evaluated.is_assessed & ~evaluated.is_known).sum()),
            "numbers_rest_on_known": bool(evaluated.is_known[evaluated.is_assessed].all()),
            "judged": len(images),
            "left_out_before": sum(sum(counts.values()) for counts in evaluated.left_out.values()),
        },
        "left_out": {reason: dict(counts) for reason, counts in evaluated.left_out.items()},
        **{
            name: numbers_of(level, threshold)
            for name, level in levels.items()
            if level is not None
        },
        "cannot_assess": _unassessed(evaluated),
        "by_class": by_class(contract_units, threshold),
        "by_source": by_column(contract_units, rows[SOURCE], threshold),
        "by_reference_standard": by_column(contract_units, rows["dx_type"], threshold),
        "within_source": within_source_auroc(
            judged.is_target, judged.scores, rows[SOURCE].tolist()
        ),
        "subgroups": subgroups(contract_units, threshold),
        "reference_models": beside_reference(contract_units, evaluated.train),
        "at_prevalence": at_prevalences(judged.is_target, is_referred(judged.scores, threshold)),
        "confusion": confusion(units, np.ones(len(units))).astype(int).tolist(),
        "calibration": {
            **calibration_scores(units.labels, units.probabilities),
            **target_calibration(judged.is_target, judged.scores, contract_units.groups),
        },
        "decision_curve": decision_curve(judged.is_target, judged.scores),
        "contract": verdict(evaluated, contract_units, num_target_unassessed=refused),
        "several_images": several_images_report(evaluated),
        "missed_targets": _missed(images, threshold),
        "accesses": evaluated.accesses,
    }


def _unassessed(evaluated: Evaluated) -> dict[str, dict[str, Any]]:
    """Return, for each class, how many images are known and how many others get cannot_assess."""
    known, labels = evaluated.is_known, evaluated.predictions["label"].to_numpy()
    table, found = evaluated.predictions[~known], {}
    groups = pd.factorize(table["group"], sort=True)[0]
    refused = (table["decision"] == "cannot_assess").to_numpy()
    for index, name in enumerate(evaluated.task.classes):
        of_class = (table["label"] == index).to_numpy()
        share = proportion(refused[of_class], groups[of_class])
        counts = {
            "num": int(of_class.sum()),
            "known": int((labels[known] == index).sum()),
            "refused": int(refused[of_class].sum()),
        }
        found[name] = counts | share
    return found


def _plots(
    report: dict[str, Any], images: Level, lesions: Level, threshold: float
) -> dict[str, bytes]:
    units, noun = images.units, images.units.task.noun[0]
    figures = {
        "roc.png": plot_roc(units.is_target, units.scores, threshold, noun=noun),
        "precision_recall.png": plot_precision_recall(
            units.is_target, units.scores, threshold, noun=noun
        ),
        "reliability.png": plot_reliability(
            lesions.units.is_target, lesions.units.scores, lesions.groups, noun=noun
        ),
        "decision_curve.png": plot_decision_curve(report["decision_curve"], threshold, noun=noun),
        "confusion.png": plot_confusion(np.array(report["confusion"]), units.task.classes),
    }
    return {name: to_png(figure) for name, figure in figures.items()}


def _missed(images: Level, threshold: float) -> list[dict[str, Any]]:
    """Return the target images that are not referred, the lowest probability first."""
    units = images.units
    missed = units.is_target & ~is_referred(units.scores, threshold)
    rows = images.rows[missed].assign(probability=units.scores[missed])
    columns = ["image_id", "lesion_id", "group", "probability"]
    return [
        {str(name): value for name, value in row.items()}
        for row in rows.sort_values("probability")[columns].to_dict("records")
    ]
