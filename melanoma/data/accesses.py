"""Counts the networks that were calibrated on one calibration split.

A data set logs its accesses beside itself. A copy of it, or the same data prepared again, would
start to count anew. So they are also recorded for each user, by the hash of the images of the
calibration split, whatever the folds and the folder. Knows nothing of contracts.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from melanoma.data.dataset import PreparedData
from melanoma.errors import DataError

CALIBRATION = "calibration"
_BY = "train"
log = logging.getLogger(__name__)


def registry_of(data: PreparedData) -> Path:
    """Return the file with this user's accesses to the calibration split of a data set."""
    records = data.records
    images = "\n".join(sorted(records.loc[records["split"] == CALIBRATION, "sha256"]))
    name = hashlib.sha256(images.encode()).hexdigest()
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "melanoma" / "accesses" / f"{name}.jsonl"


def calibration_access(data: PreparedData, network: str, *, declared: int) -> int:
    """Log that a network is calibrated, before the calibration split is read.

    Args:
        data: the data set.
        network: a hash of all that the contract follows from: weights, preprocessing, calibrator,
            promise. If the same is calibrated again, such as after a crash, it keeps its number.
        declared: number of networks that was declared before the first one; 0 if none was.

    Returns:
        The number of the network among those calibrated on this split, from 1: in the data set's
        log or in this user's registry, whichever is larger.
    """
    entry = {"by": _BY, "network": network, "declared": declared}
    logged = data.log_access(CALIBRATION, entry)
    registered = _register(registry_of(data), entry)
    return max(_number(entries, network) for entries in (logged, registered))


def declared_accesses(data: PreparedData, asked: int) -> int:
    """Return the number of accesses that was declared before the first one.

    Args:
        data: the data set.
        asked: the number that this run declares; 0 if it declares none.

    Raises:
        DataError: if this run declares another number than the first one.
    """
    earlier = [*_calibrated(data.accesses(CALIBRATION)), *_registered(registry_of(data))]
    if not earlier:
        return asked
    first = int(earlier[0].get("declared", 0))
    if asked and asked != first:
        said = f"it declared {first}" if first else "it declared none"
        raise DataError(
            f"--accesses must be declared before the first network is calibrated; {asked} is"
            f" declared after one, and {said}. Leave --accesses out, or prepare the data set with"
            " another --seed."
        )
    return first


def _number(entries: Iterable[dict[str, Any]], network: str) -> int:
    distinct = list(dict.fromkeys(entry["network"] for entry in _calibrated(entries)))
    return distinct.index(network) + 1 if network in distinct else 0


def _calibrated(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in entries if entry.get("by") == _BY]


def _registered(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text().splitlines() if path.is_file() else []
    except OSError:
        lines = []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _register(path: Path, entry: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
    except OSError as error:  # such as a pod without a home; the data set's own log counts
        log.warning(
            "The access to the calibration split could not be recorded in %s (%s). Only the log"
            " beside the data set counts it. Set XDG_STATE_HOME to a folder that can be written.",
            path,
            error.strerror or type(error).__name__,
        )
    return _registered(path)
