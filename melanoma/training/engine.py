"""The training loop, the same on a laptop and on a cluster.

The random numbers for an image depend on seed, epoch and image_id only. Callers pass in the DDP
wrapper, if any, and a function that runs after each epoch, such as one that saves a checkpoint.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from melanoma.config import TrainConfig
from melanoma.data.dataset import ImageDataset
from melanoma.errors import SettingError
from melanoma.evidence.metrics import validation_scores
from melanoma.imaging.augmentation import NUM_DRAWS, augment
from melanoma.imaging.mixing import mix
from melanoma.imaging.preprocess import Preprocess
from melanoma.imaging.tta import FeatureExtractor
from melanoma.training.batches import Batch, batches
from melanoma.training.distributed import World
from melanoma.training.head import fit_head, frozen_logits
from melanoma.training.losses import focal_terms
from melanoma.training.muon import Muon
from melanoma.training.networks import freeze, head, parameter_groups, train_mode, tta_logits
from melanoma.training.plan import Training
from melanoma.training.precision import autocast, full_precision
from melanoma.training.stochastic_depth import depth_layers, set_depth_draws

PREDICT_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Logits of one network on some images, in the order of the data set.

    Attributes:
        image_ids: the ids of the N images.
        labels: ``(N,)`` class indices.
        logits: ``(N, C)`` float32.
    """

    image_ids: list[str]
    labels: np.ndarray
    logits: np.ndarray


@dataclasses.dataclass
class TrainState:
    """Everything a run needs to continue after an epoch."""

    model: nn.Module
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and shipped: the moving average, if there is one."""
        return self.model if self.ema is None else self.ema.module

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values only, so that it loads with ``weights_only=True``."""
        return {
            "epoch": self.epoch,
            "history": self.history,
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state that `state_dict` returned for the same configuration."""
        self.epoch, self.history = state["epoch"], state["history"]
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])


def start_state(model: nn.Module, config: TrainConfig, world: World | None = None) -> TrainState:
    """Return the state before the first epoch.

    Args:
        model: the bare network, not a DDP wrapper.
        config: the run's settings.
        world: the processes that share the run; None means this process alone.
    """
    freeze(model, config.optim.frozen_layers)
    groups = parameter_groups(model, config.optim)
    if config.optim.optimizer == "muon":
        optimizer: torch.optim.Optimizer = Muon(groups, lr=config.optim.lr, world=world)
    elif config.optim.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=config.optim.lr, fused=True)
    else:
        raise SettingError(f"optim.optimizer {config.optim.optimizer} is not built in start_state.")
    ema = (
        ModelEmaV3(model, decay=config.optim.ema_decay, use_warmup=True)
        if config.optim.ema_decay > 0 and not config.optim.head_only
        else None
    )
    return TrainState(model, ema, optimizer)


def learning_rate_factor(step: int, *, num_steps: int, warmup_steps: int) -> float:
    """Return the learning rate at a step as a share of the peak rate, in [0, 1].

    The rate rises linearly during the warm-up and then follows half a cosine down to zero.

    Args:
        step: from 0, counted over all epochs.
        num_steps: steps of the whole run.
        warmup_steps: steps of the warm-up.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, num_steps - warmup_steps)))


def input_size(config: TrainConfig, epoch: int) -> tuple[int, int]:
    """Return the (height, width), px, at which an epoch shows its images.

    Sizes of progressive resizing have the aspect ratio 4:3. Their width is a multiple of 16 px.
    """
    full = config.data.input_height, config.data.input_width
    for until, scale in config.optim.progressive_resizing:
        if epoch < until * config.optim.epochs:
            unit = max(2, round(full[1] * scale / 16))
            return 12 * unit, 16 * unit
    return full


