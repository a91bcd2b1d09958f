"""One process or many: which share of the work is mine, and how shares are joined. Knows torch.distributed, not Ray."""

import dataclasses

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclasses.dataclass(frozen=True)
class World:
    """The processes that share a run; rank 0 alone writes files."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def current() -> "World":
        """Return the world of torch.distributed, or a world of one where that is not set up."""
        if dist.is_available() and dist.is_initialized():
            return World(dist.get_rank(), dist.get_world_size())
        return World()

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the network to call in training: itself, or DDP around it, which averages the ranks' gradients."""
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        return DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None
        )

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, the same on each."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total

    def sum_(self, value: Tensor) -> None:
        """Replace a tensor by its sum over all ranks."""
        if self.size > 1:
            dist.all_reduce(value)

    def share(self, num: int) -> range:
        """Return the positions of N that are this rank's: every size-th, so that shares differ by one at most."""
        return range(self.rank, num, self.size)

    def join(self, part: Tensor, num: int) -> Tensor:
        """Join the rows that each rank made for its `share` into all N rows, in order, on every rank.

        No sampler pads the shares, so no row has to be dropped again.
        """
        if self.size == 1:
            return part
        whole = torch.zeros(num, *part.shape[1:], dtype=part.dtype, device=part.device)
        whole[self.rank :: self.size] = part
        return self.sum(whole)
