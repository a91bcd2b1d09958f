"""The same commands as Ray jobs on a remote cluster: submitted, followed, and ended with their own exit code. Knows no command by name.

What travels is the code of this project's packages and the command line; data, environments and
secrets stay where they are. In the job the command finds the cluster in RAY_ADDRESS, which Ray sets
there, and marks its result, so that it can be told from the log.
"""

import argparse
import importlib.util
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from melanoma.errors import DataError
from melanoma.io.storage import is_address
from ray_jobs.arguments import BAD_INPUT, DONE, FAILED, FOUND, NAMED_OR_PATH
from ray_jobs.progress import say
from ray_jobs.remote_job import JobLog, RemoteJob, follow

PACKAGES = ("melanoma", "ray_jobs", "serve", "tune")
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""With Ray's client each of them prevails over the address that it is told."""
CHATTY = ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk")


def submit(address: str, args: argparse.Namespace, words: Sequence[str]) -> int:
    """Run a command line as a job on the cluster at ``address``, stream its log to stderr and its result to stdout; return its exit code.

    Ctrl-C asks before it stops the job; the job goes on if the answer is no, or if there is nobody
    to ask.

    Args:
        address: of the head's dashboard, http://HEAD:8265.
        args: the parsed command line; its paths are those of the cluster.
        words: the command line as typed.

    Raises:
        DataError: if the head cannot be reached, refuses the token, runs another Ray, or a path
            means nothing there.
    """
    check_paths(args)
    for name in ADDRESS_VARIABLES:
        os.environ.pop(name, None)
    for module in CHATTY:  # what is sent is said below, in one line
        logging.getLogger(module).setLevel(logging.WARNING)
    mark = secrets.token_hex(16)
    # Named here: a Ctrl-C may come before the head answers.
    job = RemoteJob(_connect(address), address, f"raysubmit_{secrets.token_hex(8)}")
    log = JobLog(mark)
    try:
        with tempfile.TemporaryDirectory(prefix="melanoma-job-") as folder:
            _copy_code(Path(folder))
            job.start(words, Path(folder), mark)
        say(f"job {job.name} at {address}")
        code = _exit_code(follow(job, log))
        if log.result is not None:
            print(log.result, flush=True)
        elif code in (DONE, FOUND):
            say(
                f"melanoma: the job ended with {code}, its log shows no whole result; the same"
                " command reports it again."
            )
            return FAILED
        return code
    except KeyboardInterrupt:
        _interrupted(job)
        return FAILED


def check_paths(args: argparse.Namespace) -> None:
    """Raise DataError if a path of a command would be looked for in the folder of a job, where nothing lies."""
    for name, value in vars(args).items():
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, Path) and not path.is_absolute():
                raise DataError(
                    f"{name.upper()} must be an absolute path that every node of the cluster has,"
                    f" or an address such as s3://, got {path}."
                )
    for name, names in NAMED_OR_PATH.items():
        text = getattr(args, name, None)
        if (
            text is not None
            and text not in names
            and not is_address(text)
            and not Path(text).is_absolute()
        ):
            raise DataError(
                f"--{name} must be an absolute path that every node of the cluster has, got {text}."
            )


def _connect(address: str) -> JobSubmissionClient:
    if not address.startswith(("http://", "https://")):
        raise DataError(
            f"--address must be that of the head's dashboard, http://HEAD:8265, got {address}."
        )
    try:
        client = JobSubmissionClient(address)
        theirs = client._do_request("GET", "/api/version").json()["ray_version"]
    except ConnectionError as error:
        raise DataError(
            f"the head at {address} must answer, it does not; check the address and the network."
        ) from error
    except AuthenticationError as error:
        raise DataError(
            f"the head at {address} must accept the token, it does not{_token_lack()}; set"
            " RAY_AUTH_MODE=token and name the file of its token in RAY_AUTH_TOKEN_PATH."
        ) from error
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise DataError(
            f"{address} must be a Ray head's dashboard, it answers like none."
        ) from error
    if theirs.split(".")[:2] != ray.__version__.split(".")[:2]:
        raise DataError(
            f"the cluster must run the Ray of this command, {ray.__version__}, it runs {theirs};"
            " install that one, or start a cluster of this one."
        )
    return client


def _token_lack() -> str:
    mode, path = os.environ.get("RAY_AUTH_MODE"), os.environ.get("RAY_AUTH_TOKEN_PATH")
    if mode != "token":
        return f" (RAY_AUTH_MODE is {mode})" if mode else " (RAY_AUTH_MODE is not set)"
    return f" ({path} is not there)" if path and not Path(path).is_file() else ""


def _copy_code(folder: Path) -> None:
    """Copy the packages, and nothing that lies beside them, into a folder to send."""
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        assert found is not None  # it runs
        assert found.submodule_search_locations is not None
        shutil.copytree(
            found.submodule_search_locations[0],
            folder / name,
            ignore=shutil.ignore_patterns("__pycache__", "*.pyc"),
        )


def _exit_code(details: JobDetails) -> int:
    if details.status == JobStatus.SUCCEEDED:
        return DONE
    if details.driver_exit_code in (FOUND, BAD_INPUT, FAILED):
        return int(details.driver_exit_code)
    say(
        f"melanoma: the job must run to its end, it was {details.status.lower()}: {details.message}"
    )
    return FAILED


def _interrupted(job: RemoteJob) -> None:
    """Ask whether the job should stop too, where there is somebody to ask, and say what becomes of it."""
    try:
        details = job.details_if_known()
        if details is None:
            told = f"stopped before the head had job {job.name}; should it come yet: {job.hint}"
        elif details.status.is_terminal():
            told = (
                f"job {job.name} has ended, {details.status.lower()}; the same command reports it,"
                " or goes on where it can"
            )
        elif _wants_to_stop() and job.client.stop_job(job.name):
            told = f"job {job.name} is being stopped; the same command goes on where it can"
        else:
            told = f"job {job.name} goes on; {job.hint}"
    except (KeyboardInterrupt, RuntimeError, OSError):
        told = f"job {job.name} may go on; {job.hint}"
    say(told)


def _wants_to_stop() -> bool:
    if not sys.stdin.isatty():
        return False
    print(
        "\nstop the job too? [y/N] ", end="", file=sys.stderr, flush=True
    )  # stdout is the result's
    try:
        return input().strip().lower().startswith("y")
    except (KeyboardInterrupt, EOFError):
        return False
