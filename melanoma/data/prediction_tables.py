"""Reads tables of predictions for each image: ours, and those that others publish.

- an image id, as in metadata, or a path that ends in it
- if they are known, labels: ``label`` or ``true_label`` with class indices, with 0 and 1 for the
  targets, or with words; or a column of diagnoses such as ``dx``
- probabilities: ``probability_<class>``, ``probability_class_<index>`` in the task's order, or
  columns named after the classes; or one column of scores of the targets
- if there are any: ``decision``, ``known``, and columns that group images

Nothing is guessed: a table that can be read in several ways is refused.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from melanoma.arrays import BoolArray, FloatArray, IntArray
from melanoma.data.diagnoses import BENIGN, DIAGNOSIS_COLUMNS, MALIGNANT, ONE_HOT, class_in
from melanoma.data.metadata import ALIASES
from melanoma.data.names import image_id_of, shown
from melanoma.data.tables import read_file
from melanoma.errors import DataError
from melanoma.io.storage import AnyPath
from melanoma.task import TASKS, Task

IDS = (*ALIASES["image_id"], "path", "image_path")
LABELS = ("label", "true_label", *DIAGNOSIS_COLUMNS)
SCORES = ("score", "probability", "target")
DECISION, KNOWN = "decision", "known"
REFER, UNASSESSED = "refer", "cannot_assess"
_DECISIONS = (REFER, "no_referral", UNASSESSED)
_PREFIX, _NUMBERED = "probability_", "probability_class_"
_YES = {"1", "1.0", "true", "yes"}


@dataclasses.dataclass(frozen=True)
class PredictionTable:
    """The predictions of one model.

    Attributes:
        name: of its file, for messages.
        rows: the table with an index of image ids and lower-case columns; blank cells are "".
    """

    name: str
    rows: pd.DataFrame

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that have a column, as tasks name them."""
        named = [column.removeprefix(_PREFIX) for column in self._of_classes]
        return tuple(ONE_HOT.get(name, name) for name in named)

    @property
    def _of_classes(self) -> list[str]:
        columns = [
            name
            for name in self.rows.columns
            if name.startswith(_PREFIX) and not name.startswith(_NUMBERED)
        ]
        one_hot = {name for name, dx in ONE_HOT.items() if dx not in (BENIGN, MALIGNANT)}
        known = one_hot | {name for task in TASKS.values() for name in task.classes}
        return columns or [name for name in self.rows.columns if name in known]

    @property
    def num_numbered(self) -> int:
        """The number of classes whose columns carry a number instead of a name."""
        return sum(name.startswith(_NUMBERED) for name in self.rows.columns)

    def probabilities(self, task: Task | None) -> FloatArray | None:
        """Return the probabilities ``(N, C)`` of a task's classes, or None if they are not there.

        Raises:
            DataError: if a cell is no number, or classes of the task have no column.
        """
        if task is None or not (self._of_classes or self.num_numbered):
            return None
        if self.num_numbered:
            wanted = [f"{_NUMBERED}{index}" for index in range(task.num_classes)]
            there = dict.fromkeys(name for name in self.rows.columns if name.startswith(_NUMBERED))
        else:
            columns = dict(zip(self.classes, self._of_classes, strict=True))
            wanted = [columns.get(name, f"{_PREFIX}{name}") for name in task.classes]
            there = dict.fromkeys(self._of_classes)
        if set(wanted) - set(there):
            raise DataError(
                f"{self.name} must have a column for each class of the task {task.name}"
                f" ({', '.join(wanted)}); it has {', '.join(there)}. Pass the task of the table as"
                " --task."
            )
        return np.column_stack([self.numbers(name) for name in wanted])

    def scores(self, task: Task | None) -> FloatArray:
        """Return the scores of the targets, ``(N,)``.

        Raises:
            DataError: if there are none, or a cell is no number.
        """
        probabilities = self.probabilities(task)
        if probabilities is not None and task is not None:
            return task.target_scores(probabilities)
        column = self.first(SCORES)
        if column is None:
            raise DataError(
                f"{self.name} must have probabilities of the classes ({_PREFIX}<class>) or a column"
                f" {SCORES[0]}; it has {_columns(self.rows)}. Rename its columns"
                + (", or pass --task." if self._of_classes or self.num_numbered else ".")
            )
        return self.numbers(column)

    def numbers(self, column: str) -> FloatArray:
        """Return a column of numbers ``(N,)``; blank cells are NaN.

        Raises:
            DataError: if a cell is something else.
        """
        values = self.rows[column].replace("", np.nan)
        numbers = pd.to_numeric(values, errors="coerce")
        wrong = numbers.isna() & values.notna()
        if wrong.any():
            raise DataError(
                f"{self.name} must hold numbers in {column}; row {_row(wrong)} holds another text."
                " Correct it."
            )
        return numbers.to_numpy(np.float64)

    def first(self, names: Sequence[str]) -> str | None:
        """Return the first of some columns that is there, or None."""
        return next((name for name in names if name in self.rows.columns), None)

    def labels(self, task: Task | None) -> tuple[IntArray, IntArray]:
        """Return the class index and whether it is a target, ``(N,)`` each; -1 is not known.

        Without columns of classes, labels 0 and 1 tell the others from the targets.

        Raises:
            DataError: if a label means nothing in the task, or could mean two things.
        """
        column, num = self.first(LABELS), len(self.rows)
        classes, targets = np.full(num, -1), np.full(num, -1)
        if column is None:
            return classes, targets
        texts = self.rows[column].astype(str).str.strip().str.removesuffix(".0")
        has_classes = bool(self._of_classes or self.num_numbered)
        only_targets = not has_classes and set(texts) <= {"0", "1", ""}
        ours = DECISION in self.rows.columns  # whose labels are indices
        if has_classes and not ours and set(texts) <= {"0", "1", ""}:
            self._check_indices(task, column)
        for place, text in enumerate(texts):
            if text and only_targets:
                targets[place] = int(text)
            elif text:
                classes[place] = self._class(text, task, column)
        if task is not None and not only_targets:
            targets = np.where(classes < 0, -1, task.is_target(classes).astype(np.int64))
        return classes, targets

    def _check_indices(self, task: Task | None, column: str) -> None:
        """Check that 0 and 1 cannot mean both classes and targets."""
        if task is not None and (task.num_classes, task.target_indices) != (2, [1]):
            raise DataError(
                f"{self.name} must name classes of the task {task.name} in {column}; 0 and 1 could"
                f" be the classes {task.classes[0]} and {task.classes[1]}, or tell the targets from"
                " the others. Write the names of the classes."
            )

    def _class(self, text: str, task: Task | None, column: str) -> int:
        if task is None:
            raise DataError(
                f"{self.name} must say 0 or 1 in {column}, because no task is known; it says"
                f" {text!r}. Pass --task."
            )
        if text.isdigit() and int(text) < task.num_classes:
            return int(text)
        name = class_in(text, task)
        if name is None:
            raise DataError(
                f"{self.name} must name classes of the task {task.name} in {column}"
                f" ({', '.join(task.classes)}); it says {text!r}. Correct it, or pass --task."
            )
        return task.classes.index(name)

    @property
    def decisions(self) -> pd.Series | None:
        """The decision of each image, or None if there are none.

        Raises:
            DataError: if there is another word than refer, no_referral and cannot_assess.
        """
        if DECISION not in self.rows:
            return None
        found = self.rows[DECISION].astype(str).str.casefold()
        wrong = ~found.isin(_DECISIONS)
        if wrong.any():
            raise DataError(
                f"{self.name} must hold {', '.join(_DECISIONS)} in {DECISION}; row {_row(wrong)}"
                " holds another word. Correct it."
            )
        return found

    @property
    def known(self) -> BoolArray:
        """Which images the model was made from, as far as the table says, ``(N,)``."""
        if KNOWN not in self.rows:
            return np.zeros(len(self.rows), dtype=bool)
        said: BoolArray = self.rows[KNOWN].astype(str).str.casefold().isin(_YES).to_numpy(bool)
        return said


