"""What a bundle says of stored images, as rows; shared by evaluation and scoring."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from melanoma.bundle.bundle import Bundle
from melanoma.bundle.deciding import Prediction
from melanoma.bundle.predictor import Predictor
from melanoma.data.image_files import read_image
from melanoma.data.rejections import UNREADABLE, reason_of
from melanoma.errors import InvalidImageError
from melanoma.executor import Row
from melanoma.imaging.decode import SMALL_WORK, check_content, decode_image, decoding_work
from melanoma.io.storage import is_address
from melanoma.task import Task

MAX_THREADS = 8
"""Threads that work on images side by side."""
_ONE_LARGE = threading.Lock()
"""Held while a large image is decoded, because that may take 400 MB."""
_T = TypeVar("_T")
_Result = TypeVar("_Result")


def in_threads(work: Callable[[_T], _Result], items: Iterable[_T]) -> list[_Result]:
    """Return the results of some work for each item, in order.

    Args:
        work: called in as many threads as torch uses, at most 8; its exceptions are passed on.
        items: what it is called with.
    """
    with ThreadPoolExecutor(min(MAX_THREADS, torch.get_num_threads())) as threads:
        return list(threads.map(work, items))


def read_stored(path: str, bundle: Bundle) -> np.ndarray | tuple[str, str]:
    """Return the image at a path as a bundle takes it.

    If it cannot be judged, return a reason and a detail instead. Of several threads, one at a time
    decodes a large image.
    """
    try:
        data = read_image(path)
        with _ONE_LARGE if decoding_work(data) > SMALL_WORK else contextlib.nullcontext():
            image = decode_image(data)
        check_content(image)
        return bundle.preprocess.stored(image)
    except InvalidImageError as error:
        return reason_of(error), f"{error.code}: {error}"
    except OSError as error:
        if is_address(path) and not isinstance(error, FileNotFoundError):
            raise  # Unreachable storage does not mean that the image is bad.
        return UNREADABLE, error.strerror or type(error).__name__


def judge(predictor: Predictor, images: Sequence[np.ndarray | tuple[str, str]]) -> list[Row]:
    """Predict the images that could be read; return a row for each, in order.

    Args:
        predictor: what predicts.
        images: stored images, or reason and detail of why one cannot be judged.
    """
    readable = [image for image in images if isinstance(image, np.ndarray)]
    predictions = iter(predictor.predict(readable) if readable else [])
    return [
        judged_row(
            predictor.bundle.task, next(predictions) if isinstance(image, np.ndarray) else image
        )
        for image in images
    ]


def judged_row(task: Task, judged: Prediction | tuple[str, str]) -> Row:
    """Return the columns of one image: logits, probabilities, decision, reason and detail.

    If it could not be judged, the numbers are NaN.

    Args:
        task: the classes.
        judged: its prediction, or the reason and detail for which there is none.
    """
    nothing = np.full(task.num_classes, np.nan)
    logits, probabilities, decision, why = nothing, nothing, "cannot_assess", ("", "")
    if isinstance(judged, Prediction):
        logits, probabilities, decision = judged.logits, judged.probabilities, judged.decision
        # The image was judged; the detail tells why it got no decision.
        why = ("", ", ".join(judged.warnings) if decision == "cannot_assess" else "")
    else:
        why = judged
    return {
        **{f"logit_{name}": float(logits[i]) for i, name in enumerate(task.classes)},
        **{f"probability_{name}": float(probabilities[i]) for i, name in enumerate(task.classes)},
        "decision": decision,
        "reason": why[0],
        "detail": why[1],
    }
