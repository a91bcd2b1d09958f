"""The same commands as Ray jobs on a remote cluster: submitted, followed, and ended with their own exit code. Knows no command by name.

What travels is the code of this project's packages and the command line; data, environments and secrets stay where they are. In the job
the command finds the cluster in RAY_ADDRESS, which Ray sets there, and marks its result, so that it can be told from the log.
"""

import argparse
import asyncio
import importlib.util
import logging
import os
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp
import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from melanoma.errors import DataError
from melanoma.storage import is_address
from ray_jobs.arguments import FAILED, MARK
from ray_jobs.progress import say

PACKAGES = ("melanoma", "ray_jobs", "serve", "tune")
PASSED_ON = ("MELANOMA_DEBUG",)
POLL_SECONDS = 2.0
AWAY_SECONDS = 180.0


def submit(address: str, args: argparse.Namespace, words: Sequence[str]) -> int:
    """Run a command line as a job on the cluster at ``address``, stream its log to stderr and its result to stdout; return its exit code.

    Ctrl-C asks before it stops the job; the job goes on if the answer is no, or if there is nobody to ask.

    Args:
        address: of the head's dashboard, http://HEAD:8265.
        args: the parsed command line; its paths are those of the cluster.
        words: the command line as typed.

    Raises:
        DataError: if the head cannot be reached, refuses the token, runs another Ray, or a path means nothing there.
    """
    check_paths(args)
    logging.getLogger("ray.dashboard").setLevel(logging.WARNING)  # what is sent is said below, in one line
    client = _connect(address)
    mark = secrets.token_hex(16)
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {MARK: mark}
    with tempfile.TemporaryDirectory(prefix="melanoma-job-") as folder:
        _copy_code(Path(folder))
        job = client.submit_job(
            entrypoint=shlex.join(["python", "-m", "ray_jobs.cli", *words]),
            runtime_env={"working_dir": folder, "env_vars": environment},
        )
    try:
        say(f"job {job} at {address}")
        try:
            asyncio.run(_follow(client, job, mark))
        except (RuntimeError, OSError, aiohttp.ClientError):
            say("the log broke off; the job goes on, and its end is waited for")
        return _exit_code(client, job)
    except KeyboardInterrupt:
        return _interrupted(client, address, job)


def check_paths(args: argparse.Namespace) -> None:
    """Raise DataError if a path of a command would be looked for in the folder of a job, where nothing lies."""
    for name, value in vars(args).items():
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, Path) and not path.is_absolute():
                raise DataError(
                    f"{name.upper()} must be an absolute path that every node of the cluster has, or an address such as s3://, got {path}."
                )
    weights = getattr(args, "weights", "none")
    if weights not in ("none", "imagenet") and not is_address(weights) and not Path(weights).is_absolute():
        raise DataError(f"--weights must be an absolute path that every node of the cluster has, got {weights}.")


def _connect(address: str) -> JobSubmissionClient:
    if not address.startswith(("http://", "https://")):
        raise DataError(f"--address must be that of the head's dashboard, http://HEAD:8265, got {address}.")
    try:
        client = JobSubmissionClient(address)
        theirs = client._do_request("GET", "/api/version").json()["ray_version"]
    except ConnectionError as error:
        raise DataError(
            f"the head at {address} must answer, it does not; check the address and the network."
        ) from error
    except AuthenticationError as error:
        raise DataError(
            f"the head at {address} must accept the token, it does not; set RAY_AUTH_MODE=token and name the file of its token in "
            "RAY_AUTH_TOKEN_PATH."
        ) from error
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise DataError(f"{address} must be a Ray head's dashboard, it answers like none.") from error
    if theirs.split(".")[:2] != ray.__version__.split(".")[:2]:
        raise DataError(
            f"the cluster must run the Ray of this command, {ray.__version__}, it runs {theirs}; install that one, or start a cluster of this one."
        )
    return client


def _copy_code(folder: Path) -> None:
    """Copy the packages, and nothing that lies beside them, into a folder to send."""
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        assert found is not None  # it runs
        assert found.submodule_search_locations is not None
        shutil.copytree(
            found.submodule_search_locations[0], folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )


async def _follow(client: JobSubmissionClient, job: str, mark: str) -> None:
    """Print the log of a job as it grows: its result to stdout, all else to stderr."""
    lines, inside = "", False
    async for chunk in client.tail_job_logs(job):
        *whole, lines = (lines + chunk).split("\n")
        for line, to_stdout in split_result(whole, mark, inside=inside):
            inside = to_stdout
            if line != mark:
                print(line, file=sys.stdout if to_stdout else sys.stderr, flush=True)
    if lines:
        print(lines, file=sys.stderr, flush=True)


def split_result(lines: Sequence[str], mark: str, *, inside: bool) -> Iterator[tuple[str, bool]]:
    """Give every line with whether it, or what follows a mark, is part of the result."""
    for line in lines:
        if line == mark:
            inside = not inside
        yield line, inside


def _exit_code(client: JobSubmissionClient, job: str) -> int:
    while not (details := _details(client, job)).status.is_terminal():
        time.sleep(POLL_SECONDS)
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.driver_exit_code is not None and details.driver_exit_code > 0:
        return int(details.driver_exit_code)
    say(f"melanoma: the job must run to its end, it was {details.status.lower()}: {details.message}")
    return FAILED


def _details(client: JobSubmissionClient, job: str) -> JobDetails:
    """Return what the head says of a job, asked for some minutes while it does not answer."""
    deadline = time.monotonic() + AWAY_SECONDS
    while True:
        try:
            return client.get_job_info(job)
        except (RuntimeError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


def _interrupted(client: JobSubmissionClient, address: str, job: str) -> int:
    if sys.stdin.isatty():
        try:
            print("\nstop the job too? [y/N] ", end="", file=sys.stderr, flush=True)  # stdout is the result's
            stop = input().strip().lower().startswith("y")
        except (KeyboardInterrupt, EOFError):
            stop = False
        if stop:
            client.stop_job(job)
            say(f"job {job} is being stopped; the same command goes on where it can")
            return FAILED
    say(f"job {job} goes on; `ray job logs --follow {job} --address {address}` shows it, `ray job stop` ends it")
    return FAILED
