"""The description of one training run: what to train, on what data, with which resources."""

import dataclasses

from melanoma.config import TrainConfig
from melanoma.data.dataset import PreparedData, open_prepared
from melanoma.data.embeddings import read_embeddings
from melanoma.io.storage import AnyPath


@dataclasses.dataclass(frozen=True)
class TrainJob:
    """One training run. Can be pickled, so it crosses processes unchanged.

    Attributes:
        dataset: folder of a prepared data set.
        run_dir: OUT/RUN; holds bundle/, history.jsonl and checkpoints/.
        config: the run's settings.
        num_workers: the largest number of DDP workers that share every batch.
        min_workers: the smallest number of workers with which the run continues if nodes are lost
            or not there yet; None means exactly num_workers.
        cpus_per_worker: CPUs and threads of each worker; None means as many as the nodes allow.
        use_gpu: whether each worker gets one GPU.
        weights: none, imagenet, or a path to weights.
        all_folds: whether to train one network for each fold, without that fold, and ship them as
            an ensemble.
        teacher: table of another model's probabilities to learn from; None for none.
        embeddings: table of embeddings that stand in for a backbone; None for a network on images.
        name: what progress calls it, if several runs train at once.
    """

    dataset: AnyPath
    run_dir: AnyPath
    config: TrainConfig
    num_workers: int = 1
    min_workers: int | None = None
    cpus_per_worker: int | None = None
    use_gpu: bool = False
    weights: str = "none"
    all_folds: bool = False
    teacher: AnyPath | None = None
    embeddings: AnyPath | None = None
    name: str = ""

    def runs(self, num_folds: int) -> list["TrainJob"]:
        """Return the trainings of this run: itself, or with all folds one for each fold."""
        return [self.on_fold(fold) for fold in range(num_folds)] if self.all_folds else [self]

    def on_fold(self, fold: int) -> "TrainJob":
        """Return the training of the network without a fold, in a folder below this run's."""
        data = dataclasses.replace(self.config.data, validation_fold=fold)
        return dataclasses.replace(
            self,
            run_dir=self.run_dir / f"fold_{fold}",
            config=dataclasses.replace(self.config, data=data),
            all_folds=False,
            name=f"fold {fold}",
        )

    def open_data(self) -> PreparedData:
        """Open the data set, with the embeddings if there are some."""
        data = open_prepared(self.dataset)
        if self.embeddings is None:
            return data
        return dataclasses.replace(data, embeddings=read_embeddings(self.embeddings))

    @property
    def least(self) -> int:
        """The smallest number of workers with which the run continues."""
        return self.num_workers if self.min_workers is None else self.min_workers

    @property
    def bundle_dir(self) -> AnyPath:
        """The folder to which the bundle is written."""
        return self.run_dir / "bundle"

    @property
    def checkpoints_dir(self) -> AnyPath:
        """The folder of the run's checkpoints."""
        return self.run_dir / "checkpoints"

    @property
    def history_path(self) -> AnyPath:
        """The file with one line of JSON for each epoch."""
        return self.run_dir / "history.jsonl"
