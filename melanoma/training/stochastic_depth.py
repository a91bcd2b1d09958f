"""Stochastic depth with random draws passed in, so that they depend on the image only.

timm's own layer draws from torch's generator. The branches that an image skips would then change
with the number of workers and with its position in the batch. Knows nothing of the source of the
draws.
"""

import torch
from timm.layers import DropPath
from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Skips a residual branch for some images.

    Source: Huang et al., Deep Networks with Stochastic Depth, 2016.

    Attributes:
        drop_prob: share of the images that skip the branch, in [0, 1).
        draws: ``(N,)`` draws in [0, 1) for the images of the next forward pass in training; an
            image skips the branch if its draw is less than ``drop_prob``.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.draws: Tensor | None = None

    def forward(self, branch: Tensor) -> Tensor:
        """Return the branch ``(N, ...)``, set to zero for the images that skip it.

        For the other images it is divided by the share that keep it, which preserves its mean.

        Raises:
            ValueError: if there is not one draw for each image.
        """
        if not self.training or self.drop_prob == 0:
            return branch
        if self.draws is None or len(self.draws) != len(branch):
            raise ValueError(
                f"Stochastic depth needs a draw for each of {len(branch)} images. Call"
                " set_depth_draws before the forward pass."
            )
        kept = (self.draws >= self.drop_prob).to(branch.dtype) / (1 - self.drop_prob)
        return branch * kept.view(-1, *[1] * (branch.ndim - 1))


def install_stochastic_depth(model: nn.Module) -> None:
    """Replace every `DropPath` of a timm network by `StochasticDepth`, in place."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, DropPath):
                setattr(module, name, StochasticDepth(float(child.drop_prob)))


def depth_layers(model: nn.Module) -> list[StochasticDepth]:
    """Return the `StochasticDepth` layers of a network, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, StochasticDepth)]


def set_depth_draws(layers: list[StochasticDepth], draws: Tensor) -> None:
    """Give each layer its column of ``(N, len(layers))`` draws for the next forward pass."""
    for layer, column in zip(layers, torch.unbind(draws, dim=1), strict=True):
        layer.draws = column
