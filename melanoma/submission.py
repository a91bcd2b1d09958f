"""Writes the table of predictions that a public challenge takes, in its official form.

The challenges score hidden labels, so that images without labels are enough. They refuse a table in
which an image is missing, so that every image gets a row.
"""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from melanoma.arrays import BoolArray, FloatArray
from melanoma.data.diagnoses import class_in
from melanoma.data.names import image_id_of
from melanoma.errors import DataError, SettingError
from melanoma.io.files import write_text
from melanoma.io.storage import AnyPath
from melanoma.task import Task

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Challenge:
    """The form of a challenge's table.

    Attributes:
        name: as `--submission` takes it.
        id_column: the column of image ids.
        columns: one for each diagnosis, in order; each holds a confidence in [0, 1].
        only_melanoma: whether there is one column, for the probability of melanoma.
    """

    name: str
    id_column: str
    columns: tuple[str, ...]
    only_melanoma: bool = False


CHALLENGES: dict[str, Challenge] = {
    challenge.name: challenge
    for challenge in (
        Challenge("isic2018", "image", ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")),
        Challenge(
            "isic2019", "image", ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
        ),
        Challenge("isic2020", "image_name", ("target",), only_melanoma=True),
    )
}
"""Task 3 of 2018, both tasks of 2019, and the challenge of 2020."""


@dataclasses.dataclass(frozen=True)
class Submission:
    """A challenge's table for the answers of one task.

    Attributes:
        challenge: its form.
        task: of the bundle.
    """

    challenge: Challenge
    task: Task

    @staticmethod
    def of(name: str, task: Task) -> "Submission":
        """Return what writes a challenge's table from the answers of a task.

        Raises:
            SettingError: if there is no such challenge, or the task cannot answer it.
        """
        if name not in CHALLENGES:
            raise SettingError(
                f"--submission must be one of {', '.join(CHALLENGES)}; it is {name!r}."
            )
        submission = Submission(CHALLENGES[name], task)
        submission._check()
        return submission

    @property
    def file_name(self) -> str:
        """The name of the table."""
        return submission_file(self.challenge.name)

    @property
    def _answers(self) -> dict[str, str]:
        """Column -> the class that answers it, without the columns that no class answers."""
        found = {column: class_in(column, self.task) for column in self.challenge.columns}
        return {column: name for column, name in found.items() if name is not None}

    def _check(self) -> None:
        challenge, task = self.challenge, self.task
        if challenge.only_melanoma:
            if class_in("melanoma", task) not in task.targets:
                raise self._refusal("melanoma among its targets", f"targets {_list(task.targets)}")
            return
        answers = list(self._answers.values())
        if len(set(answers)) < len(answers):
            shared = {name for name in answers if answers.count(name) > 1}
            raise self._refusal(
                "a class for each diagnosis of the challenge",
                f"one class for several ({_list(sorted(shared))})",
            )
        if class_in("melanoma", task) is None:
            raise self._refusal("a class for melanoma", f"classes {_list(task.classes)}")

    def _refusal(self, rule: str, there: str) -> SettingError:
        return SettingError(
            f"--submission {self.challenge.name} needs a bundle whose task has {rule}; task"
            f" {self.task.name} has {there}. Take another bundle or another challenge."
        )

    def describe(self) -> list[str]:
        """Return sentences on what the task and the challenge do not share."""
        if self.challenge.only_melanoma:
            return [
                f"{self.file_name}: {self.challenge.columns[0]} is the probability of"
                f" {_list(self.task.targets)}."
            ]
        answers = self._answers
        empty = [column for column in self.challenge.columns if column not in answers]
        unasked = [name for name in self.task.classes if name not in answers.values()]
        return [
            *(
                [f"{self.file_name}: 0 in {_list(empty)}, which the bundle's task lacks."]
                if empty
                else []
            ),
            *(
                [f"{self.file_name}: no column for {_list(unasked)}, so that rows sum to less."]
                if unasked
                else []
            ),
        ]

    def check_names(self, names: Sequence[str]) -> None:
        """Raise DataError if two images have one id, before any is read."""
        ids = pd.Series([image_id_of(name) for name in names])
        if ids.duplicated().any():
            raise DataError(
                "For --submission the names of images must differ without their folder and ending;"
                f" {int(ids.duplicated().sum())} repeat another one, the first is"
                f" {ids[ids.duplicated()].iloc[0]}. Score the images of the challenge alone."
            )

    def write(self, folder: AnyPath, names: Sequence[str], probabilities: FloatArray) -> AnyPath:
        """Write the table and say what is special in it.

        An image that could not be judged gets the mean of the others, which says nothing about it.

        Args:
            folder: an existing folder.
            names: N image ids or paths.
            probabilities: ``(N, C)`` of the task; NaN if the image could not be judged.

        Returns:
            The path of the table.
        """
        confidences = self._confidences(probabilities)
        judged: BoolArray = np.isfinite(confidences.sum(axis=1))
        mean = confidences[judged].mean(axis=0) if judged.any() else 1 / len(self.task.classes)
        confidences = np.clip(np.where(judged[:, None], confidences, mean), 0.0, 1.0)
        table = pd.DataFrame(confidences, columns=list(self.challenge.columns))
        table.insert(0, self.challenge.id_column, [image_id_of(name) for name in names])
        path = folder / self.file_name
        # Nine digits: fewer would make ties of small probabilities, which rankings count half.
        write_text(path, table.to_csv(index=False, float_format="%.9g"))
        for sentence in self.describe():
            log.info("%s", sentence)
        if num := int((~judged).sum()):
            log.info(
                "%s: %d of %d images could not be judged and got the mean of the others, because a"
                " table without them is refused.",
                self.file_name,
                num,
                len(judged),
            )
        return path

    def write_scores(self, folder: AnyPath, names: Sequence[str], scores: pd.DataFrame) -> AnyPath:
        """Write the table from scores with the column probability_CLASS of each class."""
        columns = [f"probability_{name}" for name in self.task.classes]
        return self.write(folder, names, scores[columns].to_numpy())

    def _confidences(self, probabilities: FloatArray) -> FloatArray:
        if self.challenge.only_melanoma:
            return self.task.target_scores(probabilities)[:, None]
        confidences = np.zeros((len(probabilities), len(self.challenge.columns)))
        confidences[~np.isfinite(probabilities).all(axis=1)] = np.nan
        for column, name in self._answers.items():
            place = self.challenge.columns.index(column)
            confidences[:, place] = probabilities[:, self.task.classes.index(name)]
        return confidences


def submission_file(challenge: str) -> str:
    """Return the name of the table for a challenge."""
    return f"submission_{challenge}.csv"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
