"""The number formats in which networks train and predict."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def autocast(device: torch.device) -> Iterator[None]:
    """Compute in bfloat16 on a GPU and in float32 elsewhere, until the block ends."""
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        yield


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in float32 on every device, until the block ends.

    Predictions choose the epoch and the threshold, so rounding must not change them.
    """
    with (
        torch.autocast(device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
    ):
        yield
