"""Checks Ray's list of a run's checkpoints, and rewrites it if it is damaged.

Ray keeps the list in a private file and writes it in place, so that a kill may leave half of it.
Damaged files are moved aside; nothing is ever deleted.
"""

import json
from collections.abc import Sequence
from typing import Any

import ray

from melanoma.io.files import write_bytes, write_text
from melanoma.io.storage import AnyPath, rename
from melanoma.training.checkpoints import (
    Kept,
    checkpoint_folders,
    is_whole,
    usable_checkpoints,
    whole_checkpoints,
)
from melanoma.training.checkpoints import aside as new_name_aside
from melanoma.training.selection import SELECTION

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray's list of checkpoints. Its layout is private, so pyproject.toml pins Ray's minor version."""


def mend(folder: AnyPath) -> str:
    """Repair the checkpoints in a folder, so that the run can continue.

    Damaged files are moved to a folder beside it. The run then continues from the latest whole
    checkpoint. This requires that the best checkpoint so far is whole too, because it may have to
    be shipped. Otherwise the run continues from an earlier checkpoint, or starts again.

    Args:
        folder: the run's folder of checkpoints.

    Returns:
        What was wrong and what was done, without a full stop; empty if all is well.
    """
    if not folder.is_dir():
        return ""
    listed = _listed(folder)
    if listed is not None and all(is_whole(folder / name) for name in listed):
        return ""
    chosen = usable_checkpoints(folder)
    snapshot, aside = _snapshot(chosen), new_name_aside(folder)
    has_list = (folder / SNAPSHOT).is_file()
    if listed:
        wrong = "a checkpoint is damaged"
    elif has_list:
        wrong = f"Ray {ray.__version__} cannot read the run's list of checkpoints"
    else:
        wrong = "Ray has no list of the run's checkpoints"
    if snapshot is None:
        rename(folder, aside)
        return f"{wrong}; all is kept in {aside.name}, and the run starts again"
    names = {kept.name for kept in chosen}
    unusable = [path for path in checkpoint_folders(folder) if path.name not in names]
    kept_in = ""
    if unusable or has_list:
        kept_in = f"; it is kept in {aside.name}, and"
        aside.mkdir()
        if has_list:
            write_bytes(aside / SNAPSHOT, (folder / SNAPSHOT).read_bytes())
        for path in unusable:
            rename(path, aside / path.name)
    write_text(folder / SNAPSHOT, snapshot)
    return f"{wrong}{kept_in or ';'} the run continues after epoch {chosen[-1].epoch}"


def _listed(folder: AnyPath) -> set[str] | None:
    """Return the names of the checkpoints in Ray's list.

    The set is empty before the first checkpoint. The result is None if the list is missing or
    cannot be read.
    """
    if not (folder / SNAPSHOT).is_file():
        return None if any(whole_checkpoints(folder)) else set()
    try:
        state = json.loads((folder / SNAPSHOT).read_text())
        if set(state) != set(_layout()):
            return None
        kept = [*state["checkpoint_results"], state["latest_checkpoint_result"]]
        return {entry["checkpoint_dir_name"] for entry in kept if entry}
    except (ValueError, TypeError, KeyError):
        return None


def _layout() -> dict[str, Any]:
    """Return the fields of the list as this version of Ray writes it; empty if they are unknown."""
    try:
        from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
            _CheckpointManagerState,
        )
    except ImportError:
        return {}
    return dict.fromkeys(_CheckpointManagerState.model_fields)


def _snapshot(chosen: Sequence[Kept]) -> str | None:
    """Return the text of Ray's list for some checkpoints, the latest last.

    The result is None if there are no checkpoints, or if this version of Ray has another layout.
    """
    if not chosen:
        return None
    entries = [
        {"version": 0, "checkpoint_dir_name": kept.name, "metrics": kept.metrics} for kept in chosen
    ]
    ranked = sorted(
        zip(entries, chosen, strict=True),
        key=lambda pair: (pair[1].metrics[SELECTION], pair[1].epoch),
    )
    known = {
        "ray_version": ray.__version__,
        "checkpoint_results": [entry for entry, _ in ranked],
        "checkpoint_report_indices": [kept.epoch - 1 for _, kept in ranked],
        "latest_checkpoint_result": entries[-1],
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": chosen[-1].epoch,
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    return json.dumps(known) if known.keys() == _layout().keys() else None
