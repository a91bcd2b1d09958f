"""The service's metrics for Prometheus: counts and times only.

Ray exports them on the metrics port of each node as ray_melanoma_*.
"""

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Literal

from ray.serve.metrics import Counter, Gauge, Histogram

from melanoma.bundle.deciding import Prediction

Stage = Literal["decode", "predict", "explain", "encode"]
_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]
_SIZES: list[float] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
_DISTANCES = [0.4, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10]


class RequestMetrics:
    """Metrics of requests: decisions, refusals by code, seconds by stage, and invalid key lines."""

    def __init__(self) -> None:
        self._decisions = Counter(
            "melanoma_decisions", "answers by decision", tag_keys=("decision",)
        )
        self._refusals = Counter(
            "melanoma_refusals",
            "requests that were refused or failed, by problem code",
            # Ray annotates a tuple of one string but accepts more.
            tag_keys=("code", "status"),  # type: ignore[arg-type]
        )
        self._seconds = Histogram(
            "melanoma_stage_seconds",
            "seconds of a request by stage, including waiting",
            _SECONDS,
            tag_keys=("stage",),
        )

        self._invalid_key_lines = Gauge(
            "melanoma_invalid_key_lines",
            "lines of the API key file that are not a hash and are ignored",
        )
        self.read_keys(0)  # a series that does not exist would look like a quiet one

    def read_keys(self, num_invalid_lines: int) -> None:
        """Record how many lines of the file of API keys are invalid."""
        self._invalid_key_lines.set(num_invalid_lines)

    def decided(self, decision: str) -> None:
        """Count one answer."""
        self._decisions.inc(tags={"decision": decision})

    def refused(self, code: str, status: int) -> None:
        """Count one request that was refused or failed."""
        self._refusals.inc(tags={"code": code, "status": str(status)})

    @contextlib.contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Measure the time that the block takes."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds.observe(time.perf_counter() - started, tags={"stage": name})


class BatchMetrics:
    """Metrics of the classifier's batches: sizes, seconds, and distances of the features."""

    def __init__(self) -> None:
        self._sizes = Histogram("melanoma_batch_size", "images in a batch", _SIZES)
        self._seconds = Histogram(
            "melanoma_batch_seconds", "seconds of the network for a batch", _SECONDS
        )
        self._distances = Histogram(
            "melanoma_feature_distance",
            "distance of served features from validation features; 5 % of the latter are above 1",
            _DISTANCES,
        )

    def computed(self, predictions: Sequence[Prediction], seconds: float) -> None:
        """Record one batch."""
        self._sizes.observe(len(predictions))
        self._seconds.observe(seconds)
        for prediction in predictions:
            self._distances.observe(prediction.feature_distance)


@functools.cache
def request_metrics() -> RequestMetrics:
    """Return the metrics of this process; they are labelled with the replica that creates them."""
    return RequestMetrics()
