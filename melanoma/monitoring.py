"""Watches the promise of a bundle on outcomes that came in later. Needs no image.

The outcomes are a CSV table in the order in which they became known:

- ``request_id`` or ``image_id``: each stands once
- ``score``: the probability of the targets that was answered, in [0, 1]
- a diagnosis, in a column and in words as data sets have them; blank while it is not known
- if there are any, ``patient_id`` and ``lesion_id``: the first target of each patient counts, or of
  each lesion if the patient is not known
- if there is one, ``decision``: images that got cannot_assess are left out
- if there is one, ``version``: of the bundle that answered; others are left out
"""

import dataclasses
from typing import Any, get_args

import pandas as pd

from melanoma.arrays import BoolArray
from melanoma.bundle.manifest import BundleManifest, read_manifest
from melanoma.data.diagnoses import has_diagnosis, no_diagnosis, read_diagnoses, says_target
from melanoma.data.group_ids import known_ids
from melanoma.data.tables import Table, read_table
from melanoma.errors import BundleError, DataError
from melanoma.evidence.contract import PATIENT, Contract
from melanoma.evidence.operating_point import Decision, is_referred
from melanoma.evidence.sequential import Watch, watch
from melanoma.io.storage import AnyPath, to_path
from melanoma.task import Task

IDS, SCORE, GROUPS = ("request_id", "image_id"), "score", (PATIENT, "lesion_id")
DECISION, VERSION, NUM_IMAGES = "decision", "version", "num_images"
UNASSESSED = "cannot_assess"
_MAX_LINES = 3


def monitor(bundle_dir: str | AnyPath, outcomes: str | AnyPath) -> dict[str, Any]:
    """Return what outcomes say of a bundle's promise.

    Args:
        bundle_dir: folder of the bundle; only its manifest is read.
        outcomes: the table.

    Returns:
        verdict (holds, broken or open) and the other fields of `Watch`; sentence; num_rows;
        left_out (reason -> number of rows); known (decision -> rows, and how many of them have a
        diagnosis); not_understood (taken_as_target and taken_as_other -> diagnosis -> rows).

    Raises:
        BundleError: if the bundle cannot be read or promises nothing.
        DataError: if the table is not as above.
    """
    manifest = read_manifest(to_path(bundle_dir))
    contract, task = manifest.operating_point.contract, manifest.task
    if contract.status != "met":
        raise BundleError(
            f"BUNDLE must have a contract that is met; it is {contract.status}. There is no promise"
            " to watch."
        )
    table = read_table(to_path(outcomes))
    rows, left_out = _usable(table, manifest)
    referred = is_referred(rows[SCORE].to_numpy(float), manifest.operating_point.threshold)
    given = rows["said"] != ""
    targets = rows["is_target"].to_numpy(bool)
    repeated = _is_repeated(rows, table, targets)
    if repeated.any():
        left_out["not the first target of a patient or lesion"] = int(repeated.sum())
    found = watch(
        referred[targets & ~repeated],
        target_sensitivity=contract.target_sensitivity,
        confidence=contract.confidence,
    )
    unclear = rows[given & (rows["class"] == "")]
    return {
        **dataclasses.asdict(found),
        "sentence": _sentence(found, contract, task),
        "num_rows": len(table.rows),
        "left_out": left_out,
        "known": {
            name: {"rows": int(part.sum()), "with_diagnosis": int((part & given).sum())}
            for name, part in (("refer", referred), ("no_referral", ~referred))
        },
        "not_understood": {
            name: {str(text): int(num) for text, num in part["said"].value_counts().items()}
            for name, part in (
                ("taken_as_target", unclear[unclear["is_target"]]),
                ("taken_as_other", unclear[~unclear["is_target"]]),
            )
        },
    }


def describe_monitoring(found: dict[str, Any]) -> str:
    """Return what outcomes say, as text for a terminal."""
    lines = [found["sentence"]]
    lines += [f"left out: {num} rows ({reason})" for reason, num in found["left_out"].items()]
    for decision, num in found["known"].items():
        lines.append(f"{decision}: {num['with_diagnosis']} of {num['rows']} rows have a diagnosis")
    for name, texts in found["not_understood"].items():
        if texts:
            words = ", ".join(f"{text} ({num})" for text, num in texts.items())
            lines.append(f"no class of the task, {name.replace('_', ' ')}: {words}")
    lines.append(
        "This holds only if a diagnosis becomes known as often without a referral as with one, and"
        " if the rows stand in the order in which that happened."
    )
    return "\n".join(lines)


