"""Data sets for tests."""

import shutil
from pathlib import Path

from melanoma.data.dataset import PreparedData, open_prepared


def copied(data: PreparedData, folder: Path) -> PreparedData:
    """Return a data set in another folder, without its log of accesses."""
    assert isinstance(data.folder, Path)
    ignored = shutil.ignore_patterns("*.jsonl")
    return open_prepared(Path(shutil.copytree(data.folder, folder, ignore=ignored)))
