"""The units that a report counts: images, lesions, and the units of the contract.

Knows nothing of thresholds.
"""

import dataclasses

import numpy as np
import pandas as pd

from melanoma.arrays import BoolArray, FloatArray, IntArray
from melanoma.evidence.metrics import Predicted
from melanoma.evidence.operating_point import choose_units
from melanoma.task import Task

UNIT_SEED = 0
"""Seed of the draw of one image per group."""


@dataclasses.dataclass(frozen=True)
class Level:
    """N units with their predictions.

    Attributes:
        units: the units to measure.
        groups: ``(N,)`` integers, the group of each unit.
        rows: N rows that describe the units, with the columns of predictions.parquet.
    """

    units: Predicted
    groups: IntArray
    rows: pd.DataFrame

    def where(self, chosen: BoolArray) -> "Level":
        """Return the level of some of its units."""
        units = self.units
        return Level(
            Predicted(units.task, units.labels[chosen], units.probabilities[chosen]),
            self.groups[chosen],
            self.rows[chosen].reset_index(drop=True),
        )

    def __len__(self) -> int:
        return len(self.units)


def with_predictions(
    rows: pd.DataFrame, probabilities: FloatArray, unusual: BoolArray, task: Task
) -> pd.DataFrame:
    """Return records with their predictions, as a table that `image_level` takes.

    Args:
        rows: N records.
        probabilities: ``(N, C)``, calibrated.
        unusual: ``(N,)``, which images get cannot_assess.
        task: the classes.
    """
    named = dict(zip(_columns(task), probabilities.T, strict=True))
    return rows.assign(**named, decision=np.where(unusual, "cannot_assess", ""))


def image_level(table: pd.DataFrame, task: Task) -> Level:
    """Return every image as a unit."""
    groups = pd.factorize(table["group"], sort=True)[0]
    units = Predicted(task, table["label"].to_numpy(), table[_columns(task)].to_numpy())
    return Level(units, groups, table.reset_index(drop=True))


def lesion_level(images: Level) -> Level | None:
    """Return every lesion as a unit, with the mean probabilities of its images.

    An image without a lesion id is a lesion of its own. The label never decides what is pooled. A
    lesion whose images have several labels has that of its first target.

    Returns:
        The level, or None if no image has a lesion id.
    """
    rows, task = images.rows, images.units.task
    if not (rows["lesion_id"] != "").any():
        return None
    lesion = rows["lesion_id"].where(rows["lesion_id"] != "", "image " + rows["image_id"])
    first = rows.assign(lesion=lesion, code=images.groups, harmless=~images.units.is_target)
    first = first.sort_values("harmless", kind="stable").groupby("lesion").first()
    means = rows[_columns(task)].groupby(lesion.to_numpy()).mean().loc[first.index]
    units = Predicted(task, first["label"].to_numpy(), means.to_numpy())
    return Level(units, first["code"].to_numpy(), first.reset_index(drop=True))


def contract_level(images: Level) -> tuple[Level, int]:
    """Return one random target image and one random other image of each group, if assessed.

    The images are drawn first, as a person sends one image, and then looked at.

    Returns:
        The level, and the number of target images that were drawn and got cannot_assess.
    """
    chosen = np.concatenate(choose_units(images.units.is_target, images.groups, seed=UNIT_SEED))
    drawn = np.zeros(len(images), dtype=bool)
    drawn[chosen] = True
    assessed = (images.rows["decision"] != "cannot_assess").to_numpy()
    return images.where(drawn & assessed), int((drawn & ~assessed & images.units.is_target).sum())


def _columns(task: Task) -> list[str]:
    return [f"probability_{name}" for name in task.classes]
