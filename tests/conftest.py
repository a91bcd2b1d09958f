"""Fixtures shared by all tests; one Ray cluster and one small trained bundle a session."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.clusters import token_file

# Before anything imports Ray: nothing is written to a real home, and what the tests start is theirs
# alone.
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("RAY_AUTH_MODE", None)
os.environ.pop("RAY_AUTH_TOKEN", None)
os.environ["HOME"] = tempfile.mkdtemp(prefix="melanoma-test-home-")
os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file(Path(os.environ["HOME"])))

from serve.environment import ENVIRONMENT

os.environ.update(ENVIRONMENT)

from melanoma.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from melanoma.data.dataset import PreparedData, open_prepared
from melanoma.data.phantom.config import PhantomConfig
from melanoma.data.phantom.layout import write_phantom
from melanoma.data.prepare import prepare
from melanoma.data.prepare_config import PrepareConfig
from tests.datasets import copied
from tests.tasks import CLASSES

if TYPE_CHECKING:  # unit tests start without Ray
    from tests.runs import Run
    from tests.serving import Service


@pytest.fixture(scope="session")
def shared() -> Path:
    path = Path(os.environ.get("MELANOMA_SHARED", Path(__file__).parents[1] / ".." / "shared"))
    if not (path / "data" / "ham10000").is_dir():
        pytest.skip(
            "HAM10000 is not here: set MELANOMA_SHARED to the folder whose data/ham10000 holds it"
        )
    return path


@pytest.fixture(scope="session")
def phantom_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "source"
    write_phantom(PhantomConfig(num_lesions=480, seed=3, melanomas=0.3), out)
    return out


@pytest.fixture(scope="session")
def prepared(phantom_source: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("prepared") / "dataset"
    prepare(
        phantom_source,
        folder,
        PrepareConfig(size=96, calibration_fraction=0.45, num_folds=3, population="phantom"),
    )
    return open_prepared(folder, verify=True)


@pytest.fixture
def unopened(
    prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> PreparedData:
    """A data set whose calibration split nobody has opened."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return copied(prepared, tmp_path / "unopened")


@pytest.fixture(scope="session")
def tiny_config() -> TrainConfig:
    return TrainConfig(
        data=DataConfig(input_height=48, input_width=64, tta=2),
        model=ModelConfig(backbone="test_convnext", layer_scale=0.5),
        optim=OptimConfig(
            optimizer="muon", epochs=10, batch_size=16, lr=3e-3, warmup_epochs=0.5, ema_decay=0.9
        ),
    )


@pytest.fixture(scope="session")
def trained(prepared: PreparedData, tiny_config: TrainConfig) -> torch.nn.Module:
    """A small network that has learned something, so that its maps and scores are not those of
    noise."""
    from melanoma.training.engine import fit, start_state
    from melanoma.training.networks import build_model
    from melanoma.training.plan import Training

    torch.manual_seed(0)
    model = build_model(tiny_config.model, len(CLASSES))
    state = start_state(model, tiny_config)
    fit(Training.on(tiny_config, prepared), model, state, lambda _: None)
    return state.evaluated.eval()


@pytest.fixture(scope="session")
def bundle_dir(
    trained: torch.nn.Module,
    prepared: PreparedData,
    tiny_config: TrainConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    from melanoma.bundle.packing import pack

    folder = tmp_path_factory.mktemp("run") / "bundle"
    folder.mkdir()
    # A copy without a log, and a registry of its own: this is the first access.
    assert isinstance(prepared.folder, Path)
    ignored = shutil.ignore_patterns("*.jsonl")
    data = open_prepared(
        Path(shutil.copytree(prepared.folder, folder.parent / "dataset", ignore=ignored))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder.parent / "state"))
        packed = pack(trained, tiny_config, data, folder, best_epochs=(tiny_config.optim.epochs,))
    assert packed.operating_point.contract.status == "met", (
        packed.operating_point,
        packed.validation,
    )
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    import ray

    from ray_jobs.cluster import connect

    connect(num_workers=4)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def undisturbed(prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> "Run":
    """A training run that nothing happened to: the oracle of all that something happens to."""
    from tests.runs import Run

    out = tmp_path_factory.mktemp("runs")
    run = Run(prepared, out, out)
    run.finish()
    return run


@pytest.fixture(scope="module")
def service(
    bundle_dir: Path,
    ray_cluster: None,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator["Service"]:
    from tests.serving import local_serve

    where = getattr(request, "param", "deployment")
    with local_serve(tmp_path_factory.mktemp("keys"), where) as deploy:
        yield deploy(bundle_dir)


@pytest.fixture(scope="module")
def client(service: "Service") -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=60, headers=service.authorization) as client:
        yield client


@pytest.fixture(scope="session")
def image(phantom_source: Path) -> bytes:
    """One phantom as a JPEG file."""
    return sorted((phantom_source / "images").iterdir())[0].read_bytes()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small SOURCE folder in HAM10000's layout, made of noise: four lesions of each of two
    classes, two images each."""
    folder = tmp_path / "source"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for lesion in range(24):
        for view in range(2):
            image_id = f"IMG_{lesion:03d}_{view}"
            pixels = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{image_id}.jpg")
            rows.append(
                {
                    "lesion_id": f"L{lesion}",
                    "image_id": image_id,
                    "dx": ("mel", "nv")[lesion % 2],
                    "age": 40,
                    "sex": "male",
                }
            )
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    return folder


@pytest.fixture
def drawn_source(source: Path, tmp_path: Path) -> Path:
    """The same folder with phantoms in place of noise, which no bundle would assess."""
    write_phantom(PhantomConfig(num_lesions=48, seed=77), tmp_path / "phantom")
    drawn = sorted((tmp_path / "phantom" / "images").iterdir())
    for target, image in zip(sorted((source / "images").iterdir()), drawn, strict=False):
        shutil.copy(image, target)
    return source


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter") -> None:
    """Show every drill that ran: what was done to the system, what was lost by it or measured, how
    soon it was back, how long it all took."""
    reports = [
        report
        for outcome in ("passed", "failed", "error")
        for report in terminalreporter.getreports(outcome)
        if {"drill", "fault"} & set(getattr(report, "keywords", ()))
        and (report.when == "call" or outcome == "error")
    ]
    if not reports:
        return
    terminalreporter.section("drills")
    terminalreporter.write_line(
        f"{'what was done':78}{'lost, or measured':50}{'back in':>8}{'took':>8}"
    )
    for report in sorted(reports, key=lambda report: report.nodeid):
        told, found = (
            report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " "),
            dict(report.user_properties),
        )
        lost = found.get("lost", found.get("measured", "")) if report.passed else "FAILED"
        back = f"{found['back_seconds']:.0f} s" if "back_seconds" in found else ""
        terminalreporter.write_line(f"{told[:76]:78}{lost:50}{back:>8}{report.duration:6.0f} s")
