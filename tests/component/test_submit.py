"""What of a command that runs elsewhere can be checked here: its paths, and telling its result from
its log."""

import asyncio
import contextlib
import io
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from melanoma.errors import DataError
from ray_jobs.arguments import FAILED
from ray_jobs.cli import build_parser
from ray_jobs.memory import KEPT
from ray_jobs.remote_job import JobLog, RemoteJob, follow
from ray_jobs.submit import _exit_code, _interrupted, check_paths, submit

PARSER = build_parser()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train data /runs", "DATASET must be an absolute path"),
        ("train s3://bucket/data runs", "OUT must be an absolute path"),
        ("train /data /runs --weights lite0.safetensors", "--weights must be an absolute path"),
        ("data prepare /in /out --splits splits.csv", "SPLITS must be an absolute path"),
        ("evaluate bundle /data /out", "BUNDLE must be an absolute path"),
    ],
)
def test_a_path_that_means_nothing_there_is_told(words: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        check_paths(PARSER.parse_args(words.split()))


@pytest.mark.parametrize(
    "words",
    [
        "train s3://bucket/data s3://bucket/runs --weights imagenet",
        "train /data /runs --weights /weights/lite0.safetensors",
        "tune s3://bucket/data /runs --weights s3://bucket/lite0.safetensors",
        "data prepare s3://bucket/in /out --same-lesion s3://bucket/pairs.csv",
    ],
)
def test_addresses_and_whole_paths_are_taken(words: str) -> None:
    check_paths(PARSER.parse_args(words.split()))


@contextlib.contextmanager
def _dashboard(version: str) -> Iterator[tuple[str, list[str]]]:
    """Give the address of something that answers like a head's dashboard, or like none, and the
    paths that it is asked for."""
    asked: list[str] = []

    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(version.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


WORDS = ["train", "/data", "/runs"]


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ('{"ray_version": "2.59.0"}', r"it runs 2\.59\.0\. Install that version"),
        ("{}", "its answer is not that of one"),
        ("hello", "its answer is not that of one"),
    ],
)
def test_another_ray_is_told(version: str, told: str) -> None:
    with _dashboard(version) as (address, _), pytest.raises(DataError, match=told):
        submit(address, PARSER.parse_args(WORDS), WORDS)


