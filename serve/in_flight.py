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
        num: number of requests in flight that compute something.
        limit: largest such number; None if Ray Serve's proxy sets the limit.
        is_stopping: whether new requests are refused.
    """

    def __init__(self) -> None:
        self.num, self.is_stopping = 0, False
        self.limit: int | None = None
        self._ended: collections.deque[float] = collections.deque(maxlen=1000)

    @property
    def is_full(self) -> bool:
        """Whether a request that computes something is refused."""
        return self.limit is not None and self.num >= self.limit

    def retry_after(self) -> int:
        """Return after how many seconds the requests in flight will have been answered.

        It follows from their number and from how many were answered in the last 10 s. It is a
        whole number from 1 to 60.
        """
        now = time.monotonic()
        while self._ended and self._ended[0] < now - _RATE_SECONDS:
            self._ended.popleft()
        if not self._ended:
            return 1
        rate = len(self._ended) / max(now - self._ended[0], 0.1)
        return min(max(1, math.ceil(self.num / rate)), MAX_RETRY_SECONDS)

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count one request while the block runs."""
        self.num += 1
        try:
            yield
        finally:
            self.num -= 1
            self._ended.append(time.monotonic())


@functools.cache
def in_flight() -> InFlight:
    """Return the counter of this process, which is one ingress replica.

    This is a function because Ray Serve copies module-level objects when it ships the ingress.
    """
    return InFlight()
