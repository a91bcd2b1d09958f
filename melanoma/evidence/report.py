"""The report on one bundle and one set of images: report.json, its plots and its pages.

Knows nothing of how the images were scored.
"""

import dataclasses
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from melanoma.arrays import BoolArray, FloatArray
from melanoma.evidence.calibration import calibration_scores
from melanoma.evidence.decision_curve import decision_curve
from melanoma.evidence.evaluation_page import evaluation_page, evaluation_pdf
from melanoma.evidence.levels import UNIT_SEED, Level, contract_level, image_level, lesion_level
from melanoma.evidence.metrics import (
    METRICS,
    Predicted,
    clopper_pearson,
    confusion,
    effective_number,
    group_bootstrap,
)
from melanoma.evidence.operating_point import OperatingPoint, check_contract, is_referred
from melanoma.evidence.page import to_png
from melanoma.evidence.plots import (
    plot_confusion,
    plot_decision_curve,
    plot_precision_recall,
    plot_reliability,
    plot_roc,
)
from melanoma.evidence.power import chances, targets_to_decide
from melanoma.evidence.prevalence import PREVALENCES, per_thousand
from melanoma.evidence.reference_models import (
    SOURCE,
    compare_within_sources,
    known_columns,
    reference_scores,
    within_source_auroc,
)
from melanoma.evidence.strata import (
    auroc_of,
    by_class,
    by_column,
    proportion,
    subgroups,
)
from melanoma.evidence.target_calibration import target_calibration
from melanoma.io.files import write_bytes, write_json, write_text
from melanoma.task import Task

FORMAT_VERSION = 2
BOOTSTRAP_DRAWS, BOOTSTRAP_SEED = 1000, 0
RECORDED = ("source", "dx_type", "sex", "age", "site", "skin_type")
"""The columns of records.parquet that predictions.parquet repeats."""


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
        train: records to fit the reference models to; None if there are none.
        known: ids of images that the bundle was trained or calibrated on; they and the other images
            of their groups are reported apart.
        data_hash: of the images.
        split_hash: of the data set's splits; empty if it has none.
        versions: of the libraries that predicted.
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
    train: pd.DataFrame | None = None
    known: frozenset[str] = frozenset()
    data_hash: str = ""
    split_hash: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def is_known(self) -> BoolArray:
        """Which predictions are of groups with an image that the bundle was made from, ``(N,)``."""
        is_copy = self.predictions["image_id"].isin(self.known)
        groups = set(self.predictions.loc[is_copy, "group"])
        known: BoolArray = self.predictions["group"].isin(groups).to_numpy()
        return known

    @property
    def judged(self) -> pd.DataFrame:
        """The predictions that the numbers rest on: those of assessed images that are not known.

        If all are known, the numbers rest on all that are assessed, and there is no verdict.
        """
        known, assessed = self.is_known, self.is_assessed
        kept = assessed if (known | ~assessed).all() else assessed & ~known
        return self.predictions[kept]

    @property
    def is_assessed(self) -> BoolArray:
        """Which predictions are a decision, ``(N,)``; the contract counts no others."""
        assessed: BoolArray = (self.predictions["decision"] != "cannot_assess").to_numpy()
        return assessed

    @property
    def is_unseen(self) -> bool:
        """Whether these images can judge the contract.

        The bundle must not have been trained on them, and its threshold must not have been chosen
        on them.
        """
        if self.split == "external":
            return not (self.is_known | ~self.is_assessed).all()
        return self.split == "test" and self.same_splits


def write_report(evaluated: Evaluated, folder: Path) -> dict[str, Any]:
    """Write predictions.parquet, report.json, report.html, report.pdf and the plots.

    Args:
        evaluated: the predictions to report on.
        folder: an existing folder.

    Returns:
        The content of report.json.
    """
    evaluated.predictions.to_parquet(folder / "predictions.parquet", index=False)
    images = image_level(evaluated.judged, evaluated.task)
    lesions, contract_units = lesion_level(images), contract_level(images)
    report: dict[str, Any] = _without_nan(_content(evaluated, images, lesions, contract_units))
    write_json(folder / "report.json", report)
    plots = _plots(report, images, lesions or images, evaluated.operating_point.threshold)
    for name, png in plots.items():
        write_bytes(folder / name, png)
    promise = evaluated.operating_point.contract.sentence(evaluated.task)
    write_text(folder / "report.html", evaluation_page(report, plots, promise))
    write_bytes(folder / "report.pdf", evaluation_pdf(report, plots, promise))
    return report


