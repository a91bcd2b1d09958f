"""The batches of an epoch: which images, their labels and their random draws.

The random numbers for an image depend on seed, epoch and image_id only, also for the image with
which it is mixed.
"""

import dataclasses
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from melanoma.imaging.augmentation import NUM_DRAWS, image_keys, repeated_keys, uniform_draws
from melanoma.imaging.mixing import NUM_MIX_DRAWS, Mixing, draw_mixing
from melanoma.imaging.random_ops import num_op_draws, random_ops
from melanoma.training.plan import Training


@dataclasses.dataclass(frozen=True)
class Batch:
    """One rank's share of a batch.

    Attributes:
        images: ``(N, H, W, 3)`` uint8 as stored, in pinned memory if they go to a GPU.
        draws: ``(N, K)``, what augmentation and stochastic depth draw for each image.
        targets: ``(N, C)``, the weighted labels.
        offsets: ``(N, C)``, added to the logits.
        total_weight: sum of the weights of the whole batch. Every rank knows all weights, so it
            needs no message.
    """

    images: Tensor
    draws: Tensor
    targets: Tensor
    offsets: Tensor
    total_weight: float
    mixed: "Mixed | None" = None

    def parts(self, num: int) -> "Iterator[Batch]":
        """Yield the share in ``num`` parts of nearly equal size, of which none is empty."""
        for rows in torch.arange(len(self.images)).tensor_split(min(num, len(self.images))):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            yield Batch(
                self.images[part],
                self.draws[part],
                self.targets[part],
                self.offsets[part],
                self.total_weight,
                None if self.mixed is None else self.mixed.part(part),
            )


@dataclasses.dataclass(frozen=True)
class Mixed:
    """The other images with which those of a batch are mixed.

    Attributes:
        images: ``(N, H, W, 3)`` uint8 as stored.
        draws: ``(N, K)``, what augmentation draws for them.
        mixing: how they are mixed.
    """

    images: Tensor
    draws: Tensor
    mixing: Mixing

    def part(self, part: slice) -> "Mixed":
        """Return those of some images of the batch."""
        return Mixed(self.images[part], self.draws[part], self.mixing[part])


def batches(
    training: Training, epoch: int, *, num_depth_draws: int, pin: bool
) -> Generator[Batch, None, None]:
    """Yield this rank's share of every batch of an epoch; a thread reads one batch ahead.

    Args:
        training: the run.
        epoch: from 0.
        num_depth_draws: draws of each image for stochastic depth, after those of augmentation.
        pin: whether the images go to a GPU.
    """
    size = training.config.optim.batch_size
    reader = _Reader(training, epoch, num_draws=NUM_DRAWS + num_depth_draws, pin=pin)
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        ahead = thread.submit(reader, slice(0, size))
        for step in range(1, training.steps_per_epoch + 1):
            batch = ahead.result()
            if step < training.steps_per_epoch:
                ahead = thread.submit(reader, slice(step * size, (step + 1) * size))
            yield batch


class _Reader:
    """Reads this rank's share of the batches of one epoch."""

    def __init__(self, training: Training, epoch: int, *, num_draws: int, pin: bool) -> None:
        self._training, self._pin = training, pin
        self._mixes = training.mixes(epoch)
        self._order = training.order(epoch)
        # What few runs draw comes last, so that the other draws stay the same.
        for_ops = num_op_draws(training.config.augment)
        draws = uniform_draws(
            repeated_keys(image_keys(training.train.image_ids)[self._order]),
            seed=training.config.seed,
            epoch=epoch,
            num=num_draws + for_ops + NUM_MIX_DRAWS * self._mixes,
        )
        self._draws, self._op_draws, self._mix_draws = draws.tensor_split(
            (num_draws, num_draws + for_ops), dim=1
        )

    def __call__(self, part: slice) -> Batch:
        """Return this rank's share of a part of the epoch's order."""
        training, places = self._training, torch.arange(len(self._order))[part]
        share = list(training.world.share(len(places)))
        batch = torch.from_numpy(self._order[part])
        targets, offsets, mixed = training.targets[batch], training.offsets[batch], None
        if self._mixes:
            others = places.roll(-1)
            mixing = draw_mixing(self._mix_draws[places], training.config.augment)
            kept = mixing.share[:, None]
            targets = kept * targets + (1 - kept) * targets.roll(-1, dims=0)
            offsets = kept * offsets + (1 - kept) * offsets.roll(-1, dims=0)
            mixed = Mixed(
                self._images(others[share]),
                self._draws[others[share]],
                Mixing(mixing.blend[share], mixing.box[share]),
            )
        return Batch(
            self._images(places[share]),
            self._draws[places[share]],
            targets[share],
            offsets[share],
            float(targets.double().sum()),
            mixed,
        )

    def _images(self, places: Tensor) -> Tensor:
        images = random_ops(
            self._training.train.images(self._order[places.numpy()].tolist()),
            self._op_draws[places],
            self._training.config.augment,
        )
        return images.pin_memory() if self._pin else images
