import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from melanoma.config import DISCLAIMER
from melanoma.data.dataset import PreparedData
from melanoma.errors import BundleError, DataError, SettingError, UserError
from melanoma.presets import PRESETS
from ray_jobs.arguments import BAD_INPUT, DONE, FAILED, FOUND
from ray_jobs.cli import main


@pytest.fixture(autouse=True)
def _any_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands begin whatever folders they name; the checks have tests of their own below."""
    monkeypatch.setattr("ray_jobs.cli._CHECKS", {})


def _task_error(error: Exception) -> Exception:
    """Return an error as Ray raises it that a task raised."""
    from ray.exceptions import RayTaskError

    raised: Exception = RayTaskError("decode", "Traceback of the task", error).as_instanceof_cause()
    return raised


@pytest.mark.parametrize(
    "words", [[], ["data"], ["nonsense"], ["train"], ["data", "phantom", "x", "--lesions", "0"]]
)
def test_bad_usage_is_exit_2_in_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == BAD_INPUT
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "/nowhere", "/tmp/none"], "melanoma data prepare"),
        (["data", "describe", "/nowhere"], "melanoma data prepare"),
        (["train", "/nowhere", "/tmp/none", "--preset", "gpuu"], "--preset must be one of"),
        (["train", "/nowhere", "/tmp/none", "--set", "loss.gamma=0.5"], "loss.gamma"),
        (["predict", "/nowhere", "x.jpg"], "manifest.json"),
        (["data", "prepare", "/nowhere", "/tmp/none"], "not a folder"),
        (
            ["train", "/data", "/runs", "--address", ""],
            "--address must be that of the head's dashboard",
        ),  # an unset variable
    ],
)
def test_bad_input_is_exit_2_in_one_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == BAD_INPUT
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def _fail(error: BaseException, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("melanoma.data.dataset.open_prepared", fail)
    return main([*(words or ("data", "describe", "/somewhere/data"))])


def _decode() -> None:
    b"\xff".decode()


def _caught(raiser: Callable[[], object]) -> Exception:
    try:
        raiser()
    except Exception as error:
        return error
    raise AssertionError


INTERNAL = {
    "RuntimeError: the disk is gone": RuntimeError("the disk is gone"),
    "KeyError: 'dx'": KeyError("dx"),
    "ValueError: operands could not be broadcast": _caught(lambda: np.ones(2) + np.ones(3)),
    "UnicodeDecodeError": _caught(_decode),
    "TypeError": _caught(lambda: len(3)),  # type: ignore[arg-type]
    "JSONDecodeError": _caught(lambda: json.loads("{")),
    "ArrowInvalid": _caught(lambda: pa.array(["a"]).cast(pa.int64())),
}


@pytest.mark.parametrize("told", INTERNAL)
@pytest.mark.parametrize("remote", [False, True], ids=["here", "in a task"])
def test_a_fault_of_the_program_is_exit_3_with_a_trace_in_a_file(
    told: str,
    remote: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    error = INTERNAL[told]
    assert _fail(_task_error(error) if remote else error, monkeypatch) == FAILED
    err = capsys.readouterr().err
    assert f"melanoma: describe failed inside: {told}" in err
    assert "Please report it" in err
    assert err.count("\n") == 1
    (trace,) = tmp_path.iterdir()
    assert f"The trace is in {trace}." in err
    assert "Traceback" in trace.read_text()
    assert trace.stat().st_mode & 0o777 == 0o600


def test_debugging_shows_the_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MELANOMA_DEBUG", "1")
    assert _fail(RuntimeError("no s3://KEY:HUSH@bucket"), monkeypatch) == FAILED
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "HUSH" not in err


def test_a_trace_that_cannot_be_kept_is_not_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert _fail(RuntimeError("boom"), monkeypatch) == FAILED
    assert (
        capsys.readouterr().err
        == "melanoma: describe failed inside: RuntimeError: boom. Please report it.\n"
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "/somewhere/data/shards/a.arrow"),
            BAD_INPUT,
        ),
        (PermissionError(13, "Permission denied", "/somewhere"), BAD_INPUT),
        (OSError(30, "Read-only file system", "/somewhere/data/access_log.jsonl"), BAD_INPUT),
        (IsADirectoryError(21, "Is a directory", b"/somewhere/data"), BAD_INPUT),
        (NotADirectoryError(20, "Not a directory", "/somewhere/data/x"), BAD_INPUT),
        (FileNotFoundError("[Errno 2] Failed to open local file '/somewhere/data/x'."), BAD_INPUT),
        (FileNotFoundError(2, "No such file or directory", "/usr/lib/libx.so"), FAILED),
        (FileNotFoundError(2, "No such file or directory", "/somewhere/database"), FAILED),
        (PermissionError(13, "Permission denied"), FAILED),
        (OSError(28, "No space left on device", "/somewhere/data/x"), FAILED),
        (ConnectionResetError(104, "Connection reset by peer"), FAILED),
    ],
    ids=str,
)
@pytest.mark.parametrize("remote", [False, True], ids=["here", "in a task"])
def test_only_a_path_that_was_typed_is_the_user_s_to_mend(
    error: OSError,
    code: int,
    remote: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _fail(_task_error(error) if remote else error, monkeypatch) == code
    assert ("The trace is in" in capsys.readouterr().err) == (code == FAILED)


def test_a_missing_object_that_was_typed_is_the_user_s_to_mend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("data", "describe", "s3://bucket/data")
    assert _fail(FileNotFoundError("bucket/data/records.parquet"), monkeypatch, *words) == BAD_INPUT
    assert _fail(FileNotFoundError("other/data"), monkeypatch, *words) == FAILED


def test_what_is_full_is_told_with_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", "b", "d", "o")
    monkeypatch.setattr(
        "melanoma.evaluation.evaluate",
        lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space")),
    )
    assert main([*words]) == FAILED
    assert (
        "No space. Correct that, then run the same command again; it continues where it can."
        " The trace" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "error", [DataError("no data."), SettingError("no data."), BundleError("no data.")]
)
def test_what_is_the_user_s_to_mend_is_so_in_a_worker_too(
    error: UserError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _fail(_task_error(error), monkeypatch) == BAD_INPUT
    assert capsys.readouterr().err == "melanoma: no data.\n"


@pytest.mark.parametrize(
    "words",
    [
        ["data", "describe", "s3://AKIAKEY:HUSH@bucket/data"],
        ["train", "s3://bucket/data?secret_key=HUSH", "out"],
        ["train", "data", "out", "--weights", "s3://KEY:HUSH@bucket/weights"],
        [
            "train",
            "data",
            "out",
            "--set-file",
            "s3://KEY:HUSH@bucket/set.json",
            "--address",
            "http://head:8265",
        ],
        ["train", "data", "out", "--address", "http://user:HUSH@head:8265"],
        ["nonsense", "s3://KEY:HUSH@bucket/data"],
        ["data", "describe", "data", "s3://KEY:HUSH@bucket/data"],
    ],
)
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == BAD_INPUT
    err = capsys.readouterr().err
    assert "HUSH" not in err
    assert err.count("\n") == 1
    assert "AWS_SECRET_ACCESS_KEY" in err or "argument" in err


def test_verify_answers_with_its_exit_code(
    bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bundle", "verify", str(bundle_dir), "--json"]) == DONE
    assert json.loads(capsys.readouterr().out) == {"ok": True, "findings": []}
    broken = Path(shutil.copytree(bundle_dir, tmp_path / "b"))
    (broken / "MODEL_CARD.md").write_text("a medical device")
    assert main(["bundle", "verify", str(broken)]) == FOUND


def test_describe_counts(prepared: PreparedData, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "describe", str(prepared.folder), "--json"]) == DONE
    described = json.loads(capsys.readouterr().out)
    assert described["num_images"] == len(prepared.records)
    assert sum(described["groups"].values()) == prepared.records["group"].nunique()


def test_predict_decides_and_explains(
    bundle_dir: Path, phantom_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(path) for path in sorted((phantom_source / "images").iterdir())[:2]]
    assert (
        main(
            [
                "predict",
                str(bundle_dir),
                *images,
                "--explain",
                "grad_cam",
                "--out",
                str(tmp_path),
                "--json",
            ]
        )
        == DONE
    )
    results = json.loads(capsys.readouterr().out)["results"]
    assert [r["image"] for r in results] == images
    assert all(
        Path(r["overlay"]).is_file() and r["decision"] in ("refer", "no_referral") for r in results
    )


def test_a_taken_port_is_refused_at_once(
    bundle_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(bundle_dir), "--port", str(port)]) == BAD_INPUT
    assert "Pass another --port" in capsys.readouterr().err


def test_a_folder_for_heatmaps_that_nobody_asked_for_is_refused(
    bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(bundle_dir), __file__, "--out", str(tmp_path)]) == BAD_INPUT
    assert "Add --explain" in capsys.readouterr().err


def test_dicom_objects_need_their_packages_and_a_folder(
    bundle_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["predict", str(bundle_dir), str(tmp_path / "lesion.dcm"), "--dicom"]
    assert main(words) == BAD_INPUT
    assert "Add --out DIR" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([*words, "--out", str(tmp_path / "out")]) == BAD_INPUT
    assert "pip install 'melanoma[dicom]'" in capsys.readouterr().err


def test_the_help_names_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    words = set(re.findall(r"\w+", capsys.readouterr().out))
    assert set(PRESETS) <= words


def test_a_mistyped_path_takes_no_name(prepared: PreparedData, tmp_path: Path) -> None:
    words = [
        "train",
        str(prepared.folder),
        str(tmp_path),
        "--preset",
        "smoke",
        "--weights",
        str(tmp_path / "nowhere"),
    ]
    assert main(words) == BAD_INPUT
    assert not (tmp_path / "smoke" / "run.json").exists()


def test_a_guided_heatmap_is_another_one(
    bundle_dir: Path, phantom_source: Path, tmp_path: Path
) -> None:
    image = str(sorted((phantom_source / "images").iterdir())[0])
    for method in ("grad_cam", "guided_grad_cam"):
        assert (
            main(["predict", str(bundle_dir), image, "--explain", method, "--out", str(tmp_path)])
            == DONE
        )
    coarse, guided = sorted(tmp_path.iterdir())
    assert coarse.read_bytes() != guided.read_bytes()


def test_an_unusable_image_costs_no_other_its_answer(
    bundle_dir: Path, phantom_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = sorted((phantom_source / "images").iterdir())[:2]
    twin = tmp_path / first.name  # another image of the same file name
    shutil.copy(second, twin)
    third = tmp_path / f"{first.stem}_2.jpg"  # named as the second of one name would be
    shutil.copy(second, third)
    words = [
        __file__,
        first,
        twin,
        third,
        tmp_path / "none.jpg",
        "--explain",
        "grad_cam",
        "--out",
        tmp_path / "maps",
    ]
    assert main(["predict", str(bundle_dir), *map(str, words)]) == BAD_INPUT
    shown = capsys.readouterr()
    assert "JPEG, PNG, WebP or DICOM" in shown.err
    assert "none.jpg: IMAGE must be an image" in shown.err
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [
        f"{first.stem}_2_2_grad_cam.png",
        f"{first.stem}_2_grad_cam.png",
        f"{first.stem}_grad_cam.png",
    ]
    for path in (first, twin, third):
        assert str(path) in shown.out
    assert DISCLAIMER in shown.out


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["train", "--help"],
        ["train"],
        ["train", "nowhere", "out"],
        ["tune", "nowhere", "out"],
        ["evaluate", "nowhere", "nowhere", "out"],
        ["serve", "nowhere"],
        ["bundle", "verify", "nowhere"],
        ["bundle", "recontract", "nowhere", "nowhere", "out"],
        ["bundle", "monitor", "nowhere", "nowhere.csv"],
        ["data", "prepare", "nowhere", "out"],
        ["score", "nowhere", "nowhere", "out"],
    ],
    ids=" ".join,
)
def test_help_and_refusals_wait_for_no_library(words: list[str], tmp_path: Path) -> None:
    """The libraries of a command take seconds to import."""
    code, loaded, stderr = _answered(words, tmp_path)
    assert code == (DONE if "--help" in words else BAD_INPUT)
    assert not {"torch", "ray", "pandas", "numpy", "pydantic", "fastapi"} & loaded
    assert "nowhere" not in words or re.search("has no manifest|is not a folder", stderr)


@pytest.mark.parametrize(
    "words",
    [
        ["data", "prepare", ".", "out", "--size", "1"],
        ["data", "phantom", "out", "--lesions", "0"],
        ["train", "data", "out", "--set", "loss.none=1"],
        ["tune", "data", "out", "--objective", "loss"],
    ],
    ids=" ".join,
)
def test_wrong_settings_wait_for_few_libraries(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").touch()  # it is not read before the settings
    code, loaded, stderr = _answered(words, tmp_path)
    assert code == BAD_INPUT
    assert not {"torch", "ray", "pandas", "scipy", "sklearn", "fastapi"} & loaded
    assert re.search("must be|is not a setting", stderr), stderr


def _answered(words: list[str], folder: Path) -> tuple[int, set[str], str]:
    """Run a command in a new process; return its exit code, its modules and its stderr."""
    code = (
        "import sys; from ray_jobs.cli import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as ended: code = ended.code\n"
        "print(code, *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        cwd=folder,
        check=True,
    )
    number, *loaded = done.stdout.splitlines()[-1].split()
    return int(number), set(loaded), done.stderr


def test_what_libraries_print_does_not_touch_the_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray prints its warnings to stdout."""
    from melanoma import presets

    def noisy(name: str) -> object:
        print("(raylet) WARNING")
        return presets.cpu()

    monkeypatch.setattr(presets, "preset", noisy)
    assert main(["config", "--json"]) == DONE
    out, err = capsys.readouterr()
    assert json.loads(out)
    assert "(raylet) WARNING" in err
