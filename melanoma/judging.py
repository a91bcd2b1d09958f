"""What a bundle says of stored images, as rows; shared by evaluation and scoring."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from melanoma.arrays import FloatArray
from melanoma.bundle.bundle import Bundle
from melanoma.bundle.deciding import Prediction
from melanoma.bundle.predictor import Predictor, Seen
from melanoma.data.embeddings import read_embeddings
from melanoma.data.image_files import read_image
from melanoma.data.rejections import UNREADABLE, reason_of
from melanoma.errors import DataError, InvalidImageError
from melanoma.executor import Row
from melanoma.imaging.decode import SMALL_WORK, check_content, decode_image, decoding_work
from melanoma.io.storage import AnyPath, is_address, to_path
from melanoma.task import Task

MAX_THREADS = 8
"""Threads that work on images side by side."""
BATCHES_AT_ONCE = 2
"""Batches of which one is read while the network computes the other."""
_ONE_LARGE = threading.Lock()
"""Held while a large image is decoded, because that may take 400 MB."""
_T = TypeVar("_T")
_Result = TypeVar("_Result")
Stored = np.ndarray | tuple[str, str]
"""A stored image, or the reason and detail for which there is none."""


def in_threads(
    work: Callable[[_T], _Result], items: Iterable[_T], num_threads: int | None = None
) -> list[_Result]:
    """Return the results of some work for each item, in order.

    Args:
        work: called in threads; its exceptions are passed on.
        items: what it is called with.
        num_threads: number of threads; None means as many as torch uses. There are at most 8.
    """
    with ThreadPoolExecutor(min(MAX_THREADS, num_threads or torch.get_num_threads())) as threads:
        return list(threads.map(work, items))


def judge_batches(
    predictor: Predictor,
    batches: Iterable[Sequence[_T]],
    read: Callable[[_T], Stored],
) -> list[Row]:
    """Read and predict some batches; return a row for each item, in order.

    Two batches are under way at a time, so that one is read while the network computes the other.
    At most one more is kept.

    Args:
        predictor: what predicts.
        batches: items, as many as one pass of the network takes in each.
        read: returns the stored image of an item, or reason and detail of why there is none.
    """
    num_threads, own = torch.get_num_threads(), predictor.has_own_threads
    # A network that needs all CPUs for a batch computes one at a time.
    turn = contextlib.nullcontext() if own else threading.Lock()

    def see(batch: Sequence[_T]) -> tuple[list[Stored], Seen | None]:
        images = in_threads(read, batch, num_threads)
        readable = [image for image in images if isinstance(image, np.ndarray)]
        with turn:
            return images, predictor.see(readable) if readable else None

    rows: list[Row] = []
    under_way: deque[Future[tuple[list[Stored], Seen | None]]] = deque()
    with ThreadPoolExecutor(BATCHES_AT_ONCE, thread_name_prefix="batches") as threads:
        if own:
            _limit_torch(threads, num_threads)
        for batch in batches:
            under_way.append(threads.submit(see, batch))
            if len(under_way) > BATCHES_AT_ONCE:
                rows += _decided(predictor, *under_way.popleft().result())
        for each in under_way:
            rows += _decided(predictor, *each.result())
    return rows


def _limit_torch(threads: ThreadPoolExecutor, num_threads: int) -> None:
    """Let torch use no more threads in each of these, because the network has all CPUs already.

    `torch.set_num_threads` also sets the number for threads that begin later, which is set back
    here. The last digits of a matrix product depend on it, so `Predictor.decide` is not called in
    these threads.
    """
    begun = threading.Barrier(BATCHES_AT_ONCE + 1)

    def limit(_: int) -> None:
        torch.get_num_threads()  # initialises the thread, which would undo the limit later
        torch.set_num_threads(1)
        begun.wait()

    limited = [threads.submit(limit, number) for number in range(BATCHES_AT_ONCE)]
    begun.wait()
    for each in limited:
        each.result()
    torch.set_num_threads(num_threads)


def embeddings_for(
    bundle: Bundle, path: str | AnyPath | None, image_ids: list[str]
) -> FloatArray | None:
    """Return the embeddings ``(N, F)`` of some images, or None for a bundle that takes images.

    Args:
        bundle: what judges.
        path: the table of embeddings; None if there is none.
        image_ids: the ids of the N images.

    Raises:
        DataError: if the bundle needs a table and there is none or the other way round, or if the
            table does not fit it.
    """
    size = bundle.manifest.architecture.embedding_size
    if (path is None) != (size == 0):
        what = "needs" if size else "judges images and does not take"
        remedy = "Pass --embeddings TABLE." if size else "Leave --embeddings out."
        raise DataError(f"BUNDLE {what} a table of embeddings. {remedy}")
    if path is None:
        return None
    table = read_embeddings(to_path(path))
    if table.size != size:
        raise DataError(
            f"The embeddings must have {size} numbers each for this bundle; they have {table.size}."
            " Pass those of the model that it was trained on."
        )
    return table.of(image_ids)


def read_stored(path: str, bundle: Bundle) -> Stored:
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


def judge(
    predictor: Predictor, images: Sequence[Stored], embeddings: FloatArray | None = None
) -> list[Row]:
    """Predict the images that could be read; return a row for each, in order.

    Args:
        predictor: what predicts.
        images: N stored images, or reason and detail of why one cannot be judged.
        embeddings: ``(N, F)``, if the bundle takes them in place of images.
    """
    places = [place for place, image in enumerate(images) if isinstance(image, np.ndarray)]
    readable = [image for image in images if isinstance(image, np.ndarray)]
    embedded = None if embeddings is None else embeddings[places]
    return _decided(predictor, images, predictor.see(readable, embedded) if readable else None)


def _decided(predictor: Predictor, images: Sequence[Stored], seen: Seen | None) -> list[Row]:
    predictions = iter([] if seen is None else predictor.decide(seen))
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