def fit(
    training: Training,
    model: nn.Module,
    state: TrainState,
    on_epoch_end: Callable[[TrainState], None],
) -> TrainState:
    """Train from the state's epoch to the last.

    Args:
        training: the run.
        model: the network that the loop calls: ``state.model``, or DDP around it.
        state: changed in place.
        on_epoch_end: called on every rank after every epoch.

    Raises:
        SettingError: if the batch size exceeds the number of training images, or is less than the
            number of workers.
        FloatingPointError: if the loss or a logit is not finite.
    """
    if training.config.optim.head_only:
        fit_head(training, state, on_epoch_end)
        return state
    batch_size = training.config.optim.batch_size
    if not training.world.size <= batch_size <= len(training.train):
        raise SettingError(
            "optim.batch_size must be between the number of workers"
            f" ({training.world.size}) and the number of training images ({len(training.train)});"
            f" it is {batch_size}."
        )
    while state.epoch < training.config.optim.epochs:
        started = time.monotonic()
        loss = train_one_epoch(training, model, state)
        trained = time.monotonic()
        predictions = predict(
            state.evaluated, training.validation, training.preprocess, world=training.world
        )
        state.epoch += 1
        # The last step of an epoch can break the network after its loss was still finite.
        if not np.isfinite(predictions.logits).all():
            raise FloatingPointError(
                f"Logits must stay finite; in epoch {state.epoch} they did not. Lower optim.lr."
            )
        state.history.append(
            {
                "epoch": state.epoch,
                "loss": loss,
                "workers": training.world.size,
                **validation_scores(
                    training.task,
                    predictions.labels,
                    predictions.logits,
                    training.validation.sources,
                ),
                "train_seconds": round(trained - started, 2),
                "validation_seconds": round(time.monotonic() - trained, 2),
            }
        )
        on_epoch_end(state)
    return state


def train_one_epoch(training: Training, model: nn.Module, state: TrainState) -> float:
    """Train one epoch in place and return its mean loss, the same on every rank.

    No step waits for its loss, so that a GPU never idles while the next step is being queued.
    """
    world, num_steps = training.world, training.steps_per_epoch
    device = next(model.parameters()).device
    train_mode(model)
    total, total_weight = torch.zeros((), dtype=torch.float64, device=device), 0.0
    read = batches(
        training,
        state.epoch,
        num_depth_draws=len(depth_layers(model)),
        pin=device.type == "cuda",
    )
    with contextlib.closing(read):  # ends its thread, also after an error
        for step, batch in enumerate(read):
            loss_sum = _step(training, model, state, batch, step=state.epoch * num_steps + step)
            total += loss_sum
            total_weight += batch.total_weight
            if training.on_step is not None:
                mine = max(float(batch.targets.sum()), 1e-12)
                training.on_step(state.epoch, step, num_steps, loss_sum / mine)
    loss = float(world.sum(total)) / total_weight
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"The loss must stay finite; in epoch {state.epoch + 1} it was {loss}. Lower optim.lr."
        )
    return loss


def _step(
    training: Training, model: nn.Module, state: TrainState, batch: Batch, *, step: int
) -> Tensor:
    """Take one optimiser step on this rank's share of a batch.

    Returns:
        The weighted loss sum of this rank's share, a scalar on the network's device.
    """
    optim = training.config.optim
    factor = learning_rate_factor(
        step,
        num_steps=optim.epochs * training.steps_per_epoch,
        warmup_steps=round(optim.warmup_epochs * training.steps_per_epoch),
    )
    for group in state.optimizer.param_groups:
        group["lr"] = optim.lr * group["lr_scale"] * factor
    state.optimizer.zero_grad(set_to_none=True)
    loss_sum = _backward(training, model, batch, size=input_size(training.config, state.epoch))
    if optim.grad_clip > 0:
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), optim.grad_clip)
    state.optimizer.step()
    if state.ema is not None:
        state.ema.update(state.model, step=step + 1)
    return loss_sum


