"""Joins the cluster in RAY_ADDRESS, or starts a local one; the only place that calls `ray.init`."""

import logging
import os

import ray

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
    """Return the CPUs each of some equal workers may use on the connected cluster, at least 1."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)) // num_workers)
