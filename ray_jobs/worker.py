"""What one Ray Train worker does: wrap the network in DDP, run the engine's loop, report and checkpoint every epoch.

Everything that could differ between workers or restarts is decided here once: the device, the threads, what is resumed.
"""

import contextlib
import dataclasses
import json
import math
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch.utils.tensorboard import SummaryWriter

from melanoma.config import TrainConfig
from melanoma.data.dataset import open_prepared
from melanoma.errors import DataError
from melanoma.io.files import write_json, write_text
from melanoma.io.storage import AnyPath, SyncedFolder, to_path
from melanoma.training.distributed import World
from melanoma.training.engine import Training, TrainState, fit, start_state
from melanoma.training.networks import start_model
from ray_jobs.checkpoints import load_state, reported, save_state

PROGRESS_SECONDS, REMOTE_PROGRESS_SECONDS = 1.0, 10.0


@dataclasses.dataclass(frozen=True)
class WorkerArgs:
    """What the driver tells every worker; crosses processes as a dict.

    Attributes:
        config: `TrainConfig` as a dict.
        dataset: folder of the prepared data set.
        run_dir: where history, TensorBoard and progress are written.
        weights: none, imagenet or a path.
        num_threads: CPU threads of each worker.
    """

    config: dict[str, Any]
    dataset: str
    run_dir: str
    weights: str
    num_threads: int


def train_worker(values: Mapping[str, Any]) -> None:
    """Train one run on this worker; called by Ray Train on every worker at once."""
    args = WorkerArgs(**values)
    config, run_dir, world = TrainConfig.from_dict(args.config), to_path(args.run_dir), World.current()
    torch.set_num_threads(args.num_threads)
    device = ray.train.torch.get_device()
    progress = _Progress(config, run_dir, world)
    training = Training.on(config, open_prepared(to_path(args.dataset)), world=world, on_step=progress)
    fresh = ray.train.get_checkpoint() is None  # a resumed run has its weights in the checkpoint
    weights = args.weights if fresh else "none"
    model = start_model(config.model, weights=weights, seed=config.seed, device=device)
    state = start_state(model, config, world)
    _resume(state, device)
    wrapped = world.wrap(model)
    mirror = SyncedFolder(run_dir / "tensorboard")
    with SummaryWriter(str(mirror.folder), purge_step=state.epoch + 1) if world.rank == 0 else _NoWriter() as writer:

        def on_epoch_end(state: TrainState) -> None:
            _report(state, run_dir, world, writer)
            writer.flush()
            mirror.push()

        fit(training, wrapped, state, on_epoch_end)


def _resume(state: TrainState, device: torch.device) -> None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        state.load_state_dict(load_state(checkpoint, device))


def _report(state: TrainState, run_dir: AnyPath, world: World, writer: "SummaryWriter | _NoWriter") -> None:
    """Save, log and report one epoch; every rank reports, for `report` is a barrier, and rank 0 alone writes."""
    kept = state.state_dict()
    metrics = reported(kept)
    if world.rank > 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_state(Path(folder), kept)
        # The history travels in the checkpoint and is written whole, so that a restarted epoch never stands there twice.
        write_text(run_dir / "history.jsonl", "".join(json.dumps(row) + "\n" for row in state.history))
        for name, value in state.history[-1].items():
            writer.add_scalar(name, value, state.epoch)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


class _NoWriter:
    """Stands in for TensorBoard's writer on the ranks that write nothing."""

    def __enter__(self) -> "_NoWriter":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add_scalar(self, name: str, value: float, step: int) -> None:
        pass

    def flush(self) -> None:
        pass


class _Progress:
    """Writes where the run stands to RUN/progress.json, for the driver to show; state: when it last wrote."""

    def __init__(self, config: TrainConfig, run_dir: AnyPath, world: World) -> None:
        self._epochs, self._path, self._active = config.optim.epochs, run_dir / "progress.json", world.rank == 0
        self._seconds = PROGRESS_SECONDS if isinstance(run_dir, Path) else REMOTE_PROGRESS_SECONDS
        self._written = 0.0

    def __call__(self, epoch: int, step: int, num_steps: int, loss: float) -> None:
        now = time.monotonic()
        if self._active and (now - self._written >= self._seconds or step + 1 == num_steps):
            self._written = now
            where = {
                "epoch": epoch + 1,
                "epochs": self._epochs,
                "step": step + 1,
                "steps": num_steps,
                "loss": loss,
                "pid": os.getpid(),
            }
            with contextlib.suppress(OSError, DataError):  # for people's eyes only: no reason to lose an epoch
                write_json(self._path, where | {"loss": loss if math.isfinite(loss) else None})
