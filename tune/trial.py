"""One trial: one fold of one setting, and the files of a finished fold.

A trial trains for all epochs. Comparing unfinished networks would cost less, but gamma and the
class weights change how fast a network learns, so early results would compare speeds of learning.

A finished fold is kept, so the same setting is never trained twice on the same fold.
"""

import contextlib
import dataclasses
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import ray.train
import ray.train.torch
import ray.tune
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer
from scipy.special import softmax

from melanoma.config import TrainConfig
from melanoma.data.dataset import open_prepared
from melanoma.errors import is_deterministic, root_cause
from melanoma.evidence.metrics import Predicted
from melanoma.evidence.objective import OBJECTIVES, FoldScores, Objective
from melanoma.evidence.out_of_fold import choose_fold_scores
from melanoma.io.files import read_json, read_parquet, write_json, write_parquet
from melanoma.io.storage import AnyPath, as_file_system, remove_folder
from melanoma.task import Task
from melanoma.training.distributed import World
from melanoma.training.engine import TrainState, fit, predict_validation, start_state
from melanoma.training.networks import start_model
from melanoma.training.plan import Training
from tune.columns import ERROR, FOLD, METRIC
from tune.space import to_config

FAILURE = "failed.json"
PREDICTIONS = "predictions.parquet"
# Retries of a trial, or of a fold whose worker is lost. A loss that is not finite is not retried.
MAX_FAILURES = 2


@dataclasses.dataclass(frozen=True)
class Study:
    """What all trials of a search share. Can be pickled, so it crosses processes unchanged.

    Attributes:
        dataset: folder of a prepared data set, reachable from every node.
        task: its classes and which of them are targets.
        folds_dir: folder in which finished folds are kept.
        base: the base setting; a sample replaces some of its values.
        num_folds: number of folds of the training split.
        weights: none, imagenet or a path.
        at_once: number of trials at a time.
        num_cpus: CPUs of one worker.
        num_gpus: GPUs of one worker; a fraction if several trials share one GPU.
        num_workers: number of DDP workers of one trial; 1 trains in the trial's own process.
    """

    dataset: AnyPath
    task: Task
    folds_dir: AnyPath
    base: TrainConfig
    num_folds: int
    weights: str = "none"
    at_once: int = 1
    num_cpus: int = 1
    num_gpus: float = 0.0
    num_workers: int = 1

    def resources(self) -> dict[str, float]:
        """Return the resources that the process of a trial reserves.

        With several workers that process only waits for them. It then reserves one byte of memory,
        because Tune does not accept an empty reservation.
        """
        return (
            {"memory": 1.0}
            if self.num_workers > 1
            else {"CPU": float(self.num_cpus), "GPU": self.num_gpus}
        )

    def fold_dir(self, config: TrainConfig, fold: int) -> AnyPath:
        """Return the folder in which a fold of a setting is kept.

        Its name is a hash of the settings and the fold. The data and the start weights are the same
        for a whole search.
        """
        values = json.dumps(dataclasses.asdict(_on_fold(config, fold)), sort_keys=True)
        return self.folds_dir / hashlib.sha256(values.encode()).hexdigest()[:20]


def _on_fold(config: TrainConfig, fold: int) -> TrainConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, validation_fold=fold))


def run_trial(config: Mapping[str, float], study: Study, objective: Objective) -> None:
    """Train one fold of one setting, and report its objective to Ray Tune.

    An error that would happen again is reported too, because Tune retries every trial that raises.

    Args:
        config: the sample, and the fold as ``FOLD``.
        study: what all trials share.
        objective: what the search maximises.
    """
    sample = {name: value for name, value in config.items() if name != FOLD}
    try:
        scores = [fold_scores(study, to_config(sample, study.base), int(config[FOLD]))]
    except Exception as error:
        if not is_deterministic(error):
            raise
        cause = root_cause(error)
        ray.tune.report({METRIC: float("nan"), ERROR: f"{type(cause).__name__}: {cause}"})
    else:
        others = {name: Objective.parse(name).score(scores) for name in OBJECTIVES}
        ray.tune.report({METRIC: objective.score(scores), **others, ERROR: ""})


def fold_scores(study: Study, config: TrainConfig, fold: int) -> FoldScores:
    """Return the out-of-fold scores of a setting on one fold, which is trained if necessary.

    Raises:
        FloatingPointError: if the loss does not stay finite. The failure is kept too, because it
            would happen again.
    """
    table, task = fold_predictions(study, config, fold), study.task
    logits = table[[f"logit_{name}" for name in task.classes]].to_numpy(dtype=np.float64)
    units = Predicted(task, table["label"].to_numpy(), softmax(logits, axis=1))
    # The units are drawn with the seed of the study, not of the setting, so that every setting is
    # judged on the same images.
    groups, sources = (table[name].to_numpy(dtype=str) for name in ("group", "source"))
    return choose_fold_scores(units, groups, sources, seed=study.base.seed)


