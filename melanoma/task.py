"""Tasks: the classes, which of them must be referred, and their names for people.

A task is data. `data prepare` writes it into the manifest of a data set, and training into the
manifest of a bundle. Everything else reads it from there. No other module knows a class by name.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from melanoma.errors import SettingError

if TYPE_CHECKING:  # numpy and pydantic take longer to load than a refusal should
    from pydantic import TypeAdapter

    from melanoma.arrays import BoolArray, FloatArray, IntArray
    from melanoma.io.storage import AnyPath


@dataclasses.dataclass(frozen=True)
class Task:
    """The classes of a data set and of the networks trained on it.

    Example:
        >>> from melanoma.task import TASKS
        >>> TASKS["binary"].classes
        ('benign', 'malignant')
        >>> TASKS["ham10000"].targets
        ('mel',)

    Attributes:
        classes: at least two, in the order of the network's outputs.
        targets: the classes that must be referred, at least one and not all.
        name: of the task.
        names: class -> its name for people. A class without one is shown by its own name.
        malignant: further classes that are cancers or can become one. The contract promises
            nothing for them.
        diagnoses: class -> the diagnoses that it holds (keys of `SPELLINGS` in
            `melanoma/data/diagnoses.py`), in addition to the one with its own name.
        noun: the word for a lesion of the targets, singular and plural.

    Raises:
        SettingError: if the parts contradict each other.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    classes: tuple[str, ...]
    targets: tuple[str, ...]
    name: str = "custom"
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    malignant: tuple[str, ...] = ()
    diagnoses: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    noun: tuple[str, str] = ("target lesion", "target lesions")

    def __post_init__(self) -> None:
        _require(len(self.classes) >= 2, "classes", "at least two classes", self.classes)
        _require(
            len(set(self.classes)) == len(self.classes),
            "classes",
            "different classes",
            self.classes,
        )
        for name in self.classes:
            _require(
                name.isidentifier() and name == name.casefold(),
                "classes",
                "names of lower-case letters, digits and underscores, because they become column"
                " names",
                name,
            )
        _require(
            bool(self.targets) and set(self.targets) < set(self.classes),
            "targets",
            "some of the classes, and not all",
            self.targets,
        )
        for field in ("malignant", "names", "diagnoses"):
            unknown = sorted(set(getattr(self, field)) - set(self.classes))
            _require(
                not unknown,
                field,
                f"about the classes {', '.join(self.classes)}",
                ", ".join(unknown),
            )
        twice = set(self.targets) & set(self.malignant)
        _require(not twice, "malignant", "classes that are no targets", ", ".join(sorted(twice)))
        held = [diagnosis for diagnoses in self.diagnoses.values() for diagnosis in diagnoses]
        _require(len(set(held)) == len(held), "diagnoses", "each diagnosis under one class", held)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def target_indices(self) -> list[int]:
        """The positions of the targets among the classes."""
        return [self.classes.index(name) for name in self.targets]

    @property
    def target_name(self) -> str:
        """The targets in one word, for figures and file names."""
        return "+".join(self.targets)

    def is_target(self, labels: "IntArray") -> "BoolArray":
        """Return which of some labels ``(N,)`` are targets."""
        import numpy as np

        return np.isin(labels, self.target_indices)

    def target_scores(self, probabilities: "FloatArray") -> "FloatArray":
        """Return the probability ``(N,)`` that a lesion is one of the targets.

        Args:
            probabilities: ``(N, C)`` of all classes.
        """
        scores: FloatArray = probabilities[:, self.target_indices].sum(axis=1)
        return scores

    def name_of(self, name: str) -> str:
        """Return the name of a class for people."""
        return self.names.get(name, name)

    def class_of(self, diagnosis: str) -> str | None:
        """Return the class that holds a diagnosis, or None."""
        if diagnosis in self.classes:
            return diagnosis
        return next((name for name, held in self.diagnoses.items() if diagnosis in held), None)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a manifest."""
        values: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return values


def _require(condition: bool, field: str, rule: str, value: object) -> None:
    if not condition:
        raise SettingError(f"The {field} of a task must be {rule}; got {value!r}.")


@functools.cache
def _adapter() -> "TypeAdapter[Task]":
    from pydantic import TypeAdapter

    return TypeAdapter(Task)


_NAMES = {
    "akiec": "Actinic keratosis, Bowen's disease",
    "bcc": "Basal cell carcinoma",
    "bkl": "Benign keratosis",
    "df": "Dermatofibroma",
    "mel": "Melanoma",
    "nv": "Nevus",
    "scc": "Squamous cell carcinoma",
    "vasc": "Vascular lesion",
}
_HAM10000 = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
_MELANOMA = ("melanoma", "melanomas")
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            _HAM10000,
            ("mel",),
            "ham10000",
            {name: _NAMES[name] for name in _HAM10000},
            malignant=("akiec", "bcc"),
            noun=_MELANOMA,
        ),
        Task(
            tuple(_NAMES),
            ("mel",),
            "isic2019",
            _NAMES,
            malignant=("akiec", "bcc", "scc"),
            noun=_MELANOMA,
        ),
        Task(
            ("benign", "malignant"),
            ("malignant",),
            "binary",
            {"benign": "Benign", "malignant": "Malignant"},
            diagnoses={
                "benign": ("bkl", "df", "nv", "vasc"),
                "malignant": ("akiec", "bcc", "mel", "scc"),
            },
            noun=("malignant lesion", "malignant lesions"),
        ),
    )
}
"""The tasks that `--task` knows by name."""
DEFAULT_TASK = "ham10000"


def read_task(text: str) -> Task:
    """Return a built-in task by its name, or the task that a JSON file describes.

    Raises:
        SettingError: if there is no such task, or the file does not describe one.
    """
    from melanoma.io.storage import to_path

    if text in TASKS:
        return TASKS[text]
    path = to_path(text)
    if not path.is_file():
        raise SettingError(
            f"--task must be one of {', '.join(TASKS)} or a JSON file; {text} is neither."
        )
    return _read_file(path)


def _read_file(path: "AnyPath") -> Task:
    try:
        values = json.loads(path.read_text())
        if isinstance(values, dict):
            values.setdefault("name", path.stem)
        return task_of(values)
    except SettingError as error:
        raise SettingError(f"--task {path.name}: {error}") from None
    except ValueError as error:  # Not JSON, or not UTF-8.
        raise SettingError(
            f"--task must be a JSON file; {path.name} is not ({error}). Repair it."
        ) from error


def task_of(values: Any) -> Task:
    """Return the task that plain values, such as those of a manifest, describe.

    Raises:
        SettingError: if a field is missing, unknown or of another type, or the parts contradict
            each other.
    """
    from pydantic import ValidationError

    try:
        return _adapter().validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":
            raise first["ctx"]["error"] from None
        where = ".".join(map(str, first["loc"]))
        subject = f"Field {where}" if where else "The whole"
        raise SettingError(
            f"{subject} of a task: {first['msg'][0].lower()}{first['msg'][1:]}."
        ) from error
