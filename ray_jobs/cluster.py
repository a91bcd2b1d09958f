"""Joins the cluster in RAY_ADDRESS, or starts a local one; the only place that calls `ray.init`."""

import logging
import os
from collections.abc import Callable
from typing import Any

import ray
import ray.data

from melanoma.errors import DataError
from ray_jobs.progress import say

OBJECT_STORE_BYTES = 512 * 1024 * 1024  # pictures travel as files, never through the object store


def connect(*, num_workers: int = 1) -> None:
    """Connect this process to Ray, once.

    Args:
        num_workers: a local cluster offers at least so many CPUs, even on a smaller machine.
    """
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING, log_to_driver=True)
        return
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
    """Run a Ray Data pipeline and return its rows, telling how many of the total are done."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # progress is shown by the command, once, in its own words
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows: list[dict[str, Any]] = []
    for row in dataset.iter_rows():
        rows.append(row)
        if on_picture is not None:
            on_picture(len(rows), total)
    return rows