def _content(
    evaluated: Evaluated, images: Level, lesions: Level | None, contract_units: Level
) -> dict[str, Any]:
    units, threshold = images.units, evaluated.operating_point.threshold
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
            "left_out": sum(sum(counts.values()) for counts in evaluated.left_out.values()),
        },
        "left_out": {reason: dict(counts) for reason, counts in evaluated.left_out.items()},
        **{name: _numbers(level, threshold) for name, level in levels.items() if level is not None},
        "cannot_assess": _unassessed(evaluated),
        "by_class": by_class(contract_units, threshold),
        "by_source": by_column(contract_units, rows[SOURCE], threshold),
        "by_reference_standard": by_column(contract_units, rows["dx_type"], threshold),
        "within_source": within_source_auroc(
            contract_units.units.is_target, contract_units.units.scores, rows[SOURCE].tolist()
        ),
        "subgroups": subgroups(contract_units, threshold),
        "reference_models": _reference_models(contract_units, evaluated),
        "at_prevalence": _at_prevalence(contract_units, threshold),
        "confusion": confusion(units, np.ones(len(units))).astype(int).tolist(),
        "calibration": {
            **calibration_scores(units.labels, units.probabilities),
            **target_calibration(
                contract_units.units.is_target, contract_units.units.scores, contract_units.groups
            ),
        },
        "decision_curve": decision_curve(
            contract_units.units.is_target, contract_units.units.scores
        ),
        "contract": _contract(evaluated, contract_units),
        "missed_targets": _missed(images, threshold),
        "accesses": evaluated.accesses,
    }


def _unassessed(evaluated: Evaluated) -> dict[str, dict[str, Any]]:
    """Return, for each class, how many images are answered with cannot_assess."""
    table, found = evaluated.predictions[~evaluated.is_known], {}
    groups = pd.factorize(table["group"], sort=True)[0]
    refused = (table["decision"] == "cannot_assess").to_numpy()
    for index, name in enumerate(evaluated.task.classes):
        of_class = (table["label"] == index).to_numpy()
        share = proportion(refused[of_class], groups[of_class])
        counts = {"num": int(of_class.sum()), "refused": int(refused[of_class].sum())}
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


def _numbers(level: Level, threshold: float) -> dict[str, Any]:
    units, groups = level.units, level.groups
    is_target, referred = units.is_target, is_referred(units.scores, threshold)
    numbers = {
        "num": len(units),
        "num_target": int(is_target.sum()),
        "num_groups": len(np.unique(groups)),
        "effective_num_target": effective_number(groups[is_target]),
        "effective_num_other": effective_number(groups[~is_target]),
        "table": {
            "referred_target": int((referred & is_target).sum()),
            "missed_target": int((~referred & is_target).sum()),
            "referred_other": int((referred & ~is_target).sum()),
            "spared_other": int((~referred & ~is_target).sum()),
        },
        "sensitivity": proportion(referred[is_target], groups[is_target]),
        "specificity": proportion(~referred[~is_target], groups[~is_target]),
        **group_bootstrap(units, groups, num_draws=BOOTSTRAP_DRAWS, seed=BOOTSTRAP_SEED),
    }
    for name, metric in METRICS.items():
        if metric.share is not None:
            # Exact bounds hold even if all units are right; a bootstrap interval has no width then.
            counted, right = metric.share(units)
            numbers[name] = proportion(right[counted], groups[counted])
    return {**numbers, "auroc": auroc_of(level)}


def _reference_models(level: Level, evaluated: Evaluated) -> list[dict[str, Any]]:
    """Return the network beside models that see no image, on the units of the contract."""
    if evaluated.train is None or not level.units.is_target.any():
        return []
    known = known_columns(evaluated.train)
    asked = [columns for columns in ((SOURCE,), known) if columns and set(columns) <= set(known)]
    found = []
    for columns in dict.fromkeys(asked):
        seen = evaluated.train.assign(
            **{name: "" for name in known if name not in columns and name != "age"},
            **({"age": float("nan")} if "age" not in columns else {}),
        )
        is_target = evaluated.task.is_target(seen["label"].to_numpy())
        reference = reference_scores(seen, is_target, level.rows)
        found.append({"columns": list(columns), **_beside(level, reference)})
    return found


def _beside(level: Level, reference: FloatArray) -> dict[str, Any]:
    """Return what a network and a reference model reach, pooled and within sources."""
    units, task = level.units, level.units.task
    other = np.zeros((len(level), task.num_classes))
    other[:, task.target_indices[0]] = reference
    by_records = Level(Predicted(task, units.labels, other), level.groups, level.rows)
    ones, at = np.ones(len(level)), METRICS["specificity_at_sensitivity_90"]
    places = {"pooled": [""] * len(level), "within_source": level.rows[SOURCE].tolist()}
    compared = {}
    for name, sources in places.items():
        found = compare_within_sources(
            units.is_target, units.scores, reference, sources, columns=(), confidence=0.975
        )
        lead = found.auroc - found.reference_auroc
        compared[name] = {
            "auroc": found.auroc,
            "reference_auroc": found.reference_auroc,
            "difference": {
                "value": lead,
                "low": found.difference_low,
                "high": 2 * lead - found.difference_low,
            },
        }
    return {
        **compared,
        "specificity_at_sensitivity_90": at.value(units, ones),
        "reference_specificity_at_sensitivity_90": at.value(by_records.units, ones),
    }


