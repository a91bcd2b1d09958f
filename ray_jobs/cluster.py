"""Joins the cluster in RAY_ADDRESS, or starts a local one; for every command but `serve`, which starts its own."""

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
from ray.util.placement_group import placement_group, remove_placement_group

from melanoma.errors import DataError
from ray_jobs.local_ray import safe_defaults
from ray_jobs.preflight import check_address, check_temp_dir
from ray_jobs.progress import say

OBJECT_STORE_BYTES = 512 * 1024 * 1024  # images travel as files, never through the object store
GROWTH_SECONDS = 30 * 60.0
"""How long a command waits for a cluster to grow before it gives up."""


@dataclasses.dataclass(frozen=True)
class Bundle:
    """What one worker holds, all of it on one node.

    Attributes:
        cpus: whole CPUs, at least 1.
        gpus: GPUs, or a share of one; 0 for none.
    """

    cpus: int
    gpus: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Return it as Ray takes it."""
        return {"CPU": float(self.cpus), **({"GPU": self.gpus} if self.gpus else {})}

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else ""
        return f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}{gpus}"


_ADVICE = re.compile(r"(^|\n)Failed to .* after \d+/\d+ attempts \(total backoff.*", re.DOTALL)


def connect(*, num_workers: int = 1) -> None:
    """Connect this process to Ray, once.

    Args:
        num_workers: a local cluster offers at least so many CPUs, even on a smaller machine.

    Raises:
        DataError: if a local cluster would start without a token, and nobody asked for that danger
            by name.
    """
    if ray.is_initialized():
        return
    if not is_local():
        check_address(os.environ["RAY_ADDRESS"])
        ray.init(logging_level=logging.WARNING, log_to_driver=True)
        return
    check_temp_dir()
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
    """Return whether the cluster is, or will be, one that this process starts for itself."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def wait_for_room(bundle: Bundle, num_workers: int) -> None:
    """Return once the cluster could hold some workers; Ray itself would wait for room without a word.

    Raises:
        DataError: if this machine alone is the cluster, which cannot grow.
        TimeoutError: if a larger cluster does not grow in `GROWTH_SECONDS`.
    """
    nodes = node_resources()
    room = num_placeable(nodes, bundle)
    if room >= num_workers:
        return
    lack = f"{num_workers} workers of {bundle} each are needed, the cluster has room for {room}"
    if is_local():
        raise DataError(
            f"{lack}; pass fewer --workers or"
            f" --cpus-per-worker{' or leave out --gpu' if bundle.gpus else ''}."
        )
    minutes = GROWTH_SECONDS / 60
    say(f"{lack}; waiting up to {minutes:.0f} minutes for it to grow")
    group = placement_group([bundle.as_dict()] * num_workers)  # what an autoscaler sees and answers
    try:
        if not group.wait(GROWTH_SECONDS):
            raise TimeoutError(
                f"{lack} after {minutes:.0f} minutes; add nodes, or pass fewer --workers or"
                " --cpus-per-worker."
            )
    finally:
        remove_placement_group(group)


def node_resources() -> list[Mapping[str, float]]:
    """Return what each living node of the cluster has in all."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def num_placeable(nodes: Sequence[Mapping[str, float]], bundle: Bundle) -> int:
    """Return how many bundles some nodes hold, each on one node: their sums may hold more."""
    wanted = bundle.as_dict().items()
    return sum(int(min(node.get(name, 0.0) // amount for name, amount in wanted)) for node in nodes)


def cpus_per_worker(
    nodes: Sequence[Mapping[str, float]], num_workers: int, *, gpus: float = 0.0
) -> int:
    """Return the most CPUs, at least 1, that each of some equal workers may use, every worker on one node.

    Workers with a GPU share the CPUs of the nodes that have GPUs, as many to each as leave none of
    the GPUs without a worker.

    Args:
        nodes: what each node has.
        num_workers: how many there are to be at least.
        gpus: GPUs, or the share of one, of each.
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
    """Return the GPUs, or the share of one, of each of some processes that train alone; 0 where there is none."""
    num_gpus = sum(int(node.get("GPU", 0.0)) for node in nodes)
    return 1 / math.ceil(num_trials / num_gpus) if num_gpus else 0.0


def collect(
    dataset: ray.data.Dataset, total: int, on_image: Callable[[int, int], None] | None
) -> list[dict[str, Any]]:
    """Run a Ray Data pipeline and return its rows, telling how many of the total are done; what fails in a task is raised as it was."""
    context = (
        dataset.context
    )  # a data set keeps the settings it was made with: those of the process come too late
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
            if on_image is not None:
                on_image(len(rows), total)
    except ray.exceptions.RayTaskError as error:
        raise _without_advice(error.cause) from error
    return rows


def _without_advice(cause: Exception) -> Exception:
    """Take off the sentences on retries that Ray Data writes behind the message of what failed in a task."""
    if (
        isinstance(cause, OSError)
        and isinstance(cause.filename, str)
        and _ADVICE.search(cause.filename)
    ):
        return OSError(cause.errno, cause.strerror)  # there they became the name of its file
    cause.args = tuple(_ADVICE.sub("", arg) if isinstance(arg, str) else arg for arg in cause.args)
    return cause
