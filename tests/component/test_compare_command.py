"""`melanoma compare` on the command line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ray_jobs.arguments import BAD_INPUT, DONE
from ray_jobs.cli import main


def _scores(folder: Path, name: str, skill: float) -> str:
    rng, target = np.random.default_rng(0), np.arange(120) % 2
    table = pd.DataFrame({"image_id": [f"i{i}" for i in range(120)], "label": target})
    path = folder / f"{name}.csv"
    table.assign(score=skill * target + rng.normal(size=120)).to_csv(path, index=False)
    return str(path)


def test_two_tables_give_text_json_and_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", _scores(tmp_path, "a", 0.5), _scores(tmp_path, "b", 2.0)]
    words += ["--group-by", "image_id"]
    out = tmp_path / "out"
    assert main([*words, "--out", str(out), "--json"]) == DONE
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((out / "comparison.json").read_text())
    assert main(words) == DONE
    text = capsys.readouterr().out
    assert "B - A, 95 % interval" in text
    assert "AUROC (B is higher)" in text
    assert main(words[:-2]) == BAD_INPUT
    assert "pass --group-by image_id" in capsys.readouterr().err
    assert main(["compare", words[1], str(tmp_path / "nothing.csv")]) == BAD_INPUT
    assert "must be a file, parquet or CSV" in capsys.readouterr().err
