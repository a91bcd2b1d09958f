"""The state of a run as Ray's checkpoints hold it: written with its hash, and never read without it.

A flipped bit in a tensor loads without a word, for torch does not look at the sums its files hold.
"""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from ray.train import Checkpoint

from melanoma.files import sha256_of
from melanoma.storage import Place

STATE, HASH = "state.pt", "state.sha256"
SNAPSHOT = "checkpoint_manager_snapshot.json"


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
        data = Path(folder, STATE).read_bytes()
        if hashlib.sha256(data).hexdigest() != Path(folder, HASH).read_text():
            raise OSError(f"the checkpoint {checkpoint.path} must match its hash, it does not.")
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    return state


def find_damage(folder: Place) -> str:
    """Return why a run cannot go on from the checkpoints in a folder, or nothing.

    Ray writes the list of them in place, so that a kill may leave half of it; and storage may give back something else than it was given.
    """
    if not (folder / SNAPSHOT).is_file():
        return ""
    try:
        told = json.loads((folder / SNAPSHOT).read_text())
        kept = [*told["checkpoint_results"], told["latest_checkpoint_result"]]
        names = sorted({entry["checkpoint_dir_name"] for entry in kept if entry})
    except (ValueError, TypeError, KeyError):
        return "the list of its checkpoints is not whole"
    for name in names:
        path = folder / name
        if not (
            (path / HASH).is_file()
            and (path / STATE).is_file()
            and sha256_of(path / STATE) == (path / HASH).read_text()
        ):
            return f"its checkpoint {name} is damaged"
    return ""
