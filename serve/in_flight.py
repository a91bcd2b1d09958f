"""Counts the requests in flight in this ingress, and decides whether it takes more.

Knows nothing of their content.
"""

import collections
import contextlib
import functools
import math
import time
from collections.abc import Iterator

MAX_RETRY_SECONDS = 60
_RATE_SECONDS = 10.0


class InFlight:
    """Counts requests and says whether new ones are accepted.

    Attributes:
        num: number of requests in flight.
        num_computing: number of those that need the network.
        limit: largest such number; None if Ray Serve's proxy sets the limit.
        is_stopping: whether new requests are refused.
    """

    def __init__(self) -> None:
        self.num, self.num_computing, self.is_stopping = 0, 0, False
        self.limit: int | None = None
        self._answered: collections.deque[float] = collections.deque(maxlen=1000)

    @property
    def is_full(self) -> bool:
        """Whether a request that computes something is refused."""
        return self.limit is not None and self.num_computing >= self.limit

    def retry_after(self) -> int:
        """Return after how many seconds the requests in flight will have been answered.

        It follows from their number and from how many were answered in the last 10 s; if there was
        none, it is 10. It is a whole number from 1 to 60.
        """
        now = time.monotonic()
        while self._answered and self._answered[0] < now - _RATE_SECONDS:
            self._answered.popleft()
        if self.num_computing == 0:
            return 1
        if not self._answered:
            return math.ceil(_RATE_SECONDS)
        rate = len(self._answered) / max(now - self._answered[0], 0.1)
        return min(max(1, math.ceil(self.num_computing / rate)), MAX_RETRY_SECONDS)

    @contextlib.contextmanager
    def counted(self, *, computes: bool) -> Iterator[None]:
        """Count one request while the block runs.

        Args:
            computes: whether it needs the network.
        """
        self.num += 1
        self.num_computing += computes
        try:
            yield
        finally:
            self.num -= 1
            self.num_computing -= computes

    def answered(self) -> None:
        """Remember that a request that needed the network was answered just now."""
        self._answered.append(time.monotonic())


@functools.cache
def in_flight() -> InFlight:
    """Return the counter of this process, which is one ingress replica.

    This is a function because Ray Serve copies module-level objects when it ships the ingress.
    """
    return InFlight()
