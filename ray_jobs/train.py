"""The driver of a training run: configuration -> TorchTrainer -> bundle. The same call again resumes a run cut short."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import ray.train
import timm
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer

from melanoma.bundle.bundle import MANIFEST
from melanoma.bundle.packing import pack
from melanoma.config import TrainConfig
from melanoma.data.dataset import PreparedData, open_prepared
from melanoma.errors import DataError, is_deterministic, root_cause
from melanoma.io.files import claim_folder, locked, new_folder, read_json, write_json
from melanoma.io.storage import AnyPath, as_file_system, to_path
from melanoma.training.engine import SELECTION
from melanoma.training.networks import build_model, check_feature_map, freeze
from melanoma.training.weights import load_weights
from ray_jobs.checkpoints import load_state, mend
from ray_jobs.cluster import Bundle, connect, cpus_per_worker, node_resources, wait_for_room
from ray_jobs.progress import say, training_progress
from ray_jobs.worker import WorkerArgs, train_worker

MAX_FAILURES = 3  # of workers that are lost; what would happen again ends the run at once
RESIZE_SECONDS = (
    30.0  # between two accesses to whether the cluster has room for more workers; a resize costs the epoch under way
)


@dataclasses.dataclass(frozen=True)
class TrainJob:
    """One training run on a cluster.

    Attributes:
        dataset: a prepared data set.
        run_dir: OUT/RUN; holds bundle/, history.jsonl and checkpoints/.
        config: the run's settings.
        num_workers: DDP workers sharing every batch, at most.
        min_workers: fewest workers the run goes on with when nodes are lost or not there yet; None: exactly num_workers.
        cpus_per_worker: CPUs and threads of each worker; None: as many as the nodes allow.
        use_gpu: one GPU a worker.
        weights: none, imagenet or a path to weights.
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
    def scale(self) -> int | tuple[int, int]:
        """The number of workers as Ray Train takes it: fixed, or (fewest, most)."""
        return self.num_workers if self.least == self.num_workers else (self.least, self.num_workers)


def train(job: TrainJob) -> dict[str, Any]:
    """Train, pack the best epoch and return what is printed; a finished run is only reported.

    Raises:
        DataError: if the data set or the run folder does not fit.
        SettingError: if a setting does not fit.
    """
    data = open_prepared(job.dataset)
    check_data(job, data)
    with locked(job.run_dir):
        finished = (job.run_dir / "bundle" / MANIFEST).is_file()
        if not finished:
            data.check_writable()
            check_network(job)  # before the folder is claimed: a mistyped setting must not take its name
        _claim(job, content=data.content_hash)
        if not finished:
            connect(num_workers=job.num_workers)
            bundle = worker_bundle(job, node_resources())
            wait_for_room(bundle, job.least)
            checkpoint = _fit(job, bundle)
            # On the cluster, for the driver's machine may be small; on CPUs in float32, so that scores are those a CPU server gives.
            num_cpus = cpus_per_worker(node_resources(), 1)
            ray.get(ray.remote(num_cpus=num_cpus)(_pack).remote(job, checkpoint, num_cpus))
    result: dict[str, Any] = read_json(job.run_dir / "result.json")
    return result


def _claim(job: TrainJob, *, content: str) -> None:
    described = {"config": dataclasses.asdict(job.config), "weights": job.weights, "content": content}
    if not claim_folder(job.run_dir, described):
        return
    if (job.run_dir / "bundle" / MANIFEST).is_file():
        say(f"{job.run_dir} is finished; nothing is left to do.")
    elif mended := mend(job.run_dir / "checkpoints"):
        say(f"{job.run_dir}: {mended}")
    elif (job.run_dir / "history.jsonl").is_file():
        epochs = len((job.run_dir / "history.jsonl").read_text().splitlines())
        say(f"resuming {job.run_dir} after epoch {epochs} of {job.config.optim.epochs}")


def check_data(job: TrainJob, data: PreparedData) -> None:
    """Raise DataError, before hours of training, unless the data can carry them: the folds, the batch, the contract."""
    fold, batch_size = job.config.data.validation_fold, job.config.optim.batch_size
    if "mel" not in set(data.rows("train", fold=fold)["dx"]):
        raise DataError(
            f"validation fold {fold} must hold melanomas, it has none; choose another data.validation_fold or fewer folds."
        )
    num_train = len(data.rows("train", without_fold=fold))
    if not job.num_workers <= batch_size <= num_train:
        raise DataError(
            f"optim.batch_size must be from the number of workers ({job.num_workers}) to that of training images ({num_train}), got {batch_size}."
        )
    if not data.manifest["counts"].get("calibration", {}).get("mel", 0):
        raise DataError(
            "the calibration split must hold melanomas, it has none; prepare the data set with a larger --calibration-fraction, or with more "
            "rows of split calibration in the file of --splits."
        )


