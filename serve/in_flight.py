"""Counts the requests in flight in this ingress. Knows nothing of their content."""

import contextlib
import functools
from collections.abc import Iterator


class InFlight:
    """Counts requests and says whether new ones are accepted.

    Attributes:
        num: number of requests in flight.
        is_stopping: whether new requests are refused.
    """

    def __init__(self) -> None:
        self.num, self.is_stopping = 0, False

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count one request while the block runs."""
        self.num += 1
        try:
            yield
        finally:
            self.num -= 1


@functools.cache
def in_flight() -> InFlight:
    """Return the counter of this process, which is one ingress replica.

    This is a function because Ray Serve copies module-level objects when it ships the ingress.
    """
    return InFlight()
