"""Two classes instead of seven, from the command line to the page: data, not a fork."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pypdfium2 as pdfium
import pytest
from playwright.sync_api import expect, sync_playwright

from ray_jobs.arguments import DONE
from ray_jobs.cli import main
from tests.serving import Service, local_serve

pytestmark = [pytest.mark.ray]
SETTINGS = [
    "--preset=smoke",
    "--set=data.input_height=48",
    "--set=data.input_width=64",
    "--set=optim.optimizer=muon",
    "--set=optim.batch_size=16",
    "--set=optim.lr=0.003",
    "--set=optim.ema_decay=0.9",
    "--set=optim.epochs=4",
]


@pytest.fixture(scope="module")
def bundle(
    phantom_source: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle of two classes, made by the commands that a person types."""
    folder = tmp_path_factory.mktemp("binary")
    source = Path(shutil.copytree(phantom_source, folder / "source"))
    table = pd.read_csv(source / "metadata.csv").rename(
        columns={"image_id": "filename", "dx": "diagnosis", "patient_id": "patient"}
    )
    is_malignant = table["diagnosis"].isin(["mel", "bcc", "akiec"])
    table["diagnosis"] = np.where(is_malignant, "malignant", "benign")
    table["filename"] += ".jpg"
    table[["filename", "diagnosis", "patient"]].to_csv(source / "metadata.csv", index=False)
    dataset, runs = folder / "dataset", folder / "runs"
    prepare = ["data", "prepare", str(source), str(dataset), "--task", "binary"]
    prepare += ["--group-by", "patient", "--size", "96", "--folds", "3"]
    assert main([*prepare, "--calibration-fraction", "0.45"]) == DONE
    train = ["train", str(dataset), str(runs), *SETTINGS, "--name", "two", "--require-contract"]
    assert main(train) == DONE
    assert main(["bundle", "verify", str(runs / "two" / "bundle")]) == DONE
    return runs / "two" / "bundle"


@pytest.fixture(scope="module")
def service(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with local_serve(tmp_path_factory.mktemp("keys")) as deploy:
        yield deploy(bundle)


@pytest.fixture(scope="module")
def lesion(phantom_source: Path) -> Path:
    return sorted((phantom_source / "images").iterdir())[1]


def test_answers_metadata_and_report_speak_of_two_classes(service: Service, lesion: Path) -> None:
    with httpx.Client(base_url=service.url, headers=service.authorization, timeout=60) as client:
        answer = client.post("/v1/predict?explain=grad_cam", content=lesion.read_bytes()).json()
        assert list(answer["probabilities"]) == ["benign", "malignant"]
        assert answer["contract"]["targets"] == ["malignant"]
        assert answer["explanation"]["class"] == "malignant"
        assert "of malignant lesions are referred" in answer["contract_sentence"]
        task = client.get("/v1/model").json()["task"]
        assert (task["name"], task["classes"]) == ("binary", ["benign", "malignant"])
        described = client.get("/v2/models/melanoma").json()
        assert described["outputs"][0]["shape"] == [-1, 2]
        assert described["parameters"]["targets"] == "malignant"
        report = client.post("/v1/report", content=lesion.read_bytes()).content
    text = pdfium.PdfDocument(io.BytesIO(report))[0].get_textpage().get_text_range()
    assert "Malignant lesion " in text
    assert "Benign" in text
    # The product and the bundle have the word in their names.
    assert "elanoma" not in text.replace("Melanoma triage", "").replace("by melanoma ", "")


@pytest.mark.browser
def test_the_page_names_the_two_classes(service: Service, lesion: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is here: install the package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(service.url)
        page.set_input_files("#file", lesion)
        page.get_by_label("API key").fill(service.key)
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator("#answer")).to_be_visible(timeout=60_000)
        names = page.locator("#probabilities .name").all_inner_texts()
        assert sorted(names) == ["Benign", "Malignant"]
        expect(page.locator("#probabilities .target .name")).to_have_text("Malignant")
        expect(page.get_by_label("Malignant lesions among the lesions you examine")).to_be_visible()
        expect(page.locator("#meaning")).to_contain_text("malignant lesion")
        browser.close()


def test_the_command_speaks_of_two_classes(
    bundle: Path, lesion: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(bundle), str(lesion)]) == DONE
    assert "malignant lesion " in capsys.readouterr().out
    assert main(["predict", str(bundle), str(lesion), "--json"]) == DONE
    found = json.loads(capsys.readouterr().out)["results"][0]
    assert list(found["probabilities"]) == ["benign", "malignant"]
