"""Training in this process: one worker, with its checkpoints in the run's folder."""

import logging
import shutil
import tempfile
from pathlib import Path

import torch

from melanoma.errors import SettingError
from melanoma.io.storage import AnyPath, RemotePath, publish, remove_folder, rename
from melanoma.training.checkpoints import (
    PREFIX,
    State,
    aside,
    checkpoint_folders,
    read_state,
    save_state,
    usable_among,
    usable_checkpoints,
    whole_checkpoints,
)
from melanoma.training.distributed import World
from melanoma.training.job import TrainJob
from melanoma.training.selection import selection_score
from melanoma.training.worker import train_worker

log = logging.getLogger(__name__)


def train_here(job: TrainJob) -> AnyPath:
    """Train a run in this process and return the folder of its best checkpoint.

    Raises:
        SettingError: if the job asks for several workers, or for a GPU that the machine lacks.
    """
    if job.least > 1:
        raise SettingError(
            "Several workers need an executor that starts them. Pass one, such as RayExecutor of"
            " ray_jobs."
        )
    if job.use_gpu and not torch.cuda.is_available():
        raise SettingError("Training on a GPU needs one; this machine has none. Train without it.")
    session = LocalSession(job)
    if job.cpus_per_worker is not None:
        torch.set_num_threads(job.cpus_per_worker)
    train_worker(job, session)
    usable = usable_checkpoints(job.checkpoints_dir)
    if not usable:
        raise OSError(
            f"The checkpoint of the best epoch of run {job.run_dir} must match its hash; it does"
            " not. Run the same command again: it moves damaged checkpoints aside."
        )
    return job.checkpoints_dir / usable[0].name


class LocalSession:
    """The only worker of a training in this process. Keeps the latest and the best checkpoint."""

    def __init__(self, job: TrainJob) -> None:
        self.world = World()
        self.device = torch.device("cuda" if job.use_gpu else "cpu")
        self._job, self._folder = job, job.checkpoints_dir

    def resume(self) -> State | None:
        """Return the state of the latest usable checkpoint and move the unusable ones aside."""
        if not self._folder.is_dir():
            return None
        usable = usable_checkpoints(self._folder)
        names = {kept.name for kept in usable}
        unusable = [path for path in checkpoint_folders(self._folder) if path.name not in names]
        if unusable:
            there = aside(self._folder)
            for path in unusable:
                rename(path, there / path.name)
            log.warning(
                "Run folder %s has checkpoints that are damaged, or whose best epoch is. They were"
                " moved to %s.",
                self._job.run_dir,
                there.name,
            )
        return read_state(self._folder / usable[-1].name, self.device) if usable else None

    def report(self, state: State) -> None:
        """Save a state, and delete the whole checkpoints that are neither the latest nor the best.

        Damaged ones stay for `resume`. If the best one is damaged, nothing is deleted.
        """
        row, epochs = state["history"][-1], self._job.config.optim.epochs
        log.info(
            "%sEpoch %d of %d: loss %.3f, validation score (AUROC within sources) %.3f",
            f"{self._job.name}: " if self._job.name else "",
            row["epoch"],
            epochs,
            row["loss"],
            selection_score(row),
        )
        target = self._folder / f"{PREFIX}{state['epoch']:06d}"
        with tempfile.TemporaryDirectory() as scratch:
            save_state(Path(scratch), state)
            _move(Path(scratch), target)
        whole = list(whole_checkpoints(self._folder))
        if usable := usable_among(whole):
            for checkpoint in whole:
                if checkpoint not in usable:
                    remove_folder(self._folder / checkpoint.name)


def _move(folder: Path, target: AnyPath) -> None:
    """Copy a folder to its target, completely or not at all."""
    if isinstance(target, RemotePath):
        publish(folder, target)
        return
    work = target.parent / f".{target.name}"
    remove_folder(work)
    shutil.copytree(folder, work)
    remove_folder(target)
    work.rename(target)
