"""Submits and follows a job on a remote cluster, despite interruptions of head, log and network.

It knows Ray's client, but neither what the job runs nor what its exit code means.
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

from ray_jobs.memory import KEPT
from ray_jobs.progress import say
from ray_jobs.results import MARK

PASSED_ON = ("MELANOMA_DEBUG", *KEPT)
POLL_SECONDS = 2.0
AWAY_SECONDS = 180.0
SILENT_SECONDS = 60.0
TAKEN_IN_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class RemoteJob:
    """A job that is or will be submitted, and the head that runs it.

    Attributes:
        client: Ray's client for the head.
        address: address of the head's dashboard.
        name: submission id of the job.
    """

    client: JobSubmissionClient
    address: str
    name: str

    @property
    def hint(self) -> str:
        """The commands that follow and stop the job without `melanoma`."""
        # The variable and not the option --address, because a variable that is set overrides it.
        ray_job = f"RAY_API_SERVER_ADDRESS={self.address} ray job"
        return (
            f"follow it with `{ray_job} logs --follow {self.name}`, stop it with `{ray_job} stop"
            f" {self.name}`"
        )

    def start(self, words: Sequence[str], folder: Path, mark: str) -> None:
        """Submit a command line with the code in a folder.

        Args:
            words: arguments of the `melanoma` command.
            folder: folder with the packages to send.
            mark: the line that marks the result in the log.

        Raises:
            RuntimeError: if the head refuses the job, or does not answer.
        """
        passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment = KEPT | passed_on | {MARK: mark}
        try:
            self.client.submit_job(
                entrypoint=shlex.join(["python", "-m", "ray_jobs.cli", *words]),
                submission_id=self.name,
                runtime_env={"working_dir": str(folder), "env_vars": environment},
            )
        except OSError as error:
            raise self._lost(error) from error

    def details(self) -> JobDetails:
        """Return the details of the job; retry for `AWAY_SECONDS` if the head does not answer.

        Raises:
            RuntimeError: if the head does not answer or does not know the job.
        """
        deadline = time.monotonic() + AWAY_SECONDS
        while True:
            try:
                return self.client.get_job_info(self.name)
            except (RuntimeError, OSError) as error:
                if time.monotonic() > deadline:
                    raise self._lost(error) from error
                time.sleep(POLL_SECONDS)

    def details_if_known(self) -> JobDetails | None:
        """Return the details of the job, or None if the head does not know it.

        It retries for `TAKEN_IN_SECONDS`, because the head may still be accepting the job.

        Raises:
            RuntimeError: if the head reports another error.
        """
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

    def _lost(self, error: Exception) -> RuntimeError:
        why = (
            "does not answer"
            if isinstance(error, OSError)
            else f"says: {' '.join(str(error).split()).rstrip('.')}"
        )
        return RuntimeError(
            f"Lost job {self.name}: the head at {self.address} {why}. The job may still be running;"
            f" wait for its end before you run the same command again: {self.hint}."
        )


class JobLog:
    """Prints the log of a job to stderr, except for the result, which it keeps.

    Attributes:
        num_read: number of characters read, so that a new stream can continue after a broken one.
        result: the result once it is complete, otherwise None.
    """

    def __init__(self, mark: str) -> None:
        self._mark, self._rest = mark, ""
        self._lines: list[str] | None = None
        self.num_read = 0
        self.result: str | None = None

    def feed(self, chunk: str) -> None:
        """Read the next chunk of the log; it may end anywhere in a line."""
        self.num_read += len(chunk)
        *whole, self._rest = (self._rest + chunk).split("\n")
        for line in whole:
            self._take(line)

    def end(self) -> None:
        """Print what is left after the last chunk."""
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
    """Print the log of a job until the job ends, and return its final details."""
    was_reported = False
    while True:
        is_silent = asyncio.run(_stream(job, log))
        while True:
            details, has_more = job.details(), _catch_up(job, log)
            if details.status.is_terminal():
                log.end()
                return details
            if not is_silent and not was_reported:
                say("the log broke off; the job continues, and its log is requested again")
                was_reported = True
            time.sleep(POLL_SECONDS)
            # After a silent stream, open another one only if the log has grown. A new stream would
            # be silent too, and the head keeps all of them open.
            if has_more or not is_silent:
                break


async def _stream(job: RemoteJob, log: JobLog) -> bool:
    """Feed the unread part of the log from a stream, and return whether the stream fell silent.

    Each stream starts again with the first line of the log.
    """
    chunks, known = job.client.tail_job_logs(job.name), log.num_read
    while True:
        coming = asyncio.ensure_future(anext(chunks, None))
        # Silence is ambiguous: the job may print nothing, or the head may be gone.
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
    """Feed the part of the log that no stream delivered, and return whether there was any.

    Some streams break off silently, and some proxies let no stream through.
    """
    try:
        more = job.client.get_job_logs(job.name)[log.num_read :]
    except (RuntimeError, OSError):
        return False
    log.feed(more)
    return bool(more)
