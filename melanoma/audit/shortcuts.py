"""Looks for shortcuts: what ranks the targets without showing a lesion.

A network can learn such a clue instead of the lesion. Then its figures are good on images of the
same collection and bad elsewhere. Each clue gets a logistic regression, and its scores on folds
that it was not fitted to. Only the train split is looked at, because labels are compared.
"""

import dataclasses
import io
from collections.abc import Iterable

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from melanoma.arrays import BoolArray, FloatArray, IntArray, Uint8Array
from melanoma.evidence.intervals import MIN_TARGETS, auroc_interval
from melanoma.evidence.operating_point import choose_units
from melanoma.imaging.descriptors import NUM_DESCRIPTORS, descriptors, without_padding

SHORTCUT_AUROC = 0.6
"""A clue is a shortcut if its AUROC is above this with 99 % confidence."""
_CONFIDENCE = 0.98
"""Two-sided, so that the lower bound alone has 99 %."""
_FOLDS, _LEAST_GROUPS = 5, 20
_BORDER, _ZONES = 0.1, 4


@dataclasses.dataclass(frozen=True)
class Clue:
    """What one clue says of the targets.

    Attributes:
        name: of the clue.
        meaning: what it is, for people.
        is_shortcut: whether it ranks the targets too well; None if that could not be judged.
        auroc: of targets against others, one image per group, on folds not fitted to; None if there
            are too few targets or the clue does not vary.
        low: lower bound of the AUROC, with 99 % confidence.
        high: its upper bound.
        num_target: number of targets counted.
        num_other: number of others counted.
    """

    name: str
    meaning: str
    is_shortcut: bool | None = None
    auroc: float | None = None
    low: float | None = None
    high: float | None = None
    num_target: int = 0
    num_other: int = 0


def appearance(stored: Uint8Array) -> FloatArray:
    """Return what an image looks like apart from its lesion, ``(K,)``.

    First light, colour and sharpness of the whole, then mean and deviation of the colours in zones
    along its border, then the size of the image as a JPEG.
    """
    content = without_padding(stored)
    return np.concatenate([descriptors(stored), _border(content), [_jpeg_bytes(content)]])


def _border(content: Uint8Array) -> FloatArray:
    """Return mean and deviation of each colour in 16 zones within a tenth of the border."""
    small = np.asarray(Image.fromarray(content).resize((60, 60), Image.Resampling.BOX), np.float64)
    width = int(60 * _BORDER)
    turned = small.swapaxes(0, 1)
    sides = (small[:width], small[-width:], turned[:width], turned[-width:])
    zones = [zone for side in sides for zone in np.array_split(side, _ZONES, axis=1)]
    flat = np.stack([zone.reshape(-1, 3) for zone in zones])
    return np.concatenate([flat.mean(axis=1).ravel(), flat.std(axis=1).ravel()])


def _jpeg_bytes(content: Uint8Array) -> int:
    packed = io.BytesIO()
    Image.fromarray(content).save(packed, "JPEG", quality=90)
    return packed.tell()


def find_shortcuts(rows: pd.DataFrame, is_target: BoolArray, looks: FloatArray) -> list[Clue]:
    """Return what each clue says of the targets.

    Args:
        rows: N records of the train split.
        is_target: ``(N,)``.
        looks: ``(N, K)``, the `appearance` of each image.
    """
    groups = pd.factorize(rows["group"])[0]
    size = rows["width_px"].astype(str) + " x " + rows["height_px"].astype(str)
    relative = np.log(rows["file_bytes"].to_numpy() / looks[:, -1])
    light, border = looks[:, :NUM_DESCRIPTORS], looks[:, NUM_DESCRIPTORS:-1]
    asked: Iterable[tuple[str, str, pd.Series | FloatArray]] = (
        ("source", "the collection or camera", rows["source"]),
        ("source_from_pixels", "the source, as light and colour of the image tell it", light),
        ("reference_standard", "how the diagnosis was made", rows["dx_type"]),
        ("image_size", "width and height of the image", size),
        ("compression", "size of the file, against the same image packed anew", relative[:, None]),
        ("border", "the colours along the border of the image", border),
    )
    targets, others = choose_units(is_target, groups, seed=0)
    few = min(len(targets), len(others)) < MIN_TARGETS
    found = []
    for name, meaning, values in asked:
        scores = None
        if not few and name == "source_from_pixels":
            scores = _through_source(light, _large_sources(rows), is_target, groups)
        elif not few:
            scores = _scores(values, is_target, groups)
        clue = Clue(name, meaning, num_target=len(targets), num_other=len(others))
        units = np.concatenate([targets, others])
        found.append(clue if scores is None else _judged(clue, scores[units], is_target[units]))
    return found


