"""Measures what the kinds of heatmap of a network are worth on some images, and what they support.

- Parameters: maps of the same network with random weights must look different.
- Labels: so must maps of the same network with a last layer that was fitted to shuffled labels
  (both: Adebayo et al., Sanity Checks for Saliency Maps, 2018).
- Inside and pointing: where the lesion is known, more of the map lies in it than of the map of
  another image.
- Deletion: blurring the highest part of the map costs more of the score than blurring that of
  another image's.
- Stability: noise of two grey levels, which the eye does not see, must not change the map.

A map `supported` as one of lesions passes all of them, on a network that ranks the targets.
"""

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from melanoma.arrays import BoolArray, FloatArray, IntArray, Uint8Array
from melanoma.errors import SettingError
from melanoma.executor import Progress
from melanoma.explain.grad_cam import explain_feature_maps
from melanoma.explain.measures import (
    Measure,
    mean_over_groups,
    on_grid,
    points_inside,
    score_lost,
    share_inside,
    similarity,
)
from melanoma.explain.methods import METHODS
from melanoma.explain.subject import Explainer, Subject
from melanoma.imaging.preprocess import Preprocess
from melanoma.imaging.tta import tta_features
from melanoma.training.ensemble import Ensemble, networks_of
from melanoma.training.networks import features, head

MIN_GROUPS = 50
"""Groups with a mask that a claim needs."""
LEAST_AUROC = 0.6
"""A network whose AUROC on these images may be lower ranks nothing, so its maps support nothing."""
LEAST_GAIN = 0.05
"""By how much more of a map must lie inside the lesion than of another image's map."""
MOST_RANDOM, LEAST_STABLE = 0.5, 0.5
"""Similarity that a map may have with that of random weights or labels, and must have with that of
the same image with a little noise."""
_NOISE, _BATCH, _SEED = 2.0, 32, 0


@dataclasses.dataclass(frozen=True)
class Shown:
    """The images that maps are measured on.

    Attributes:
        images: ``(N, H, W, 3)`` uint8, as stored.
        labels: ``(N,)``.
        groups: ``(N,)`` integers.
        masks: ``(N, 48, 64)``, the lesions; None if not known.
    """

    images: Uint8Array
    labels: IntArray
    groups: IntArray
    masks: BoolArray | None

    @property
    def other(self) -> IntArray:
        """For each image the index of one of another group, ``(N,)``."""
        order = np.argsort(self.groups, kind="stable")
        largest = int(np.bincount(self.groups).max())
        other = np.empty_like(order)
        other[order] = np.roll(order, largest)
        return other