def _backward(
    training: Training, model: nn.Module, batch: Batch, *, size: tuple[int, int]
) -> Tensor:
    """Add the gradients of a batch, part by part, and return this rank's weighted loss sum."""
    device, layers = next(model.parameters()).device, depth_layers(model)
    loss_sum = torch.zeros((), device=device)
    parts = list(batch.parts(training.config.optim.accumulate))
    for number, part in enumerate(parts):
        # DDP averages the gradients over ranks in the last backward pass.
        is_last = number + 1 == len(parts)
        silence = contextlib.nullcontext() if is_last else training.world.unsynchronised(model)
        targets, offsets = (
            value.to(device, non_blocking=True) for value in (part.targets, part.offsets)
        )
        pixels = _pixels(training.config, part, size=size, device=device)
        inputs = training.preprocess.normalise(pixels)
        set_depth_draws(layers, part.draws[:, NUM_DRAWS:].to(device, non_blocking=True))
        with silence:
            with autocast(device):
                logits = model(inputs.contiguous(memory_format=torch.channels_last))
            sum_of_part, _ = focal_terms(
                logits.float() + offsets, targets, gamma=training.config.loss.gamma
            )
            # Multiplied by the world size and divided by the weight sum of the whole batch, the
            # average over ranks is the gradient of the batch's weighted mean loss.
            loss = sum_of_part * (training.world.size / batch.total_weight)
            loss.backward()  # type: ignore[no-untyped-call]
        loss_sum += sum_of_part.detach()
    return loss_sum


def _pixels(
    config: TrainConfig, batch: Batch, *, size: tuple[int, int], device: torch.device
) -> Tensor:
    """Return the augmented images of a batch, mixed with others if it holds any."""

    def augmented(images: Tensor, draws: Tensor) -> Tensor:
        images, draws = (value.to(device, non_blocking=True) for value in (images, draws))
        return augment(images, draws, config.augment, size)

    pixels = augmented(batch.images, batch.draws)
    if batch.mixed is None:
        return pixels
    others = augmented(batch.mixed.images, batch.mixed.draws)
    return mix(pixels, others, batch.mixed.mixing.to(device))


def predict_validation(training: Training, state: TrainState) -> Predictions:
    """Predict the validation fold with all mirrored copies.

    A frozen backbone does not run again: its features are kept.
    """
    model, images = state.evaluated, training.validation
    if training.config.optim.head_only:
        logits = frozen_logits(training, model)
        return Predictions(images.image_ids, images.labels.numpy(), logits)
    tta = training.config.data.tta
    return predict(model, images, training.preprocess, world=training.world, tta=tta)


def predict(
    model: nn.Module,
    dataset: ImageDataset,
    preprocess: Preprocess,
    *,
    world: World | None = None,
    tta: int = 1,
    extract: FeatureExtractor | None = None,
) -> Predictions:
    """Predict a data set in float32.

    Every rank predicts its share, and every rank returns the predictions of all images.

    Args:
        model: the network.
        dataset: the images to predict.
        preprocess: from stored images to network input.
        world: the processes that share the work; None means this process alone.
        tta: number of mirrored copies to average.
        extract: computes the feature maps in place of the network; the head stays the network's.
    """
    world = world or World()
    device = next(model.parameters()).device
    mine = list(world.share(len(dataset)))
    logits = torch.zeros(len(mine), int(cast(Any, model).num_classes), device=device)
    model.eval()
    with torch.no_grad(), full_precision(device):
        for start in range(0, len(mine), PREDICT_BATCH):
            batch = mine[start : start + PREDICT_BATCH]
            embedded = dataset.feature_map(batch)
            if embedded is not None:
                found = head(model, embedded.to(device))
            else:
                inputs = preprocess(dataset.images(batch).to(device))
                found = tta_logits(model, inputs, tta, extract=extract)
            logits[start : start + PREDICT_BATCH] = found
    logits = world.join(logits, len(dataset))
    return Predictions(dataset.image_ids, dataset.labels.numpy(), logits.cpu().numpy())
