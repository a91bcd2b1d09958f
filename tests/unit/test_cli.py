import json
import shutil
import socket
from pathlib import Path

import pytest

from melanoma.config import DISCLAIMER
from melanoma.data.dataset import PreparedData
from ray_jobs.cli import BAD_INPUT, DONE, FAILED, FOUND, main


@pytest.mark.parametrize("words", [[], ["data"], ["nonsense"], ["train"], ["data", "phantom", "x", "--lesions", "0"]])
def test_bad_usage_is_exit_2_in_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_crash_is_exit_3(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr("melanoma.data.dataset.open_prepared", crash)
    assert main(["data", "describe", "x"]) == FAILED
    assert "the disk is gone" in capsys.readouterr().err


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
    pictures = [str(path) for path in sorted((phantom_source / "images").iterdir())[:2]]
    assert (
        main(["predict", str(bundle_dir), *pictures, "--explain", "grad_cam", "--out", str(tmp_path), "--json"]) == DONE
    )
    results = json.loads(capsys.readouterr().out)["results"]
    assert [r["image"] for r in results] == pictures
    assert all(Path(r["overlay"]).is_file() and r["decision"] in ("refer", "no_referral") for r in results)


def test_a_taken_port_is_refused_at_once(bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(bundle_dir), "--port", str(port)]) == BAD_INPUT
    assert "pass another --port" in capsys.readouterr().err


def test_a_folder_for_heatmaps_that_nobody_asked_for_is_refused(
    bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(bundle_dir), __file__, "--out", str(tmp_path)]) == BAD_INPUT
    assert "add --explain" in capsys.readouterr().err


def test_a_mistyped_path_takes_no_name(prepared: PreparedData, tmp_path: Path) -> None:
    words = ["train", str(prepared.folder), str(tmp_path), "--preset", "smoke", "--weights", str(tmp_path / "nowhere")]
    assert main(words) == BAD_INPUT
    assert not (tmp_path / "smoke" / "run.json").exists()


def test_a_guided_heatmap_is_another_one(bundle_dir: Path, phantom_source: Path, tmp_path: Path) -> None:
    picture = str(sorted((phantom_source / "images").iterdir())[0])
    for method in ("grad_cam", "guided_grad_cam"):
        assert main(["predict", str(bundle_dir), picture, "--explain", method, "--out", str(tmp_path)]) == DONE
    coarse, guided = sorted(tmp_path.iterdir())
    assert coarse.read_bytes() != guided.read_bytes()


def test_an_unusable_picture_costs_no_other_its_answer(
    bundle_dir: Path, phantom_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = sorted((phantom_source / "images").iterdir())[:2]
    twin = tmp_path / first.name  # another picture of the same file name
    shutil.copy(second, twin)
    third = tmp_path / f"{first.stem}_2.jpg"  # named as the second of one name would be
    shutil.copy(second, third)
    words = [__file__, first, twin, third, tmp_path / "none.jpg", "--explain", "grad_cam", "--out", tmp_path / "maps"]
    assert main(["predict", str(bundle_dir), *map(str, words)]) == BAD_INPUT
    shown = capsys.readouterr()
    assert "JPEG, PNG or WebP" in shown.err
    assert "none.jpg: IMAGE must be a picture" in shown.err
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [
        f"{first.stem}_2_2_grad_cam.png",
        f"{first.stem}_2_grad_cam.png",
        f"{first.stem}_grad_cam.png",
    ]
    for path in (first, twin, third):
        assert str(path) in shown.out
    assert DISCLAIMER in shown.out
