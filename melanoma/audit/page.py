"""The page of an audit: the verdict, the pairs side by side, and what each clue says."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from melanoma.arrays import Uint8Array
from melanoma.audit.shortcuts import SHORTCUT_AUROC
from melanoma.evidence.page import html_table, page

MAX_PAIRS = 200
"""Pairs shown of each kind; audit.json lists all."""
_WIDTH_PX, _QUALITY = 200, 80
_STYLE = """<style>
 .pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem }
 figure { margin: 0 } figure img { width: 50%; vertical-align: top }
 figcaption { font-size: .8rem; color: #52606d; overflow-wrap: anywhere }
 .bar { position: relative; height: .8rem; width: 12rem; background: #e4e7eb }
 .bar i { position: absolute; top: 0; bottom: 0; background: #b83280 }
 .bar b { position: absolute; top: -.2rem; bottom: -.2rem; width: 2px; background: #1f2933 }
</style>"""
_NOT_JUDGED = "does not vary, or too few targets"


def audit_page(found: Mapping[str, Any], images: Callable[[str], Uint8Array]) -> str:
    """Return the HTML page of an audit, which holds the images of the pairs.

    Args:
        found: the content of audit.json.
        images: gives the stored image ``(H, W, 3)`` with an id.
    """
    leaks = found["leaks"]
    parts = [
        _STYLE,
        f"<h1>Audit of {html.escape(found['population'])}</h1>",
        _verdict(found),
        _missed(leaks["known_views"]),
        _pairs(
            "One lesion in two groups",
            "Enough details of both images agree on one rotation, scale and shift. Join them with"
            " <code>melanoma data prepare --same-lesion same_lesion.csv</code>. The number is that"
            " of agreeing details.",
            leaks["pairs"],
            images,
        ),
        _pairs(
            "Pairs to look at",
            "Some details agree, but not enough to be sure: a hair or a ruler can do that. They do"
            " not count as leaks. Add the true ones to the file by hand.",
            leaks["possible_pairs"],
            images,
        ),
        _clues(found["shortcuts"]),
        f"<p><small>{found['num_images']} images; split hash {found['split_hash'][:12]}; data hash"
        f" {found['data_hash'][:12]}. This page holds images of the data set.</small></p>",
    ]
    return page("Melanoma triage: audit", "\n".join(part for part in parts if part))


def _verdict(found: Mapping[str, Any]) -> str:
    leaks, num = found["leaks"], len(found["leaks"]["pairs"])
    leak = (
        f"<b>Leak.</b> {num} pairs of images show one lesion in two groups: {leaks['num_lesions']}"
        f" lesions. {leaks['num_across_splits']} pairs stand in two splits,"
        f" {leaks['num_two_labels']} have two diagnoses."
        if num
        else "<b>No leak was found.</b> No two groups show one lesion."
    )
    named = [clue["meaning"] for clue in found["shortcuts"]["clues"] if clue["is_shortcut"]]
    shortcut = (
        f"<b>Shortcut.</b> The targets are ranked without a lesion by {_listed(named)}."
        if named
        else "<b>No shortcut was found.</b>"
    )
    return f'<div class="verdict"><p>{leak}</p><p>{shortcut}</p></div>'


def _listed(words: Sequence[str]) -> str:
    return html.escape("; ".join(words))


def _missed(views: Mapping[str, Any]) -> str:
    if not views["num"]:
        return (
            "<p>No lesion is known to have several images, so this audit cannot tell how many it"
            " misses.</p>"
        )
    return (
        f"<p>What the audit can miss: of {views['num']} lesions that are known to have several"
        f" images, it found {views['found']} again ({views['value']:.0%}; 95 % interval"
        f" {views['low']:.0%} to {views['high']:.0%}).</p>"
    )


def _pairs(
    title: str,
    meaning: str,
    pairs: Sequence[Mapping[str, Any]],
    images: Callable[[str], Uint8Array],
) -> str:
    if not pairs:
        return ""
    more = len(pairs) - MAX_PAIRS
    rest = f"<p>{more} more are listed in audit.json.</p>" if more > 0 else ""
    shown = "".join(_figure(pair, images) for pair in pairs[:MAX_PAIRS])
    return f'<h2>{title}: {len(pairs)}</h2><p>{meaning}</p><div class="pairs">{shown}</div>{rest}'


def _figure(pair: Mapping[str, Any], images: Callable[[str], Uint8Array]) -> str:
    sides = [
        f"{pair[f'image_id_{side}']} ({pair[f'dx_{side}']}, {pair[f'split_{side}']})"
        for side in ("a", "b")
    ]
    shown = "".join(_image(pair[f"image_id_{side}"], images) for side in ("a", "b"))
    return (
        f"<figure>{shown}<figcaption>{html.escape(' and '.join(sides))}:"
        f" {pair['agreeing_features']}</figcaption></figure>"
    )


def _image(image_id: str, images: Callable[[str], Uint8Array]) -> str:
    small, packed = Image.fromarray(images(image_id)), io.BytesIO()
    small.thumbnail((_WIDTH_PX, _WIDTH_PX))
    small.save(packed, "JPEG", quality=_QUALITY)
    data = base64.b64encode(packed.getvalue()).decode()
    return f'<img alt="{html.escape(image_id)}" src="data:image/jpeg;base64,{data}">'


def _clues(shortcuts: Mapping[str, Any]) -> str:
    rows = []
    for clue in shortcuts["clues"]:
        name = html.escape(clue["meaning"])
        if clue["auroc"] is None:
            rows.append([name, f"<small>{_NOT_JUDGED}</small>", "", ""])
            continue
        interval = f"{clue['auroc']:.2f} <small>{clue['low']:.2f} to {clue['high']:.2f}</small>"
        rows.append([name, interval, _bar(clue), "shortcut" if clue["is_shortcut"] else ""])
    told = shortcuts["source_from_pixels"]
    source = (
        f" Light and colour alone tell the source of {told['accuracy']:.0%} of the images; always"
        f" naming the largest source would be right for {told['largest']:.0%}."
        if told
        else ""
    )
    return (
        "<h2>What ranks the targets without a lesion</h2>"
        "<p>AUROC of a logistic regression that sees this clue and nothing else, on folds that it"
        " was not fitted to, one image per group of the train split, with 98 % intervals. It is a"
        f" shortcut if the interval lies above {SHORTCUT_AUROC} (the mark). A network can learn it"
        " instead of the lesion, and will then fail where the clue is missing: read the figures"
        f" within sources, and by reference standard.{source}</p>"
        f'<div class="wide">{html_table(["clue", "AUROC", "0.3 to 1", ""], rows)}</div>'
    )


def _bar(clue: Mapping[str, Any]) -> str:
    def at(value: float) -> float:
        return 100 * min(max((value - 0.3) / 0.7, 0), 1)

    left, right = at(clue["low"]), at(clue["high"])
    return (
        f'<div class="bar"><i style="left:{left:.0f}%;width:{max(right - left, 1):.0f}%"></i>'
        f'<b style="left:{at(SHORTCUT_AUROC):.0f}%"></b></div>'
    )
