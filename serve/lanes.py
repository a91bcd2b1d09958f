"""Limits the number of threads for work that cannot be stopped.

A thread keeps running after its client disconnects or its request times out. A permit is therefore
held until the work ends, not until its request ends. Work whose request ends while it still waits
for a permit never starts.
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
    """A queue is full, or too long for an answer in time."""


class Lane:
    """A fixed number of threads for one event loop; the calls run in the order of arrival."""

    def __init__(self, name: str, *, num_threads: int, max_waiting: int = 256) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._permits = asyncio.Semaphore(num_threads)
        self._num_threads, self._max_waiting, self._num_waiting = num_threads, max_waiting, 0
        self._numbers = itertools.count()
        self._began: dict[int, float] = {}  # start time of each running call, by its number

    async def run(self, work: Callable[[], T]) -> T:
        """Run some work in a thread and return its result; its exceptions are passed on.

        Raises:
            OverloadedError: if too many calls are already waiting.
        """
        # Wait here and not in the pool's queue, which would keep abandoned work and its bytes until
        # a thread takes it.
        if self._num_waiting >= self._max_waiting:
            raise OverloadedError
        self._num_waiting += 1
        try:
            await self._permits.acquire()
        finally:
            self._num_waiting -= 1
        loop = asyncio.get_running_loop()

        def ended(_: Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed
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
        """Return whether every thread has worked on its current call for more than `seconds`."""
        began = list(self._began.values())
        return len(began) == self._num_threads and max(began) < time.monotonic() - seconds
