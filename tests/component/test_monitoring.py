"""`bundle monitor` and `bundle plan`, as they are typed."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from melanoma.bundle.manifest import MANIFEST, BundleManifest
from melanoma.evidence.operating_point import OperatingPoint
from melanoma.io.typed import to_plain
from ray_jobs.arguments import BAD_INPUT, DONE, FOUND
from ray_jobs.cli import main
from tests.bundles import made_up_manifest

HEAD = "request_id,score,diagnosis"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of which only the manifest is there: monitoring reads nothing else."""
    return _write(tmp_path / "bundle", made_up_manifest())


def _write(folder: Path, manifest: BundleManifest) -> Path:
    folder.mkdir()
    (folder / MANIFEST).write_text(json.dumps(to_plain(manifest.with_version())))
    return folder


def _outcomes(folder: Path, *rows: str, header: str = "request_id,score,diagnosis") -> Path:
    path = folder / "outcomes.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def _melanomas(sensitivity: float, num: int) -> list[str]:
    referred = np.random.default_rng(0).random(num) < sensitivity
    return [
        f"r{i},{0.99 if is_referred else 0.0},melanoma" for i, is_referred in enumerate(referred)
    ]


def _run(bundle: Path, outcomes: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    code = main(["bundle", "monitor", str(bundle), str(outcomes), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else err


@pytest.mark.parametrize(
    ("sensitivity", "num", "verdict", "code"),
    [(0.6, 100, "broken", FOUND), (0.99, 300, "holds", DONE), (0.93, 20, "open", DONE)],
)
def test_outcomes_are_judged(
    sensitivity: float,
    num: int,
    verdict: str,
    code: int,
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [*_melanomas(sensitivity, num), "x,0.9,nevus", "y,0.0,nv", "z,0.5,"]
    found_code, found = _run(bundle, _outcomes(tmp_path, *rows), capsys)
    assert (found_code, found["verdict"]) == (code, verdict)
    assert found["num_target"] == num
    assert found["sentence"].startswith(verdict.capitalize())
    assert found["known"]["refer"]["rows"] - found["known"]["refer"]["with_diagnosis"] <= 1


def test_only_what_the_promise_speaks_of_counts(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = "request_id,score,dx,patient_id,decision,version"
    version = json.loads((bundle / MANIFEST).read_text())["version"]
    outcomes = _outcomes(
        tmp_path,
        f"1,0.9,mel,a,refer,{version}",
        f"2,0.0,mel,a,no_referral,{version}",  # of the same patient
        f"3,0.0,mel,b,cannot_assess,{version}",
        "4,0.0,mel,c,no_referral,another",
        f"5,0.9,melanoma in situ,unknown,refer,{version}",
        f"6,0.9,mel,unknown,refer,{version}",  # not known is not one patient
        f"7,0.9,something rare,d,refer,{version}",
        header=header,
    )
    _, found = _run(bundle, outcomes, capsys)
    assert (found["num_target"], found["num_referred"]) == (3, 3)
    assert sorted(found["left_out"].values()) == [1, 1, 1]
    assert found["not_understood"]["taken_as_other"] == {"something rare": 1}


def test_several_images_of_a_lesion_have_another_promise(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["a,0.99,melanoma,1", "b,0.0,melanoma,3", "c,0.99,melanoma,"]
    outcomes = _outcomes(tmp_path, *rows, header=f"{HEAD},num_images")
    _, found = _run(bundle, outcomes, capsys)
    assert found["left_out"] == {"several images of one lesion": 1}


def test_a_lesion_counts_once_if_its_patient_is_not_known(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = _outcomes(
        tmp_path,
        "1,0.9,mel,,L1",
        "2,0.9,mel,,L1",
        "3,0.9,mel,P,L2",
        "4,0.9,mel,P,L3",
        "5,0.9,mel,,",
        "6,0.9,mel,,",
        header="image_id,score,dx,patient_id,lesion_id",
    )
    _, found = _run(bundle, outcomes, capsys)
    assert found["num_target"] == 4


@pytest.mark.parametrize(
    ("rows", "header", "told"),
    [
        (["1,1.5,mel"], None, "score must be in [0, 1]; it is otherwise in row 1"),
        (["1,,mel"], None, "score must be in [0, 1]"),
        (["1,0.5,mel", "1,0.5,mel"], None, "request_id must stand once; it is otherwise in row 2"),
        ([",0.5,mel"], None, "request_id must not be blank"),
        (["1,0.5"], "request_id,score", "diagnosis column"),
        (["1,0.999,mel,no_referral"], f"{HEAD},decision", "must follow from score"),
        (["1,0.999,mel,maybe"], f"{HEAD},decision", "decision must be one of"),
        (["1,0.9,mel,another"], f"{HEAD},version", "all are of another version"),
        (["1,0.9,mel,0.1"], f"{HEAD},Score", "2 columns called score"),
        (
            ["1,mel"],
            "request_id,diagnosis",
            "must have the columns request_id (or image_id), score",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_told(
    rows: list[str],
    header: str | None,
    told: str,
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcomes = _outcomes(tmp_path, *rows, header=header or "request_id,score,diagnosis")
    code, error = _run(bundle, outcomes, capsys)
    assert code == BAD_INPUT
    assert told in error


def test_without_a_promise_there_is_nothing_to_watch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = made_up_manifest()
    contract = dataclasses.replace(
        manifest.operating_point.contract, status="unmet", reason="uninformative"
    )
    point = OperatingPoint(manifest.operating_point.threshold, contract)
    bundle = _write(tmp_path / "bundle", dataclasses.replace(manifest, operating_point=point))
    code, error = _run(bundle, _outcomes(tmp_path, "1,0.5,mel"), capsys)
    assert code == BAD_INPUT
    assert "no promise to watch" in error


def test_a_plan_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "plan", "--promise", "0.9", "--share", "0.05"]) == DONE
    out = capsys.readouterr().out
    assert "targets in calibration to promise it, first time" in out
    assert "720" in out  # 36 targets, of 5 %
    assert main(["bundle", "plan", "--json"]) == DONE
    assert len(json.loads(capsys.readouterr().out)["promises"]) == 4


@pytest.mark.parametrize("words", [["--promise", "1"], ["--promise", "0.4"], ["--share", "x"]])
def test_a_plan_for_nothing_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bundle", "plan", *words])
    assert caught.value.code == BAD_INPUT
    assert "must be between" in capsys.readouterr().err
