"""What a run learns from and how: the parts that do not change while it trains.

The order of the images depends on seed and epoch only.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from melanoma.config import TrainConfig
from melanoma.data.dataset import ImageDataset, PreparedData
from melanoma.imaging.preprocess import Preprocess
from melanoma.task import Task
from melanoma.training.distributed import World
from melanoma.training.losses import class_weights_from_counts, soft_labels, source_offsets


@dataclasses.dataclass(frozen=True)
class Training:
    """The parts of a run that do not change while it trains.

    Attributes:
        config: the run's settings.
        train: images that the network learns from.
        validation: images on which the epoch is chosen.
        preprocess: from stored images to network input.
        targets: ``(N, C)``, the labels of the N training images: shares of the classes, each times
            the weight of its class.
        offsets: ``(N, C)``, added to the logits of the N training images while training.
        task: what the classes mean.
        content: the hash of the data set, under which features of frozen networks are kept.
        world: the processes that share the run.
        on_step: called with (epoch, step, num_steps, loss) on every rank; epoch and step count
            from 0, and the loss is a scalar on the network's device.
    """

    config: TrainConfig
    train: ImageDataset
    validation: ImageDataset
    preprocess: Preprocess
    targets: Tensor
    offsets: Tensor
    task: Task
    content: str = ""
    world: World = dataclasses.field(default_factory=World)
    on_step: Callable[[int, int, int, Tensor], None] | None = None

    @staticmethod
    def on(
        config: TrainConfig,
        data: PreparedData,
        *,
        teacher: pd.DataFrame | None = None,
        world: World | None = None,
        on_step: Callable[[int, int, int, Tensor], None] | None = None,
    ) -> "Training":
        """Return the run that validates on the configured fold and learns from the others.

        Args:
            config: the run's settings.
            data: the data set.
            teacher: the probabilities of another model for the training images, a column for each
                class, by image_id; None for none.
            world: the processes that share the run; None means this process alone.
            on_step: called after every step.

        Raises:
            DataError: if the data set has no such fold.
        """
        fold, loss = config.data.validation_fold, config.loss
        rows = data.rows("train", without_fold=fold)
        labels = torch.tensor(rows["label"].to_numpy())
        counts = [int((rows["label"] == label).sum()) for label in range(data.task.num_classes)]
        return Training(
            config=config,
            train=ImageDataset(data, rows),
            validation=ImageDataset(data, data.rows("train", fold=fold)),
            preprocess=Preprocess(data.stored_shape, config.data),
            targets=class_weights_from_counts(
                counts,
                tau=loss.tau,
                target_factor=loss.target_factor,
                targets=data.task.target_indices,
            )
            * soft_labels(
                labels,
                data.task.num_classes,
                smoothing=loss.smoothing,
                teacher=None if teacher is None else _rows_of(teacher, rows["image_id"]),
                teacher_share=loss.teacher_share,
            ),
            offsets=source_offsets(
                rows["label"].tolist(),
                rows["source"].tolist(),
                num_classes=data.task.num_classes,
                strength=loss.source_offset,
            ),
            task=data.task,
            content=data.content_hash,
            world=world or World(),
            on_step=on_step,
        )

    def mixes(self, epoch: int) -> bool:
        """Return whether an epoch, counted from 0, mixes images."""
        augment = self.config.augment
        return (augment.mixup + augment.cutmix) > 0 and (
            epoch < augment.mix_until * self.config.optim.epochs
        )

    def order(self, epoch: int) -> np.ndarray:
        """Return the order ``(N,)`` in which an epoch shows the images, the same on every rank."""
        seed, sampling = self.config.seed, self.config.optim.class_sampling
        if not sampling:
            return epoch_order(len(self.train), seed=seed, epoch=epoch)
        labels = self.train.labels.numpy()
        chances = np.bincount(labels)[labels].astype(np.float64) ** -sampling
        drawn = np.random.default_rng([seed, epoch]).choice(
            len(labels), len(labels), p=chances / chances.sum()
        )
        return np.asarray(drawn)

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches in an epoch; the remaining images of its order are skipped."""
        return len(self.train) // self.config.optim.batch_size


def _rows_of(teacher: pd.DataFrame, image_ids: pd.Series) -> Tensor:
    return torch.from_numpy(teacher.loc[image_ids].to_numpy(dtype=np.float32, copy=True))


def epoch_order(num: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the order ``(num,)`` in which an epoch shows the images, the same on every rank."""
    return np.random.default_rng([seed, epoch]).permutation(num)
