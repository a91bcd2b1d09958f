"""Runs a `melanoma` command as a Ray job on a remote cluster. Knows no command by name.

It sends only the code of this project's packages and the command line. Data, environments and
secrets stay where they are. In the job, the command finds the cluster in RAY_ADDRESS, which Ray
sets. It marks its result, so that the result can be separated from the log.
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
"""In Ray's client each of these variables overrides the address that is passed to it."""
CHATTY = ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk")


def submit(address: str, args: argparse.Namespace, words: Sequence[str]) -> int:
    """Run a command line as a job on a cluster and return its exit code.

    The job's log goes to stderr and its result to stdout. On Ctrl-C the command asks whether to
    stop the job. The job continues if the answer is no, or if stdin is not a terminal.

    Args:
        address: address of the head's dashboard, http://HEAD:8265.
        args: the parsed command line; its paths are those of the cluster.
        words: the command line as typed.

    Raises:
        DataError: if the head cannot be reached, refuses the token or runs another version of Ray,
            or if a path is relative.
        RuntimeError: if the head stops answering or refuses the job.
    """
    check_paths(args)
    for name in ADDRESS_VARIABLES:
        os.environ.pop(name, None)
    for module in CHATTY:  # this function prints one line instead
        logging.getLogger(module).setLevel(logging.WARNING)
    mark = secrets.token_hex(16)
    # The job gets its name here, because Ctrl-C may come before the head answers.
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
                f"melanoma: The job ended with exit code {code}, but its log has no complete"
                " result. Run the same command again to get the result."
            )
            return FAILED
        return code
    except KeyboardInterrupt:
        _interrupted(job)
        return FAILED


def check_paths(args: argparse.Namespace) -> None:
    """Raise DataError if a path of a command is relative; a job runs in its own empty folder."""
    for name, value in vars(args).items():
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, Path) and not path.is_absolute():
                raise DataError(
                    f"{name.upper()} must be an absolute path that every node of the cluster has,"
                    f" or an address such as s3://; it is {path}."
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
                f"--{name} must be an absolute path that every node of the cluster has, or an"
                f" address such as s3://; it is {text}."
            )


def _connect(address: str) -> JobSubmissionClient:
    if not address.startswith(("http://", "https://")):
        raise DataError(
            f"--address must be that of the head's dashboard, http://HEAD:8265; it is {address!r}."
        )
    try:
        client = JobSubmissionClient(address)
        theirs = client._do_request("GET", "/api/version").json()["ray_version"]
    except ConnectionError as error:
        raise DataError(
            f"The head at {address} does not answer. Check the address and the network."
        ) from error
    except AuthenticationError as error:
        raise DataError(
            f"The head at {address} does not accept the token{_token_lack()}. Set"
            " RAY_AUTH_MODE=token, and name the file of the head's token in RAY_AUTH_TOKEN_PATH."
        ) from error
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise DataError(
            f"{address} must be the dashboard of a Ray head; its answer is not that of one. Check"
            " the address."
        ) from error
    if theirs.split(".")[:2] != ray.__version__.split(".")[:2]:
        raise DataError(
            f"The cluster must run the same Ray as this command, {ray.__version__}; it runs"
            f" {theirs}. Install that version here, or start a cluster with this one."
        )
    return client


def _token_lack() -> str:
    mode, path = os.environ.get("RAY_AUTH_MODE"), os.environ.get("RAY_AUTH_TOKEN_PATH")
    if mode != "token":
        return f" (RAY_AUTH_MODE is {mode})" if mode else " (RAY_AUTH_MODE is not set)"
    return f" ({path} is missing)" if path and not Path(path).is_file() else ""


def _copy_code(folder: Path) -> None:
    """Copy the packages to a folder that is sent; nothing beside them is copied."""
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        assert found is not None  # this code runs, so the packages are installed
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
        f"melanoma: The job did not run to its end; it was {details.status.lower()}:"
        f" {details.message}"
    )
    return FAILED


def _interrupted(job: RemoteJob) -> None:
    """Ask at a terminal whether to stop the job too, and print what happens to it."""
    try:
        details = job.details_if_known()
        if details is None:
            message = f"stopped before the head had job {job.name}; if it still starts: {job.hint}"
        elif details.status.is_terminal():
            message = (
                f"job {job.name} has ended ({details.status.lower()}); run the same command again"
                " to see its result or to continue it"
            )
        elif _wants_to_stop() and job.client.stop_job(job.name):
            message = (
                f"job {job.name} is being stopped; run the same command again to continue where it"
                " can"
            )
        else:
            message = f"job {job.name} continues; {job.hint}"
    except (KeyboardInterrupt, RuntimeError, OSError):
        message = f"job {job.name} may continue; {job.hint}"
    say(message)


def _wants_to_stop() -> bool:
    if not sys.stdin.isatty():
        return False
    # On stderr, because stdout holds only the result.
    print("\nstop the job too? [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        return input().strip().lower().startswith("y")
    except (KeyboardInterrupt, EOFError):
        return False
