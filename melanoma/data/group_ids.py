"""Ids of patients and lesions as tables hold them.

Finds the ids that mean "not known" and the ids that two hospitals use for different things. Knows
nothing of splits.
"""

import re
from collections import Counter

import pandas as pd

_UNKNOWN = re.compile(
    r"<?(nan|none|null|nil|na|nat|n/?\.?a\.?|n-a|#n/a|#nv|unknown|unk|not ?known|not ?available|not"
    r" ?recorded|missing|undefined)>?|[\s?_./*\\-]*"
)
_MIN_CONFLICTING = 0.1
"""Largest share of conflicting ids at which two sources are still taken to use the same ids.

If more of the ids that they share have two labels, each source numbers for itself.
"""


def known_ids(values: pd.Series, column: str) -> tuple[pd.Series, list[str]]:
    """Blank the ids that mean "not known".

    Args:
        values: ids as the table holds them.
        column: the name of the ids in messages.

    Returns:
        The ids, and a note for every word that was read as "not known".
    """
    unknown = (
        values.str.casefold().map(lambda text: _UNKNOWN.fullmatch(text) is not None).astype(bool)
    )
    words = Counter(values[unknown & (values != "")])
    notes = [
        f"{num} images have {column} {word!r}, which is read as not known"
        for word, num in words.most_common()
    ]
    return values.where(~unknown, ""), notes


def tell_sources_apart(
    values: pd.Series, sources: pd.Series, traits: pd.Series, column: str
) -> tuple[pd.Series, list[str]]:
    """Prefix ids that several sources use for different patients or lesions with the source.

    An id that several sources share is taken as one id, because that never splits images that
    belong together. The exception: so many shared ids have different traits in different sources
    that they must be different ids. Shared ids that are plain numbers are noted, because each
    hospital may count from 1.

    Args:
        values: ids, blank if not known.
        sources: of the same rows, blank if not known.
        traits: what cannot differ within one id (the class of a lesion, the sex of a patient),
            blank if not known.
        column: the name of the ids in messages.

    Returns:
        The ids, and notes on what was found.
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
        note = (
            f"{len(numbers)} {column}s are plain numbers that several sources use, such as"
            f" {min(numbers)!r}; they are taken as the same. If they are not, put the source in"
            " front of them"
        )
        return values, [note]
    clash = set(shared)
    of_clash = table[table["id"].isin(clash)]
    named = " and ".join(sorted(set(of_clash["source"]))[:3])
    note = (
        f"{len(clash)} {column}s are used by several sources ({named}), such as {min(clash)!r};"
        " they are taken as different: the source is put in front of them"
    )
    return values.where(~values.isin(clash) | (sources == ""), sources + "/" + values), [note]


def _share_conflicting(table: pd.DataFrame) -> float:
    """Return the share of ids whose trait differs between sources but not within one."""
    known = table[table["trait"] != ""]
    if known.empty:
        return 0.0
    within = known.groupby(["id", "source"])["trait"].nunique().groupby("id").max()
    return float(((known.groupby("id")["trait"].nunique() > 1) & (within == 1)).mean())
