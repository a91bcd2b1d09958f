"""Checks of a search before it starts: hours of training must not end without an answer."""

import numpy as np

from melanoma.data.dataset import PreparedData
from melanoma.errors import DataError
from melanoma.evidence.objective import FoldScores, Objective


def check_verdict(data: PreparedData) -> None:
    """Check, before hours of search, that test holds what a verdict needs: targets and others.

    Raises:
        DataError: if it does not.
    """
    rows, nouns = data.rows("test"), data.task.noun[1]
    num_target = int(rows["dx"].isin(data.task.targets).sum())
    if not 0 < num_target < len(rows):
        raise DataError(
            f"The test split must hold {nouns} and others for a verdict; {num_target} of its"
            f" {len(rows)} images are {nouns}. Prepare the data set with a larger test fraction."
        )


def usual_objective(data: PreparedData) -> Objective:
    """Return the objective of a search for which none is named.

    It is the recall of the targets at a specificity of 0.8, within sources if more than one source
    of the training split holds both targets and others and that can be computed on every fold.
    """
    rows = data.rows("train")
    is_target = rows["dx"].isin(data.task.targets)
    kinds = is_target.groupby(rows["source"]).nunique()
    within = Objective("melanoma_recall", 0.8, within_source=True)
    several = int((kinds == 2).sum()) > 1
    return (
        within
        if several and not _without_value(data, within)
        else Objective(within.kind, within.at)
    )


def check_objective(data: PreparedData, objective: Objective) -> None:
    """Check, before hours of search, that the objective has a value on every fold.

    Raises:
        DataError: if it does not.
    """
    folds = _without_value(data, objective)
    if folds:
        raise DataError(
            f"The objective {objective} must have a value on every fold; on fold"
            f" {', '.join(map(str, folds))} no image of a target can be compared with another"
            " image. Name another --objective, or prepare the data set with fewer --folds."
        )


def _without_value(data: PreparedData, objective: Objective) -> list[int]:
    """Return the folds on which an objective is undefined, whatever the network."""
    folds = []
    for fold in range(data.manifest.num_folds):
        rows = data.rows("train", fold=fold)
        scores = FoldScores(
            rows["dx"].isin(data.task.targets).to_numpy(),
            np.zeros(len(rows)),
            *(rows[name].to_numpy(dtype=str) for name in ("group", "source")),
        )
        if np.isnan(objective.score([scores])):
            folds.append(fold)
    return folds
