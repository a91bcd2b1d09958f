"""Timing for the benchmarks.

The candidates run in turn, so that a busy moment of the machine affects all of them.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor


def in_turn(runs: Sequence[Callable[[], object]], *, repeats: int) -> list[float]:
    """Return the median time of each run, s; the first round is a warm-up and does not count."""
    seconds: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats + 1):
        for index, run in enumerate(runs):
            started = time.perf_counter()
            run()
            if repeat > 0:
                seconds[index].append(time.perf_counter() - started)
    return [statistics.median(values) for values in seconds]


def side_by_side(call: Callable[[], object], *, at_once: int, seconds: float) -> list[list[float]]:
    """Call something again and again in some threads, so that no core waits for another.

    Args:
        call: what is called.
        at_once: number of threads.
        seconds: how long.

    Returns:
        For each thread the seconds of each of its calls.
    """
    stop = time.perf_counter() + seconds

    def calls() -> list[float]:
        times = []
        while not times or time.perf_counter() < stop:
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        return times

    with ThreadPoolExecutor(at_once) as threads:
        return [loop.result() for loop in [threads.submit(calls) for _ in range(at_once)]]