def _at_prevalence(level: Level, threshold: float) -> list[dict[str, Any]]:
    """Return predictive values and referrals per 1,000 at some prevalences.

    An interval takes the bounds of sensitivity and of specificity that hold together with 95 %
    confidence.
    """
    is_target = level.units.is_target
    referred = is_referred(level.units.scores, threshold)
    counts = (
        ((referred & is_target).sum(), is_target.sum()),
        (
            (~referred & ~is_target).sum(),
            (~is_target).sum(),
        ),
    )
    if not (counts[0][1] and counts[1][1]):
        return []
    values = [right / num for right, num in counts]
    bounds = [clopper_pearson(right, num, confidence=0.975) for right, num in counts]
    rows = []
    for prevalence in PREVALENCES:
        at, worst, best, fewest, most = (
            per_thousand(prevalence, sensitivity=float(sensitivity), specificity=float(specificity))
            for sensitivity, specificity in (
                (values[0], values[1]),
                (bounds[0][0], bounds[1][0]),
                (bounds[0][1], bounds[1][1]),
                (bounds[0][0], bounds[1][1]),
                (bounds[0][1], bounds[1][0]),
            )
        )
        rows.append(
            {
                "prevalence": prevalence,
                "positive_predictive_value": {
                    "value": at.target_if_referred,
                    "low": worst.target_if_referred,
                    "high": best.target_if_referred,
                },
                "negative_predictive_value": {
                    "value": 1 - at.target_if_not_referred,
                    "low": 1 - worst.target_if_not_referred,
                    "high": 1 - best.target_if_not_referred,
                },
                "referred_per_1000": {
                    "value": at.referred,
                    "low": fewest.referred,
                    "high": most.referred,
                },
            }
        )
    return rows


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


def _contract(evaluated: Evaluated, level: Level) -> dict[str, Any]:
    point, units = evaluated.operating_point, level.units
    num_target = int(units.is_target.sum())
    referred = int((is_referred(units.scores, point.threshold) & units.is_target).sum())
    target, confidence = point.contract.target_sensitivity, point.contract.confidence
    promised, unseen = point.contract.status == "met", evaluated.is_unseen
    status = (
        check_contract(referred, num_target, target_sensitivity=target)
        if promised and unseen
        else "none"
    )
    low, high = clopper_pearson(referred, num_target, confidence=2 * confidence - 1)
    words = (
        f"{referred} of {num_target} {evaluated.task.noun[1]} were referred, one image per group "
        f"(one-sided 95 % bounds {low:.3f} and {high:.3f}; promised {target:.2f})."
    )
    refused = _target_units_unassessed(evaluated)
    if refused:
        words += f" {refused} more got cannot_assess."
    needed = targets_to_decide(target_sensitivity=target)
    if status == "undecided" and needed:
        words += (
            f" {needed} {evaluated.task.noun[1]} would confirm the promise in 8 of 10 cases if 95 %"
            " of them are referred."
        )
    return {
        "status": status,
        "bundle_status": point.contract.status,
        "target_sensitivity": target,
        "num_target": num_target,
        "num_target_unassessed": refused,
        "referred": referred,
        "sensitivity_low": low,
        "sensitivity_high": high,
        "access": point.contract.access,
        "power": {
            "targets_to_decide": needed,
            "chances": chances(num_target, target_sensitivity=target),
        },
        "sentence": _sentence(words, promised=promised, unseen=unseen),
    }


def _target_units_unassessed(evaluated: Evaluated) -> int:
    """Return the number of groups that hold targets, but none that is assessed."""
    table = evaluated.predictions
    is_target = evaluated.task.is_target(table["label"].to_numpy()) & ~evaluated.is_known
    groups, assessed = (
        set(table.loc[chosen, "group"]) for chosen in (is_target, is_target & evaluated.is_assessed)
    )
    return len(groups - assessed)


def _sentence(words: str, *, promised: bool, unseen: bool) -> str:
    """Return the count of a contract, with a sentence on what it can prove here."""
    if not promised:
        return f"The bundle promises nothing. {words}"
    if not unseen:
        return (
            f"No verdict: the bundle may have been trained or calibrated on these images. {words}"
        )
    return words


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None, for undefined numbers."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
