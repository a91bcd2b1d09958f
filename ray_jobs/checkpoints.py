"""The state of a run as Ray's checkpoints hold it: written with its hash, and never read without it.

A flipped bit in a tensor loads without a word, because torch does not access to the sums its files hold. Ray lists its checkpoints in a
private file, which it writes in place, so that a kill may leave half of it. `mend` compares the list with what is there, writes it anew
from the checkpoints that are whole, and puts what is damaged aside; nothing is ever deleted.
"""

import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import Checkpoint

from melanoma.io.files import sha256_of, write_bytes, write_text
from melanoma.io.storage import AnyPath, rename
from melanoma.training.engine import SELECTION

STATE, HASH = "state.pt", "state.sha256"
SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray's list of checkpoints. Its layout is private: pyproject.toml pins Ray's minor version because of it."""
PREFIX = "checkpoint_"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors and plain values, and its hash, into a folder of this node."""
    torch.save(state, folder / STATE)
    (folder / HASH).write_text(sha256_of(folder / STATE))


def load_state(checkpoint: Checkpoint, device: torch.device | str) -> dict[str, Any]:
    """Return the state that a checkpoint holds.

    Raises:
        OSError: if it is not the one that was written.
    """
    with checkpoint.as_directory() as folder:
        return _read_state(Path(folder), device)


def reported(state: dict[str, Any]) -> dict[str, float]:
    """Return what is reported with a state's checkpoint: Ray keeps the best by it, and the latest."""
    return {"epoch": state["epoch"], SELECTION: _score(state["history"][-1])}


def _score(row: dict[str, float]) -> float:
    return row[SELECTION] if math.isfinite(row[SELECTION]) else 0.0


def mend(folder: AnyPath) -> str:
    """Make a run able to go on from the checkpoints in a folder; return what was wrong and what is done, or nothing.

    What is damaged goes to a folder beside it. The run then goes on from the latest checkpoint that is whole, if the best one so far
    is whole too, because that one may have to be shipped; otherwise from an earlier one, or from the beginning.
    """
    if not folder.is_dir():
        return ""
    listed = _listed(folder)
    if listed is not None and all(_is_whole(folder / name) for name in listed):
        return ""
    wrong = "a checkpoint is damaged" if listed else f"Ray {ray.__version__} cannot read the list of its checkpoints"
    chosen = _to_go_on_from(sorted(_whole(folder), key=lambda kept: kept.epoch))
    snapshot, aside = _snapshot(chosen), _aside(folder)
    if snapshot is None:
        rename(folder, aside)
        return f"{wrong}; it is kept in {aside.name}, and the run starts again"
    aside.mkdir()
    if (folder / SNAPSHOT).is_file():
        write_bytes(aside / SNAPSHOT, (folder / SNAPSHOT).read_bytes())
    names = {kept.name for kept in chosen}
    for path in [path for path in folder.iterdir() if path.name.startswith(PREFIX) and path.name not in names]:
        rename(path, aside / path.name)
    write_text(folder / SNAPSHOT, snapshot)
    return f"{wrong}; it is kept in {aside.name}, and the run goes on after epoch {chosen[-1].epoch}"


@dataclasses.dataclass(frozen=True)
class _Kept:
    """A checkpoint that is whole.

    Attributes:
        name: of its folder.
        metrics: what was reported with it.
        scores: of every epoch so far.
    """

    name: str
    metrics: dict[str, float]
    scores: tuple[float, ...]

    @property
    def epoch(self) -> int:
        return int(self.metrics["epoch"])

    @property
    def best_epoch(self) -> int:
        """The epoch that Ray keeps as the best: of equal ones the last."""
        return max(range(1, len(self.scores) + 1), key=lambda epoch: (self.scores[epoch - 1], epoch))


def _read_state(folder: AnyPath, device: torch.device | str) -> dict[str, Any]:
    data = (folder / STATE).read_bytes()
    if hashlib.sha256(data).hexdigest() != (folder / HASH).read_text():
        raise OSError(f"the checkpoint {folder} must match its hash, it does not.")
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    return state


def _listed(folder: AnyPath) -> set[str] | None:
    """Return the checkpoints that Ray's list names, none before the first; None if the list is missing or cannot be read."""
    if not (folder / SNAPSHOT).is_file():
        return None if any(_whole(folder)) else set()
    try:
        told = json.loads((folder / SNAPSHOT).read_text())
        if set(told) != set(_layout()):
            return None
        kept = [*told["checkpoint_results"], told["latest_checkpoint_result"]]
        return {entry["checkpoint_dir_name"] for entry in kept if entry}
    except (ValueError, TypeError, KeyError):
        return None


def _whole(folder: AnyPath) -> Iterator[_Kept]:
    for path in folder.iterdir():
        if path.name.startswith(PREFIX) and _is_whole(path):
            state = _read_state(path, "cpu")
            yield _Kept(path.name, reported(state), tuple(map(_score, state["history"])))


def _is_whole(path: AnyPath) -> bool:
    return (path / HASH).is_file() and (path / STATE).is_file() and sha256_of(path / STATE) == (path / HASH).read_text()


def _to_go_on_from(whole: Sequence[_Kept]) -> list[_Kept]:
    """Return the latest checkpoint whose best epoch is there too, and that one, the latest last; nothing if there is none."""
    by_epoch = {kept.epoch: kept for kept in whole}
    for latest in reversed(whole):
        if best := by_epoch.get(latest.best_epoch):
            return [latest] if best is latest else [best, latest]
    return []


def _layout() -> dict[str, Any]:
    """Return an empty list of checkpoints as this version of Ray writes it; empty if that is not known here."""
    try:
        from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState
    except ImportError:
        return {}
    return dict.fromkeys(_CheckpointManagerState.model_fields)


def _snapshot(chosen: Sequence[_Kept]) -> str | None:
    """Return the list of some checkpoints, the latest last, as Ray reads it; None without any, or if its layout is not known here."""
    if not chosen:
        return None
    entries = [{"version": 0, "checkpoint_dir_name": kept.name, "metrics": kept.metrics} for kept in chosen]
    ranked = sorted(zip(entries, chosen, strict=True), key=lambda pair: (pair[1].metrics[SELECTION], pair[1].epoch))
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


def _aside(folder: AnyPath) -> AnyPath:
    """Return a new name beside a folder for what is damaged in it."""
    number = 1
    while (aside := folder.parent / f"{folder.name}.damaged-{number}").exists():
        number += 1
    return aside
