"""The page of a scorecard: what each kind of heatmap supports, and the numbers behind it."""

import html
from collections.abc import Mapping
from typing import Any

from melanoma.evidence.page import html_table, page
from melanoma.explain.methods import METHODS
from melanoma.explain.scorecard import (
    LEAST_AUROC,
    LEAST_GAIN,
    LEAST_STABLE,
    MIN_GROUPS,
    MOST_RANDOM,
)

FAILED = {
    "network": "the network may not rank the targets on these images",
    "enough_masks": f"lesion masks of fewer than {MIN_GROUPS} groups",
    "parameters": "a network with random weights has similar maps",
    "labels": "a last layer fitted to shuffled labels has similar maps",
    "inside": "hardly more of the map lies in the lesion than of another image's map",
    "pointing": "its peak lies in the lesion hardly more often than another image's",
    "deletion": "what it marks matters no more to the score than what another image's map marks",
    "stability": "noise of two grey levels changes it",
}
"""What it means that a check does not hold."""
_ROWS = (
    ("inside", "share of the map inside the lesion", "higher"),
    ("inside_other", "the same with the map of another image", ""),
    ("area", "share of the image that is lesion", ""),
    ("inside_difference", "inside: own map less the other's", f"above {LEAST_GAIN}"),
    ("pointing", "peak inside the lesion", "higher"),
    ("pointing_other", "the same with the map of another image", ""),
    ("pointing_difference", "pointing: own map less the other's", f"above {LEAST_GAIN}"),
    ("deletion", "score lost when the highest 15 % of the map are blurred", "higher"),
    ("deletion_other", "the same with the map of another image", ""),
    ("deletion_difference", "deletion: own map less the other's", "above 0"),
    ("random_similarity", "similarity to the map of random weights", f"below {MOST_RANDOM}"),
    (
        "shuffled_similarity",
        "similarity to the map of a last layer fitted to shuffled labels",
        f"below {MOST_RANDOM}",
    ),
    ("stability", "similarity after noise of two grey levels", f"above {LEAST_STABLE}"),
)


def scorecard_page(found: Mapping[str, Any]) -> str:
    """Return the HTML page of a scorecard, from the content of scorecard.json."""
    methods = {
        name: method for name, method in found["methods"].items() if "unavailable" not in method
    }
    absent = [
        f"<p>{html.escape(METHODS[name].title)}: {html.escape(method['unavailable'])}</p>"
        for name, method in found["methods"].items()
        if "unavailable" in method
    ]
    low = found["auroc_low"]
    body = [
        f"<h1>What the heatmaps of {html.escape(found['target'])} are worth</h1>",
        f"<p>{html.escape(found['population'])}: {found['num_images']} images of as many groups,"
        f" {found['num_masks']} of them with a lesion mask. Bundle"
        f" {html.escape(found['bundle']['version'])}.</p>",
        f'<div class="verdict">{"".join(map(_verdict, methods, methods.values()))}</div>',
        "<h2>Measures</h2>",
        "<p>Means over groups, with bounds that each hold with 99 % confidence. A map that only"
        " knows that lesions lie in the middle does as well on one image as on the next: so every"
        " measure stands beside that of the map of another image, and the difference counts."
        " Similarity is the rank correlation of two maps. The 95 % interval of the network's AUROC"
        " in this evaluation, within sources where there are several, starts at"
        f" {'an unknown value' if low is None else f'{low:.2f}'}; a map counts only above"
        f" {LEAST_AUROC}.</p>",
        f'<div class="wide">{_table(methods)}</div>',
        *absent,
        "<p>A map that is supported marks lesions on images like these. It does not show which"
        " signs of a lesion the network uses, and is no evidence of disease.</p>",
    ]
    return page("Melanoma triage: heatmaps", "\n".join(body))


def _verdict(name: str, method: Mapping[str, Any]) -> str:
    title = f"<b>{html.escape(METHODS[name].title)}</b>"
    if method["claim"] == "supported":
        return f"<p>{title}: supported. It marks the lesion of the image that it was made for.</p>"
    why = "; ".join(FAILED[check] for check in method["failed"])
    return f"<p>{title}: not supported, because {html.escape(why)}.</p>"


def _table(methods: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            html.escape(title),
            *(_cell(method["measures"][name]) for method in methods.values()),
            f"<small>{html.escape(wanted)}</small>",
        ]
        for name, title, wanted in _ROWS
    ]
    return html_table(["", *(METHODS[name].title for name in methods), "wanted"], rows)


def _cell(measure: Mapping[str, float] | None) -> str:
    if measure is None:
        return "<small>not measured</small>"
    return f"{measure['value']:.2f} <small>{measure['low']:.2f} to {measure['high']:.2f}</small>"
