"""What one worker of a training does: wrap the network, run the engine's loop, report and save every epoch.

The session says where the worker runs. Everything that could differ between workers or restarts is
decided here once: the threads, what is resumed, who writes.
"""

import contextlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.tensorboard import SummaryWriter

from melanoma.config import TrainConfig
from melanoma.data.dataset import open_prepared
from melanoma.errors import DataError
from melanoma.io.files import write_json, write_text
from melanoma.io.storage import AnyPath, SyncedFolder
from melanoma.training.checkpoints import State
from melanoma.training.distributed import World
from melanoma.training.engine import Training, TrainState, fit, start_state
from melanoma.training.job import TrainJob
from melanoma.training.networks import start_model

PROGRESS_SECONDS, REMOTE_PROGRESS_SECONDS = 1.0, 10.0


class Session(Protocol):
    """Where one worker runs."""

    @property
    def world(self) -> World:
        """The workers that share the run."""

    @property
    def device(self) -> torch.device:
        """Where this worker computes."""

    def resume(self) -> State | None:
        """Return the state to go on from, or None for a new run."""

    def report(self, state: State) -> None:
        """Keep the state of a finished epoch; every worker calls it, and rank 0's state is the one that is kept."""


def train_worker(job: TrainJob, session: Session) -> None:
    """Train a run on this worker; every worker calls it at once."""
    config, world = job.config, session.world
    data = open_prepared(job.dataset)
    progress = _Progress(config, job.run_dir, world)
    training = Training.on(config, data, world=world, on_step=progress)
    state_before = session.resume()
    weights = (
        job.weights if state_before is None else "none"
    )  # a resumed run has its weights in the checkpoint
    num_classes = data.task.num_classes
    model = start_model(
        config.model, num_classes, weights=weights, seed=config.seed, device=session.device
    )
    state = start_state(model, config, world)
    if state_before is not None:
        state.load_state_dict(state_before)
    tensorboard = SyncedFolder(job.run_dir / "tensorboard")
    opened = (
        SummaryWriter(str(tensorboard.folder), purge_step=state.epoch + 1)
        if world.rank == 0
        else None
    )
    with contextlib.nullcontext(opened) if opened is None else opened as writer:

        def on_epoch_end(state: TrainState) -> None:
            if writer is not None:
                _log(state, job, writer)
                tensorboard.push()
            session.report(state.state_dict())

        fit(training, world.wrap(model), state, on_epoch_end)


def _log(state: TrainState, job: TrainJob, writer: SummaryWriter) -> None:
    # The history is kept in the checkpoint and written whole, so that a restarted epoch never
    # stands there twice.
    write_text(job.history_path, "".join(json.dumps(row) + "\n" for row in state.history))
    for name, value in state.history[-1].items():
        writer.add_scalar(name, value, state.epoch)
    writer.flush()


class _Progress:
    """Writes where the run stands to RUN/progress.json, for others to show; state: when it last wrote."""

    def __init__(self, config: TrainConfig, run_dir: AnyPath, world: World) -> None:
        self._epochs, self._path, self._active = (
            config.optim.epochs,
            run_dir / "progress.json",
            world.rank == 0,
        )
        self._seconds = PROGRESS_SECONDS if isinstance(run_dir, Path) else REMOTE_PROGRESS_SECONDS
        self._written = 0.0

    def __call__(self, epoch: int, step: int, num_steps: int, loss: float) -> None:
        now = time.monotonic()
        if not self._active or (now - self._written < self._seconds and step + 1 < num_steps):
            return
        self._written = now
        where: dict[str, Any] = {
            "epoch": epoch + 1,
            "epochs": self._epochs,
            "step": step + 1,
            "steps": num_steps,
        }
        where |= {"loss": loss if math.isfinite(loss) else None, "pid": os.getpid()}
        with contextlib.suppress(
            OSError, DataError
        ):  # only shown to people: no reason to lose an epoch
            write_json(self._path, where)
