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
    before = _networks(data.accesses(CALIBRATION)), _networks(_registered(registry_of(data)))
    data.log_access(CALIBRATION, entry)
    _register(registry_of(data), entry)
    after = _networks(data.accesses(CALIBRATION)), _networks(_registered(registry_of(data)))
    # Two that are logged at the same moment both count both: neither may take the number of one.
    return max(
        known.index(network) + 1 if network in known else len(now)
        for known, now in zip(before, after, strict=True)
    )


def declared_accesses(data: PreparedData, asked: int) -> int:
    """Return the number of accesses that was declared before the first one.

    Args:
        data: the data set.
        asked: the number that this run declares, which counts if it is the first one.
    """
    earlier = [*_calibrated(data.accesses(CALIBRATION)), *_registered(registry_of(data))]
    return int(earlier[0].get("declared", 0)) if earlier else asked


def check_declared(data: PreparedData, asked: int) -> None:
    """Check that a run does not change what was declared before the first access.

    Args:
        data: the data set.
        asked: the number that this run declares; 0 if it declares none.

    Raises:
        DataError: if this run declares another number than the first one.
    """
    first = declared_accesses(data, asked)
    if asked and asked != first:
        said = f"it declared {first}" if first else "it declared none"
        raise DataError(
            f"--accesses must be declared before the first network is calibrated; {asked} is"
            f" declared after one, and {said}. Leave --accesses out, or prepare a data set with"
            " new lesions."
        )


def _networks(entries: Iterable[dict[str, Any]]) -> list[str]:
    """Return the different networks among some accesses, the first first."""
    return list(dict.fromkeys(entry["network"] for entry in _calibrated(entries)))


def _calibrated(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in entries if entry.get("by") == _BY]


def _registered(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text().splitlines() if path.is_file() else []
    except OSError:
        lines = []
    return [entry for entry in map(_entry, lines) if entry]


def _entry(line: str) -> dict[str, Any]:
    """Return one line of the registry; empty if a crash tore it."""
    try:
        entry: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return entry


def _register(path: Path, entry: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            # A line break first, in case a crash tore the line before.
            file.write("\n" + json.dumps(entry) + "\n")
    except OSError as error:  # such as a pod without a home; the data set's own log counts
        log.warning(
            "The access to the calibration split could not be recorded in %s (%s). Only the log"
            " beside the data set counts it. Set XDG_STATE_HOME to a folder that can be written.",
            path,
            error.strerror or type(error).__name__,
        )
