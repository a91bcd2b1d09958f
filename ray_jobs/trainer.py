"""Trains runs with Ray Train: workers, their resources, and what happens when one is lost.

All computation is in `melanoma`.
"""

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer

from melanoma.errors import is_deterministic, root_cause
from melanoma.io.storage import AnyPath, as_file_system
from melanoma.training.checkpoints import State, read_state, reported, save_state
from melanoma.training.distributed import World
from melanoma.training.job import TrainJob
from melanoma.training.selection import SELECTION
from melanoma.training.worker import train_worker
from ray_jobs.checkpoints import mend
from ray_jobs.cluster import (
    Bundle,
    connect,
    cpus_per_worker,
    has_dashboard,
    node_resources,
    num_placeable,
    wait_for_room,
)
from ray_jobs.progress import say, training_progress

MAX_FAILURES = 3  # of lost workers; an error that would occur again ends the run at once
CLEANER = "PlacementGroupCleanerCallback"
RESIZE_SECONDS = 30.0
"""Time between two checks for more workers. A resize loses the work of the current epoch."""


def launch(jobs: Sequence[TrainJob]) -> list[AnyPath]:
    """Train runs with Ray Train and return the folder of the best checkpoint of each.

    As many runs train at once as the cluster has room for; those with a frozen backbone train one
    after another.

    Args:
        jobs: the runs, all with the same resources.
    """
    first = jobs[0]
    connect(num_workers=first.num_workers)
    bundle = worker_bundle(first, node_resources())
    wait_for_room(bundle, first.least)
    at_once = max(1, min(len(jobs), num_placeable(node_resources(), bundle) // first.least))
    if first.config.optim.head_only and first.embeddings is None:
        at_once = 1  # the first run computes the features of the backbone, and the others read them
    networks = f"{len(jobs)} networks, {at_once} at a time" if len(jobs) > 1 else "one network"
    say(f"Training {networks}, on {_workers(first)} with {bundle}.")
    if at_once == 1:  # in the main thread, where Ray ends a run in order on an interrupt
        return [_train(job, bundle) for job in jobs]
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="runs")
    runs = [pool.submit(_train, job, bundle) for job in jobs]
    try:
        # A run that fails does not stop the others, which then need not be trained again.
        wait(runs)
    except BaseException:
        # The threads wait for Ray, so they end when it does. The runs can be resumed.
        pool.shutdown(wait=False, cancel_futures=True)
        ray.shutdown()
        raise
    for job, run in zip(jobs, runs, strict=True):
        if run.exception() is not None:
            say(f"{job.name} failed.")
    return [run.result() for run in runs]


def _workers(job: TrainJob) -> str:
    if job.num_workers == 1:
        return "one worker"
    least = "" if job.least == job.num_workers else f"{job.least} to "
    return f"{least}{job.num_workers} workers, each"


def _train(job: TrainJob, bundle: Bundle) -> AnyPath:
    """Train one run; damaged checkpoints of an earlier attempt are moved aside first."""
    if mended := mend(job.checkpoints_dir):
        say(f"{job.run_dir}: {mended}")
    return job.checkpoints_dir / Path(_fit(job, bundle).path).name


def worker_bundle(job: TrainJob, nodes: Sequence[Mapping[str, float]]) -> Bundle:
    """Return the resources of each worker of a run.

    They are sized for the fewest workers. If they were sized for the most, all workers would fit on
    the present nodes, and an elastic run would never grow.

    Args:
        job: the run.
        nodes: total resources of each node.
    """
    gpus = 1.0 if job.use_gpu else 0.0
    return Bundle(job.cpus_per_worker or cpus_per_worker(nodes, job.least, gpus=gpus), gpus)


def _fit(job: TrainJob, bundle: Bundle) -> Checkpoint:
    """Train and return the best checkpoint.

    After a lost worker the run continues from the latest checkpoint. Ray's own `max_failures` is
    not used, because it would also repeat errors that occur again, such as a loss that is not
    finite.

    Raises:
        WorkerGroupError: if an error would occur again, or after too many failures.
    """
    for failures in range(MAX_FAILURES + 1):
        try:
            with training_progress(job.run_dir, job.name, job.config.optim.epochs):
                result = _trainer(job, bundle).fit()
            break
        except WorkerGroupError as error:
            if failures == MAX_FAILURES or is_deterministic(error):
                raise
            what = (
                f"{type(root_cause(error)).__name__}, failure {failures + 1} of at most"
                f" {MAX_FAILURES}"
            )
            say(f"A worker failed ({what}). Continuing from the latest checkpoint.")
            mend(job.checkpoints_dir)
    best: Checkpoint
    best, _ = max(result.best_checkpoints or [], key=lambda pair: pair[1][SELECTION])
    return best


class Trainer(TorchTrainer):
    """A trainer that also ends at once on a cluster without a dashboard.

    Ray adds an actor that frees the resources of a run whose controller has died. It asks the
    dashboard whether the controller is alive. Without a dashboard it gets no answer, and every run
    would wait 12 s for it to stop.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        if has_dashboard():
            return callbacks
        return [each for each in callbacks if type(each).__name__ != CLEANER]


def _trainer(job: TrainJob, bundle: Bundle) -> TorchTrainer:
    storage_path, file_system = as_file_system(job.run_dir)
    return Trainer(
        _train_worker,
        train_loop_config={"job": job, "num_threads": bundle.cpus},
        # Ray annotates this as the older class of the same name, which has no range of workers.
        scaling_config=ScalingConfig(  # type: ignore[call-arg]
            num_workers=_scale(job),  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            use_gpu=job.use_gpu,
            resources_per_worker=bundle.as_dict(),
        ),
        run_config=RunConfig(
            name=job.checkpoints_dir.name,
            storage_path=storage_path,
            storage_filesystem=file_system,
            failure_config=FailureConfig(max_failures=0),
            # Ray keeps the best checkpoint, which is shipped, and the latest, which resumes.
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=SELECTION, checkpoint_score_order="max"
            ),
        ),
    )


def _scale(job: TrainJob) -> int | tuple[int, int]:
    """Return the number of workers for Ray Train: fixed, or (fewest, most)."""
    return job.num_workers if job.least == job.num_workers else (job.least, job.num_workers)


def _train_worker(values: Mapping[str, Any]) -> None:
    """Train one run on this worker. Ray Train calls it on all workers at the same time."""
    torch.set_num_threads(values["num_threads"])
    train_worker(values["job"], RaySession())


class RaySession:
    """The session of one Ray Train worker."""

    def __init__(self) -> None:
        self.world = World.current()
        self.device = ray.train.torch.get_device()

    def resume(self) -> State | None:
        """Return the state of the checkpoint from which Ray resumes, or None without one."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return read_state(Path(folder), self.device)

    def report(self, state: State) -> None:
        """Report an epoch.

        All ranks must call this, because Ray's `report` is a barrier. Rank 0 adds the checkpoint.
        """
        if self.world.rank > 0:
            ray.train.report(reported(state))
            return
        with tempfile.TemporaryDirectory() as folder:
            save_state(Path(folder), state)
            ray.train.report(reported(state), checkpoint=Checkpoint.from_directory(folder))