@pytest.mark.parametrize("variable", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_the_address_that_is_typed_prevails(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with _dashboard("{}") as (address, asked), _dashboard("{}") as (other, asked_of_other):
        monkeypatch.setenv(variable, other)
        with pytest.raises(DataError):
            submit(address, PARSER.parse_args(WORDS), WORDS)
    assert asked
    assert not asked_of_other


LOG = 'epoch 1\n\nMARK\n{"a":\n 1}\nMARK\nthe end, without a line'
RESULT = '{"a":\n 1}'


class Head:
    """Stands in for Ray's client: a job whose log breaks off, in one of three ways, after some
    letters of each stream; the last one is whole.

    It ends with the last stream, or when it was asked for often enough.
    """

    def __init__(self, ends: list[int | None], how: str = "aloud", *, log: str = LOG) -> None:
        self._ends, self._how, self._log = list(ends), how, log
        self._sent, self.num_asked = 0, 0

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        end = self._ends.pop(0)
        for start in range(0, len(self._log[:end]), 7):
            self._sent = max(self._sent, end or len(self._log))
            yield self._log[start : min(start + 7, end or len(self._log))]
        if end is not None and self._how == "aloud":
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
        if end is not None and self._how == "left open":
            await asyncio.sleep(3600)

    def get_job_info(self, job: str) -> JobDetails:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()  # where it would hold up the stream, and a Ctrl-C
        self.num_asked += 1
        if self.num_asked == 20:
            self._ends.clear()
        return _details(JobStatus.RUNNING if self._ends else JobStatus.SUCCEEDED)

    def get_job_logs(self, job: str) -> str:
        """Return a letter more than was sent: what the job wrote in the meantime."""
        return self._log if not self._ends else self._log[: self._sent + 1]


def _details(status: JobStatus, code: int | None = None) -> JobDetails:
    return JobDetails(type=JobType.SUBMISSION, entrypoint="", status=status, driver_exit_code=code)


def _job(client: object) -> RemoteJob:
    return RemoteJob(cast(JobSubmissionClient, client), "http://head:8265", "raysubmit_1")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"POLL": 0.01, "SILENT": 0.05, "TAKEN_IN": 0.1, "AWAY": 0.1}.items():
        monkeypatch.setattr(f"ray_jobs.remote_job.{name}_SECONDS", seconds)


def _followed(head: Head) -> JobLog:
    log = JobLog("MARK")
    assert follow(_job(head), log).status == JobStatus.SUCCEEDED
    return log


@pytest.mark.parametrize("how", ["aloud", "closed", "left open"])
@pytest.mark.parametrize(
    "ends", [[None], [12, None], [0, 3, 20, 21, None], [len(LOG), None], [12], [30]]
)
def test_a_log_that_breaks_off_is_shown_once_and_its_result_whole(
    ends: list[int | None], how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log = _followed(Head(ends, how))
    told = capsys.readouterr()
    assert (told.out, log.result) == ("", RESULT)
    shown = [line for line in told.err.splitlines() if "broke off" not in line]
    assert shown == ["epoch 1", "", "the end, without a line"]
    assert told.err.count("broke off") == (
        len(ends) > 1 and how != "left open"
    )  # once; silence is none


class Growing(Head):
    """One whose streams bring nothing, as behind a proxy; the log grows by some letters whenever
    the head is asked how the job is."""

    def __init__(self, letters: int, *, aloud: bool) -> None:
        super().__init__([])
        self._letters, self._is_loud = letters, aloud
        self.num_streams = 0

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        self.num_streams += 1
        if self._is_loud:
            raise RuntimeError("400, message='Invalid response status'")
        await asyncio.sleep(3600)
        yield ""

    def get_job_info(self, job: str) -> JobDetails:
        self.num_asked += 1
        return _details(JobStatus.RUNNING if self.num_asked < 6 else JobStatus.SUCCEEDED)

    def get_job_logs(self, job: str) -> str:
        return LOG if self.num_asked >= 6 else LOG[: self._letters * self.num_asked]


@pytest.mark.parametrize("aloud", [True, False])
def test_a_log_that_no_stream_brings_is_asked_for(
    aloud: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, said = Growing(4, aloud=aloud), list[tuple[str, int]]()
    monkeypatch.setattr("ray_jobs.remote_job.say", lambda line: said.append((line, head.num_asked)))
    assert _followed(head).result == RESULT
    assert ("epoch 1", 2) in said  # while the job goes on
    assert said[-1] == ("the end, without a line", 6)


def test_a_silent_job_is_no_reason_for_stream_after_stream() -> None:
    head = Growing(0, aloud=False)
    assert _followed(head).result == RESULT
    assert (head.num_streams, head.num_asked) == (1, 6)


def test_a_result_that_is_cut_off_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert _followed(Head([None], log=LOG[: LOG.index(" 1}")])).result is None
    told = capsys.readouterr()
    assert told.out == ""
    assert '{"a":' in told.err


def test_a_log_that_cannot_be_shown_is_no_stream_that_broke_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(line: str) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("ray_jobs.remote_job.say", full)
    with pytest.raises(OSError, match="No space"):
        _followed(Head([None]))


@pytest.mark.parametrize(
    ("code", "ours"), [(1, 1), (2, 2), (3, 3), (127, FAILED), (-9, FAILED), (None, FAILED)]
)
def test_the_exit_code_is_one_of_ours(code: int | None, ours: int) -> None:
    assert _exit_code(_details(JobStatus.FAILED, code)) == ours


def test_a_job_keeps_memory_as_this_machine_says(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {}
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    for name in KEPT.keys() - {"MALLOC_ARENA_MAX"}:
        monkeypatch.delenv(name, raising=False)
    client = SimpleNamespace(submit_job=lambda **asked: sent.update(asked))
    RemoteJob(client, "http://head:8265", "job").start(["train"], Path("code"), "mark")  # type: ignore[arg-type]
    environment = sent["runtime_env"]["env_vars"]
    assert environment.items() >= (KEPT | {"MALLOC_ARENA_MAX": "4"}).items()


class Away:
    """A client whose head does not answer."""

    def submit_job(self, **_: object) -> None:
        raise ConnectionError("refused")

    def get_job_info(self, job: str) -> None:
        raise ConnectionError("refused")


@pytest.mark.parametrize(
    "ask", [lambda job: job.details(), lambda job: job.start(WORDS, Path("/code"), "MARK")]
)
def test_a_head_that_stays_away_leaves_word_of_the_job(ask: Callable[[RemoteJob], object]) -> None:
    with pytest.raises(
        RuntimeError,
        match=(
            r"does not answer\. The job may still be running; wait .*=http://head:8265 ray job logs"
            r" --follow"
        ),
    ):
        ask(_job(Away()))


def test_a_head_that_has_forgotten_a_job_is_told() -> None:
    """As one that started again without Redis."""
    with pytest.raises(RuntimeError, match="says: Request failed with status code 404"):
        _job(Asked(10_000, JobStatus.RUNNING)).details()


class Asked:
    """A client that knows a job after it was asked so often, and what it is then; a Ctrl-C may come
    instead."""

    def __init__(self, times_unknown: int, said: JobStatus | type[BaseException]) -> None:
        self._times_unknown, self._said = times_unknown, said

    def get_job_info(self, job: str) -> JobDetails:
        self._times_unknown -= 1
        if self._times_unknown >= 0:
            raise RuntimeError(
                "Request failed with status code 404: Job raysubmit_1 does not exist."
            )
        if isinstance(self._said, JobStatus):
            return _details(self._said)
        raise self._said


@pytest.mark.parametrize(
    ("client", "told"),
    [
        (Asked(0, JobStatus.RUNNING), "job raysubmit_1 continues; follow it with `RAY_API"),
        (Asked(1, JobStatus.RUNNING), "job raysubmit_1 continues; follow it with `RAY_API"),
        (
            Asked(10_000, JobStatus.RUNNING),
            "stopped before the head had job raysubmit_1; if it still starts: follow it",
        ),
        (Asked(0, JobStatus.SUCCEEDED), "job raysubmit_1 has ended (succeeded)"),
        (Asked(0, KeyboardInterrupt), "job raysubmit_1 may continue; follow it"),
        (Away(), "job raysubmit_1 may continue; follow it"),
    ],
    ids=["known", "being taken in", "unknown", "ended", "a second one", "head away"],
)
def test_what_becomes_of_the_job_is_said_after_a_ctrl_c(
    client: object, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    _interrupted(_job(client))
    assert capsys.readouterr().err.startswith(told)


@pytest.mark.parametrize(("text", "bounds"), [("4", (4, 4)), ("2-8", (2, 8)), ("3-3", (3, 3))])
def test_workers_are_a_number_or_a_range(text: str, bounds: tuple[int, int]) -> None:
    args = PARSER.parse_args(["train", "data", "runs", "--workers", text])
    assert (args.workers, args.dataset) == (bounds, Path("data"))


@pytest.mark.parametrize("text", ["0", "8-2", "2-", "-3", "two", "1-2-3"])
def test_other_numbers_of_workers_are_bad_usage(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        PARSER.parse_args(["train", "data", "runs", f"--workers={text}"])
    assert ended.value.code == 2
    assert "--workers" in capsys.readouterr().err
