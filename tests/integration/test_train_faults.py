"""What a training run loses when its driver or a worker is killed, or when its storage is full,
slow, failing or gives back something else.

The oracle is a run that nothing happened to: the same epochs, the same weights bit for bit.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from melanoma.data.dataset import PreparedData, open_prepared
from melanoma.io.storage import AnyPath, to_path
from melanoma.training.checkpoints import STATE
from ray_jobs.arguments import BAD_INPUT, FAILED
from ray_jobs.checkpoints import SNAPSHOT
from tests.clusters import CREDENTIALS, wait_for
from tests.runs import Run
from tests.unreliable import Trouble, unreliable_storage

pytestmark = [pytest.mark.ray, pytest.mark.fault]
Record = Callable[[str, object], None]


@pytest.fixture
def run(prepared: PreparedData, tmp_path: Path) -> Run:
    """A run on this machine's disk."""
    return Run(prepared, tmp_path, tmp_path)


def _goes_on(run: Run, undisturbed: Run, record: Record) -> None:
    """Give the same command again, and see that it ends as if nothing had happened."""
    started = time.monotonic()
    run.finish()
    run.ends_like(undisturbed)
    record("back_seconds", time.monotonic() - started)
    record("lost", "nothing; the epoch under way again")


@pytest.mark.drill
@pytest.mark.parametrize("epochs", [0, 2])
def test_a_training_driver_is_killed(
    epochs: int, run: Run, undisturbed: Run, record_property: Record
) -> None:
    """In the first epoch, before there is any checkpoint, and later on, between or in the middle of
    two."""
    process = run.start()
    wait_for(lambda: run.worker() and len(run.history()) >= epochs)
    run.kill(process)
    assert not (run.folder / "bundle").exists()
    _goes_on(run, undisturbed, record_property)


@pytest.mark.drill
def test_a_training_driver_is_killed_eight_times(
    run: Run, undisturbed: Run, record_property: Record
) -> None:
    """At moments nobody chose: while starting, in mid-epoch, while a checkpoint or the bundle is
    written."""
    rng = np.random.default_rng(0)
    for _ in range(8):
        process = run.start()
        time.sleep(rng.uniform(4, 30))
        run.kill(process)
    run.finish()
    run.ends_like(undisturbed)
    record_property("lost", "nothing; the epochs under way again")


def test_a_training_worker_is_killed(run: Run, undisturbed: Run, record_property: Record) -> None:
    process = run.start()
    wait_for(lambda: len(run.history()) >= 1 and run.worker())
    killed = run.worker()
    assert killed  # 0 would be this process and its own
    os.kill(killed, signal.SIGKILL)
    started, had = time.monotonic(), len(run.history())
    wait_for(lambda: run.worker() not in (0, killed) or process.poll() is not None)
    wait_for(lambda: len(run.history()) > had or process.poll() is not None)
    record_property("back_seconds", time.monotonic() - started)
    assert process.wait(300) == 0
    run.ends_like(undisturbed)
    record_property("lost", "nothing; the epoch under way again")


@pytest.mark.drill
def test_a_training_ended_before_its_bundle_was_made(
    run: Run, undisturbed: Run, record_property: Record
) -> None:
    shutil.copytree(undisturbed.folder, run.folder)
    shutil.rmtree(run.folder / "bundle")
    (run.folder / "result.json").unlink()
    started = time.monotonic()
    run.finish()
    run.ends_like(undisturbed)
    record_property("back_seconds", time.monotonic() - started)


def _half(folder: AnyPath) -> None:
    """Leave half of Ray's list of checkpoints, which it writes in place."""
    (folder / SNAPSHOT).write_bytes((folder / SNAPSHOT).read_bytes()[:40])


def _flip(folder: AnyPath) -> None:
    """Flip the bits of a byte in the middle of every checkpoint, which torch would load without a
    word."""
    for checkpoint in folder.iterdir():
        if (checkpoint / STATE).is_file():
            _flip_one(checkpoint)


def _flip_latest(folder: AnyPath) -> None:
    """Flip them in the latest checkpoint only, beside which the best one stays."""
    _flip_one(
        folder
        / json.loads((folder / SNAPSHOT).read_text())["latest_checkpoint_result"][
            "checkpoint_dir_name"
        ]
    )


