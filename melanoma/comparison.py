"""Compares two models on the same images, from their tables of predictions. Needs no image.

Everything that can refuse the comparison is checked before a number is computed.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from melanoma.arrays import BoolArray, IntArray
from melanoma.data.group_ids import known_ids
from melanoma.data.groups import GROUP_COLUMNS, join_groups
from melanoma.data.metadata import ALIASES
from melanoma.data.prediction_tables import (
    REFER,
    UNASSESSED,
    PredictionTable,
    read_predictions,
)
from melanoma.errors import DataError
from melanoma.evidence.intervals import MIN_BOOTSTRAP, MIN_TARGETS, effective_number
from melanoma.evidence.paired import (
    CONFIDENCE,
    POWER,
    Answers,
    Truth,
    paired_differences,
    paired_title,
    swap_tests,
)
from melanoma.io.files import new_folder, read_json, write_json, write_text
from melanoma.io.storage import AnyPath, to_path
from melanoma.io.typed import without_nan
from melanoma.task import TASKS, Task, read_task, task_of

COMPARISON, PAGE, GROUP = "comparison.json", "comparison.html", "group"
_REPORT = "report.json"


def compare(
    a: str | AnyPath,
    b: str | AnyPath,
    *,
    task: str | None = None,
    group_by: Sequence[str] | None = None,
    common: bool = False,
    unassessed: bool = False,
    out: str | AnyPath | None = None,
) -> dict[str, Any]:
    """Return the paired differences between two models on the same images, B minus A.

    Example:
        >>> evaluated = evaluate(bundle_dir, dataset, tmp_path / "compared")
        >>> table = tmp_path / "compared" / "predictions.parquet"
        >>> compare(table, table)["differences"]["auroc"]["value"]
        0.0

    Args:
        a: table of predictions of the first model, parquet or CSV.
        b: table of the second model.
        task: name or file of the task; None takes that of the reports beside the tables, or the
            built-in one whose classes the tables have.
        group_by: columns of either table; images with an equal value in any of them belong
            together. None takes ``group``, or else patient_id and lesion_id.
        common: compare the images that both tables have, instead of refusing others.
        unassessed: count images too that a model answers with cannot_assess.
        out: folder for the result as JSON and as a page; an earlier comparison there is replaced.

    Returns:
        The content of comparison.json.

    Raises:
        DataError: if the tables cannot be compared.
    """
    tables = read_predictions(to_path(a)), read_predictions(to_path(b))
    found_task = _task(task, (to_path(a), to_path(b)), tables)
    pairs = _pair(tables, found_task, common=common)
    groups, columns = _groups(pairs.tables, group_by)
    found = without_nan(
        {
            "a": str(a),
            "b": str(b),
            "task": None if found_task is None else found_task.as_dict(),
            "confidence": CONFIDENCE,
            "power": POWER,
            **_numbers(pairs, groups, columns, found_task, unassessed=unassessed),
        }
    )
    assert isinstance(found, dict)
    if out is not None:
        _write(found, to_path(out))
    return found


def _write(found: dict[str, Any], out: AnyPath) -> None:
    from melanoma.evidence.comparison_page import comparison_page  # loads matplotlib

    with new_folder(out, replace_if=COMPARISON) as work:
        write_json(work / COMPARISON, found)
        write_text(work / PAGE, comparison_page(found, describe_counts(found), notes(found)))


def _task(
    given: str | None, paths: tuple[AnyPath, AnyPath], tables: tuple[PredictionTable, ...]
) -> Task | None:
    """Return the task of two tables, or None if they only score the targets."""
    if given is not None:
        return read_task(given)
    reported = [
        task_of(read_json(path.parent / _REPORT)["task"]) for path in paths if _is_ours(path)
    ]
    by_classes = [
        each
        for table in tables
        for each in TASKS.values()
        if set(each.classes) == set(table.classes)
    ]
    found = [*reported, *by_classes]
    if any((each.classes, each.targets) != (found[0].classes, found[0].targets) for each in found):
        raise DataError(
            "A and B must be of one task; the classes or the targets differ"
            f" ({' and '.join(dict.fromkeys(each.name for each in found))}). Compare models of one"
            " task, or pass --task."
        )
    return found[0] if found else None


def _is_ours(path: AnyPath) -> bool:
    return path.suffix == ".parquet" and (path.parent / _REPORT).is_file()


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Two tables with the same images in the same order.

    Attributes:
        tables: A and B.
        labels: ``(N,)`` class indices, -1 if only the targets are known.
        is_target: ``(N,)``, -1 where no label is known.
        only: the number of images that only A, or only B, has.
    """

    tables: tuple[PredictionTable, PredictionTable]
    labels: IntArray
    is_target: IntArray
    only: tuple[int, int]


