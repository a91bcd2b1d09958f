"""One training run, from a prepared data set to a bundle: check, train, pack.

Calling it again with the same arguments resumes an interrupted run.
"""

import dataclasses
import json
import logging
from typing import Any

import timm
import torch

from melanoma.bundle.contracting import is_too_small
from melanoma.bundle.manifest import MANIFEST, BundleManifest, read_manifest
from melanoma.bundle.packing import pack
from melanoma.config import TrainConfig
from melanoma.data.accesses import check_declared
from melanoma.data.dataset import PreparedData
from melanoma.data.embeddings import read_embeddings
from melanoma.errors import DataError, SettingError
from melanoma.evidence.contract import Contract
from melanoma.executor import Executor, Item, LocalExecutor, Row
from melanoma.io.files import claim_folder, locked, new_folder, sha256_of, write_json
from melanoma.io.storage import AnyPath, to_path
from melanoma.training.checkpoints import read_state
from melanoma.training.embedded import BACKBONE
from melanoma.training.ensemble import build_networks, networks_of
from melanoma.training.head import classifier_of
from melanoma.training.job import TrainJob
from melanoma.training.networks import build_model, check_feature_map, freeze
from melanoma.training.teacher import OUT_OF_FOLD, read_teacher
from melanoma.training.weights import load_weights

RESULT = "result.json"
"""Written last, so a run or a search that has this file is finished."""
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """The result of a finished run.

    Attributes:
        bundle: the folder of the bundle.
        best_epochs: the epoch that is shipped, from 1, of each network.
        validation: the scores on the validation fold, or of an ensemble those of every network on
            its own; optimistic, because they chose the epochs.
        threshold: the threshold on the calibrated probability of the targets, in [0, 1].
        contract: what the bundle promises.
        contract_sentence: the contract in words.
    """

    bundle: AnyPath
    best_epochs: tuple[int, ...]
    validation: dict[str, float]
    threshold: float
    contract: Contract
    contract_sentence: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return {**dataclasses.asdict(self), "bundle": str(self.bundle)}


def train(
    dataset: str | AnyPath,
    run_dir: str | AnyPath,
    config: TrainConfig | None = None,
    *,
    weights: str = "none",
    all_folds: bool = False,
    teacher: str | AnyPath | None = None,
    embeddings: str | AnyPath | None = None,
    num_workers: int = 1,
    use_gpu: bool = False,
    executor: Executor | None = None,
) -> TrainResult:
    """Train a network on a prepared data set and write its bundle.

    The same call again resumes an interrupted run, and returns the result of a finished one.

    Example:
        >>> config = preset("smoke").with_overrides(["optim.epochs=1", "optim.warmup_epochs=0"])
        >>> result = train(dataset, tmp_path / "run", config)
        >>> result.best_epochs, result.contract.target_sensitivity
        ((1,), 0.9)

    Args:
        dataset: folder of the prepared data set.
        run_dir: folder of the run: a new one, or that of the run to resume.
        config: the run's settings; None takes the defaults.
        weights: none (random), imagenet, or the path of a file of weights.
        all_folds: train one network for each fold, without that fold, and ship them as an ensemble.
        teacher: table of another model's probabilities for the training images, to learn from
            besides the labels.
        embeddings: table of a model outside, which stands in for the backbone; the settings must be
            those of `on_embeddings`.
        num_workers: number of workers that share every batch; more than one need an executor.
        use_gpu: whether each worker trains on a GPU.
        executor: where the run executes; None means in this process.

    Raises:
        DataError: if the data set cannot be used for this run, or if the folder holds another run.
        SettingError: if a setting is invalid for this network or this data set.
    """
    job = TrainJob(
        to_path(dataset),
        to_path(run_dir),
        config or TrainConfig(),
        num_workers=num_workers,
        use_gpu=use_gpu,
        weights=weights,
        all_folds=all_folds,
        teacher=None if teacher is None else to_path(teacher),
        embeddings=None if embeddings is None else to_path(embeddings),
    )
    return run_job(job, executor or LocalExecutor())


