"""Checkpoints: what was written is read, and anything else is told from it."""

import json
from pathlib import Path

import pytest
import torch
from ray.train import Checkpoint

from ray_jobs.checkpoints import HASH, SNAPSHOT, STATE, find_damage, load_state, save_state


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's checkpoints as Ray keeps them: the best, which is the latest too, and the list."""
    kept = {"checkpoint_dir_name": "checkpoint_1", "metrics": {}}
    (tmp_path / "checkpoint_1").mkdir()
    save_state(tmp_path / "checkpoint_1", {"epoch": 3, "model": {"weight": torch.arange(1000.0)}})
    (tmp_path / SNAPSHOT).write_text(json.dumps({"checkpoint_results": [kept], "latest_checkpoint_result": kept}))
    return tmp_path


def test_a_whole_checkpoint_is_read_as_it_was_written(folder: Path) -> None:
    state = load_state(Checkpoint.from_directory(folder / "checkpoint_1"), "cpu")
    assert (state["epoch"], find_damage(folder)) == (3, "")
    assert torch.equal(state["model"]["weight"], torch.arange(1000.0))


def test_no_checkpoints_are_no_damage(tmp_path: Path) -> None:
    assert find_damage(tmp_path / "checkpoints") == ""


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "{}", '{"checkpoint_results": 3}'])
def test_a_list_that_is_not_whole_is_told(text: str, folder: Path) -> None:
    (folder / SNAPSHOT).write_text(text)
    assert find_damage(folder) == "the list of its checkpoints is not whole"


@pytest.mark.parametrize("name", [STATE, HASH])
def test_a_missing_file_is_told(name: str, folder: Path) -> None:
    (folder / "checkpoint_1" / name).unlink()
    assert find_damage(folder) == "its checkpoint checkpoint_1 is damaged"


def test_a_flipped_bit_that_torch_would_take_is_told(folder: Path) -> None:
    path = folder / "checkpoint_1" / STATE
    data = bytearray(path.read_bytes())
    data[data.find(torch.arange(500.0, 504.0).numpy().tobytes())] ^= 1
    path.write_bytes(bytes(data))
    torch.load(path, weights_only=True)  # without a word
    assert find_damage(folder) == "its checkpoint checkpoint_1 is damaged"
    with pytest.raises(OSError, match="must match its hash"):
        load_state(Checkpoint.from_directory(folder / "checkpoint_1"), "cpu")
