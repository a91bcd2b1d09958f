"""The predictions of a bundle on some images, with what is known about both."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pandas as pd

from melanoma.arrays import BoolArray
from melanoma.evidence.calibration import Calibrator
from melanoma.evidence.operating_point import OperatingPoint
from melanoma.task import Task

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
        calibrator: from logits to probabilities; None leaves out what needs it.
        several_images: the threshold and contract for several images of one lesion; None without.
        train: records to fit the reference models to; None if there are none.
        known: ids of images of the data set that the bundle was made from; they and the other
            images of their groups are reported apart.
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
    calibrator: Calibrator | None = None
    several_images: OperatingPoint | None = None
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
    def new(self) -> pd.DataFrame:
        """The predictions of images that are not known, also of those that are not assessed.

        If no image that is not known is assessed, these are all, and there is no verdict.
        """
        known = self.is_known
        return self.predictions if (known | ~self.is_assessed).all() else self.predictions[~known]

    @property
    def judged(self) -> pd.DataFrame:
        """The predictions that the numbers rest on: those of the new images that are assessed."""
        return self.new[self.new["decision"] != "cannot_assess"]

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
