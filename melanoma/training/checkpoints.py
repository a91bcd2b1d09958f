"""The state of a run on disk, written with its hash and compared with it on every read.

A flipped bit in a tensor loads without an error, because torch does not check the checksums in its
files. Damaged checkpoints are moved aside, never deleted.
"""

import dataclasses
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from melanoma.io.files import sha256_of
from melanoma.io.storage import AnyPath
from melanoma.training.selection import SELECTION, selection_score

STATE, HASH = "state.pt", "state.sha256"
PREFIX = "checkpoint_"
State = dict[str, Any]
"""Tensors and plain values, as `TrainState.state_dict` gives them."""


def save_state(folder: Path, state: State) -> None:
    """Write a state and its hash into a folder of this node."""
    torch.save(state, folder / STATE)
    (folder / HASH).write_text(sha256_of(folder / STATE))


def read_state(folder: AnyPath, device: torch.device | str) -> State:
    """Return the state that a checkpoint holds, with its tensors on a device.

    Raises:
        OSError: if the state file does not match the hash written with it.
    """
    data = (folder / STATE).read_bytes()
    if hashlib.sha256(data).hexdigest() != (folder / HASH).read_text():
        raise OSError(
            f"Checkpoint {folder} must match its hash; it does not. Run the same command again: it"
            " moves damaged checkpoints aside."
        )
    state: State = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    return state


def reported(state: State) -> dict[str, float]:
    """Return the metrics by which checkpoints are kept: the latest and the best one."""
    return {"epoch": state["epoch"], SELECTION: selection_score(state["history"][-1])}


@dataclasses.dataclass(frozen=True)
class Kept:
    """An undamaged checkpoint.

    Attributes:
        name: the name of its folder.
        metrics: what `reported` gives for its state.
        scores: the scores of all epochs so far, in order.
    """

    name: str
    metrics: dict[str, float]
    scores: tuple[float, ...]

    @property
    def epoch(self) -> int:
        """The epoch after which it was written, from 1."""
        return int(self.metrics["epoch"])

    @property
    def best_epoch(self) -> int:
        """The best epoch so far, from 1; the last of equal ones."""
        return max(
            range(1, len(self.scores) + 1), key=lambda epoch: (self.scores[epoch - 1], epoch)
        )


def is_whole(path: AnyPath) -> bool:
    """Return whether a checkpoint's state exists and matches its hash."""
    return (
        (path / HASH).is_file()
        and (path / STATE).is_file()
        and sha256_of(path / STATE) == (path / HASH).read_text()
    )


def checkpoint_folders(folder: AnyPath) -> list[AnyPath]:
    """Return the checkpoints of a run, damaged or not. Ray's list of them is a file beside them."""
    return [path for path in folder.iterdir() if path.name.startswith(PREFIX) and path.is_dir()]


def whole_checkpoints(folder: AnyPath) -> Iterator[Kept]:
    """Yield the undamaged checkpoints of a folder."""
    for path in checkpoint_folders(folder):
        if is_whole(path):
            state = read_state(path, "cpu")
            yield Kept(path.name, reported(state), tuple(map(selection_score, state["history"])))


def usable_checkpoints(folder: AnyPath) -> list[Kept]:
    """Return the checkpoints to resume from: that of the best epoch, then the latest.

    The latest is the last undamaged checkpoint whose best epoch so far has an undamaged checkpoint
    too. A run must not continue without its best epoch, because that epoch may be the one to ship.

    Returns:
        Two checkpoints, one if the latest epoch is the best, or none.
    """
    return usable_among(list(whole_checkpoints(folder)))


def usable_among(whole: Sequence[Kept]) -> list[Kept]:
    """Return what `usable_checkpoints` returns, of undamaged checkpoints that were already read."""
    by_epoch = {kept.epoch: kept for kept in whole}
    for latest in sorted(whole, key=lambda kept: kept.epoch, reverse=True):
        if best := by_epoch.get(latest.best_epoch):
            return [latest] if best is latest else [best, latest]
    return []


def aside(folder: AnyPath) -> AnyPath:
    """Return an unused path next to a folder, to which its damaged checkpoints can be moved."""
    number = 1
    while (found := folder.parent / f"{folder.name}.damaged-{number}").exists():
        number += 1
    return found