def check_network(job: TrainJob) -> None:
    """Raise SettingError, before any worker starts, unless the network and its weights can be had; say what of them fits."""
    model = build_model(job.config.model)
    check_feature_map(model)
    freeze(model, job.config.optim.frozen_layers)
    if job.config.optim.frozen_layers and job.weights == "none":
        raise DataError(
            "optim.frozen_layers must be 0 with random start weights, because those layers would learn nothing; pass --weights."
        )
    if job.num_workers > 1 and any(
        isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules()
    ):
        raise DataError(
            f"{job.config.model.backbone} has batch norms, whose statistics several workers would not share; use --workers 1."
        )
    if job.weights == "none" or (job.run_dir / "history.jsonl").is_file():
        return
    if job.weights == "imagenet":
        if not timm.is_model_pretrained(job.config.model.backbone):
            raise DataError(
                f"timm publishes no weights for {job.config.model.backbone}; pass --weights none or a file."
            )
        try:
            build_model(job.config.model, pretrained=True)
        except Exception as error:  # the hub's client raises whatever its transport raises
            raise DataError(
                f"--weights imagenet needs timm's hub, it could not be reached ({type(error).__name__}); pass --weights FILE or connect."
            ) from error
    else:
        say(f"weights: {load_weights(model, to_path(job.weights))}")


def worker_bundle(job: TrainJob, nodes: Sequence[Mapping[str, float]]) -> Bundle:
    """Return what each worker of a run holds on some nodes.

    Sized for the fewest workers: were it for the most, all would fit on the nodes there are, and an elastic run would never grow.
    """
    gpus = 1.0 if job.use_gpu else 0.0
    return Bundle(job.cpus_per_worker or cpus_per_worker(nodes, job.least, gpus=gpus), gpus)


def _fit(job: TrainJob, bundle: Bundle) -> Checkpoint:
    """Train, going on from the latest checkpoint when a worker is lost, and return the best checkpoint.

    Ray's own `max_failures` would try everything again, a loss that is not finite too.
    """
    for failures in range(MAX_FAILURES + 1):
        try:
            with training_progress(job.run_dir):
                result = _trainer(job, bundle).fit()
            break
        except WorkerGroupError as error:
            if failures == MAX_FAILURES or is_deterministic(error):
                raise
            what = f"{type(root_cause(error)).__name__}, failure {failures + 1} of at most {MAX_FAILURES}"
            say(f"a worker failed ({what}); going on from the latest checkpoint")
            mend(job.run_dir / "checkpoints")
    best: Checkpoint
    best, _ = max(result.best_checkpoints or [], key=lambda pair: pair[1][SELECTION])
    return best


def _trainer(job: TrainJob, bundle: Bundle) -> TorchTrainer:
    storage_path, file_system = as_file_system(job.run_dir)
    args = WorkerArgs(
        config=dataclasses.asdict(job.config),
        dataset=str(job.dataset.resolve()),
        run_dir=str(job.run_dir.resolve()),
        weights=job.weights,
        num_threads=bundle.cpus,
    )
    return TorchTrainer(
        train_worker,
        train_loop_config=dataclasses.asdict(args),
        # Annotated as the older class of the same name, which knew no range.
        scaling_config=ScalingConfig(  # type: ignore[call-arg]
            num_workers=job.scale,  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            use_gpu=job.use_gpu,
            resources_per_worker=bundle.as_dict(),
        ),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=storage_path,
            storage_filesystem=file_system,
            failure_config=FailureConfig(max_failures=0),
            # Ray keeps the latest besides the best one: what resumes, and what is shipped.
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=SELECTION, checkpoint_score_order="max"
            ),
        ),
    )


def _pack(job: TrainJob, checkpoint: Checkpoint, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    state = load_state(checkpoint, "cpu")
    model = build_model(job.config.model)
    model.load_state_dict(state["ema"] or state["model"])
    model.to(memory_format=torch.channels_last)
    with new_folder(job.run_dir / "bundle", replace_if=MANIFEST) as work:  # there only when everything else is written
        packed = pack(model, job.config, open_prepared(job.dataset), work / "packed", best_epoch=state["epoch"])
        for path in (work / "packed").iterdir():
            path.rename(work / path.name)
        (work / "packed").rmdir()
        contract = dataclasses.asdict(packed.operating_point.contract)
        result = {
            "bundle": str(job.run_dir / "bundle"),
            "best_epoch": state["epoch"],
            "validation": packed.validation,
            "threshold": packed.operating_point.threshold,
            "contract": contract,
            "contract_sentence": packed.operating_point.contract.sentence(),
        }
        write_json(job.run_dir / "result.json", result)
