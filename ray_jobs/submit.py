"""The same commands as Ray jobs on a remote cluster: submitted, followed, and ended with their own exit code. Knows no command by name.

What travels is the code of this project's packages and the command line; data, environments and secrets stay where they are. In the job
the command finds the cluster in RAY_ADDRESS, which Ray sets there, and marks its result, so that it can be told from the log.
"""

import argparse
import asyncio
import dataclasses
import importlib.util
import logging
import os
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from melanoma.errors import DataError
from melanoma.storage import is_address
from ray_jobs.arguments import BAD_INPUT, DONE, FAILED, FOUND, MARK
from ray_jobs.progress import say

PACKAGES = ("melanoma", "ray_jobs", "serve", "tune")
PASSED_ON = ("MELANOMA_DEBUG",)
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""With Ray's client each of them prevails over the address that it is told."""
CHATTY = ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk")
POLL_SECONDS = 2.0
AWAY_SECONDS = 180.0
SILENT_SECONDS = 60.0
TAKEN_IN_SECONDS = 5.0


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
        code = _exit_code(_follow(job, log))
        if log.result is not None:
            print(log.result, flush=True)
        elif code in (DONE, FOUND):
            say(
                f"melanoma: the job ended with {code}, its log shows no whole result; the same command reports it again."
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
            f"the head at {address} must accept the token, it does not{_token_lack()}; set RAY_AUTH_MODE=token and name the file of its token "
            "in RAY_AUTH_TOKEN_PATH."
        ) from error
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise DataError(f"{address} must be a Ray head's dashboard, it answers like none.") from error
    if theirs.split(".")[:2] != ray.__version__.split(".")[:2]:
        raise DataError(
            f"the cluster must run the Ray of this command, {ray.__version__}, it runs {theirs}; install that one, or start a cluster of this one."
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
            found.submodule_search_locations[0], folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )


@dataclasses.dataclass(frozen=True)
class RemoteJob:
    """A job, or what is to become one, and the head that is asked about it."""

    client: JobSubmissionClient
    address: str
    name: str

    @property
    def hint(self) -> str:
        """How it can be followed and ended without this command; by variable, for an option would not prevail over one that is set."""
        ray_job = f"RAY_API_SERVER_ADDRESS={self.address} ray job"
        return f"follow it with `{ray_job} logs --follow {self.name}`, end it with `{ray_job} stop {self.name}`"

    def start(self, words: Sequence[str], folder: Path, mark: str) -> None:
        """Submit a command line with the code in a folder.

        Raises:
            RuntimeError: if the head refuses it, or does not say whether it took it.
        """
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {MARK: mark}
        try:
            self.client.submit_job(
                entrypoint=shlex.join(["python", "-m", "ray_jobs.cli", *words]),
                submission_id=self.name,
                runtime_env={"working_dir": str(folder), "env_vars": environment},
            )
        except OSError as error:
            raise self._untold(error) from error

    def details(self) -> JobDetails:
        """Return what the head says of it, asked for some minutes while it does not answer.

        Raises:
            RuntimeError: if it does not answer at all, or does not know the job.
        """
        deadline = time.monotonic() + AWAY_SECONDS
        while True:
            try:
                return self.client.get_job_info(self.name)
            except (RuntimeError, OSError) as error:
                if time.monotonic() > deadline:
                    raise self._untold(error) from error
                time.sleep(POLL_SECONDS)

    def details_if_known(self) -> JobDetails | None:
        """Return what the head says of it, or nothing where it has not heard of it for some seconds, in which it may be taking it in."""
        deadline = time.monotonic() + TAKEN_IN_SECONDS
        while True:
            try:
                return self.client.get_job_info(self.name)
            except RuntimeError as error:
                if "status code 404" not in str(error):
                    raise
                if time.monotonic() > deadline:
                    return None
                time.sleep(POLL_SECONDS)

    def _untold(self, error: Exception) -> RuntimeError:
        why = "does not answer" if isinstance(error, OSError) else f"says: {' '.join(str(error).split())}"
        return RuntimeError(
            f"the head at {self.address} must tell of job {self.name}, it {why}; the job may run all the same, and the same command must wait for "
            f"its end: {self.hint}."
        )