def run_job(job: TrainJob, executor: Executor) -> TrainResult:
    """Train, pack the best epoch and return the result.

    A finished run is not trained again. Raises the same errors as `train`.
    """
    data = job.open_data()
    check_data(job, data)
    with locked(job.run_dir):
        finished = (job.run_dir / RESULT).is_file()
        if not finished:
            data.check_writable()
            # Before the folder is claimed, so that a mistyped setting does not occupy its name.
            check_network(job, data.task.num_classes, num_folds=data.manifest.num_folds)
        _claim(job, data)
        if not finished:
            if not (job.bundle_dir / MANIFEST).is_file():
                checkpoints = tuple(map(str, executor.launch(job.runs(data.manifest.num_folds))))
                log.info("Packing the best epoch: calibrator, contract, files of the bundle.")
                executor.map(Pack(job, checkpoints), [{}], num_workers=1)
            result = _result(job, read_manifest(job.bundle_dir))
            write_json(job.run_dir / RESULT, {**result.as_dict(), "bundle": job.bundle_dir.name})
    return _result(job, read_manifest(job.bundle_dir))


def _result(job: TrainJob, manifest: BundleManifest) -> TrainResult:
    point = manifest.operating_point
    return TrainResult(
        bundle=job.bundle_dir,
        best_epochs=manifest.best_epochs,
        validation=manifest.validation,
        threshold=point.threshold,
        contract=point.contract,
        contract_sentence=point.contract.sentence(manifest.task),
    )


def _identified(weights: str) -> str:
    """Return the start weights by name, or those of a file by their hash."""
    if weights in ("none", "imagenet"):
        return weights
    path = to_path(weights)
    return sha256_of(path) if path.is_file() else weights


def _claim(job: TrainJob, data: PreparedData) -> None:
    described = {
        "config": dataclasses.asdict(job.config),
        "weights": _identified(job.weights),
        "all_folds": job.all_folds,
        "embeddings": None if job.embeddings is None else sha256_of(job.embeddings),
        "teacher": None if job.teacher is None else sha256_of(job.teacher),
        "content": data.content_hash,
    }
    if not claim_folder(job.run_dir, described):
        return
    if (job.run_dir / RESULT).is_file():
        log.info("Run %s is already finished.", job.run_dir)
    else:
        trained = [
            f"{num} ({run.name})" if run.name else str(num)
            for run in job.runs(data.manifest.num_folds)
            if (num := _num_trained(run))
        ]
        if trained:
            log.info(
                "Resuming run %s. Epochs trained, of %d: %s.",
                job.run_dir,
                job.config.optim.epochs,
                ", ".join(trained),
            )


def _num_trained(run: TrainJob) -> int:
    """Return how many epochs a run has behind it."""
    if not run.history_path.is_file():
        return 0
    epochs = [json.loads(line)["epoch"] for line in run.history_path.read_text().splitlines()]
    return max(epochs, default=0)


@dataclasses.dataclass(frozen=True)
class Pack:
    """Packs the best checkpoint of a run, or of each of its folds, into its bundle.

    On a cluster this runs on a node, because the caller's machine may be small. It runs on the CPU
    in float32, so that the scores are those of a server on a CPU.
    """

    job: TrainJob
    checkpoints: tuple[str, ...]

    def __call__(self, item: Item) -> list[Row]:
        """Write the bundle and return its folder as one row; the item is not used."""
        job, data = self.job, self.job.open_data()
        model = build_networks(job.config.model, data.task.num_classes, num=len(self.checkpoints))
        states = [read_state(to_path(checkpoint), "cpu") for checkpoint in self.checkpoints]
        for network, state in zip(networks_of(model), states, strict=True):
            network.load_state_dict(state["ema"] or state["model"])
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with new_folder(job.bundle_dir, replace_if=MANIFEST) as work:
            epochs = tuple(state["epoch"] for state in states)
            pack(
                model,
                job.config,
                data,
                work,
                best_epochs=epochs,
                weights=job.weights,
                teacher_sha256="" if job.teacher is None else sha256_of(job.teacher),
                table=job.run_dir / OUT_OF_FOLD if job.all_folds else None,
            )
        return [{"bundle": str(job.bundle_dir)}]


def check_data(job: TrainJob, data: PreparedData) -> None:
    """Check, before hours of training, that the data have the folds and the images for them.

    Raises:
        DataError: if a validation fold has no targets, if the batch size does not fit the number of
            training images and workers, if the calibration split has no targets and no ensemble
            that can do without, if another number of accesses to it was declared before, or if
            the teacher's table does not fit the data.
    """
    for run in job.runs(data.manifest.num_folds):
        _check_fold(run, data)
    check_declared(data, job.config.accesses)
    _check_embeddings(job, data)
    if job.teacher is not None:
        read_teacher(job.teacher, data)
        if job.all_folds and is_too_small(job.config, data):
            raise DataError(
                "The calibration split has too few targets for a promise, and the folds cannot take"
                " its place, because the teacher may have learnt from all of them. Leave --teacher"
                " or --folds out, or prepare the data set with a larger --calibration-fraction."
            )
    if not data.manifest.num_targets("calibration") and not job.all_folds:
        raise DataError(
            f"The calibration split must hold {data.task.noun[1]}; it has none. Prepare the data"
            " set with a larger --calibration-fraction, or with more rows of split calibration in"
            " the file of --splits, or train with --folds all."
        )


