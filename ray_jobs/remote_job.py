"""A job on a remote cluster, asked about and followed through whatever its head, its log and the network do meanwhile.

Knows Ray's client, and neither what the job runs nor what its exit code means.
"""

import asyncio
import dataclasses
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
from ray.job_submission import JobDetails, JobSubmissionClient

from ray_jobs.arguments import MARK
from ray_jobs.progress import say

PASSED_ON = ("MELANOMA_DEBUG",)
POLL_SECONDS = 2.0
AWAY_SECONDS = 180.0
SILENT_SECONDS = 60.0
TAKEN_IN_SECONDS = 5.0


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
        return (
            f"follow it with `{ray_job} logs --follow {self.name}`, end it with `{ray_job} stop"
            f" {self.name}`"
        )

    def start(self, words: Sequence[str], folder: Path, mark: str) -> None:
        """Submit a command line with the code in a folder.

        Raises:
            RuntimeError: if the head refuses it, or does not say whether it took it.
        """
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {
            MARK: mark
        }
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
        why = (
            "does not answer"
            if isinstance(error, OSError)
            else f"says: {' '.join(str(error).split())}"
        )
        return RuntimeError(
            f"the head at {self.address} must tell of job {self.name}, it {why}; the job may run"
            f" all the same, and the same command must wait for its end: {self.hint}."
        )


class JobLog:
    """Shows a job's log on stderr, all but its result, which it keeps.

    State: how much of the log was read, so that a stream that broke off can begin anew, and the
        result once the whole of it has come.
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


def follow(job: RemoteJob, log: JobLog) -> JobDetails:
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
            if (
                has_more or not is_silent
            ):  # else another stream would be as silent, and the head keeps every one
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
