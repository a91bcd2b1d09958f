"""The executor on Ray: it maps with Ray Data and trains with Ray Train.

All computation is in `melanoma`. Each worker of `map` imports this module, so what trains, with
torch and Ray Train, stands in `ray_jobs.trainer`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray.data

from melanoma.executor import Item, Progress, Row, Work
from ray_jobs.cluster import collect, connect, cpus_per_worker, node_resources

if TYPE_CHECKING:
    from melanoma.io.storage import AnyPath
    from melanoma.training.job import TrainJob


@dataclasses.dataclass(frozen=True)
class RayExecutor:
    """Runs pipelines on the cluster in RAY_ADDRESS, or on one that it starts on this machine."""

    def start(self, num_workers: int = 1) -> None:
        """Connect to the cluster, or start one.

        Args:
            num_workers: a local cluster declares at least this many CPUs.
        """
        connect(num_workers=num_workers)

    def map(
        self,
        work: Work,
        items: Sequence[Item],
        *,
        num_workers: int | None = None,
        progress: Progress | None = None,
        total: int | None = None,
    ) -> list[Row]:
        """Do some work for every item with Ray Data and return its rows.

        Args:
            work: called with each item; returns rows.
            items: the items.
            num_workers: number of actors, each with its own copy of the work; None uses tasks.
            progress: called with the number of rows done and the total.
            total: number of expected rows; None expects one for each item.
        """
        connect(num_workers=num_workers or 1)
        if not items:
            return []
        dataset = ray.data.from_items(
            [{"item": dict(item)} for item in items], override_num_blocks=len(items)
        )
        if num_workers is None:
            mapped = dataset.flat_map(_run, fn_kwargs={"work": work})  # type: ignore[arg-type]
        else:
            num_cpus = cpus_per_worker(node_resources(), num_workers)
            mapped = dataset.flat_map(
                _Actor,
                fn_constructor_args=[work, num_cpus],
                num_cpus=num_cpus,
                compute=ray.data.ActorPoolStrategy(size=num_workers),
            )
        return collect(mapped, len(items) if total is None else total, progress)

    def launch(self, jobs: Sequence["TrainJob"]) -> list["AnyPath"]:
        """Train runs with Ray Train and return the folders of their best checkpoints."""
        from ray_jobs.trainer import launch

        return launch(jobs)


def _run(row: Mapping[str, Any], *, work: Work) -> list[Row]:
    return list(work(row["item"]))


class _Actor:
    """Holds its own copy of the work, so that the work can keep state between items."""

    def __init__(self, work: Work, num_threads: int) -> None:
        self._work, self._num_threads = work, num_threads

    def __call__(self, row: Mapping[str, Any]) -> list[Row]:
        import torch  # tasks, which do not predict, never load it

        torch.set_num_threads(self._num_threads)
        return list(self._work(row["item"]))