class JobLog:
    """Shows a job's log on stderr, all but its result, which it keeps.

    State: how much of the log was read, so that a stream that broke off can begin anew, and the result once the whole of it has come.
    """

    def __init__(self, mark: str) -> None:
        self._mark, self._rest = mark, ""
        self._lines: list[str] | None = None
        self.num_read = 0
        self.result: str | None = None

    def feed(self, chunk: str) -> None:
        """Take what comes next; chunks end anywhere."""
        self.num_read += len(chunk)
        *whole, self._rest = (self._rest + chunk).split("\n")
        for line in whole:
            self._take(line)

    def end(self) -> None:
        """Show what is left when no more comes."""
        for line in [*(self._lines or []), *([self._rest] if self._rest else [])]:
            say(line)
        self._rest, self._lines = "", None

    def _take(self, line: str) -> None:
        if self._lines is None:
            if line == self._mark:
                self._lines = []
            else:
                say(line)
        elif line == self._mark:
            self.result, self._lines = "\n".join(self._lines), None
        else:
            self._lines.append(line)


def _follow(job: RemoteJob, log: JobLog) -> JobDetails:
    """Show the log of a job as it grows, until the job ends; return what the head then says of it."""
    was_told = False
    while True:
        is_silent = asyncio.run(_stream(job, log))
        while True:
            details, has_more = job.details(), _catch_up(job, log)
            if details.status.is_terminal():
                log.end()
                return details
            if not is_silent and not was_told:
                say("the log broke off; the job goes on, and its log is asked for again")
                was_told = True
            time.sleep(POLL_SECONDS)
            if has_more or not is_silent:  # else another stream would be as silent, and the head keeps every one
                break


async def _stream(job: RemoteJob, log: JobLog) -> bool:
    """Feed what a stream, which begins with the first line, has of the log beyond what was read; return whether it fell silent."""
    chunks, known = job.client.tail_job_logs(job.name), log.num_read
    while True:
        coming = asyncio.ensure_future(anext(chunks, None))
        # A job may have nothing to say; that the head is gone, a silent connection does not tell.
        if not (await asyncio.wait({coming}, timeout=SILENT_SECONDS))[0]:
            return True
        try:
            chunk = await coming
        except (RuntimeError, OSError, aiohttp.ClientError):
            return False
        if chunk is None:
            return False
        log.feed(chunk[known:])
        known = max(0, known - len(chunk))


def _catch_up(job: RemoteJob, log: JobLog) -> bool:
    """Feed what no stream brought, for some break off in silence and some proxies let none through; return whether there was any."""
    try:
        more = job.client.get_job_logs(job.name)[log.num_read :]
    except (RuntimeError, OSError):
        return False
    log.feed(more)
    return bool(more)


def _exit_code(details: JobDetails) -> int:
    if details.status == JobStatus.SUCCEEDED:
        return DONE
    if details.driver_exit_code in (FOUND, BAD_INPUT, FAILED):
        return int(details.driver_exit_code)
    say(f"melanoma: the job must run to its end, it was {details.status.lower()}: {details.message}")
    return FAILED


def _interrupted(job: RemoteJob) -> None:
    """Ask whether the job should stop too, where there is somebody to ask, and say what becomes of it."""
    try:
        details = job.details_if_known()
        if details is None:
            told = f"stopped before the head had job {job.name}; should it come yet: {job.hint}"
        elif details.status.is_terminal():
            told = f"job {job.name} has ended, {details.status.lower()}; the same command reports it, or goes on where it can"
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
    print("\nstop the job too? [y/N] ", end="", file=sys.stderr, flush=True)  # stdout is the result's
    try:
        return input().strip().lower().startswith("y")
    except (KeyboardInterrupt, EOFError):
        return False
