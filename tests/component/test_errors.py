"""What went wrong is found below whatever was wrapped around it, and is the same after it has
crossed a process."""

import pickle

import pytest
from ray.exceptions import ActorDiedError, RayTaskError, WorkerCrashedError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api.exceptions import ControllerError
from ray.tune import TuneError

from melanoma.errors import (
    BundleError,
    DataError,
    InvalidImageError,
    LeakageError,
    SettingError,
    UserError,
    is_deterministic,
    root_cause,
)

OURS = DataError("the column dx must be there.")


def _task(error: Exception) -> Exception:
    raised: Exception = RayTaskError(
        "work", "Traceback (most recent call last): DataError", error
    ).as_instanceof_cause()
    return raised


def _from(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


def _worker(**failures: Exception) -> WorkerGroupError:
    return WorkerGroupError(
        "told",
        {
            rank: UserExceptionWithTraceback(error, "tb")
            for rank, error in enumerate(failures.values())
        },
    )


WRAPPED = {
    "nothing": OURS,
    "task": _task(OURS),
    "tasks": _task(_task(_task(OURS))),
    "worker": _worker(one=OURS),
    "worker in a task": _task(_worker(one=OURS)),
    "a worker and its peers": _worker(
        one=RuntimeError("Connection closed by peer"), two=OURS, three=ValueError("x")
    ),
    "controller": ControllerError(_task(OURS)),
    "health check": ControllerError(WorkerHealthCheckFailedError("told", _task(OURS))),
    "tune": _from(TuneError("told"), _task(OURS)),
    "cause": _from(RuntimeError("while reading"), _from(OSError("cannot"), OURS)),
    "cause in a task": _task(_from(RuntimeError("while reading"), OURS)),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_is_the_user_s_to_mend_is_found(name: str) -> None:
    assert root_cause(WRAPPED[name]) is OURS
    assert is_deterministic(WRAPPED[name])


@pytest.mark.parametrize(
    "error", [RuntimeError("x"), KeyError("x"), OSError(28, "full"), FloatingPointError("nan")]
)
def test_what_a_library_raised_is_found(error: Exception) -> None:
    for wrapped in (
        error,
        _task(error),
        _worker(one=error),
        _task(_worker(one=error)),
        _from(TuneError("x"), error),
    ):
        assert root_cause(wrapped) is error


def test_our_own_sentence_is_not_replaced_by_what_it_came_from() -> None:
    told = _from(
        DataError("records.parquet is damaged"),
        _from(ValueError("magic bytes"), UserError("other")),
    )
    assert root_cause(_task(told)) is told


def test_a_circle_of_causes_ends() -> None:
    error = RuntimeError("x")
    error.__cause__ = _from(RuntimeError("y"), error)
    task = RayTaskError("work", "tb", error)
    error.cause = task  # type: ignore[attr-defined]
    assert root_cause(task) in (error, task)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (FloatingPointError("nan"), True),
        (ValueError("shape"), True),
        (SettingError("x"), True),
        (KeyError("x"), True),
        (OSError(28, "full"), False),
        (ConnectionResetError("x"), False),
        (RuntimeError("NCCL"), False),
        (MemoryError(), False),
        (ActorDiedError(), False),
        (WorkerCrashedError(), False),
    ],
)
def test_what_would_happen_again_is_told_from_what_would_not(error: Exception, again: bool) -> None:
    assert is_deterministic(_worker(one=error)) == again


def test_a_lost_worker_says_more_than_what_its_peers_say_of_it() -> None:
    lost = ActorDiedError()
    assert root_cause(_worker(one=RuntimeError("Connection closed by peer"), two=lost)) is lost


@pytest.mark.parametrize(
    "error",
    [UserError("x"), DataError("x"), LeakageError("x"), BundleError("x"), SettingError("x")],
)
def test_an_error_crosses_processes(error: UserError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), "x")
    assert isinstance(again, UserError)


def test_an_image_s_error_keeps_its_fields() -> None:
    again = pickle.loads(pickle.dumps(InvalidImageError("x", status=413, code="too_large")))
    assert (str(again), again.status, again.code) == ("x", 413, "too_large")
