"""Joins the cluster in RAY_ADDRESS, or starts a local one; the only place that calls `ray.init`."""

import logging
import os
from collections.abc import Callable
from typing import Any

import ray
import ray.data

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


def cpus_per_worker(num_workers: int) -> int:
    """Return the CPUs each of some equal workers may use, at least 1 and never more than the largest node has."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return max(1, min(sum(nodes) // num_workers, max(nodes, default=1)))


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
