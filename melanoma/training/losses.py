"""The weighted focal loss and its class weights; knows nothing of networks or data."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from melanoma.config import check_gamma


def focal_terms(
    logits: Tensor, target: Tensor, *, class_weights: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of focal losses and the sum of weights, the two halves of a weighted mean.

    Each image costs ``-w_y (1 - p_y)^gamma log p_y`` (Lin et al., Focal Loss for Dense Object
    Detection, 2017, eq. 5). The halves are returned apart because the mean over a batch that is
    spread over workers divides by the sum of all their weights, not by each worker's own.

    Args:
        logits: ``(N, C)``.
        target: ``(N,)`` class indices.
        class_weights: ``(C,)``, positive.
        gamma: 0 or in [1, 5].

    Returns:
        Two scalars: the weighted loss sum and the weight sum.

    Raises:
        SettingError: if gamma is out of its range.
    """
    check_gamma(gamma)
    log_p = F.log_softmax(logits, dim=1).gather(1, target[:, None]).squeeze(1)  # (N,)
    weights = class_weights[target]
    losses = -log_p
    if gamma > 0:
        # 1 - p from expm1 keeps its digits near p = 1; the clamp keeps rounding from making it
        # negative.
        losses = losses * (-torch.expm1(log_p)).clamp(min=0.0) ** gamma
    return (weights * losses).sum(), weights.sum()


def focal_loss(logits: Tensor, target: Tensor, *, class_weights: Tensor, gamma: float) -> Tensor:
    """Return the weighted mean focal loss of one batch, a scalar; arguments and errors as in `focal_terms`."""
    loss_sum, weight_sum = focal_terms(logits, target, class_weights=class_weights, gamma=gamma)
    return loss_sum / weight_sum


class FocalLoss(nn.Module):
    """`focal_loss` with its settings held, for plain PyTorch loops."""

    class_weights: Tensor

    def __init__(self, class_weights: Tensor, gamma: float) -> None:
        super().__init__()
        check_gamma(gamma)
        self.gamma = gamma
        self.register_buffer("class_weights", class_weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits ``(N, C)`` against class indices ``(N,)``."""
        return focal_loss(logits, target, class_weights=self.class_weights, gamma=self.gamma)


def class_weights_from_counts(
    counts: Sequence[int], *, targets: Sequence[int], tau: float, target_factor: float = 1.0
) -> Tensor:
    """Return ``n_c ** -tau`` times the target factor, scaled so that the average weight of a training image is 1.

    A class without an image gets weight 0: it has nothing to be weighted on and must not scale the
    others.

    Args:
        counts: training images of each class, in the order of the task.
        targets: indices of the target classes.
        tau: in [0, 1]; 0 weighs all classes alike, 1 by inverse frequency.
        target_factor: further factor on the targets, at least 1.

    Returns:
        ``(C,)`` float32.

    Raises:
        ValueError: if there is no image at all.
    """
    if sum(counts) == 0:
        raise ValueError(f"counts must not all be 0, got {list(counts)}.")
    numbers = torch.tensor(counts, dtype=torch.float64)
    weights = torch.where(numbers > 0, numbers.clamp(min=1) ** -tau, 0.0)
    weights[list(targets)] *= target_factor
    return (weights * numbers.sum() / (weights * numbers).sum()).float()