def _flip_one(checkpoint: AnyPath) -> None:
    data = bytearray((checkpoint / STATE).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (checkpoint / STATE).write_bytes(bytes(data))


def test_the_list_of_checkpoints_is_half_written(
    run: Run, undisturbed: Run, tmp_path: Path, record_property: Record
) -> None:
    """A killed driver, too, has lost nothing but the epoch under way."""
    _damaged(
        _half, run, undisturbed, tmp_path / "log", record_property, "the run continues after epoch"
    )


@pytest.mark.drill
def test_the_latest_checkpoint_is_damaged(
    run: Run, undisturbed: Run, tmp_path: Path, record_property: Record
) -> None:
    """It goes on from an earlier one, or starts again where the latest was the best as well."""
    _damaged(
        _flip_latest, run, undisturbed, tmp_path / "log", record_property, "a checkpoint is damaged"
    )


@pytest.mark.drill
def test_every_checkpoint_is_damaged(
    run: Run, undisturbed: Run, tmp_path: Path, record_property: Record
) -> None:
    _damaged(_flip, run, undisturbed, tmp_path / "log", record_property, "the run starts again")


def _damaged(
    damage: Callable[[AnyPath], None],
    run: Run,
    undisturbed: Run,
    log: Path,
    record: Record,
    told: str,
) -> None:
    """Kill a run, damage what it left, and start it again: what is damaged stays, and the end is
    the same."""
    process = run.start()
    wait_for(lambda: len(run.history()) >= 2 and (run.folder / "checkpoints" / SNAPSHOT).is_file())
    run.kill(process)
    damage(run.folder / "checkpoints")
    started = time.monotonic()
    assert run.start(log=log).wait(300) == 0
    assert told in log.read_text()
    assert (run.folder / "checkpoints.damaged-1").is_dir()
    run.ends_like(undisturbed)
    record("back_seconds", time.monotonic() - started)
    record("lost", "nothing; some epochs again")


def test_a_loss_that_is_not_finite_is_not_tried_again(run: Run, tmp_path: Path) -> None:
    """Each attempt would leave a file for TensorBoard of its own."""
    log = tmp_path / "log"
    assert run.start("--set", "optim.lr=1e9", log=log).wait(300) == FAILED
    assert "Lower optim.lr" in log.read_text().splitlines()[-1]
    assert "Continuing from" not in log.read_text()
    assert isinstance(run.folder, Path)
    assert len(list((run.folder / "tensorboard").glob("events*"))) == 1


def test_what_the_user_must_mend_is_not_tried_again(prepared: PreparedData, tmp_path: Path) -> None:
    """Only the workers read the shards."""
    assert isinstance(prepared.folder, Path)
    data = open_prepared(Path(shutil.copytree(prepared.folder, tmp_path / "data")))
    (tmp_path / "data" / "shards" / "train-00000.arrow").unlink()
    run, log = Run(data, tmp_path, tmp_path), tmp_path / "log"
    assert run.start(log=log).wait(300) == BAD_INPUT
    assert "The data set must hold train-00000.arrow" in log.read_text().splitlines()[-1]
    assert "Continuing from" not in log.read_text()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, small enough to be filled."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.drill
def test_the_disk_of_a_training_is_full(
    prepared: PreparedData,
    full_disk: Path,
    undisturbed: Run,
    tmp_path: Path,
    record_property: Record,
) -> None:
    run, log = Run(prepared, full_disk, full_disk), tmp_path / "log"
    process = run.start(log=log)
    wait_for(lambda: len(run.history()) >= 1)
    ballast = full_disk / "ballast"
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={ballast}", "bs=64k"], capture_output=True, check=False
    )  # until it is full
    assert process.wait(300) == FAILED
    assert "No space left" in log.read_text().splitlines()[-1]
    assert "run the same command again" in log.read_text().splitlines()[-1]
    ballast.unlink()
    _goes_on(run, undisturbed, record_property)


@pytest.fixture
def remote(
    prepared: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Run, Trouble]]:
    """A run in object storage that can be made to fail."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with unreliable_storage("melanoma") as (good, bad, trouble):
        yield (
            Run(prepared, f"s3://melanoma/runs?{bad}", to_path(f"s3://melanoma/runs?{good}")),
            trouble,
        )


@pytest.mark.drill
def test_the_storage_of_a_training_is_slow(
    remote: tuple[Run, Trouble], undisturbed: Run, record_property: Record
) -> None:
    run, trouble = remote
    trouble.write_seconds = 0.5  # three of them for each object
    run.finish()
    run.ends_like(undisturbed)
    assert trouble.delayed > 50
    record_property("lost", "nothing")


@pytest.mark.drill
def test_the_storage_of_a_training_fails_for_a_while(
    remote: tuple[Run, Trouble], undisturbed: Run, tmp_path: Path, record_property: Record
) -> None:
    """Mostly it is waited out; where Ray's own list of checkpoints could not be written the run
    ends, and is started again."""
    (run, trouble), log = remote, tmp_path / "log"
    process = run.start(log=log)
    wait_for(lambda: len(run.history()) >= 1)
    trouble.failing = True
    wait_for(lambda: trouble.refused > 0)
    time.sleep(10)
    trouble.failing = False
    started, had = time.monotonic(), len(run.history())
    wait_for(lambda: len(run.history()) > had or process.poll() is not None)
    waited = time.monotonic() - started
    if process.wait(300) == FAILED:
        assert "run the same command again" in log.read_text().splitlines()[-1]
        _goes_on(run, undisturbed, record_property)
        return
    assert process.returncode == 0, log.read_text()
    run.ends_like(undisturbed)
    record_property("back_seconds", waited)
    record_property("lost", "nothing; waited out")


@pytest.mark.drill
@pytest.mark.parametrize("trouble_name", ["full", "failing"])
def test_the_storage_of_a_training_stays(
    trouble_name: str,
    remote: tuple[Run, Trouble],
    undisturbed: Run,
    tmp_path: Path,
    record_property: Record,
) -> None:
    """Full, or failing, until somebody mends it: the run ends and says so, and the same command
    goes on."""
    (run, trouble), log = remote, tmp_path / "log"
    process = run.start(log=log)
    wait_for(lambda: len(run.history()) >= 1)
    setattr(trouble, trouble_name, True)
    assert process.wait(500) == FAILED
    assert "run the same command again" in log.read_text().splitlines()[-1]
    setattr(trouble, trouble_name, False)
    _goes_on(run, undisturbed, record_property)


@pytest.mark.drill
def test_the_storage_of_a_training_gives_back_something_else(
    remote: tuple[Run, Trouble], undisturbed: Run, tmp_path: Path, record_property: Record
) -> None:
    _damaged(
        _flip, remote[0], undisturbed, tmp_path / "log", record_property, "the run starts again"
    )
