"""The plots of an evaluation. Knows numbers, but not bundles or files."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from melanoma.arrays import BoolArray, FloatArray, IntArray
from melanoma.evidence.intervals import clopper_pearson, effective_number
from melanoma.evidence.operating_point import is_referred

INK, MUTED, ACCENT = "#1f2933", "#9aa5b1", "#b83280"


def new_axes(title: str, x: str, y: str) -> tuple[Figure, Any]:
    """Return an empty figure in the style of the reports, and its axes."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot_roc(is_target: BoolArray, scores: FloatArray, threshold: float, *, noun: str) -> Figure:
    """Draw the ROC curve of the targets and mark the bundle's threshold; arrays are ``(N,)``."""
    figure, axes = new_axes(
        f"{noun.capitalize()}: sensitivity against specificity", "1 - specificity", "sensitivity"
    )
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=":")
    if is_target.any() and not is_target.all():
        x, y, _ = roc_curve(is_target, scores)
        axes.plot(x, y, color=INK, lw=1.8)
        referred = is_referred(scores, threshold)
        point = referred[~is_target].mean(), referred[is_target].mean()
        axes.plot(
            *point,
            "o",
            color=ACCENT,
            ms=8,
            label=(
                f"the bundle's threshold\nsensitivity {point[1]:.2f}, specificity"
                f" {1 - point[0]:.2f}"
            ),
        )
        axes.legend(frameon=False, loc="lower right", fontsize=9)
    axes.set(xlim=(-0.01, 1), ylim=(0, 1.01))
    return figure


def plot_precision_recall(
    is_target: BoolArray, scores: FloatArray, threshold: float, *, noun: str
) -> Figure:
    """Draw the precision-recall curve of the targets and mark the bundle's threshold.

    Args:
        is_target: ``(N,)``.
        scores: ``(N,)``, probabilities of the targets.
        threshold: the bundle's threshold.
        noun: what a target is called.
    """
    figure, axes = new_axes(
        f"{noun.capitalize()}: precision against sensitivity", "sensitivity", "precision"
    )
    if is_target.any():
        precision, recall, _ = precision_recall_curve(is_target, scores)
        axes.plot(recall, precision, color=INK, lw=1.8)
        axes.axhline(
            is_target.mean(),
            color=MUTED,
            lw=1,
            ls=":",
            label=f"prevalence here {is_target.mean():.2f}",
        )
        referred = is_referred(scores, threshold)
        if referred.any():
            axes.plot(
                (referred & is_target).sum() / is_target.sum(),
                is_target[referred].mean(),
                "o",
                color=ACCENT,
                ms=8,
                label="the bundle's threshold",
            )
        axes.legend(frameon=False, loc="upper right", fontsize=9)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.01))
    return figure


def plot_reliability(
    is_target: BoolArray, scores: FloatArray, groups: IntArray, *, noun: str
) -> Figure:
    """Draw the reliability diagram of the targets.

    Ten bins of equal width show their numbers of units, and Clopper-Pearson intervals with the
    effective number of groups.

    Args:
        is_target: ``(N,)``.
        scores: ``(N,)``, probabilities of the targets.
        groups: ``(N,)`` integers, the group of each unit.
        noun: what a target is called.
    """
    figure, axes = new_axes(
        f"{noun.capitalize()}: calibration",
        f"predicted probability of {noun}",
        f"share that is {noun}",
    )
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=":")
    bins = np.minimum((scores * 10).astype(int), 9)
    for index in np.unique(bins):
        chosen = bins == index
        num = effective_number(groups[chosen])
        low, high = clopper_pearson(float(is_target[chosen].mean()) * num, num)
        axes.plot([scores[chosen].mean()] * 2, [low, high], color=MUTED, lw=1.4)
        axes.plot(scores[chosen].mean(), is_target[chosen].mean(), "o", color=INK, ms=6)
        axes.annotate(
            f"n={chosen.sum()}",
            (scores[chosen].mean(), high),
            (0, 4),  # above a point that stands at the end of its interval
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=7,
            color=INK,
        )
    axes.set(xlim=(-0.05, 1.05), ylim=(0, 1.1))
    return figure


def plot_decision_curve(
    rows: Sequence[Mapping[str, float]], threshold: float, *, noun: str
) -> Figure:
    """Draw the net benefit of referring by the network, of referring all, and of referring no one.

    Args:
        rows: threshold, network and refer_all.
        threshold: the bundle's threshold.
        noun: what a target is called.
    """
    figure, axes = new_axes(
        f"{noun.capitalize()}: decision curve", "threshold probability", "net benefit"
    )
    x = [row["threshold"] for row in rows]
    axes.plot(x, [row["refer_all"] for row in rows], color=MUTED, lw=1.4, label="refer all")
    axes.axhline(0, color=MUTED, lw=1, ls=":", label="refer no one")
    network = [row["network"] for row in rows]
    axes.plot(x, network, color=INK, lw=1.8, label="refer by the network")
    if x[0] <= threshold <= x[-1]:
        axes.axvline(threshold, color=ACCENT, lw=1, label="the bundle's threshold")
    top = max(*network, 0.01)
    axes.set(xlim=(0, x[-1]), ylim=(-0.3 * top, 1.15 * top))
    axes.legend(frameon=False, loc="upper right", fontsize=9)
    return figure


def plot_confusion(matrix: IntArray, classes: Sequence[str]) -> Figure:
    """Draw a ``(C, C)`` confusion matrix, shaded by the share within each true class."""
    title = "Images by class (shade: share of the true class)"
    figure, axes = new_axes(title, "likeliest class", "true class")
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Greys", vmin=0, vmax=1.2)
    for (row, column), count in np.ndenumerate(matrix):
        axes.text(
            column,
            row,
            count,
            ha="center",
            va="center",
            fontsize=8,
            color="white" if share[row, column] > 0.6 else INK,
        )
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure
