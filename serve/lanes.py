"""Threads for work that cannot be stopped: so many at once and no more, whatever becomes of the requests they work for.

A thread goes on after its client hung up or its request timed out. A permit is therefore held until
the work has ended, not until nobody waits for it any more. What still waits for a permit by then is
never begun.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class OverloadedError(Exception):
    """A queue is full."""


class Lane:
    """A fixed number of threads of its own, first come, first served; for one event loop."""

    def __init__(self, name: str, *, num_threads: int, max_waiting: int = 256) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._permits = asyncio.Semaphore(num_threads)
        self._num_threads, self._max_waiting, self._num_waiting = num_threads, max_waiting, 0
        self._numbers = itertools.count()
        self._began: dict[int, float] = {}  # of the calls that run, by number

    async def run(self, work: Callable[[], T]) -> T:
        """Return what some work returns; raise what it raises.

        Raises:
            OverloadedError: if so many wait already that this would wait in vain.
        """
        # The pool's own queue would keep what is given up, with all its bytes, until a thread comes
        # to it.
        if self._num_waiting >= self._max_waiting:
            raise OverloadedError
        self._num_waiting += 1
        try:
            await self._permits.acquire()
        finally:
            self._num_waiting -= 1
        loop = asyncio.get_running_loop()

        def ended(_: Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._permits.release)

        future = self._pool.submit(self._timed, work)
        future.add_done_callback(ended)
        return await asyncio.wrap_future(future)

    def _timed(self, work: Callable[[], T]) -> T:
        number = next(self._numbers)
        self._began[number] = time.monotonic()
        try:
            return work()
        finally:
            del self._began[number]

    def is_stuck(self, seconds: float) -> bool:
        """Return whether every thread has worked on one call for longer than some seconds."""
        began = list(self._began.values())
        return len(began) == self._num_threads and max(began) < time.monotonic() - seconds