def _pair(
    tables: tuple[PredictionTable, PredictionTable], task: Task | None, *, common: bool
) -> _Pairs:
    a, b = tables
    for table in tables:
        table.scores(task)  # a table without them is refused before anything else is asked for
    both = a.rows.index.intersection(b.rows.index).sort_values()
    only = len(a.rows) - len(both), len(b.rows) - len(both)
    if both.empty:
        raise DataError(
            f"A and B must name the same images; none of the {len(a.rows)} images of {a.name} is"
            f" among the {len(b.rows)} of {b.name}. Check the columns of ids."
        )
    if any(only) and not common:
        raise DataError(
            f"A and B must have the same images; {only[0]} are only in A ({a.name}) and {only[1]}"
            f" only in B ({b.name}). Pass --common to compare the {len(both)} that both have."
        )
    paired = tuple(dataclasses.replace(table, rows=table.rows.loc[both]) for table in tables)
    (labels, targets), (labels_b, targets_b) = (table.labels(task) for table in paired)
    differ = _disagree(labels, labels_b) | _disagree(targets, targets_b)
    if differ.any():
        raise DataError(
            f"A and B must agree on labels; for {int(differ.sum())} of {len(both)} images they do"
            f" not. The labels of {a.name} or {b.name} may be numbers in another order of classes:"
            " write the names of the classes instead."
        )
    return _Pairs(
        (paired[0], paired[1]),
        np.where(labels >= 0, labels, labels_b),
        np.where(targets >= 0, targets, targets_b),
        only,
    )


def _disagree(ours: IntArray, theirs: IntArray) -> BoolArray:
    differ: BoolArray = (ours >= 0) & (theirs >= 0) & (ours != theirs)
    return differ


def _groups(
    tables: tuple[PredictionTable, PredictionTable], wanted: Sequence[str] | None
) -> tuple[IntArray, list[str]]:
    """Return the group of each image ``(N,)``, and the columns that made them.

    Images that either table puts together belong together.
    """
    names = _columns(tables, wanted)
    ids, keys = tables[0].rows.index.tolist(), []
    for table in tables:
        for name in names:
            if name in ALIASES["image_id"] and table.first((name,)) is None:
                continue
            if name in table.rows:
                keys.append(known_ids(table.rows[name].astype(str), name)[0].tolist())
    groups = join_groups(ids, keys)
    return pd.factorize(pd.Series(groups), sort=True)[0], names


def _columns(
    tables: tuple[PredictionTable, PredictionTable], wanted: Sequence[str] | None
) -> list[str]:
    there = {str(name) for table in tables for name in table.rows.columns}
    if wanted is not None:
        missing = [name for name in wanted if name.casefold() not in there | {"image_id"}]
        if missing:
            raise DataError(
                f"--group-by must name columns of A or B; {', '.join(missing)} is in neither."
                f" They have {', '.join(sorted(there)[:12])}."
            )
        return [name.casefold() for name in wanted]
    filled = [
        name
        for name in (GROUP, *GROUP_COLUMNS)
        if any(name in table.rows and (table.rows[name] != "").any() for table in tables)
    ]
    if not filled:
        raise DataError(
            f"A or B must say which images belong together ({GROUP}, {' or '.join(GROUP_COLUMNS)});"
            " neither does, and intervals over images of one lesion as if they were independent"
            " are too narrow. Add one of these columns, or name others with --group-by. If no two"
            " images show the same patient or lesion, pass --group-by image_id."
        )
    return [GROUP] if GROUP in filled else filled


