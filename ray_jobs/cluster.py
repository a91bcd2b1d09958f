"""Joins the cluster in RAY_ADDRESS, or starts a local one; the only place that calls `ray.init`."""

import logging
import os
import re
from collections.abc import Callable
from typing import Any

import ray
import ray.data
import ray.exceptions

from melanoma.errors import DataError
from ray_jobs.preflight import check_address, check_temp_dir
from ray_jobs.progress import say

OBJECT_STORE_BYTES = 512 * 1024 * 1024  # pictures travel as files, never through the object store

_ADVICE = re.compile(r"(^|\n)Failed to .* after \d+/\d+ attempts \(total backoff.*", re.DOTALL)


def connect(*, num_workers: int = 1) -> None:
    """Connect this process to Ray, once.

    Args:
        num_workers: a local cluster offers at least so many CPUs, even on a smaller machine.
    """
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        check_address(os.environ["RAY_ADDRESS"])
        ray.init(logging_level=logging.WARNING, log_to_driver=True)
        return
    check_temp_dir()
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, num_workers),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=os.environ.get("MELANOMA_DEBUG") == "1",
        logging_level=logging.WARNING,
    )


def check_resources(num_workers: int, *, use_gpu: bool) -> None:
    """Say what a cluster lacks for some workers, for Ray would wait for it without a word; it may still grow.

    Raises:
        DataError: if this machine alone is the cluster, which cannot grow.
    """
    kind = "GPU" if use_gpu else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))
    if there >= num_workers:
        return
    lack = f"{num_workers} workers need {num_workers} {kind}s, the cluster has {there}"
    if not os.environ.get("RAY_ADDRESS"):
        raise DataError(f"{lack}; pass fewer --workers{' or leave out --gpu' if use_gpu else ''}.")
    say(f"{lack}; waiting for it to grow")


def cpus_per_worker(num_workers: int) -> int:
    """Return the most CPUs, at least 1, that each of some equal workers may use, every worker on one node."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    fitting = (cpus for cpus in range(max(nodes, default=1), 0, -1) if sum(n // cpus for n in nodes) >= num_workers)
    return next(fitting, 1)


def gpus_per_worker(num_workers: int) -> float:
    """Return the GPUs, or the share of one, that each of some equal workers may use; 0 where the cluster has none."""
    return min(1.0, float(ray.cluster_resources().get("GPU", 0.0)) / num_workers)


def collect(
    dataset: ray.data.Dataset, total: int, on_picture: Callable[[int, int], None] | None
) -> list[dict[str, Any]]:
    """Run a Ray Data pipeline and return its rows, telling how many of the total are done; what fails in a task is raised as it was."""
    context = dataset.context  # a data set keeps the settings it was made with: those of the process come too late
    context.enable_progress_bars = False  # progress is shown by the command, once, in its own words
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    if os.environ.get("MELANOMA_DEBUG") != "1":
        logging.getLogger("ray.data").setLevel(
            logging.CRITICAL
        )  # it would call an error of ours one of its own, with its trace
    rows: list[dict[str, Any]] = []
    try:
        for row in dataset.iter_rows():
            rows.append(row)
            if on_picture is not None:
                on_picture(len(rows), total)
    except ray.exceptions.RayTaskError as error:
        raise _without_advice(error.cause) from error
    return rows


def _without_advice(cause: Exception) -> Exception:
    """Take off the sentences on retries that Ray Data writes behind the message of what failed in a task."""
    if isinstance(cause, OSError) and isinstance(cause.filename, str) and _ADVICE.search(cause.filename):
        return OSError(cause.errno, cause.strerror)  # there they became the name of its file
    cause.args = tuple(_ADVICE.sub("", arg) if isinstance(arg, str) else arg for arg in cause.args)
    return cause
