"""Timing for the benchmarks.

The candidates run in turn, so that a busy moment of the machine affects all of them.
"""

import statistics
import time
from collections.abc import Callable, Sequence


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
