"""Counts what was left out of a data set by reason and class, and puts it into words."""

from collections import Counter
from collections.abc import Iterable, Mapping

import pandas as pd

from melanoma.data.diagnoses import says_target
from melanoma.task import Task

LeftOut = dict[str, dict[str, int]]
"""Reason -> class -> number of images.

If the class is not known, what the table says takes its place.
"""
NO_ROW, BLANK, OTHERS = "(no row)", "(blank)", "(others)"
_MAX_WORDS, _MAX_LETTERS = 12, 40


def count_left_out(
    rejected: Iterable[tuple[str, str]], records: pd.DataFrame, task: Task
) -> LeftOut:
    """Count what is left out.

    Args:
        rejected: pairs of image id and reason. An image with several reasons counts under the
            first.
        records: rows with image_id, dx and dx_given.
        task: its targets are named first.
    """
    first: dict[str, str] = {}
    for image_id, reason in rejected:
        first.setdefault(image_id, reason)
    is_again = records["image_id"].duplicated() & (records["image_id"] != "")
    rows = records[records["image_id"].isin(set(first)) & ~is_again]
    classes = rows["dx"].where(
        rows["dx"] != "", rows["dx_given"].str[:_MAX_LETTERS].replace("", BLANK)
    )
    counted = Counter(
        (first[image_id], name) for image_id, name in zip(rows["image_id"], classes, strict=True)
    )
    for image_id in set(first) - set(rows["image_id"]):
        counted[first[image_id], NO_ROW] += 1
    reasons = sorted({reason for reason, _ in counted})
    return {
        reason: _commonest(
            {name: num for (why, name), num in counted.items() if why == reason}, task
        )
        for reason in reasons
    }


def _commonest(counts: Mapping[str, int], task: Task) -> dict[str, int]:
    """Keep the commonest words and count the others together: a table may say anything."""
    ordered = sorted(
        counts.items(), key=lambda item: (not says_target(item[0], task), -item[1], item[0])
    )
    rest = sum(num for _, num in ordered[_MAX_WORDS:])
    return {**dict(ordered[:_MAX_WORDS]), **({OTHERS: rest} if rest else {})}


def total(left_out: Mapping[str, Mapping[str, int]]) -> int:
    """Return how many images were left out."""
    return sum(sum(counts.values()) for counts in left_out.values())


def describe_left_out(left_out: Mapping[str, Mapping[str, int]]) -> str:
    """Return reasons, classes and numbers in words."""
    by_reason = sorted(left_out.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    return "; ".join(
        f"{sum(counts.values())} {reason}"
        f" ({', '.join(f'{num} {name}' for name, num in counts.items())})"
        for reason, counts in by_reason
    )


def left_out_sentence(left_out: Mapping[str, Mapping[str, int]], task: Task) -> str:
    """Return a sentence on what was left out and how many targets are among it.

    It is empty if nothing was left out.
    """
    if not left_out:
        return ""
    num = total(left_out)
    targets = sum(
        number
        for counts in left_out.values()
        for name, number in counts.items()
        if says_target(name, task)
    )
    return (
        f"{num} {'image was' if num == 1 else 'images were'} left out, {targets} of them labelled"
        f" as {task.noun[0]}: {describe_left_out(left_out)}."
    )
