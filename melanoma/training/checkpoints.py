"""The state of a run on disk: written with its hash, and never read without comparing it.

A flipped bit in a tensor loads without an error, because torch does not look at the checksums its
files hold. What is damaged is moved aside; nothing is ever deleted.
"""

import dataclasses
import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from melanoma.io.files import sha256_of
from melanoma.io.storage import AnyPath
from melanoma.training.engine import SELECTION

STATE, HASH = "state.pt", "state.sha256"
PREFIX = "checkpoint_"
State = dict[str, Any]
"""Tensors and plain values, as `TrainState.state_dict` gives them."""


def save_state(folder: Path, state: State) -> None:
    """Write a state and its hash into a folder of this node."""
    torch.save(state, folder / STATE)
    (folder / HASH).write_text(sha256_of(folder / STATE))


def read_state(folder: AnyPath, device: torch.device | str) -> State:
    """Return the state that a checkpoint holds.

    Raises:
        OSError: if it is not the one that was written.
    """
    data = (folder / STATE).read_bytes()
    if hashlib.sha256(data).hexdigest() != (folder / HASH).read_text():
        raise OSError(f"The checkpoint {folder} must match its hash; it does not.")
    state: State = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    return state


def reported(state: State) -> dict[str, float]:
    """Return what a state is chosen by: the best one is kept, and the latest."""
    return {"epoch": state["epoch"], SELECTION: _score(state["history"][-1])}


def _score(row: dict[str, float]) -> float:
    return row[SELECTION] if math.isfinite(row[SELECTION]) else 0.0


@dataclasses.dataclass(frozen=True)
class Kept:
    """A checkpoint that is whole.

    Attributes:
        name: of its folder.
        metrics: what `reported` gives for its state.
        scores: of every epoch so far.
    """

    name: str
    metrics: dict[str, float]
    scores: tuple[float, ...]

    @property
    def epoch(self) -> int:
        """The epoch it was written after, from 1."""
        return int(self.metrics["epoch"])

    @property
    def best_epoch(self) -> int:
        """The best epoch so far; of equal ones the last."""
        return max(
            range(1, len(self.scores) + 1), key=lambda epoch: (self.scores[epoch - 1], epoch)
        )


def is_whole(path: AnyPath) -> bool:
    """Return whether a checkpoint's state is there and matches its hash."""
    return (
        (path / HASH).is_file()
        and (path / STATE).is_file()
        and sha256_of(path / STATE) == (path / HASH).read_text()
    )


def whole_checkpoints(folder: AnyPath) -> Iterator[Kept]:
    """Give the checkpoints in a folder that are whole."""
    for path in folder.iterdir():
        if path.name.startswith(PREFIX) and is_whole(path):
            state = read_state(path, "cpu")
            yield Kept(path.name, reported(state), tuple(map(_score, state["history"])))


def usable_checkpoints(folder: AnyPath) -> list[Kept]:
    """Return the latest whole checkpoint whose best epoch is there too, and that one, the latest last; nothing if there is none.

    A run must not go on from a checkpoint whose best epoch is lost, because that epoch may have to
    be shipped.
    """
    whole = sorted(whole_checkpoints(folder), key=lambda kept: kept.epoch)
    return _to_go_on_from(whole)


def _to_go_on_from(whole: Sequence[Kept]) -> list[Kept]:
    by_epoch = {kept.epoch: kept for kept in whole}
    for latest in reversed(whole):
        if best := by_epoch.get(latest.best_epoch):
            return [latest] if best is latest else [best, latest]
    return []


def aside(folder: AnyPath) -> AnyPath:
    """Return a new name beside a folder for what is damaged in it."""
    number = 1
    while (found := folder.parent / f"{folder.name}.damaged-{number}").exists():
        number += 1
    return found
