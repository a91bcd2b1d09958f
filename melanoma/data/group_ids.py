"""Ids of patients and lesions as tables hold them: which mean "not known", and which two hospitals both use. Knows no split."""

import re
from collections import Counter

import pandas as pd

_UNKNOWN = re.compile(
    r"<?(nan|none|null|nil|na|nat|n/?\.?a\.?|n-a|#n/a|#nv|unknown|unk|not ?known|not ?available|not"
    r" ?recorded|missing|undefined)>?|[\s?_./*\\-]*"
)
_MIN_CONFLICTING = 0.1
"""Of the ids that two sources share, so many stand under two labels only where each source counts for itself."""


def known_ids(values: pd.Series, column: str) -> tuple[pd.Series, list[str]]:
    """Blank the ids that mean "not known"; images without an id stand alone.

    Returns:
        The ids, and a sentence for every word that was taken so.
    """
    unknown = (
        values.str.casefold().map(lambda text: _UNKNOWN.fullmatch(text) is not None).astype(bool)
    )
    words = Counter(values[unknown & (values != "")])
    notes = [
        f"{num} images have {column} {word!r}, taken as not known"
        for word, num in words.most_common()
    ]
    return values.where(~unknown, ""), notes


def tell_sources_apart(
    values: pd.Series, sources: pd.Series, traits: pd.Series, column: str
) -> tuple[pd.Series, list[str]]:
    """Put the source in front of ids that several sources use for different patients or lesions.

    Shared ids are taken to be the same ones, which parts nothing that belongs together, unless so
    many of them have another trait in each source that they cannot be. Plain numbers, which every
    hospital counts anew, are told.

    Args:
        values: ids, blank where not known.
        sources: of the same rows, blank where not known.
        traits: what cannot differ within one id (the class of a lesion, the sex of a patient),
            blank where not known.
        column: what messages call the ids.
    """
    table = pd.DataFrame({"id": values, "source": sources, "trait": traits})[
        (values != "") & (sources != "")
    ]
    num_sources = table.groupby("id")["source"].nunique()
    shared = num_sources.index[num_sources > 1]
    if _share_conflicting(table[table["id"].isin(shared)]) <= _MIN_CONFLICTING:
        numbers = shared[shared.str.fullmatch(r"\d+(\.0)?").astype(bool)]
        if numbers.empty:
            return values, []
        told = (
            f"{len(numbers)} {column}s are plain numbers that several sources use, such as"
            f" {min(numbers)!r}; "
        )
        return values, [
            f"{told}they are taken as the same ones: if they are not, put the source in front of"
            " them"
        ]
    clash = set(shared)
    of_clash = table[table["id"].isin(clash)]
    named = " and ".join(sorted(set(of_clash["source"]))[:3])
    note = (
        f"{len(clash)} {column}s stand in several sources ({named}), such as {min(clash)!r}; they"
        " are taken as different ones: the source is put in front of them"
    )
    return values.where(~values.isin(clash) | (sources == ""), sources + "/" + values), [note]


def _share_conflicting(table: pd.DataFrame) -> float:
    """Return the share of ids with several traits, none of which differ within one source."""
    known = table[table["trait"] != ""]
    if known.empty:
        return 0.0
    within = known.groupby(["id", "source"])["trait"].nunique().groupby("id").max()
    return float(((known.groupby("id")["trait"].nunique() > 1) & (within == 1)).mean())
