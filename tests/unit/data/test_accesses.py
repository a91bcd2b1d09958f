import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from melanoma.data.accesses import (
    calibration_access,
    check_declared,
    declared_accesses,
    registry_of,
)
from melanoma.data.dataset import PreparedData
from melanoma.errors import DataError
from tests.datasets import copied


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_each_network_has_its_number(prepared: PreparedData, tmp_path: Path) -> None:
    data = copied(prepared, tmp_path / "data")
    assert [calibration_access(data, name, declared=0) for name in "aab"] == [1, 1, 2]
    assert calibration_access(data, "a", declared=0) == 1  # such as after a crash


def test_a_copy_of_the_data_set_does_not_start_again(
    prepared: PreparedData, tmp_path: Path
) -> None:
    assert calibration_access(copied(prepared, tmp_path / "one"), "a", declared=0) == 1
    assert calibration_access(copied(prepared, tmp_path / "two"), "b", declared=0) == 2


def test_the_log_beside_the_data_set_counts_for_every_user(
    prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = copied(prepared, tmp_path / "data")
    assert calibration_access(data, "a", declared=0) == 1
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    assert calibration_access(data, "b", declared=0) == 2


def test_other_accesses_are_no_networks(prepared: PreparedData, tmp_path: Path) -> None:
    data = copied(prepared, tmp_path / "data")
    data.log_access("calibration", {"bundle_version": "x", "num": 3})
    data.log_access("test", {"by": "train", "network": "y"})
    assert calibration_access(data, "a", declared=0) == 1


def test_a_home_that_cannot_be_written_is_told(
    prepared: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    data = copied(prepared, tmp_path / "data")
    assert [calibration_access(data, name, declared=0) for name in "ab"] == [1, 2]
    assert "Set XDG_STATE_HOME" in caplog.text


def test_accesses_are_declared_before_the_first(prepared: PreparedData, tmp_path: Path) -> None:
    data = copied(prepared, tmp_path / "data")
    assert declared_accesses(data, 4) == 4
    calibration_access(data, "a", declared=4)
    assert declared_accesses(data, 0) == declared_accesses(data, 4) == 4
    with pytest.raises(DataError, match="it declared 4"):
        check_declared(copied(prepared, tmp_path / "copy"), 9)


def test_none_declared_stays_none(prepared: PreparedData, tmp_path: Path) -> None:
    data = copied(prepared, tmp_path / "data")
    calibration_access(data, "a", declared=0)
    with pytest.raises(DataError, match="it declared none"):
        check_declared(data, 4)
    check_declared(data, 0)


def test_two_at_the_same_moment_both_count_both(
    prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = copied(prepared, tmp_path / "data")
    log_access = PreparedData.log_access

    def beside(self: PreparedData, split: str, entry: dict[str, Any]) -> list[dict[str, Any]]:
        log_access(self, split, {**entry, "network": "a"})
        return log_access(self, split, entry)

    monkeypatch.setattr(PreparedData, "log_access", beside)
    assert calibration_access(data, "b", declared=0) == 2


def test_a_line_that_a_crash_tore_costs_no_other(prepared: PreparedData, tmp_path: Path) -> None:
    data = copied(prepared, tmp_path / "data")
    calibration_access(data, "a", declared=0)
    with registry_of(data).open("a") as file:
        file.write('{"by": "train", "netw')
    assert calibration_access(copied(prepared, tmp_path / "copy"), "b", declared=0) == 2


def test_the_registry_is_found_by_the_images(prepared: PreparedData, tmp_path: Path) -> None:
    data = copied(prepared, tmp_path / "data")
    calibration_access(data, "a", declared=0)
    (line,) = filter(None, registry_of(data).read_text().splitlines())
    assert json.loads(line)["network"] == "a"


def test_other_folds_of_the_same_calibration_split_do_not_start_again(
    prepared: PreparedData, tmp_path: Path
) -> None:
    data = copied(prepared, tmp_path / "data")
    calibration_access(data, "a", declared=0)
    manifest = dataclasses.replace(data.manifest, split_hash="0" * 64)
    train = data.records[data.records["split"] != "calibration"].index
    other = dataclasses.replace(
        copied(prepared, tmp_path / "other"),
        manifest=manifest,
        records=data.records.drop(index=train[:1]),
    )
    assert calibration_access(other, "b", declared=0) == 2
