"""Whether ONNX Runtime decides as torch does, for one bundle on a CPU."""

import numpy as np

from melanoma.arrays import FloatArray
from melanoma.bundle.manifest import ONNX_RUNTIME, TORCH, CpuBackend
from melanoma.evidence.operating_point import is_referred
from melanoma.task import Task

MAX_DIFFERENCE = 1e-4
"""Of probabilities, for which ONNX Runtime is taken."""


def compare_backend(
    task: Task, probabilities: FloatArray, again: FloatArray, threshold: float
) -> CpuBackend:
    """Choose the library that computes feature maps on a CPU.

    It is ONNX Runtime if that changes no decision on the calibration images and no probability by
    more than 1e-4, and torch otherwise.

    Args:
        task: the classes.
        probabilities: ``(N, C)`` of the calibration images, by torch.
        again: ``(N, C)`` of the same images, by ONNX Runtime.
        threshold: the threshold of the operating point, in [0, 1].

    Returns:
        The library's name and the differences between the two, for the manifest.
    """
    furthest = float(np.abs(again - probabilities).max())
    referred, referred_again = (
        is_referred(task.target_scores(p), threshold) for p in (probabilities, again)
    )
    num_other = int((referred != referred_again).sum())
    same = furthest <= MAX_DIFFERENCE and num_other == 0
    return CpuBackend(ONNX_RUNTIME if same else TORCH, len(probabilities), furthest, num_other)
