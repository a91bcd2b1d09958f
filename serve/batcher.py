"""Gathers single jobs into batches and computes them in threads. Knows nothing of what they are.

Ray Serve's own batching forms a batch before it waits for its turn, so that with no wait for more
jobs every batch holds one. Here a batch is formed when its turn comes, from all jobs that wait.
"""

import asyncio
import collections
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Job = TypeVar("Job")
Answer = TypeVar("Answer")


class Batcher(Generic[Job, Answer]):
    """Computes jobs in batches, for one event loop. An idle batcher starts at once.

    Args:
        compute: from a batch of jobs to their answers, in the same order. It is called in a thread.
        max_batch: largest number of jobs in a batch.
        at_once: number of batches that are computed at the same time.
    """

    def __init__(
        self,
        compute: Callable[[list[Job]], Sequence[Answer]],
        *,
        max_batch: int,
        at_once: int,
    ) -> None:
        self._compute, self._max_batch, self._at_once = compute, max_batch, at_once
        self._waiting: collections.deque[tuple[Job, asyncio.Future[Answer]]] = collections.deque()
        self._running: set[asyncio.Task[None]] = set()

    async def __call__(self, job: Job) -> Answer:
        """Return the answer to a job; an error of its batch is raised for all jobs of the batch.

        A job whose caller is cancelled while it waits is never computed.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, answer))
        self._start()
        return await answer

    def _start(self) -> None:
        while len(self._running) < self._at_once and (batch := self._next_batch()):
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _next_batch(self) -> list[tuple[Job, "asyncio.Future[Answer]"]]:
        batch: list[tuple[Job, asyncio.Future[Answer]]] = []
        while self._waiting and len(batch) < self._max_batch:
            job, answer = self._waiting.popleft()
            if not answer.done():  # its caller may have been cancelled
                batch.append((job, answer))
        return batch

    async def _run(self, batch: list[tuple[Job, "asyncio.Future[Answer]"]]) -> None:
        try:
            answers = await asyncio.to_thread(self._compute, [job for job, _ in batch])
        except Exception as error:  # each caller gets it
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self._start()