def _numbers(
    pairs: _Pairs,
    groups: IntArray,
    columns: list[str],
    task: Task | None,
    *,
    unassessed: bool,
) -> dict[str, Any]:
    """Return the counts and the differences."""
    a, b = (_answers(table, task) for table in pairs.tables)
    scored = np.isfinite(a.scores) & np.isfinite(b.scores)
    labelled = pairs.is_target >= 0
    refused = [_refused(table) for table in pairs.tables]
    usable = scored & labelled
    counted = usable if unassessed else usable & ~refused[0] & ~refused[1]
    is_known = _of_groups(pairs.tables[0].known | pairs.tables[1].known, groups)
    truth = Truth(
        pairs.is_target == 1,
        groups,
        task,
        pairs.labels if (pairs.labels[usable] >= 0).all() else None,
    )
    main = counted & ~is_known
    if not main.any():
        raise DataError(
            f"A and B must share images with a label and a score that both assess; of"
            f" {len(groups)} there is none ({int((~labelled).sum())} without a label,"
            f" {int((~scored).sum())} without a score, {int(is_known.sum())} known to a model)."
            " Add labels to one of the tables, or pass --unassessed."
        )
    part = functools.partial(_part, truth, a, b)
    return {
        "images": {
            "only_a": pairs.only[0],
            "only_b": pairs.only[1],
            "both": len(groups),
            "without_label": int((~labelled).sum()),
            "without_score": int((labelled & ~scored).sum()),
            "known": int((counted & is_known).sum()),
            "compared": int(main.sum()),
        },
        "cannot_assess": _unassessed(usable, refused, truth.is_target, counted=unassessed),
        "group_columns": columns,
        **part(main),
        "known": part(counted & is_known) if (counted & is_known).any() else None,
    }


def _answers(table: PredictionTable, task: Task | None) -> Answers:
    decisions = table.decisions
    # An image that gets no decision is not referred; it only counts if that is asked for.
    referred = None if decisions is None else (decisions == REFER).to_numpy(bool)
    return Answers(table.scores(task), table.probabilities(task), referred)


def _refused(table: PredictionTable) -> BoolArray:
    decisions = table.decisions
    if decisions is None:
        return np.zeros(len(table.rows), dtype=bool)
    refused: BoolArray = (decisions == UNASSESSED).to_numpy(bool)
    return refused


def _of_groups(chosen: BoolArray, groups: IntArray) -> BoolArray:
    """Return which images are of a group with a chosen one, ``(N,)``."""
    return np.isin(groups, groups[chosen])


def _unassessed(
    usable: BoolArray, refused: list[BoolArray], is_target: BoolArray, *, counted: bool
) -> dict[str, Any]:
    """Return how many images, and how many targets, only A, only B or both do not assess."""
    a, b = refused
    parts = {"only_a": a & ~b, "only_b": b & ~a, "both": a & b}
    return {
        "counted": counted,
        **{
            name: {
                "images": int((usable & part).sum()),
                "targets": int((usable & part & is_target).sum()),
            }
            for name, part in parts.items()
        },
    }


def _part(truth: Truth, a: Answers, b: Answers, chosen: BoolArray) -> dict[str, Any]:
    """Return the counts and the differences of some of the images."""
    truth, a, b = truth.where(chosen), a.where(chosen), b.where(chosen)
    target, groups = truth.is_target, truth.groups
    return {
        "num": len(target),
        "num_target": int(target.sum()),
        "num_groups": len(np.unique(groups)),
        "num_target_groups": len(np.unique(groups[target])),
        "effective_num_target": effective_number(groups[target]),
        "differences": {
            name: dataclasses.asdict(found) | {"shown": found.shown}
            for name, found in paired_differences(truth, a, b).items()
        },
        "p_values": swap_tests(truth, a, b),
    }


