"""How single jobs become batches: with a computation that waits for a signal, without Ray."""

import asyncio
import threading

import pytest

from serve.batcher import Batcher


class _Computes:
    """Doubles numbers when it is told to, and remembers the batches."""

    def __init__(self) -> None:
        self.go_on, self.batches = threading.Event(), list[list[int]]()

    def __call__(self, jobs: list[int]) -> list[int]:
        self.batches.append(jobs)
        assert self.go_on.wait(30)
        if 13 in jobs:
            raise FloatingPointError
        return [2 * job for job in jobs]


async def _until(condition: object) -> None:
    for _ in range(1000):
        if condition():  # type: ignore[operator]
            return
        await asyncio.sleep(0.005)
    raise AssertionError


def test_what_waits_for_a_turn_forms_one_batch() -> None:
    async def ask() -> None:
        computes = _Computes()
        batcher = Batcher(computes, max_batch=4, at_once=2)
        asked = [asyncio.create_task(batcher(number)) for number in range(12)]
        await _until(lambda: len(computes.batches) == 2)
        computes.go_on.set()
        assert await asyncio.gather(*asked) == [2 * number for number in range(12)]
        assert sorted(map(len, computes.batches)) == [1, 1, 2, 4, 4]

    asyncio.run(ask())


def test_a_cancelled_job_is_not_computed_and_an_error_reaches_its_batch_alone() -> None:
    async def ask() -> None:
        computes = _Computes()
        batcher = Batcher(computes, max_batch=2, at_once=1)
        first = asyncio.create_task(batcher(1))
        await _until(lambda: computes.batches)
        asked = [asyncio.create_task(batcher(number)) for number in (99, 13, 3, 4)]
        await asyncio.sleep(0)
        asked[0].cancel()
        await asyncio.sleep(0)
        computes.go_on.set()
        found = await asyncio.gather(first, *asked, return_exceptions=True)
        assert found[0] == 2
        assert isinstance(found[1], asyncio.CancelledError)
        assert isinstance(found[2], FloatingPointError)
        assert isinstance(found[3], FloatingPointError)
        assert found[4] == 8
        assert [99] not in computes.batches
        assert all(99 not in batch for batch in computes.batches)

    asyncio.run(ask())


@pytest.mark.parametrize("max_batch", [1, 8])
def test_an_idle_batcher_starts_at_once(max_batch: int) -> None:
    async def ask() -> int:
        computes = _Computes()
        computes.go_on.set()
        return await Batcher(computes, max_batch=max_batch, at_once=1)(21)

    assert asyncio.run(ask()) == 42
