"""Executors: where a pipeline runs its parallel work.

The default is this process. `ray_jobs/executor.py` puts the same work on Ray. A pipeline calls
`map` for work on many items and `launch` for workers that share one training. Both give the same
result wherever they run.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from melanoma.io.storage import AnyPath
    from melanoma.training.job import TrainJob

Row = dict[str, Any]
"""Plain values by name: a row of a table."""
Item = Mapping[str, Any]
"""Plain values by name: the input of one piece of work."""
Progress = Callable[[int, int], None]
"""Called with (done, total)."""
Counted = Callable[[str, str], contextlib.AbstractContextManager[Progress]]
"""(what, unit) -> a context that gives a function for reporting progress."""


@contextlib.contextmanager
def silently(what: str, unit: str) -> Iterator[Progress]:
    """Give a function that shows no progress; a `Counted`."""
    yield lambda done, total: None


class Work(Protocol):
    """What is done for every item.

    It is copied to each worker once, so it must be small and picklable. It makes what it needs to
    hold (a network, an open file) for its first item and keeps it, for instance in a
    `functools.cached_property`.
    """

    def __call__(self, item: Item) -> Sequence[Row]:
        """Do the work for one item and return its rows."""


class Executor(Protocol):
    """Where a pipeline's work runs.

    Example:
        >>> executor: Executor = LocalExecutor()
        >>> executor.map(lambda item: [{"length": len(item["name"])}], [{"name": "nevus"}])
        [{'length': 5}]
    """

    def start(self, num_workers: int = 1) -> None:
        """Reach the machines of the work, before anything that cannot be undone.

        Args:
            num_workers: number of workers that the work needs.

        Raises:
            ConnectionError: if the machines cannot be reached.
        """

    def map(
        self,
        work: Work,
        items: Sequence[Item],
        *,
        num_workers: int | None = None,
        progress: Progress | None = None,
        total: int | None = None,
    ) -> list[Row]:
        """Do some work for every item and return all rows, in any order.

        Args:
            work: what is done; each worker gets a copy.
            items: what it is done for.
            num_workers: number of workers that share the CPUs; None means one for each CPU.
            progress: called with the rows done so far and their total.
            total: number of rows there will be; None means one for each item.
        """

    def launch(self, jobs: Sequence["TrainJob"]) -> list["AnyPath"]:
        """Train some runs, as many at once as there is room for.

        A run that was interrupted continues from its last checkpoint.

        Returns:
            The folder of the best checkpoint of each run.
        """


@dataclasses.dataclass(frozen=True)
class LocalExecutor:
    """This process: one item after another, and a training without other workers.

    Example:
        >>> LocalExecutor().map(lambda item: [{"twice": 2 * item["n"]}], [{"n": 1}, {"n": 2}])
        [{'twice': 2}, {'twice': 4}]
    """

    def start(self, num_workers: int = 1) -> None:
        """Do nothing, because this process is always available."""

    def map(
        self,
        work: Work,
        items: Sequence[Item],
        *,
        num_workers: int | None = None,
        progress: Progress | None = None,
        total: int | None = None,
    ) -> list[Row]:
        """Do the work for every item in turn; `num_workers` has no effect."""
        rows: list[Row] = []
        for item in items:
            rows += work(item)
            if progress is not None:
                progress(len(rows), len(items) if total is None else total)
        return rows

    def launch(self, jobs: Sequence["TrainJob"]) -> list["AnyPath"]:
        """Train in this process, one run after another, and return their best checkpoints.

        Raises:
            SettingError: if a job asks for several workers.
        """
        from melanoma.training.local import train_here

        return [train_here(job) for job in jobs]