def describe_comparison(found: dict[str, Any]) -> str:
    """Return a comparison as text for a terminal."""
    lines = [
        f"A {_shown(found['a'])}",
        f"B {_shown(found['b'])}",
        *describe_counts(found),
        "",
        *_table(found),
    ]
    if found["known"] is not None:
        known = found["known"]
        lines += [
            "",
            f"images known to a model, {known['num']} of {known['num_groups']} groups, apart:",
            *_table(known),
        ]
    return "\n".join([*lines, "", *notes(found)])


def _shown(path: str) -> str:
    return str(Path(*Path(path).parts[-3:])) if "://" not in path else path


def describe_counts(found: dict[str, Any]) -> list[str]:
    """Return sentences on what was compared and what was not."""
    images, by = found["images"], ", ".join(found["group_columns"])
    noun = "targets" if found["task"] is None else task_of(found["task"]).noun[1]
    lines = [
        f"{found['num']} images of {found['num_groups']} groups (by {by}), {found['num_target']} of"
        f" them {noun} of {found['num_target_groups']} groups"
    ]
    out = {
        "only in A": images["only_a"],
        "only in B": images["only_b"],
        "without a label": images["without_label"],
        "without a score of both": images["without_score"],
        "known to a model": images["known"],
    }
    if any(out.values()):
        said = ", ".join(f"{num} {why}" for why, num in out.items() if num)
        lines.append(f"not among them: {said}")
    refused = found["cannot_assess"]
    if any(refused[part]["images"] for part in ("only_a", "only_b", "both")):
        said = ", ".join(
            f"{refused[part]['images']} by {who} ({refused[part]['targets']} {noun})"
            for part, who in (("only_a", "A alone"), ("only_b", "B alone"), ("both", "both"))
        )
        how = "counted, as not referred" if refused["counted"] else "not counted"
        lines.append(f"answered with {UNASSESSED}, {how}: {said}")
    return lines


def _table(found: dict[str, Any]) -> list[str]:
    width = max(len(paired_title(name)) for name in found["differences"]) + 2
    lines = [f"{'':{width}}{'A':>7}{'B':>8}   {'B - A, 95 % interval':28}{'could be seen':>14}"]
    for name, each in found["differences"].items():
        cells = [number(each[part]) for part in ("a", "b")]
        p_value = found["p_values"].get(name)
        lines.append(
            f"{paired_title(name):{width}}{cells[0]:>7}{cells[1]:>8}   {interval(each):28}"
            f"{number(each['detectable']):>14}"
            + ("" if p_value is None else f"   p {p_value:.2g}")
            + ("   shown" if each["shown"] else "")
        )
    return lines


def number(value: float | None) -> str:
    """Return a number of a comparison as text."""
    return "-" if value is None else f"{value:.3f}"


def interval(difference: dict[str, Any]) -> str:
    """Return a difference with its interval as text."""
    if difference["value"] is None:
        return "undefined here"
    if difference["low"] is None:
        return f"{difference['value']:+.3f} [no interval]"
    return f"{difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"


def notes(found: dict[str, Any]) -> list[str]:
    """Return what a reader of the table should know."""
    shown = [
        f"{paired_title(name)} ({'B' if each['value'] > 0 else 'A'} is higher)"
        for name, each in found["differences"].items()
        if each["shown"]
    ]
    return [
        f"shown: {'; '.join(shown)}." if shown else "No difference is shown.",
        "Each interval stands alone: of 20 numbers that do not differ, one would be shown.",
        f"Bootstrap intervals need {MIN_BOOTSTRAP} groups of targets and of others, those of shares"
        f' {MIN_TARGETS}. "Could be seen" is the true difference that would be shown with a'
        f" probability of {POWER:.0%}. p: exact test that swaps the answers of whole groups.",
    ]
