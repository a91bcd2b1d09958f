"""Several images of one lesion as one unit: which images, and their averaged logits.

Server, contract and report judge such units alike: the logits of the images are averaged before the
calibrator, an image counts once, and a lesion with an unusual image is not assessed. Knows nothing
of networks.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
import pandas as pd

from melanoma.arrays import BoolArray, FloatArray, IntArray
from melanoma.task import Task

MIN_IMAGES, MAX_IMAGES = 2, 6
SAME_IMAGE = 1e-3
"""How far apart logits of one image may be: replicas differ by less, and two images hardly ever
agree in all classes."""


@dataclasses.dataclass(frozen=True)
class Units:
    """N images, or N lesions with several images each.

    Attributes:
        logits: ``(N, C)``, averaged over the images of a lesion.
        labels: ``(N,)`` class indices; of a lesion that of a target, if one of its images shows
            one.
        groups: ``(N,)`` integers, the group of each unit.
        unusual: ``(N,)``, which are not assessed: a lesion if one of its images is not.
        num_images: ``(N,)``, 1, or from 2 to 6.
        first: ``(N,)``, the position of one image of each unit among all images.
    """

    logits: FloatArray
    labels: IntArray
    groups: IntArray
    unusual: BoolArray
    num_images: IntArray
    first: IntArray

    def __len__(self) -> int:
        return len(self.labels)


def same_image(first: FloatArray, second: FloatArray) -> bool:
    """Return whether logits ``(C,)`` come from one image."""
    return bool(np.abs(first - second).max() <= SAME_IMAGE)


def lesion_units(
    rows: pd.DataFrame, logits: FloatArray, unusual: BoolArray, task: Task, *, seed: int
) -> Units:
    """Return the lesions with at least two different images; of more than six, six are drawn.

    Args:
        rows: N records with image_id, lesion_id, group and label.
        logits: ``(N, C)`` of their images.
        unusual: ``(N,)``, which images are not assessed.
        task: the classes.
        seed: seed of the draw.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    table = pd.DataFrame(
        {
            "lesion": rows["lesion_id"].to_numpy()[order],
            "group": pd.factorize(rows["group"], sort=True)[0][order],
            "label": rows["label"].to_numpy()[order],
            "unusual": unusual[order],
            "position": order,
        }
    )
    table["harmless"] = ~task.is_target(table["label"].to_numpy())
    with_logits = pd.concat([table, pd.DataFrame(logits[order].astype(np.float64))], axis=1)
    columns = list(range(logits.shape[1]))
    known = with_logits[(with_logits["lesion"] != "").to_numpy()]
    values = known[columns].to_numpy()
    chosen = [
        position
        for positions in known.groupby("lesion").indices.values()
        for position in _different(values, positions)
    ]
    drawn = known.iloc[chosen]
    several = drawn[drawn.groupby("lesion")["lesion"].transform("size") >= MIN_IMAGES]
    by_lesion = several.sort_values("harmless", kind="stable").groupby("lesion", sort=True)
    first = by_lesion.first()
    return Units(
        by_lesion[columns].mean().to_numpy(),
        first["label"].to_numpy(),
        first["group"].to_numpy(),
        by_lesion["unusual"].any().to_numpy(dtype=bool),
        by_lesion.size().to_numpy(),
        first["position"].to_numpy(),
    )


def _different(logits: FloatArray, positions: Iterable[int]) -> list[int]:
    """Return the first six of some positions whose images differ."""
    chosen: list[int] = []
    for position in positions:
        if len(chosen) == MAX_IMAGES:
            break
        if not any(same_image(logits[position], logits[other]) for other in chosen):
            chosen.append(position)
    return chosen