def _check_fold(job: TrainJob, data: PreparedData) -> None:
    fold, batch_size, nouns = (
        job.config.data.validation_fold,
        job.config.optim.batch_size,
        data.task.noun[1],
    )
    if not data.rows("train", fold=fold)["dx"].isin(data.task.targets).any():
        raise DataError(
            f"Validation fold {fold} must hold {nouns}; it has none. Choose another"
            " data.validation_fold, or prepare the data set with fewer folds."
        )
    num_train = len(data.rows("train", without_fold=fold))
    if not job.num_workers <= batch_size <= num_train:
        raise DataError(
            f"optim.batch_size must be between the number of workers ({job.num_workers}) and the"
            f" number of training images ({num_train}); it is {batch_size}."
        )


def check_network(job: TrainJob, num_classes: int, *, num_folds: int = 1) -> None:
    """Check, before any worker starts, that the network can be built and its weights loaded.

    Logs how much of a file of weights fits the network.

    Raises:
        SettingError: if the network or a setting of it is invalid, or if a file does not fit it.
        DataError: if frozen layers would be random, if several workers would train batch norms, or
            if the ImageNet weights cannot be fetched.
    """
    model = build_model(job.config.model, num_classes)
    if job.embeddings is not None:
        return
    check_feature_map(model)
    freeze(model, job.config.optim.frozen_layers)
    _check_frozen(job)
    if job.config.optim.head_only:
        classifier_of(model)
    if (
        job.num_workers > 1
        and not job.config.optim.head_only
        and any(
            isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules()
        )
    ):
        raise DataError(
            f"{job.config.model.backbone} must train with one worker, because workers do not share"
            f" the statistics of its batch norms; {job.num_workers} are set. Pass --workers 1."
        )
    if job.weights == "none" or all(run.history_path.is_file() for run in job.runs(num_folds)):
        return
    if job.weights == "imagenet":
        if not timm.is_model_pretrained(job.config.model.backbone):
            raise DataError(
                f"timm publishes no weights for {job.config.model.backbone}. Pass --weights none or"
                " --weights FILE."
            )
        try:
            build_model(job.config.model, num_classes, pretrained=True)
        except Exception as error:  # the hub's client raises whatever its transport raises
            raise DataError(
                "--weights imagenet needs timm's hub; it could not be reached"
                f" ({type(error).__name__}). Connect to the internet or pass --weights FILE."
            ) from error
    else:
        log.info("Start weights: %s.", load_weights(model, to_path(job.weights)))


def _check_frozen(job: TrainJob) -> None:
    """Check that what does not learn does not start at random.

    Raises:
        DataError: if it does.
    """
    optim = job.config.optim
    if job.weights != "none" or not (optim.frozen_layers or optim.head_only):
        return
    name, wanted, value = (
        ("optim.head_only", "false", "true")
        if optim.head_only
        else ("optim.frozen_layers", "0", str(optim.frozen_layers))
    )
    raise DataError(
        f"{name} must be {wanted} with random start weights, because frozen layers do not learn; it"
        f" is {value}. Set it to {wanted} or pass --weights."
    )


def on_embeddings(config: TrainConfig, path: AnyPath) -> TrainConfig:
    """Return the settings of a run on a table of embeddings: a linear head, and no images.

    Raises:
        DataError: if the table cannot be used.
    """
    model = {"backbone": BACKBONE, "embedding_size": read_embeddings(path).size}
    return config.with_overrides(
        [
            f"model={json.dumps(model)}",
            "optim.head_only=true",
            "data.tta=1",
        ]
    )


def _check_embeddings(job: TrainJob, data: PreparedData) -> None:
    """Check that the settings fit the embeddings, and that every image has one.

    Raises:
        SettingError: if they do not fit.
        DataError: if an image of train or calibration has none.
    """
    size = 0 if data.embeddings is None else data.embeddings.size
    if job.config.model.embedding_size != size:
        raise SettingError(
            f"model.embedding_size must be that of the embeddings, {size}; it is"
            f" {job.config.model.embedding_size}. Pass --embeddings TABLE, which sets it."
        )
    if data.embeddings is not None:
        ids = data.records.loc[data.records["split"] != "test", "image_id"].tolist()
        data.embeddings.of(ids)
