"""The demonstration itself on a small folder of images: from files to an answered request, by the
commands a person types."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from melanoma.config import DISCLAIMER
from melanoma.data.dataset import open_prepared
from melanoma.data.phantom.config import PhantomConfig
from melanoma.data.phantom.layout import write_phantom

pytestmark = pytest.mark.ray


def test_it_goes_from_images_to_an_answer(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "demo"
    write_phantom(PhantomConfig(num_lesions=120), source)
    command = [
        sys.executable,
        "-m",
        "ray_jobs.demo",
        "--data",
        str(source),
        "--out",
        str(out),
    ]
    done = subprocess.run(
        command, env=os.environ | {"DEMO_EXIT": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads((out / "answer.json").read_text())
    assert answer["decision"] in ("refer", "no_referral", "cannot_assess")
    assert answer["disclaimer"] == DISCLAIMER
    assert answer["explanation"]["method"] == "grad_cam"
    # It asked about an image, not about its mask, and about one that nobody had learned from.
    asked = next(
        line for line in done.stdout.splitlines() if "(test, labelled mel)" in line
    ).split()[0]
    assert asked.endswith(".jpg")
    records = open_prepared(out / "dataset").records.set_index("image_id")
    assert records.loc[Path(asked).stem, "split"] == "test"
    with (
        Image.open(out / "overlay.png") as overlay,
        Image.open(source / "images" / asked) as image,
    ):
        assert overlay.size == image.size
    assert (out / "evidence" / "report.html").is_file()
    assert (out / "runs" / "demo" / "bundle" / "model.safetensors").is_file()
