"""One training run as it is asked for."""

import dataclasses

from melanoma.config import TrainConfig
from melanoma.io.storage import AnyPath


@dataclasses.dataclass(frozen=True)
class TrainJob:
    """One training run. Crosses processes as it is.

    Attributes:
        dataset: a prepared data set.
        run_dir: OUT/RUN; holds bundle/, history.jsonl and checkpoints/.
        config: the run's settings.
        num_workers: DDP workers that share every batch, at most.
        min_workers: the fewest workers the run goes on with when nodes are lost or not there yet;
            None: exactly num_workers.
        cpus_per_worker: CPUs and threads of each worker; None: as many as the nodes allow.
        use_gpu: one GPU for each worker.
        weights: none, imagenet, or a path to weights.
    """

    dataset: AnyPath
    run_dir: AnyPath
    config: TrainConfig
    num_workers: int = 1
    min_workers: int | None = None
    cpus_per_worker: int | None = None
    use_gpu: bool = False
    weights: str = "none"

    @property
    def least(self) -> int:
        """The fewest workers the run goes on with."""
        return self.num_workers if self.min_workers is None else self.min_workers

    @property
    def bundle_dir(self) -> AnyPath:
        """Where the bundle is written."""
        return self.run_dir / "bundle"

    @property
    def checkpoints_dir(self) -> AnyPath:
        """Where the states of the run are kept."""
        return self.run_dir / "checkpoints"

    @property
    def history_path(self) -> AnyPath:
        """One line of JSON for each epoch."""
        return self.run_dir / "history.jsonl"
