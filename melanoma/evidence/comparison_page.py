"""The page of a comparison of two models."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from melanoma.evidence.page import html_table, page
from melanoma.evidence.paired import paired_title

TITLE = "Melanoma triage: two models on the same images"
_HEAD = ["", "A", "B", "B - A", "could be seen", "p"]


def comparison_page(found: Mapping[str, Any], counts: Sequence[str], notes: Sequence[str]) -> str:
    """Return the HTML page of a comparison.

    Args:
        found: the content of comparison.json.
        counts: sentences on what was compared.
        notes: what a reader should know.
    """
    known = found["known"]
    parts = [
        f"<h1>{TITLE}</h1>",
        f"<p>A: {html.escape(found['a'])}<br>B: {html.escape(found['b'])}</p>",
        *(f"<p>{html.escape(line)}</p>" for line in counts),
        _table(found),
        *(f"<p class=verdict>{html.escape(line)}</p>" for line in notes[:1]),
        *(f"<p><small>{html.escape(line)}</small></p>" for line in notes[1:]),
        *(["<h2>Images known to a model</h2>", _table(known)] if known is not None else []),
    ]
    return page(TITLE, "\n".join(parts))


def _table(part: Mapping[str, Any]) -> str:
    rows = [
        [
            html.escape(paired_title(name)),
            *(_number(each[key]) for key in ("a", "b")),
            _interval(each),
            _number(each["detectable"]),
            "" if (p := part["p_values"].get(name)) is None else f"{p:.2g}",
        ]
        for name, each in part["differences"].items()
    ]
    return f"<div class=wide>{html_table(_HEAD, rows)}</div>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _interval(each: Mapping[str, Any]) -> str:
    if each["value"] is None:
        return "undefined here"
    if each["low"] is None:
        return f"{each['value']:+.3f} <small>no interval</small>"
    return f"{each['value']:+.3f} <small>{each['low']:+.3f} to {each['high']:+.3f}</small>"