def read_predictions(path: AnyPath) -> PredictionTable:
    """Read a table of predictions, parquet or CSV.

    Raises:
        DataError: if it is no such table, has no image ids, or names an image twice.
    """
    name = shown(path.name)
    rows = read_file(path, "A table of predictions (`evaluate` writes OUT/predictions.parquet)")
    rows = rows.astype(object).where(rows.notna(), "")
    column = next((alias for alias in IDS if alias in rows.columns), None)
    if column is None or rows.empty:
        raise DataError(
            f"{name} must have a row for every image and a column of ids ({', '.join(IDS[:3])},"
            f" ...); it has {len(rows)} rows and the columns {_columns(rows)}. Rename its columns."
        )
    ids = rows[column].astype(str).map(image_id_of)
    twice = ids.duplicated() | (ids == "")
    if twice.any():
        raise DataError(
            f"{name} must name every image once; row {_row(twice)} names none, or one that stands"
            " above. Correct it."
        )
    return PredictionTable(name, rows.drop(columns=column).assign(**{column: ids}).set_index(ids))


def _columns(rows: pd.DataFrame) -> str:
    names = [str(name) for name in rows.columns]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def _row(wrong: pd.Series) -> int:
    """Return the number, below the header, of the first row that is wrong."""
    return int(np.flatnonzero(wrong.to_numpy(bool))[0]) + 1
