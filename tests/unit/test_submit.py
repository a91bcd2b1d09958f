"""What of a command that runs elsewhere can be checked here: its paths, and telling its result from its log."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from melanoma.errors import DataError
from ray_jobs.arguments import build_parser
from ray_jobs.submit import check_paths, split_result, submit

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


def test_a_result_is_told_from_the_log_around_it() -> None:
    lines = ["epoch 1", "MARK", '{"a": 1}', "MARK", "the end"]
    found = [line for line, inside in split_result(lines, "MARK", inside=False) if inside and line != "MARK"]
    assert found == ['{"a": 1}']
    # Chunks may end anywhere between the lines of a result.
    rest = list(split_result(['"b": 2}', "MARK", "the end"], "MARK", inside=True))
    assert [inside for _, inside in rest] == [True, False, False]


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