def fold_predictions(study: Study, config: TrainConfig, fold: int) -> pd.DataFrame:
    """Return the out-of-fold predictions of a setting on one fold, trained if necessary.

    Returns:
        Columns image_id, group, source, label and one logit for each class.

    Raises:
        FloatingPointError: if the loss does not stay finite.
    """
    folder = study.fold_dir(config, fold)
    if not is_kept(folder):
        _train_fold(study, _on_fold(config, fold), folder)
    if (folder / FAILURE).is_file():
        raise FloatingPointError(read_json(folder / FAILURE)["error"])
    return read_parquet(folder / PREDICTIONS)


def is_kept(folder: AnyPath) -> bool:
    """Return whether a fold is finished; its predictions or its failure are written last."""
    return (folder / PREDICTIONS).is_file() or (folder / FAILURE).is_file()


def _train_fold(study: Study, config: TrainConfig, folder: AnyPath) -> None:
    if study.num_workers == 1:
        torch.set_num_threads(study.num_cpus)
        device = torch.device("cuda" if study.num_gpus > 0 else "cpu")
        _train_and_keep(study, config, folder, world=World(), device=device)
        return
    for failures in range(MAX_FAILURES + 1):
        try:
            _run_workers(study, config, folder)
            return
        except WorkerGroupError as error:
            if failures == MAX_FAILURES or is_deterministic(error):
                raise


def _run_workers(study: Study, config: TrainConfig, folder: AnyPath) -> None:
    with _scratch(study.folds_dir) as (storage_path, file_system):
        TorchTrainer(
            _fold_worker,
            train_loop_config={"study": study, "config": config, "folder": folder},
            scaling_config=ScalingConfig(
                num_workers=study.num_workers,
                use_gpu=study.num_gpus > 0,
                resources_per_worker={"CPU": study.num_cpus, "GPU": study.num_gpus},
            ),
            run_config=RunConfig(
                name="fold",
                storage_path=storage_path,
                storage_filesystem=file_system,
                failure_config=FailureConfig(max_failures=0),
            ),
        ).fit()


@contextlib.contextmanager
def _scratch(folds_dir: AnyPath) -> Iterator[tuple[str, Any]]:
    """Give a trainer a folder that every node can reach; it is removed when the block ends."""
    folder = folds_dir / f".trainer-{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        yield as_file_system(folder)
    finally:
        remove_folder(folder)


def _fold_worker(values: Mapping[str, Any]) -> None:
    """Train one fold, as one of several DDP workers."""
    torch.set_num_threads(values["study"].num_cpus)
    _train_and_keep(**values, world=World.current(), device=ray.train.torch.get_device())


def _train_and_keep(
    study: Study, config: TrainConfig, folder: AnyPath, *, world: World, device: torch.device
) -> None:
    """Train a fold, and write its history and predictions or its failure.

    Only rank 0 writes, and it writes the file that marks the fold as finished last. Two trials may
    train the same fold at the same time and overwrite each other's files, which are the same.
    """
    model = start_model(
        config.model, study.task.num_classes, weights=study.weights, seed=config.seed, device=device
    )
    training = Training.on(config, open_prepared(study.dataset), world=world)
    state = start_state(model, config, world)
    error = None
    try:
        fit(training, world.wrap(model), state, lambda _: None)
    except FloatingPointError as caught:
        error = str(caught)
    table = None if error else _out_of_fold(training, state)
    if world.rank > 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if table is None:
        write_json(folder / FAILURE, {"error": error})
        return
    write_json(folder / "history.json", state.history)
    write_parquet(folder / PREDICTIONS, table)


def _out_of_fold(training: Training, state: TrainState) -> pd.DataFrame:
    """Predict the held-out fold with the network of the last epoch.

    Choosing an epoch on this fold would make its scores optimistic.
    """
    predictions = predict_validation(training, state)
    logits = {
        f"logit_{name}": predictions.logits[:, index]
        for index, name in enumerate(training.task.classes)
    }
    return pd.DataFrame(
        {
            "image_id": predictions.image_ids,
            "group": training.validation.groups,
            "source": training.validation.sources,
            "label": predictions.labels,
            **logits,
        }
    )