def _judged(clue: Clue, scores: FloatArray, is_target: BoolArray) -> Clue:
    auroc = float(roc_auc_score(is_target, scores))
    low, high = auroc_interval(auroc, clue.num_target, clue.num_other, confidence=_CONFIDENCE)
    return dataclasses.replace(
        clue, is_shortcut=low > SHORTCUT_AUROC, auroc=auroc, low=low, high=high
    )


def source_accuracy(rows: pd.DataFrame, looks: FloatArray) -> dict[str, float] | None:
    """Return how well the source is told from light and colour, or None with one source.

    Returns:
        accuracy, on folds not fitted to, and that of always naming the most frequent (largest).
    """
    source = _large_sources(rows)
    told = _told_source(looks[:, :NUM_DESCRIPTORS], source, pd.factorize(rows["group"])[0])
    if told is None:
        return None
    names = np.unique(source)
    return {
        "accuracy": float((names[told.argmax(axis=1)] == source).mean()),
        "largest": float(source.value_counts(normalize=True).iloc[0]),
    }


def _large_sources(rows: pd.DataFrame) -> pd.Series:
    """Return the source of each image; those of few groups count as the largest.

    Otherwise a fold might lack one.
    """
    num_groups = rows.groupby("source")["group"].nunique()
    small = num_groups.index[num_groups < _LEAST_GROUPS]
    return rows["source"].mask(rows["source"].isin(small), num_groups.idxmax())


def _scores(
    values: pd.Series | FloatArray, is_target: BoolArray, groups: IntArray
) -> FloatArray | None:
    """Return scores ``(N,)`` of a model of the targets, or None if there is nothing to fit."""
    if isinstance(values, pd.Series):
        if values.nunique() < 2:
            return None
        table = values.to_frame("clue")
        scale = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["clue"]))
    else:
        if not np.ptp(values, axis=0).any():
            return None
        table, scale = pd.DataFrame(values), StandardScaler()
    model = make_pipeline(scale, LogisticRegression(max_iter=1000))
    return _out_of_fold(model, table, is_target, groups)[:, 1]


def _told_source(light: FloatArray, source: pd.Series, groups: IntArray) -> FloatArray | None:
    if source.nunique() < 2:
        return None
    return _out_of_fold(_light_model(), pd.DataFrame(light), source.to_numpy(), groups)


def _light_model() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def _through_source(
    light: FloatArray, source: pd.Series, is_target: BoolArray, groups: IntArray
) -> FloatArray | None:
    """Return the share of targets that the source has which light and colour tell, ``(N,)``.

    The shares, too, are those of the folds that the model is fitted to.
    """
    if source.nunique() < 2:
        return None
    names, scores = source.to_numpy(), np.zeros(len(source))
    for fitted, asked in _folds().split(light, names, groups):
        model = _light_model().fit(light[fitted], names[fitted])
        shares = pd.Series(is_target[fitted].astype(float)).groupby(names[fitted]).mean()
        scores[asked] = model.predict_proba(light[asked]) @ shares[model.classes_].to_numpy()
    return scores


def _folds() -> StratifiedGroupKFold:
    return StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)


def _out_of_fold(
    model: object, table: pd.DataFrame, labels: np.ndarray, groups: IntArray
) -> FloatArray:
    """Return probabilities ``(N, C)`` on folds not fitted to."""
    found: FloatArray = cross_val_predict(
        model, table, labels, groups=groups, cv=_folds(), method="predict_proba"
    )
    return found