def measure_maps(
    subject: Subject, shown: Shown, *, auroc_low: float, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Return the measures and the claim of each kind of heatmap.

    Args:
        subject: the network.
        shown: the images.
        auroc_low: lower bound of the network's AUROC on these images.
        progress: called with (steps done, steps in all).

    Returns:
        method -> measures (name -> Measure or None), failed (names of the checks that do not hold)
        and claim; or unavailable, the reason why the network has no such map.
    """
    networks = {
        "trained": subject,
        "random": dataclasses.replace(subject, model=_with_random_weights(subject.model)),
        **_with_shuffled_labels(subject, shown),
    }
    noisy = _with_noise(shown.images)
    total, done = len(METHODS) * (len(networks) + 1), 0
    found: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        maps: dict[str, FloatArray] = {}
        try:
            for name, network in networks.items():
                maps[name] = _maps(network, method, shown.images)
                done += 1
                progress(done, total)
            maps["noisy"] = _maps(subject, method, noisy)
        except SettingError as error:
            found[method] = {"unavailable": str(error), "claim": "none"}
            total -= len(networks) + 1
            continue
        done += 1
        progress(done, total)
        measures = _measures(maps, shown, subject)
        failed = failed_checks(measures, shown, auroc_low)
        found[method] = {
            "measures": {
                name: None if each is None else dataclasses.asdict(each)
                for name, each in measures.items()
            },
            "failed": failed,
            "claim": "none" if failed else "supported",
        }
    return found


def failed_checks(measures: dict[str, Measure | None], shown: Shown, auroc_low: float) -> list[str]:
    """Return the names of the checks that do not hold, or could not be made."""

    def above(name: str, least: float) -> bool:
        measure = measures[name]
        return measure is not None and measure.low > least

    def below(name: str, most: float) -> bool:
        measure = measures[name]
        return measure is not None and max(abs(measure.low), abs(measure.high)) < most

    checks = {
        "network": auroc_low > LEAST_AUROC,
        "enough_masks": shown.masks is not None and len(np.unique(shown.groups)) >= MIN_GROUPS,
        "parameters": below("random_similarity", MOST_RANDOM),
        "labels": below("shuffled_similarity", MOST_RANDOM),
        "inside": above("inside_difference", LEAST_GAIN),
        "pointing": above("pointing_difference", LEAST_GAIN),
        "deletion": above("deletion_difference", 0),
        "stability": above("stability", LEAST_STABLE),
    }
    return [name for name, holds in checks.items() if not holds]


def _measures(
    maps: dict[str, FloatArray], shown: Shown, subject: Subject
) -> dict[str, Measure | None]:
    trained, groups, other = maps["trained"], shown.groups, shown.other
    theirs = trained[other]
    inputs = subject.preprocess(torch.from_numpy(shown.images))
    lost = {
        name: score_lost(each, inputs, lambda images: _score(subject, images))
        for name, each in (("", trained), ("_other", theirs))
    }
    values: dict[str, FloatArray | None] = {
        "random_similarity": similarity(trained, maps["random"]),
        "stability": similarity(trained, maps["noisy"]),
        "deletion": lost[""],
        "deletion_other": lost["_other"],
        "deletion_difference": lost[""] - lost["_other"],
        **dict.fromkeys(
            (
                "shuffled_similarity", "area", "inside", "inside_other", "inside_difference",
                "pointing", "pointing_other", "pointing_difference",
            )
        ),
    }  # fmt: skip
    if "shuffled" in maps:
        values["shuffled_similarity"] = similarity(trained, maps["shuffled"])
    if shown.masks is not None:
        masks = shown.masks
        values["area"] = masks.mean(axis=(1, 2))
        for name, measure in (("inside", share_inside), ("pointing", points_inside)):
            ours, others = measure(trained, masks), measure(theirs, masks)
            values |= {name: ours, f"{name}_other": others, f"{name}_difference": ours - others}
    return {name: _mean(each, groups) for name, each in values.items()}


def _mean(values: FloatArray | None, groups: IntArray) -> Measure | None:
    """Return the mean of the values that are defined; None if those are of too few groups."""
    if values is None:
        return None
    defined = np.isfinite(values)
    if len(np.unique(groups[defined])) < MIN_GROUPS:
        return None
    return mean_over_groups(values[defined], groups[defined])


def _maps(subject: Subject, method: str, images: Uint8Array) -> FloatArray:
    """Return the maps of some images on the grid, ``(N, 48, 64)``."""
    make = METHODS[method].make
    explainer: Explainer | None = make(subject) if make else None
    found = []
    for batch in _batches(images):
        inputs = subject.preprocess(torch.from_numpy(batch).to(subject.device))
        with torch.no_grad():
            feature_maps = tta_features(partial(features, subject.model), inputs, subject.tta)
        coarse = explain_feature_maps(
            subject.model, feature_maps, class_indices=subject.targets
        ).heatmaps.numpy()
        if explainer is not None:
            coarse = explainer.explain(list(batch), list(coarse))
        found.append(on_grid(coarse))
    return np.concatenate(found)


def _batches(images: Uint8Array) -> list[Uint8Array]:
    return [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]


def _score(subject: Subject, inputs: Tensor) -> FloatArray:
    """Return the sum of the targets' logits, ``(N,)``, which the maps explain."""
    with torch.no_grad():
        logits = [
            head(subject.model, features(subject.model, inputs[start : start + _BATCH]))
            for start in range(0, len(inputs), _BATCH)
        ]
    score: FloatArray = torch.cat(logits)[:, list(subject.targets)].sum(dim=1).numpy()
    return score


def _with_random_weights(model: nn.Module) -> nn.Module:
    """Return a copy of a network that has learned nothing.

    Its layers have torch's initial weights. Parameters outside of layers, such as layer scales, are
    permuted.
    """
    changed = copy.deepcopy(model)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(_SEED)
        for module in changed.modules():
            reset: Callable[[], None] | None = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
                continue
            for parameter in module.parameters(recurse=False):
                values = parameter.flatten()
                parameter.copy_(values[torch.randperm(len(values))].view_as(parameter))
    return changed.eval()


def _with_shuffled_labels(subject: Subject, shown: Shown) -> dict[str, Subject]:
    """Return the network with its last layer fitted to shuffled labels, as shuffled.

    Returns nothing if the last layer is not linear or the targets do not occur with other classes.
    """
    occurring = set(np.unique(shown.labels).tolist())
    if len(occurring) < 2 or not occurring & set(subject.targets):
        return {}
    networks = networks_of(subject.model)
    if not all(isinstance(_last_layer(network), nn.Linear) for network in networks):
        return {}
    shuffled = np.random.default_rng(_SEED).permutation(shown.labels)
    changed = [
        _with_last_layer(network, _pooled(network, subject.preprocess, shown.images), shuffled)
        for network in networks
    ]
    model = changed[0] if len(changed) == 1 else Ensemble(changed)
    return {"shuffled": dataclasses.replace(subject, model=model)}


def _last_layer(model: nn.Module) -> Any:
    """Return the last layer, as timm names it; None if it does not."""
    network: Any = model
    return network.get_classifier() if hasattr(model, "get_classifier") else None


def _pooled(model: nn.Module, preprocess: Preprocess, images: Uint8Array) -> FloatArray:
    """Return what the last layer sees, ``(N, K)``."""
    found = []
    for batch in _batches(images):
        inputs = preprocess(torch.from_numpy(batch))
        with torch.no_grad():
            network: Any = model
            found.append(network.forward_head(features(model, inputs), pre_logits=True).numpy())
    return np.concatenate(found)


def _with_last_layer(model: nn.Module, pooled: FloatArray, labels: IntArray) -> nn.Module:
    """Return a copy of a network whose last layer is a logistic regression of some labels."""
    fit = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1))
    fit.fit(pooled, labels)
    scale, regression = fit[0], fit[1]
    weights, offsets = regression.coef_, regression.intercept_
    if len(weights) == 1:  # two classes have one row, of the second
        weights = np.concatenate([-weights, weights]) / 2
        offsets = np.concatenate([-offsets, offsets]) / 2
    weights = weights / scale.scale_
    offsets = offsets - weights @ scale.mean_
    changed = copy.deepcopy(model)
    last = _last_layer(changed)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
        last.weight[regression.classes_] = torch.from_numpy(weights).float()
        last.bias[regression.classes_] = torch.from_numpy(offsets).float()
    return changed


def _with_noise(images: Uint8Array) -> Uint8Array:
    noise = np.random.default_rng(_SEED).normal(0, _NOISE, images.shape)
    return (images + noise).round().clip(0, 255).astype(np.uint8)
