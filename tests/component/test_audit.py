"""`data audit`, as it is typed: planted faults are found, a clean set raises no alarm."""

import dataclasses
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from melanoma.audit import pipeline
from melanoma.audit.pipeline import MAX_KNOWN, PAGE, PAIRS, REPORT, audit
from melanoma.data.dataset import PreparedData
from melanoma.data.phantom.config import PhantomConfig
from melanoma.data.phantom.layout import write_phantom
from melanoma.data.prepare import prepare
from melanoma.data.prepare_config import PrepareConfig
from melanoma.executor import silently
from ray_jobs.arguments import DONE, FOUND
from ray_jobs.cli import main


def _dataset(folder: Path, config: PhantomConfig, **settings: object) -> Path:
    if not (folder / "source").exists():
        write_phantom(config, folder / "source")
    out = folder / f"dataset{len(list(folder.iterdir()))}"
    prepare(folder / "source", out, PrepareConfig(size=128, **settings))  # type: ignore[arg-type]
    return out


def test_a_clean_set_raises_no_alarm(
    prepared: PreparedData, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "audit", str(prepared.folder), "--json"]) == DONE
    found = json.loads(capsys.readouterr().out)
    assert not found["leak"]
    assert not found["shortcut"]
    views = found["leaks"]["known_views"]
    assert 50 < views["num"] <= MAX_KNOWN
    assert views["value"] > 0.5


def test_planted_leaks_are_found_shown_and_can_be_joined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = 8
    config = PhantomConfig(num_lesions=250, seed=5, leaks=planted)
    dataset, out = _dataset(tmp_path, config), tmp_path / "audit"
    assert main(["data", "audit", str(dataset), "--out", str(out)]) == FOUND
    assert "leak:" in capsys.readouterr().out
    found = json.loads((out / REPORT).read_text())
    twice = {
        frozenset((pair["lesion_id_a"], pair["lesion_id_b"])) for pair in found["leaks"]["pairs"]
    }
    assert 0.7 * planted <= len(twice) <= planted
    assert all(any(name.startswith("PHL_9") for name in pair) for pair in twice)
    page = (out / PAGE).read_text()
    assert page.count("<figure>") == len(found["leaks"]["pairs"] + found["leaks"]["possible_pairs"])
    assert not re.search(r"(src|href)=\"?(https?:)?//", page)
    # The list joins what it names: after that the audit finds nothing.
    joined = _dataset(tmp_path, config, same_lesion=out / PAIRS)
    assert audit(joined)["leaks"]["pairs"] == []


def test_a_planted_shortcut_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = PhantomConfig(num_lesions=250, seed=6, shortcut=True, melanomas=0.3)
    dataset = _dataset(tmp_path, config)
    assert main(["data", "audit", str(dataset)]) == DONE  # a shortcut alone is no leak
    said = capsys.readouterr().out
    assert "shortcut: the collection or camera ranks the targets" in said
    assert "no leak" in said


def test_labels_of_calibration_and_test_are_not_looked_at(prepared: PreparedData) -> None:
    records = prepared.records
    flipped = records["label"].mask(records["split"] != "train", 0)
    other = dataclasses.replace(prepared, records=records.assign(label=flipped))
    clues, told = pipeline._shortcuts(prepared, silently)
    assert pipeline._shortcuts(other, silently) == (clues, told)


@pytest.mark.drill
@pytest.mark.parametrize("seed", range(100, 110))
def test_ten_clean_sets_raise_no_alarm(tmp_path: Path, seed: int) -> None:
    found = audit(_dataset(tmp_path, PhantomConfig(num_lesions=600, seed=seed)))
    assert (found["leak"], found["shortcut"]) == (False, False)


@pytest.mark.drill
def test_known_pairs_and_cameras_of_ham10000_are_found(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "ham10000"
    prepare(source, tmp_path / "dataset", PrepareConfig())
    found = audit(tmp_path / "dataset")
    known = pd.read_csv(source / "known_duplicates.csv")
    pairs = {
        frozenset((pair["image_id_a"], pair["image_id_b"])) for pair in found["leaks"]["pairs"]
    }
    again = [
        frozenset(pair) in pairs
        for pair in known[["image_id_a", "image_id_b"]].itertuples(index=False)
    ]
    print(f"known pairs found: {sum(again)} of {len(again)}; pairs to look at: {len(pairs)}")
    assert sum(again) >= 16
    assert found["leaks"]["known_views"]["value"] > 0.75
    shortcuts = {clue["name"] for clue in found["shortcuts"]["clues"] if clue["is_shortcut"]}
    assert {"source", "source_from_pixels"} <= shortcuts
