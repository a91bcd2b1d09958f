"""Trains the head of a network on features that its frozen backbone computes once.

The features are kept in the cache of the node, under a hash of all that they depend on, so every
fold, setting and seed reads them again. Knows nothing of bundles.
"""

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import timm
import torch
from torch import Tensor, nn

from melanoma.data.dataset import ImageDataset
from melanoma.errors import SettingError
from melanoma.evidence.metrics import validation_scores
from melanoma.imaging.tta import tta_features
from melanoma.io.cache import cache_folder
from melanoma.io.files import new_file
from melanoma.training.losses import focal_terms
from melanoma.training.networks import features
from melanoma.training.plan import Training
from melanoma.training.precision import full_precision
from melanoma.training.selection import selection_score

if TYPE_CHECKING:
    from melanoma.training.engine import TrainState

MAX_ITERATIONS = 200
_BATCH = 64
_FORMAT = 1
"""Raised when preprocessing changes, so that older features are computed anew."""


def classifier_of(model: nn.Module) -> nn.Linear:
    """Return the last layer of a network.

    Raises:
        SettingError: if it is not linear.
    """
    found = cast(Any, model).get_classifier()
    if not isinstance(found, nn.Linear):
        raise SettingError(
            f"optim.head_only needs a network that ends in a linear layer; {type(model).__name__}"
            " does not. Set optim.head_only to false."
        )
    return found


def strength(step: int) -> float:
    """Return the weight of the squared norm of the head in its loss: 1, 0.32, 0.1 and so on."""
    return float(10 ** (-step / 2))


def fit_head(
    training: Training, state: "TrainState", on_epoch_end: Callable[["TrainState"], None]
) -> None:
    """Fit the head once for each strength of its penalty; each counts as an epoch.

    The loss is that of the run, over all training images at once, plus the penalty. It is minimised
    by L-BFGS on standardised features. In the end the network has the best of these heads, by the
    score that chooses an epoch.

    Args:
        training: the run.
        state: changed in place.
        on_epoch_end: called on every rank after every fit.

    Raises:
        FloatingPointError: if a feature or the loss is not finite.
    """
    classifier, validation = classifier_of(state.model), training.validation
    started = time.monotonic()
    known = frozen_features(training, state.model)
    learned, seen = (
        torch.from_numpy(np.stack([known[name] for name in images.image_ids])).double()
        for images in (training.train, validation)
    )
    if not (torch.isfinite(learned).all() and torch.isfinite(seen).all()):
        raise FloatingPointError(
            "The features of the backbone must be finite; some are not. Use other start weights."
        )
    mean, deviation = learned.mean(dim=0), learned.std(dim=0).clamp(min=1e-6)
    learned, best = (learned - mean) / deviation, None
    while state.epoch < training.config.optim.epochs:
        weight, bias, loss = _solve(training, learned, penalty=strength(state.epoch))
        trained = time.monotonic()
        weight = weight / deviation
        bias = bias - weight @ mean
        _put(classifier, weight, bias)
        logits = (seen @ weight.T + bias).float().numpy()
        state.epoch += 1
        scores = validation_scores(
            training.task, validation.labels.numpy(), logits, validation.sources
        )
        state.history.append(
            {
                "epoch": state.epoch,
                "loss": loss,
                "workers": training.world.size,
                **scores,
                "train_seconds": round(trained - started, 2),
                "validation_seconds": round(time.monotonic() - trained, 2),
            }
        )
        started = time.monotonic()
        on_epoch_end(state)
        score = selection_score(state.history[-1])
        if best is None or score > best[0]:
            best = score, weight, bias
    if best is not None:
        _put(classifier, *best[1:])


