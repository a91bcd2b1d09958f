"""Writing: what is written is there whole or not at all, and who may read it is the umask's to
say."""

import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from melanoma.errors import DataError
from melanoma.io.files import (
    claim_folder,
    locked,
    new_file,
    new_folder,
    read_json,
    read_parquet,
    write_json,
    write_parquet,
    write_text,
)


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield int(request.param)
    os.umask(before)


def test_what_is_written_has_the_mode_that_the_umask_says(umask: int, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    with locked(run):
        claim_folder(run, {"seed": 1})
    with new_folder(run / "data") as work:
        (work / "shards").mkdir()
        write_parquet(work / "records.parquet", pd.DataFrame({"patient_id": ["P1"]}))
        write_json(work / "manifest.json", {})
        write_text(work / "shards" / "train.arrow", "")
    with new_folder(run / "data", replace_if="manifest.json") as work:
        write_text(work / "manifest.json", "{}")
    written = list(tmp_path.rglob("*"))
    assert {path.name for path in written} == {
        "runs",
        "one",
        ".lock",
        "run.json",
        "data",
        "manifest.json",
    }
    for path in written:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with new_file(path) as file:
            file.write(b"half")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_long_name_is_written_too(tmp_path: Path) -> None:
    write_text(tmp_path / ("n" * 250), "x")
    assert [path.name for path in tmp_path.iterdir()] == ["n" * 250]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"PAR1 half a table"])
def test_a_damaged_file_is_the_user_s_to_mend(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    for read in (read_json, read_parquet):
        with pytest.raises(DataError, match="it is damaged"):
            read(tmp_path / "file")
