"""Drills keep their tables for the docs if asked to: MELANOMA_KEEP_FIGURES=1 make drill."""

import os
from collections.abc import Sequence

from benchmarks.figures import keep


def keep_if_asked(name: str, rows: Sequence[dict[str, str]]) -> None:
    """Write docs/figures/NAME.json if MELANOMA_KEEP_FIGURES is set."""
    if os.environ.get("MELANOMA_KEEP_FIGURES"):
        keep(name, list(rows))
