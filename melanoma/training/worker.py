"""One worker of a training: it wraps the network, runs the engine's loop and reports every epoch.

The session knows where the worker runs. What could differ between workers or restarts is decided
here, in one place: what is resumed and which worker writes.
"""

import contextlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from melanoma.config import TrainConfig
from melanoma.errors import DataError
from melanoma.io.files import write_json, write_text
from melanoma.io.storage import AnyPath, SyncedFolder
from melanoma.training.checkpoints import State
from melanoma.training.distributed import World
from melanoma.training.engine import TrainState, fit, start_state
from melanoma.training.job import TrainJob
from melanoma.training.networks import start_model
from melanoma.training.plan import Training
from melanoma.training.teacher import read_teacher

PROGRESS_SECONDS, REMOTE_PROGRESS_SECONDS = 1.0, 10.0


class Session(Protocol):
    """The environment of one worker."""

    @property
    def world(self) -> World:
        """The processes that share the run."""

    @property
    def device(self) -> torch.device:
        """The device on which this worker computes."""

    def resume(self) -> State | None:
        """Return the state to continue from, or None for a new run."""

    def report(self, state: State) -> None:
        """Keep the state of a finished epoch.

        Every worker calls it, and the state of rank 0 is kept.
        """


def train_worker(job: TrainJob, session: Session) -> None:
    """Train a run on this worker; all workers call it at the same time."""
    config, world = job.config, session.world
    data = job.open_data()
    progress = _Progress(config, job.run_dir, world)
    teacher = None if job.teacher is None else read_teacher(job.teacher, data)
    training = Training.on(config, data, teacher=teacher, world=world, on_step=progress)
    state_before = session.resume()
    # A resumed run takes its weights from the checkpoint.
    weights = job.weights if state_before is None else "none"
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
    # The checkpoint holds the history, and the file is rewritten from it. A repeated epoch
    # therefore never appears twice.
    write_text(job.history_path, "".join(json.dumps(row) + "\n" for row in state.history))
    for name, value in state.history[-1].items():
        writer.add_scalar(name, value, state.epoch)
    writer.flush()


class _Progress:
    """Writes the progress of the run to RUN/progress.json, which other processes may show.

    It writes at most once a second (once in ten seconds to object storage), and after the last step
    of an epoch.
    """

    def __init__(self, config: TrainConfig, run_dir: AnyPath, world: World) -> None:
        self._epochs, self._path, self._active = (
            config.optim.epochs,
            run_dir / "progress.json",
            world.rank == 0,
        )
        self._seconds = PROGRESS_SECONDS if isinstance(run_dir, Path) else REMOTE_PROGRESS_SECONDS
        self._written = 0.0

    def __call__(self, epoch: int, step: int, num_steps: int, loss: Tensor) -> None:
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
        # Only here the loss is fetched from the device; that waits for the step.
        value = float(loss)
        where |= {"loss": value if math.isfinite(value) else None, "pid": os.getpid()}
        # The file is for display only, so a failed write must not end the run.
        with contextlib.suppress(OSError, DataError):
            write_json(self._path, where)
