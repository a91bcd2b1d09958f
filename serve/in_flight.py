"""How many requests are under way in this ingress, and whether it takes new ones. Knows nothing of what they ask."""

import contextlib
import functools
from collections.abc import Iterator


class InFlight:
    """Counts requests; state: how many are under way, and whether the service is stopping.

    Attributes:
        num: requests under way.
        is_stopping: whether new ones are refused.
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
    """Return that of this process, one ingress replica; a function, because Ray Serve copies objects when it ships the ingress."""
    return InFlight()