def _put(classifier: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    with torch.no_grad():
        classifier.weight.copy_(weight)
        classifier.bias.copy_(bias)


def _solve(training: Training, images: Tensor, *, penalty: float) -> tuple[Tensor, Tensor, float]:
    """Return the weight ``(C, F)``, the bias ``(C,)`` and the loss of the best head."""
    targets, offsets = training.targets.double(), training.offsets.double()
    weight = torch.zeros(targets.shape[1], images.shape[1], dtype=torch.float64)
    bias = torch.zeros(targets.shape[1], dtype=torch.float64)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe", tolerance_grad=1e-6
    )

    def data_loss() -> Tensor:
        total, num = focal_terms(
            images @ weight.T + bias + offsets, targets, gamma=training.config.loss.gamma
        )
        return total / num

    def closure() -> float:
        optimizer.zero_grad()
        loss = data_loss() + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        loss = float(data_loss())
    if not math.isfinite(loss):
        raise FloatingPointError(f"The loss of the head must stay finite; it was {loss}.")
    return weight.detach(), bias.detach(), loss


def frozen_features(training: Training, model: nn.Module) -> dict[str, np.ndarray]:
    """Return what the backbone says of every image of a run: ``(F,)`` float32 by image_id.

    It is the input of the last layer, averaged over the mirrored copies of prediction, or the
    embedding of the image.
    """
    datasets = (training.train, training.validation)
    if training.train.embeddings is not None:
        return {
            name: vector
            for images in datasets
            if images.embeddings is not None
            for name, vector in zip(images.image_ids, images.embeddings, strict=True)
        }
    ids = sorted(name for images in datasets for name in images.image_ids)
    path = cache_folder() / f"features-{_key(training, model, ids)}.npy"
    # All ranks compute their share if one of them, perhaps on another node, lacks the file.
    lacking = torch.tensor(float(not path.is_file()), device=next(model.parameters()).device)
    if float(training.world.sum(lacking)) > 0:
        found = {
            name: vector
            for images in datasets
            for name, vector in zip(
                images.image_ids, _extract(training, model, images), strict=True
            )
        }
        with new_file(path) as file:
            np.save(file, np.stack([found[name] for name in ids]), allow_pickle=False)
    return dict(zip(ids, np.load(path, allow_pickle=False), strict=True))


def frozen_logits(training: Training, model: nn.Module) -> np.ndarray:
    """Return the logits ``(N, C)`` float32 of the validation images, from their kept features."""
    known, classifier = frozen_features(training, model), classifier_of(model)
    images = np.stack([known[name] for name in training.validation.image_ids])
    with torch.no_grad(), full_precision(classifier.weight.device):
        logits: Tensor = classifier(torch.from_numpy(images).to(classifier.weight.device))
    return logits.cpu().numpy()


def _key(training: Training, model: nn.Module, ids: Iterable[str]) -> str:
    """Return a hash of all that the features depend on."""
    last = {id(value) for value in classifier_of(model).parameters()}
    digest = hashlib.sha256()
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in last:
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    shown = dataclasses.replace(training.config.data, validation_fold=0)
    described = (
        _FORMAT,
        torch.__version__,
        timm.__version__,
        next(model.parameters()).device.type,
        training.content,
        training.config.model.backbone,
        training.preprocess.stored_shape,
        shown,
        list(ids),
    )
    digest.update(repr(described).encode())
    return digest.hexdigest()


def _extract(training: Training, model: nn.Module, images: ImageDataset) -> np.ndarray:
    """Return the features ``(N, F)`` of a data set; every rank computes its share."""
    device, tta = next(model.parameters()).device, training.config.data.tta
    mine = list(training.world.share(len(images)))
    found = torch.zeros(len(mine), classifier_of(model).in_features, device=device)
    model.eval()
    with torch.no_grad(), full_precision(device):
        for start in range(0, len(mine), _BATCH):
            stored = images.images(mine[start : start + _BATCH]).to(device)
            copies = tta_features(partial(features, model), training.preprocess(stored), tta)
            found[start : start + _BATCH] = torch.stack(
                [cast(Any, model).forward_head(copy, pre_logits=True) for copy in copies]
            ).mean(dim=0)
    return training.world.join(found, len(images)).cpu().numpy()
