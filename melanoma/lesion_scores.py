"""Joins the scores of images to those of lesions, for `melanoma score --lesions`."""

import unicodedata
from typing import Any

import numpy as np
import pandas as pd

from melanoma.bundle.deciding import Decider, Prediction
from melanoma.data.names import shown, without_suffix
from melanoma.data.tables import read_file
from melanoma.errors import DataError, RepeatedImageError
from melanoma.evidence.several_images import MAX_IMAGES
from melanoma.io.storage import AnyPath
from melanoma.judging import judged_row

LESION_SCORES = "lesions.parquet"
_UNREADABLE = "unreadable_image"
_REPEATED = "repeated_image"


def read_lesions(path: AnyPath, names: list[str]) -> dict[str, list[str]]:
    """Return the paths of the images of each lesion, sorted.

    Args:
        path: a CSV or parquet file with the columns image (the path of an image below FOLDER, or
            its file name with or without suffix) and lesion_id.
        names: the paths of all images below FOLDER.

    Raises:
        DataError: if it is no table, a column or a cell is missing, an image is not there, has two
            lesions or could be several files, or a lesion has more than six images.
    """
    table = read_file(path, "--lesions")
    if missing := {"image", "lesion_id"} - set(table.columns):
        raise DataError(
            f"--lesions must have the columns image and lesion_id; {shown(path.name)} lacks"
            f" {' and '.join(sorted(missing))}. Add what is missing."
        )
    table = table[["image", "lesion_id"]].fillna("").astype(str).map(_plain)
    if (blank := int((table == "").any(axis=1).sum())) or table.empty:
        raise DataError(
            f"--lesions must name an image and a lesion in every row; {blank} of {len(table)} rows"
            " do not. Complete or remove them."
            if blank
            else "--lesions must have a row for every image of a lesion; it has none. Add them."
        )
    places: dict[str, set[str]] = {}
    for name in names:
        last = name.rpartition("/")[2]
        for alias in (name, last, without_suffix(last)):
            places.setdefault(_plain(alias), set()).add(name)
    found: dict[str, list[str]] = {}
    lesion_of: dict[str, str] = {}
    for image, lesion in zip(table["image"], table["lesion_id"], strict=True):
        known = places.get(image, set())
        if len(known) != 1:
            what = "is not below FOLDER" if not known else "could be several files below FOLDER"
            raise DataError(f"--lesions names {image!r}, which {what}. Correct the row.")
        (name,) = known
        if lesion_of.setdefault(name, lesion) != lesion:
            raise DataError(f"--lesions gives {image!r} two lesions. Remove one of the rows.")
        found.setdefault(lesion, []).append(name)
    lesions = {lesion: sorted(set(images)) for lesion, images in found.items()}
    for lesion, images in lesions.items():
        if len(images) > MAX_IMAGES:
            raise DataError(
                f"A lesion must have at most {MAX_IMAGES} images; {lesion!r} of --lesions has"
                f" {len(images)}. Leave some out."
            )
    return lesions


def _plain(text: str) -> str:
    """Return a text without blanks around it, in the Unicode form of tables."""
    return unicodedata.normalize("NFC", text.strip())


def lesion_scores(
    scores: pd.DataFrame, lesions: dict[str, list[str]], decider: Decider
) -> pd.DataFrame:
    """Return a row for each lesion: its images, logits, probabilities and decision.

    A lesion with an image that could not be judged, or with one image under two names, gets
    cannot_assess, and no numbers.

    Args:
        scores: the table of scores.parquet.
        lesions: the paths of the images of each lesion.
        decider: that of the bundle.
    """
    by_path = scores.set_index("path")
    rows = []
    for lesion, images in lesions.items():
        chosen = by_path.loc[images]
        head = {"lesion_id": lesion, "num_images": len(images)}
        rows.append({**head, **_judged(chosen, decider)})
    return pd.DataFrame(rows)


def _judged(images: pd.DataFrame, decider: Decider) -> dict[str, Any]:
    task = decider.manifest.task
    if (images["reason"] != "").any():
        return judged_row(task, (_UNREADABLE, "an image of the lesion could not be judged"))
    predictions = [
        Prediction(
            row[[f"logit_{name}" for name in task.classes]].to_numpy(dtype=np.float64),
            row[[f"probability_{name}" for name in task.classes]].to_numpy(dtype=np.float64),
            row["decision"],
            tuple(filter(None, row["detail"].split(", "))),
            float("nan"),
        )
        for _, row in images.iterrows()
    ]
    try:
        return judged_row(task, decider.of_lesion(predictions).together)
    except RepeatedImageError:
        return judged_row(task, (_REPEATED, "two images of the lesion are the same"))
