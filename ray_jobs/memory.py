"""Lets processes keep the memory that they free, for the next step of a training on CPUs.

A step allocates and frees the same large tensors again and again. The C library (glibc) gives those
of 32 MiB and more back to the system each time, and the system clears every page of them before the
next step may use it. `benchmarks/kept_memory.py` measures what that costs, and what keeping costs.
"""

import ctypes
import os

KEPT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "-1",  # never
    # Any other arena holds at most 64 MiB in one piece, and Ray trains in a thread, which gets one.
    "MALLOC_ARENA_MAX": "1",
}
"""The environment of processes that keep their memory; other C libraries ignore it.

The parameters are those of mallopt(3).
"""
_PARAMETERS = {"MALLOC_MMAP_MAX_": -4, "MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_ARENA_MAX": -8}


def keep_memory() -> None:
    """Keep freed memory in this process and in those that it starts from now on.

    What the environment says already stays. Threads that run already keep their own arenas.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for name, value in KEPT.items():
        if name not in os.environ:
            os.environ[name] = value
            if mallopt is not None:
                mallopt(_PARAMETERS[name], int(value))
