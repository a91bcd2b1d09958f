"""Connects to the cluster in RAY_ADDRESS or starts a local one, and measures its room.

All commands use it except `serve`, which starts its own cluster.
"""

import dataclasses
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import joblib
import ray
import ray.data
import ray.exceptions
from ray._private import ray_constants
from ray.experimental import internal_kv
from ray.util.placement_group import placement_group, remove_placement_group

from melanoma.errors import DataError
from ray_jobs.local_ray import safe_defaults
from ray_jobs.memory import keep_memory
from ray_jobs.preflight import check_address, check_temp_dir
from ray_jobs.progress import say

OBJECT_STORE_BYTES = 512 * 1024 * 1024  # small, because images travel as files
GROWTH_SECONDS = 30 * 60.0
"""How long a command waits for a cluster to grow before it gives up."""


@dataclasses.dataclass(frozen=True)
class Bundle:
    """The resources of one worker, all on one node.

    Attributes:
        cpus: number of CPUs, at least 1.
        gpus: number of GPUs, or a share of one; 0 for none.
    """

    cpus: int
    gpus: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Return the resources by Ray's names."""
        return {"CPU": float(self.cpus), **({"GPU": self.gpus} if self.gpus else {})}

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else ""
        return f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}{gpus}"


_ADVICE = re.compile(r"(^|\n)Failed to .* after \d+/\d+ attempts \(total backoff.*", re.DOTALL)


def connect(*, num_workers: int = 1) -> None:
    """Connect this process to Ray, unless it is connected already.

    Args:
        num_workers: a local cluster declares at least this many CPUs, even on a smaller machine.

    Raises:
        ConnectionError: if no Ray answers at RAY_ADDRESS.
        DataError: if RAY_ADDRESS is not valid, if a local cluster would start without a token
            although --insecure-ray was not passed, or if the path of its temporary folder is too
            long.
    """
    if ray.is_initialized():
        return
    if not is_local():
        check_address(os.environ["RAY_ADDRESS"])
        ray.init(logging_level=logging.WARNING, log_to_driver=True)
        return
    check_temp_dir()
    keep_memory()
    with safe_defaults():
        ray.init(
            address="local",
            num_cpus=max(joblib.cpu_count(), num_workers),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=os.environ.get("MELANOMA_DEBUG") == "1",
            logging_level=logging.WARNING,
        )


def is_local() -> bool:
    """Return whether this process starts its own local cluster, or has started it."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def has_dashboard() -> bool:
    """Return whether the cluster has a dashboard. Those that `connect` starts have none."""
    address = internal_kv._internal_kv_get(
        ray_constants.DASHBOARD_ADDRESS, namespace=ray_constants.KV_NAMESPACE_DASHBOARD
    )
    return address is not None


def wait_for_room(bundle: Bundle, num_workers: int) -> None:
    """Return when the cluster has room for some workers. Ray itself would wait silently.

    Args:
        bundle: resources of each worker.
        num_workers: number of workers.

    Raises:
        DataError: if the cluster is this machine, which cannot grow.
        TimeoutError: if a remote cluster does not grow within `GROWTH_SECONDS`.
    """
    nodes = node_resources()
    room = num_placeable(nodes, bundle)
    if room >= num_workers:
        return
    lack = (
        f"The cluster must have room for {num_workers} workers of {bundle} each; it has room for"
        f" {room}"
    )
    if is_local():
        raise DataError(
            f"{lack}. Pass fewer --workers or"
            f" --cpus-per-worker{', or leave out --gpu' if bundle.gpus else ''}."
        )
    minutes = GROWTH_SECONDS / 60
    say(f"{lack}; waiting up to {minutes:.0f} minutes for it to grow")
    # An autoscaler sees a pending placement group and adds nodes for it.
    group = placement_group([bundle.as_dict()] * num_workers)
    try:
        if not group.wait(GROWTH_SECONDS):
            raise TimeoutError(
                f"{lack} after {minutes:.0f} minutes. Add nodes, or pass fewer --workers or"
                " --cpus-per-worker."
            )
    finally:
        remove_placement_group(group)


def node_resources() -> list[Mapping[str, float]]:
    """Return the total resources of each living node of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def num_placeable(nodes: Sequence[Mapping[str, float]], bundle: Bundle) -> int:
    """Return how many bundles fit on some nodes. A bundle cannot be split between nodes."""
    wanted = bundle.as_dict().items()
    return sum(int(min(node.get(name, 0.0) // amount for name, amount in wanted)) for node in nodes)


def cpus_per_worker(
    nodes: Sequence[Mapping[str, float]], num_workers: int, *, gpus: float = 0.0
) -> int:
    """Return the largest number of CPUs, at least 1, that each of some equal workers may use.

    Workers with a GPU share the CPUs of the nodes that have GPUs. The number is such that every GPU
    can have its worker.

    Args:
        nodes: total resources of each node.
        num_workers: number of workers that must fit.
        gpus: number of GPUs of each worker, or a share of one.
    """
    if gpus:
        shares = [
            int(node.get("CPU", 0.0) * gpus / node["GPU"])
            for node in nodes
            if node.get("GPU", 0.0) >= gpus
        ]
        return max(1, min(shares, default=1))
    most = max((int(node.get("CPU", 0.0)) for node in nodes), default=1)
    fitting = (
        cpus for cpus in range(most, 0, -1) if num_placeable(nodes, Bundle(cpus)) >= num_workers
    )
    return next(fitting, 1)


def gpus_per_trial(nodes: Sequence[Mapping[str, float]], num_trials: int) -> float:
    """Return the share of a GPU for each of some trials with one worker each; 0 without GPUs.

    Args:
        nodes: total resources of each node.
        num_trials: number of trials that run at a time.
    """
    num_gpus = sum(int(node.get("GPU", 0.0)) for node in nodes)
    return 1 / math.ceil(num_trials / num_gpus) if num_gpus else 0.0


def collect(
    dataset: ray.data.Dataset, total: int, on_image: Callable[[int, int], None] | None
) -> list[dict[str, Any]]:
    """Run a Ray Data pipeline and return its rows.

    Args:
        dataset: the pipeline.
        total: number of expected rows.
        on_image: called with the number of rows done and the total; None for no progress.

    Raises:
        Exception: the original exception of a task that fails.
    """
    # A data set keeps the context with which it was created, so the process's own is too late.
    context = dataset.context
    context.enable_progress_bars = False  # the command shows its own progress
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    if os.environ.get("MELANOMA_DEBUG") != "1":
        # Ray Data would log an error of this project as its own, with a traceback.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    rows: list[dict[str, Any]] = []
    try:
        for row in dataset.iter_rows():
            rows.append(row)
            if on_image is not None:
                on_image(len(rows), total)
    except ray.exceptions.RayTaskError as error:
        raise _without_advice(error.cause) from error
    return rows


def _without_advice(cause: Exception) -> Exception:
    """Return an exception without the advice on retries that Ray Data appends to its message."""
    if (
        isinstance(cause, OSError)
        and isinstance(cause.filename, str)
        and _ADVICE.search(cause.filename)
    ):
        # In an OSError the appended text became the file name.
        return OSError(cause.errno, cause.strerror)
    cause.args = tuple(_ADVICE.sub("", arg) if isinstance(arg, str) else arg for arg in cause.args)
    return cause
