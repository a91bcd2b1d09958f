"""Audits a prepared data set: images of one lesion under several ids, and shortcuts.

Images of every split are compared with each other; the diagnoses of pairs that are listed are
shown. What ranks the targets is measured on the train split alone, so that no access to calibration
or test is spent.
"""

import dataclasses
from typing import Any

import cv2
import numpy as np
import pandas as pd

from melanoma.arrays import FloatArray, IntArray, Uint8Array
from melanoma.audit.page import audit_page
from melanoma.audit.second_views import (
    CONFIRMED,
    POSSIBLE,
    confirmed_pairs,
    find_features,
    in_chunks,
    proposed_pairs,
)
from melanoma.audit.shortcuts import Clue, appearance, find_shortcuts, source_accuracy
from melanoma.data.dataset import ImageDataset, PreparedData, open_prepared
from melanoma.data.groups import join_groups
from melanoma.evidence.intervals import clopper_pearson
from melanoma.executor import Counted, silently
from melanoma.io.files import new_folder, write_json, write_text
from melanoma.io.storage import AnyPath, to_path

REPORT, PAGE, PAIRS = "audit.json", "audit.html", "same_lesion.csv"
MAX_KNOWN = 200
"""Lesions with several images on which the auditor tells what it can miss."""
_SEED = 0


def audit(
    dataset: str | AnyPath, out: str | AnyPath | None = None, *, counted: Counted = silently
) -> dict[str, Any]:
    """Look for leaks and shortcuts in a prepared data set.

    Example:
        >>> found = audit(dataset)
        >>> found["leak"], found["leaks"]["pairs"]
        (False, [])

    Args:
        dataset: folder of the data set.
        out: folder for audit.json, audit.html and same_lesion.csv; an earlier audit there is
            replaced. None writes nothing.
        counted: shows the progress of each step.

    Returns:
        leak and shortcut (whether one was found); leaks (pairs, possible_pairs, known_views and
        counts); shortcuts (clues, source_from_pixels); the data set's population, hashes and
        number of images.

    Raises:
        DataError: if the data set cannot be read.
    """
    data = open_prepared(to_path(dataset))
    if out is None:
        return _audit(data, counted)[0]
    with new_folder(to_path(out), replace_if=REPORT) as work:
        found, images = _audit(data, counted)
        write_json(work / REPORT, found)
        write_text(work / PAGE, audit_page(found, images))
        pairs = pd.DataFrame(found["leaks"]["pairs"], columns=["image_id_a", "image_id_b"])
        write_text(work / PAIRS, pairs.to_csv(index=False))
    return found


def _audit(data: PreparedData, counted: Counted) -> tuple[dict[str, Any], "_Images"]:
    cv2.setNumThreads(1)  # one image per thread is faster than several threads per image
    images = _Images(data)
    leaks = _leaks(data.records, images, counted)
    clues, told = _shortcuts(data, counted)
    return {
        "population": data.manifest.population,
        "split_hash": data.manifest.split_hash,
        "data_hash": data.content_hash,
        "num_images": len(data.records),
        "leak": bool(leaks["pairs"]),
        "shortcut": any(clue.is_shortcut for clue in clues),
        "leaks": leaks,
        "shortcuts": {
            "clues": [dataclasses.asdict(clue) for clue in clues],
            "source_from_pixels": told,
        },
    }, images


class _Images:
    """The stored images of a data set, by index of its records or by id."""

    def __init__(self, data: PreparedData, rows: pd.DataFrame | None = None) -> None:
        self._images = ImageDataset(data, data.records if rows is None else rows)
        self._places = {name: place for place, name in enumerate(self._images.image_ids)}

    def __len__(self) -> int:
        return len(self._images)

    def at(self, index: int) -> Uint8Array:
        """Return the image at an index."""
        image: Uint8Array = self._images.images([index])[0].numpy()
        return image

    def __call__(self, image_id: str) -> Uint8Array:
        """Return the image with an id."""
        return self.at(self._places[image_id])


