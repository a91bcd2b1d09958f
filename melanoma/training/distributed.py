"""How the processes of a run share its work and join the results.

Knows torch.distributed, but not Ray.
"""

import contextlib
import dataclasses
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclasses.dataclass(frozen=True)
class World:
    """The processes that share a run. Only rank 0 writes files."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def current() -> "World":
        """Return the world of torch.distributed, or a world of one if it is not initialised."""
        if dist.is_available() and dist.is_initialized():
            return World(dist.get_rank(), dist.get_world_size())
        return World()

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the network to call in training.

        That is the network itself, or DDP around it, which averages the gradients of the ranks.
        """
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        return DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None
        )

    def unsynchronised(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Return a context in which a backward pass through a wrapped network sends nothing."""
        if isinstance(model, DistributedDataParallel):
            return cast(contextlib.AbstractContextManager[None], model.no_sync())
        return contextlib.nullcontext()

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, the same on every rank."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total

    def sum_(self, value: Tensor) -> None:
        """Replace a tensor by its sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(value)

    def share(self, num: int) -> range:
        """Return this rank's positions among ``num``: every ``size``-th, starting at its rank.

        The shares of two ranks differ by at most one position.
        """
        return range(self.rank, num, self.size)

    def join(self, part: Tensor, num: int) -> Tensor:
        """Join the rows that each rank computed for its `share`; every rank returns all of them.

        The shares are not padded, so there are no extra rows to remove.

        Args:
            part: ``(len(share(num)), ...)``, the rows of this rank.
            num: number of rows of all ranks together.

        Returns:
            ``(num, ...)``, in order.
        """
        if self.size == 1:
            return part
        whole = torch.zeros(num, *part.shape[1:], dtype=part.dtype, device=part.device)
        whole[self.rank :: self.size] = part
        return self.sum(whole)
