"""The weighted focal loss and its class weights. Knows nothing of networks or data."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from melanoma.config import check_gamma


def focal_terms(
    logits: Tensor, target: Tensor, *, class_weights: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the focal losses and the sum of the weights.

    The loss of an image is ``-w_y (1 - p_y)^gamma log p_y`` (Lin et al., Focal Loss for Dense
    Object Detection, 2017, eq. 5). The sums are returned separately because the mean over a batch
    that several workers share divides by the weights of all workers, not by those of one.

    Args:
        logits: ``(N, C)``.
        target: ``(N,)`` class indices.
        class_weights: ``(C,)``, positive.
        gamma: 0 or in [1, 5].

    Returns:
        Two scalars: the weighted loss sum and the weight sum.

    Raises:
        SettingError: if gamma is neither 0 nor in [1, 5].
    """
    check_gamma(gamma)
    log_p = F.log_softmax(logits, dim=1).gather(1, target[:, None]).squeeze(1)  # (N,)
    weights = class_weights[target]
    losses = -log_p
    if gamma > 0:
        # expm1 keeps the digits of 1 - p near p = 1. Rounding could make it negative, hence the
        # clamp.
        losses = losses * (-torch.expm1(log_p)).clamp(min=0.0) ** gamma
    return (weights * losses).sum(), weights.sum()


def class_weights_from_counts(
    counts: Sequence[int], *, targets: Sequence[int], tau: float, target_factor: float = 1.0
) -> Tensor:
    """Return class weights whose average over the training images is 1.

    Before that scaling, the weight of a class with n images is ``n ** -tau``, times the target
    factor if the class is a target. A class without an image gets weight 0, so that it does not
    change the scale of the others.

    Args:
        counts: training images of each class, in the order of the task.
        targets: indices of the target classes.
        tau: in [0, 1]; 0 weights all classes equally, 1 by inverse frequency.
        target_factor: additional factor on the targets, at least 1.

    Returns:
        ``(C,)`` float32.

    Raises:
        ValueError: if every count is 0.
    """
    if sum(counts) == 0:
        raise ValueError(
            f"At least one of counts must be above 0; they are {list(counts)}. Pass the counts of"
            " the training images."
        )
    numbers = torch.tensor(counts, dtype=torch.float64)
    weights = torch.where(numbers > 0, numbers.clamp(min=1) ** -tau, 0.0)
    weights[list(targets)] *= target_factor
    return (weights * numbers.sum() / (weights * numbers).sum()).float()