def _leaks(records: pd.DataFrame, images: _Images, counted: Counted) -> dict[str, Any]:
    """Return the pairs of images that show one lesion in two groups, and what may be missed."""
    with counted("reading", "images") as progress:
        features, layouts = find_features(images.at, len(images), progress)
    with counted("comparing", "images") as progress:
        pairs = proposed_pairs(features, layouts, progress)
    group = pd.factorize(records["group"])[0]
    known = _known_views(records)
    across = pairs[group[pairs[:, 0]] != group[pairs[:, 1]]]
    proposed = {tuple(pair) for pair in pairs.tolist()}
    findable = np.array([tuple(pair) in proposed for pair in known.tolist()], dtype=bool)
    asked = np.concatenate([across, known])
    with counted("confirming", "pairs") as progress:
        agreeing = confirmed_pairs(features, asked, progress)
    found, again = agreeing[: len(across)], findable & (agreeing[len(across) :] >= CONFIRMED)
    order = np.argsort(-found, kind="stable")
    listed = [_pair(records, across[i], int(found[i])) for i in order if found[i] >= POSSIBLE]
    confirmed = [pair for pair in listed if pair["agreeing_features"] >= CONFIRMED]
    low, high = clopper_pearson(int(again.sum()), len(known))
    return {
        "pairs": confirmed,
        "possible_pairs": listed[len(confirmed) :],
        "num_proposed": len(across),
        "num_lesions": _num_joined(confirmed),
        "num_across_splits": sum(pair["split_a"] != pair["split_b"] for pair in confirmed),
        "num_two_labels": sum(pair["dx_a"] != pair["dx_b"] for pair in confirmed),
        "known_views": {
            "num": len(known),
            "found": int(again.sum()),
            **({"value": float(again.mean()), "low": low, "high": high} if len(known) else {}),
        },
    }


def _known_views(records: pd.DataFrame) -> IntArray:
    """Return two images of each of up to 200 lesions with several, drawn at random, ``(K, 2)``."""
    rng = np.random.default_rng(_SEED)
    named = np.flatnonzero(records["lesion_id"] != "")
    lesions = records["lesion_id"].to_numpy()[named]
    order = rng.permutation(len(named))
    views = pd.Series(named[order]).groupby(lesions[order], sort=False).agg(list)
    several = [sorted(places[:2]) for places in views if len(places) > 1][:MAX_KNOWN]
    return np.array(several, dtype=np.int64).reshape(-1, 2)


def _pair(records: pd.DataFrame, pair: IntArray, agreeing: int) -> dict[str, Any]:
    first, second = (records.iloc[int(place)] for place in pair)
    where = ("image_id", "lesion_id", "dx", "split", "source")
    return {
        **{f"{name}_a": str(first[name]) for name in where},
        **{f"{name}_b": str(second[name]) for name in where},
        "agreeing_features": agreeing,
    }


def _num_joined(pairs: list[dict[str, Any]]) -> int:
    """Return the number of lesions that some pairs show."""
    ids = sorted({pair[side] for pair in pairs for side in ("image_id_a", "image_id_b")})
    joined = [(pair["image_id_a"], pair["image_id_b"]) for pair in pairs]
    return len(set(join_groups(ids, [], joined)))


def _shortcuts(data: PreparedData, counted: Counted) -> tuple[list[Clue], dict[str, float] | None]:
    rows = data.rows("train")
    images = _Images(data, rows)
    with counted("measuring", "images") as progress:
        looks: FloatArray = np.stack(
            in_chunks(lambda place: appearance(images.at(place)), range(len(rows)), progress)
        )
    is_target = data.task.is_target(rows["label"].to_numpy())
    return find_shortcuts(rows, is_target, looks), source_accuracy(rows, looks)


def describe_audit(found: dict[str, Any]) -> str:
    """Return what an audit found, as text for a terminal."""
    leaks, views = found["leaks"], found["leaks"]["known_views"]
    num = len(leaks["pairs"])
    lines = [
        (
            f"leak: {num} pairs of images show one lesion in two groups ({leaks['num_lesions']}"
            f" lesions; {leaks['num_across_splits']} pairs across splits,"
            f" {leaks['num_two_labels']} with two diagnoses)"
            if num
            else "no leak: no two groups show one lesion"
        ),
        f"{len(leaks['possible_pairs'])} more pairs may show one lesion: too alike to dismiss, too"
        " little to say so. Look at them",
    ]
    if views["num"]:
        lines.append(
            f"of {views['num']} lesions known to have several images, {views['found']} were found"
            f" ({views['value']:.2f} [{views['low']:.2f}, {views['high']:.2f}]); so much can be"
            " missed"
        )
    clues = found["shortcuts"]["clues"]
    lines += [f"shortcut: {_said(clue)}" for clue in clues if clue["is_shortcut"]]
    if not found["shortcut"]:
        lines.append("no shortcut: no clue without a lesion ranks the targets")
    told = found["shortcuts"]["source_from_pixels"]
    if told:
        lines.append(
            f"light and colour tell the source of {told['accuracy']:.0%} of images (always naming"
            f" the largest: {told['largest']:.0%})"
        )
    return "\n".join(lines)


def _said(clue: dict[str, Any]) -> str:
    return (
        f"{clue['meaning']} ranks the targets with AUROC {clue['auroc']:.2f}"
        f" [{clue['low']:.2f}, {clue['high']:.2f}]"
    )
