"""What of a command that runs elsewhere can be checked here: its paths, and telling its result from its log."""

import asyncio
import io
import threading
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import cast

import pytest
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from melanoma.errors import DataError
from ray_jobs.arguments import FAILED, build_parser
from ray_jobs.submit import JobLog, _follow, _interrupted, check_paths, submit

COMMANDS = ("phantom", "prepare", "describe", "train", "tune", "evaluate", "predict", "serve", "verify")
PARSER = build_parser({name: lambda _: 0 for name in COMMANDS}, "0")


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


@pytest.mark.parametrize(
    ("version", "told"),
    [('{"ray_version": "2.59.0"}', "it runs 2.59.0; install that one"), ("{}", "it answers like none"), ("hello", "it answers like none")],
)  # fmt: skip
def test_another_ray_is_told(version: str, told: str) -> None:
    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(version.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        args = PARSER.parse_args(["train", "/data", "/runs"])
        with pytest.raises(DataError, match=told):
            submit(f"http://127.0.0.1:{server.server_port}", args, ["train", "/data", "/runs"])
        server.shutdown()


LOG = 'epoch 1\n\nMARK\n{"a":\n 1}\nMARK\nthe end, without a line'
RESULT = '{"a":\n 1}'


class Head:
    """Stands in for Ray's client: a job whose log breaks off, in one of three ways, after some letters of each stream; the last one is whole."""

    def __init__(self, ends: list[int | None], how: str = "aloud", *, log: str = LOG) -> None:
        self._ends, self._how, self._log = list(ends), how, log
        self._sent = 0

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
        status = JobStatus.RUNNING if self._ends else JobStatus.SUCCEEDED
        return JobDetails(type=JobType.SUBMISSION, entrypoint="", status=status)

    def get_job_logs(self, job: str) -> str:
        return self._log if not self._ends else self._log[: self._sent]


def _followed(head: Head, monkeypatch: pytest.MonkeyPatch) -> JobLog:
    monkeypatch.setattr("ray_jobs.submit.POLL_SECONDS", 0)
    monkeypatch.setattr("ray_jobs.submit.SILENT_SECONDS", 0.05)
    log = JobLog("MARK")
    assert _follow(cast(JobSubmissionClient, head), "job", log).status == JobStatus.SUCCEEDED
    return log


@pytest.mark.parametrize("how", ["aloud", "closed", "left open"])
@pytest.mark.parametrize("ends", [[None], [12, None], [0, 3, 20, 21, None], [len(LOG), None], [12], [30]])
def test_a_log_that_breaks_off_is_shown_once_and_its_result_whole(
    ends: list[int | None], how: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = _followed(Head(ends, how), monkeypatch)
    told = capsys.readouterr()
    assert (told.out, log.result) == ("", RESULT)
    shown = [line for line in told.err.splitlines() if "broke off" not in line]
    assert shown == ["epoch 1", "", "the end, without a line"]
    assert told.err.count("broke off") == (len(ends) > 1 and how != "left open")  # once; silence is none


def test_a_log_that_no_stream_brings_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a proxy that lets no WebSocket through."""

    class Proxied(Head):
        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            self._sent = self._ends.pop(0) or len(LOG)
            raise RuntimeError("400, message='Invalid response status'")
            yield ""

        def get_job_info(self, job: str) -> JobDetails:
            if len(self._ends) == 1:
                shown.append(capsys.readouterr().err)
            return super().get_job_info(job)

    shown: list[str] = []
    assert _followed(Proxied([8, 12, None]), monkeypatch).result == RESULT
    assert "epoch 1\n" in shown[0]  # while the job goes on
    assert capsys.readouterr().err == "\nthe end, without a line\n"


def test_a_result_that_is_cut_off_is_none(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert _followed(Head([None], log=LOG[: LOG.index(" 1}")]), monkeypatch).result is None
    told = capsys.readouterr()
    assert told.out == ""
    assert '{"a":' in told.err


@pytest.mark.parametrize("times_unknown", [0, 1, 10_000])
def test_a_job_that_the_head_may_be_taking_in_is_asked_for_again(
    times_unknown: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ctrl-C may come while the head takes a job in."""

    class Slow:
        asked = 0

        def get_job_info(self, job: str) -> None:
            self.asked += 1
            if self.asked <= times_unknown:
                raise RuntimeError("Request failed with status code 404: Job raysubmit_1 does not exist.")

    monkeypatch.setattr("ray_jobs.submit.POLL_SECONDS", 0.01)
    monkeypatch.setattr("ray_jobs.submit.TAKEN_IN_SECONDS", 0.1)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert _interrupted(cast(JobSubmissionClient, Slow()), "http://head:8265", "raysubmit_1") == FAILED
    told = capsys.readouterr().err
    assert ("job raysubmit_1 goes on" in told) == (times_unknown < 10)
    assert "ray job stop" in told


@pytest.mark.parametrize(("text", "bounds"), [("4", (4, 4)), ("2-8", (2, 8)), ("3-3", (3, 3))])
def test_workers_are_a_number_or_a_range(text: str, bounds: tuple[int, int]) -> None:
    args = PARSER.parse_args(["train", "data", "runs", "--workers", text])
    assert (args.workers, args.dataset) == (bounds, Path("data"))


@pytest.mark.parametrize("text", ["0", "8-2", "2-", "-3", "two", "1-2-3"])
def test_other_numbers_of_workers_are_bad_usage(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        PARSER.parse_args(["train", "data", "runs", f"--workers={text}"])
    assert ended.value.code == 2
    assert "--workers" in capsys.readouterr().err