def _usable(table: Table, manifest: BundleManifest) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the rows that count, with their score, class and diagnosis; and how many do not."""
    ids, score, task = table.first(IDS), table.first((SCORE,)), manifest.task
    if ids is None or score is None:
        raise DataError(
            f"{table.name} must have the columns {IDS[0]} (or {IDS[1]}), {SCORE} and a diagnosis;"
            f" it has {', '.join(table.header)}. Rename its columns."
        )
    if not has_diagnosis(table.rows.columns, task):
        raise no_diagnosis([table], task)
    rows = table.rows.assign(**{SCORE: pd.to_numeric(table.rows[SCORE], errors="coerce")})
    _refuse(table, rows[ids] == "", f"{ids} must not be blank")
    _refuse(table, rows[ids].duplicated(), f"{ids} must stand once")
    named = read_diagnoses(table.rows, task)
    said, _ = known_ids(pd.Series([text for _, text in named], index=rows.index, dtype=str), "dx")
    rows["class"], rows["said"] = [name for name, _ in named], said
    rows["is_target"] = [
        name in task.targets if name else says_target(text, task)
        for name, text in zip(rows["class"], said, strict=True)
    ]
    left_out: dict[str, int] = {}
    if table.first((VERSION,)) is not None:
        others = ~rows[VERSION].isin(("", manifest.version))
        if others.all() and len(rows):
            raise DataError(
                f"{table.name} must hold answers of this bundle, version {manifest.version}; all"
                " are of another version. Name that bundle, or correct the column."
            )
        rows = _without(rows, others, "another bundle", left_out)
    if table.first((NUM_IMAGES,)) is not None:  # their promise and threshold are others
        several = pd.to_numeric(rows[NUM_IMAGES], errors="coerce") > 1
        rows = _without(rows, several, "several images of one lesion", left_out)
    if table.first((DECISION,)) is not None:
        rows[DECISION] = rows[DECISION].str.casefold()
        allowed = (*get_args(Decision), "")
        _refuse(table, ~rows[DECISION].isin(allowed), f"{DECISION} must be one of {allowed[:3]}")
        rows = _without(rows, rows[DECISION] == UNASSESSED, UNASSESSED, left_out)
    _refuse(table, ~rows[SCORE].between(0, 1), f"{SCORE} must be in [0, 1]")
    if DECISION in rows.columns:
        referred = is_referred(rows[SCORE].to_numpy(float), manifest.operating_point.threshold)
        other = (rows[DECISION] != "") & ((rows[DECISION] == "refer") != referred)
        _refuse(table, other, f"{DECISION} must follow from {SCORE} and the bundle's threshold")
    return rows, left_out


def _without(
    rows: pd.DataFrame, out: pd.Series, reason: str, left_out: dict[str, int]
) -> pd.DataFrame:
    """Leave rows out, and count them if there are any."""
    if out.any():
        left_out[reason] = int(out.sum())
    return rows[~out]


def _refuse(table: Table, wrong: pd.Series, rule: str) -> None:
    if wrong.any():
        lines = [str(int(place) + 1) for place in wrong.index[wrong]]
        more = f" and {len(lines) - _MAX_LINES} more" if len(lines) > _MAX_LINES else ""
        raise DataError(
            f"{table.name}: {rule}; it is otherwise in row {', '.join(lines[:_MAX_LINES])}{more}"
            " below the header. Correct the table."
        )


def _is_repeated(rows: pd.DataFrame, table: Table, targets: BoolArray) -> BoolArray:
    """Return which target rows follow another target of the same patient.

    If the patient is not known, of the same lesion.
    """
    units = pd.Series("", index=rows.index)
    for column in GROUPS:
        if table.first((column,)) is not None:
            ids, _ = known_ids(rows[column], column)
            units = units.where((units != "") | (ids == ""), column + " " + ids)
    seen = units.where(targets, "")
    repeated: BoolArray = ((seen != "") & seen.duplicated()).to_numpy(bool)
    return repeated


def _sentence(found: Watch, contract: Contract, task: Task) -> str:
    promise = f"at least {contract.target_sensitivity:.0%} of {task.noun[1]} are referred"
    seen = f"{found.num_referred} of {found.num_target} were referred"
    chance = f"{contract.confidence:.0%} confidence, whenever this is asked"
    if found.verdict == "open":
        return (
            f"Open: the promise ({promise}) is neither confirmed nor refuted; {seen}. The evidence"
            f" against it has reached {found.against:.1f}, that for it {found.in_favour:.1f}; the"
            f" limit is {found.limit:.0f}."
        )
    after = f"This was clear after {found.decided_after} of them, with {chance}."
    if found.verdict == "broken":
        return (
            f"Broken: fewer than promised ({promise}) are referred; {seen}. {after} Stop using the"
            " decisions, and make a contract on images of this site."
        )
    return (
        f"Holds: {promise}, over all these outcomes taken together; {seen}. {after} A change since"
        " then may not show yet."
    )
