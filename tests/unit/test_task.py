"""A task is data: what it says of classes and targets, and which files describe one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from melanoma.errors import SettingError
from melanoma.task import TASKS, Task, read_task, task_of

HAM, BINARY = TASKS["ham10000"], TASKS["binary"]


def test_the_built_in_tasks() -> None:
    assert HAM.classes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert set(TASKS["isic2019"].classes) - set(HAM.classes) == {"scc"}
    assert (BINARY.classes, BINARY.targets) == (("benign", "malignant"), ("malignant",))
    assert {HAM.class_of(name) for name in HAM.classes} == set(HAM.classes)
    assert [BINARY.class_of(name) for name in ("mel", "scc", "nv", "vasc")] == [
        "malignant",
        "malignant",
        "benign",
        "benign",
    ]
    assert HAM.class_of("scc") is None


@pytest.mark.parametrize("task", TASKS.values(), ids=str)
def test_a_task_survives_the_manifest(task: Task) -> None:
    assert task_of(json.loads(json.dumps(task.as_dict()))) == task


def test_the_score_is_the_probability_of_all_targets() -> None:
    task = Task(("a", "b", "c"), ("a", "c"))
    probabilities = np.array([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]])
    assert task.target_scores(probabilities) == pytest.approx([0.5, 0.0])
    assert task.is_target(np.array([0, 1, 2])).tolist() == [True, False, True]
    assert task.target_name == "a+c"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["mel"]}, "at least two classes"),
        ({"classes": ["mel", "mel"]}, "different classes"),
        ({"classes": ["mel", "Basal cell"]}, "lower-case letters"),
        ({"targets": []}, "some of the classes, and not all"),
        ({"targets": ["mel", "other"]}, "some of the classes, and not all"),
        ({"targets": ["wart"]}, "some of the classes"),
        ({"names": {"wart": "Wart"}}, "names of a task must be about the classes"),
        ({"malignant": ["mel"]}, "no targets"),
        ({"diagnoses": {"mel": ["scc"], "other": ["scc"]}}, "each diagnosis under one class"),
        ({"classes": "mel"}, "classes of a task"),
        ({"colour": "red"}, "colour of a task"),
        ({"noun": ["one"]}, "noun"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        task_of({"classes": ["mel", "other"], "targets": ["mel"], **changes})
    assert "\n" not in str(caught.value)


def test_a_file_describes_a_task(tmp_path: Path) -> None:
    (tmp_path / "three.json").write_text(
        json.dumps({"classes": ["mel", "nv", "other"], "targets": ["mel"]})
    )
    task = read_task(str(tmp_path / "three.json"))
    assert (task.name, task.classes) == ("three", ("mel", "nv", "other"))
    assert read_task("binary") is BINARY


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be a JSON file"),
        ("[]", r"--task t\.json: The whole of a task"),
        ('{"classes": ["a", "b"]}', "targets of a task: field required"),
        ("\udc80", "must be a JSON file"),
    ],
)
def test_a_file_that_describes_none_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SettingError, match=message):
        read_task(str(tmp_path / "t.json"))
    with pytest.raises(SettingError, match="ham10000, isic2019, binary or a JSON file"):
        read_task(str(tmp_path / "absent.json"))
