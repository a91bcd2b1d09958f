"""The weighted focal loss and its class weights. Knows nothing of networks or data."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from melanoma.config import check_gamma


def focal_terms(logits: Tensor, targets: Tensor, *, gamma: float) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the focal losses and the sum of the weights.

    The loss of an image is ``-sum_c t_c (1 - p_c)^gamma log p_c``, where t_c is the share of class
    c in its label times the weight of the class. With a plain label it is the focal loss of Lin et
    al. (Focal Loss for Dense Object Detection, 2017, eq. 5). The sums are returned separately
    because the mean over a batch that several workers share divides by the weights of all workers,
    not by those of one.

    Args:
        logits: ``(N, C)``.
        targets: ``(N, C)``, at least 0: shares of the classes times their weights.
        gamma: 0 or in [1, 5].

    Returns:
        Two scalars: the weighted loss sum and the weight sum.

    Raises:
        SettingError: if gamma is neither 0 nor in [1, 5].
    """
    check_gamma(gamma)
    log_p = F.log_softmax(logits, dim=1)
    losses = -log_p
    if gamma > 0:
        # expm1 keeps the digits of 1 - p near p = 1. Rounding could make it negative, hence the
        # clamp.
        losses = losses * (-torch.expm1(log_p)).clamp(min=0.0) ** gamma
    return (targets * losses).sum(), targets.sum()


def soft_labels(
    labels: Tensor,
    num_classes: int,
    *,
    smoothing: float = 0.0,
    teacher: Tensor | None = None,
    teacher_share: float = 0.0,
) -> Tensor:
    """Return the share of each class in the labels of N images, ``(N, C)`` float32.

    Args:
        labels: ``(N,)`` class indices.
        num_classes: C.
        smoothing: share of each label that is spread over all classes (Szegedy et al., Rethinking
            the Inception Architecture, 2016), in [0, 1).
        teacher: ``(N, C)``, the probabilities that another model gives the images (Hinton, Vinyals,
            Dean, Distilling the Knowledge in a Neural Network, 2015); None for none.
        teacher_share: share of the teacher in each label, in [0, 1].
    """
    shares = F.one_hot(labels, num_classes).float()
    shares = (1 - smoothing) * shares + smoothing / num_classes
    return shares if teacher is None else (1 - teacher_share) * shares + teacher_share * teacher


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


def source_offsets(
    labels: Sequence[int], sources: Sequence[str], *, num_classes: int, strength: float
) -> Tensor:
    """Return what the source of each training image alone says about its class, as logits.

    Added to the logits while training, they take over what a camera or clinic says, so that the
    network learns what the image says beyond it (Clark, Yatskar, Zettlemoyer, Don't Take the Easy
    Way Out, 2019, the bias product). They are left out when the network predicts.

    Args:
        labels: class indices of N images.
        sources: their sources.
        num_classes: C.
        strength: factor on the offsets, in [0, 1]; 0 is off.

    Returns:
        ``(N, C)`` float32, ``strength * (log P(class | source) - log P(class))``. It is 0 if all
        images have one source. Each source counts one more image of average mix, so that a class
        that it lacks is not impossible.
    """
    names, index = np.unique(np.asarray(sources, dtype=str), return_inverse=True)
    counts = np.zeros((len(names), num_classes))
    np.add.at(counts, (index, np.asarray(labels)), 1)
    share = counts.sum(axis=0) / counts.sum()
    of_source = (counts + share) / (counts.sum(axis=1, keepdims=True) + 1)
    occurs = share > 0
    offsets = np.zeros_like(counts)
    offsets[:, occurs] = strength * (np.log(of_source[:, occurs]) - np.log(share[occurs]))
    return torch.from_numpy(offsets[index].astype(np.float32))
