"""A bundle's network gets a contract on the data of another site."""

import copy
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from melanoma.bundle.bundle import load_bundle, verify_bundle
from melanoma.bundle.manifest import WEIGHTS
from melanoma.bundle.packing import pack
from melanoma.config import TrainConfig
from melanoma.data.dataset import PreparedData, open_prepared
from melanoma.data.phantom.config import PhantomConfig
from melanoma.data.phantom.layout import write_phantom
from melanoma.data.prepare import prepare
from melanoma.data.prepare_config import PrepareConfig
from melanoma.errors import DataError
from melanoma.executor import LocalExecutor
from melanoma.recontract import recontract
from melanoma.training.ensemble import Ensemble

pytestmark = pytest.mark.usefixtures("without_onnx")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Another site: other lesions and patients."""
    folder = tmp_path_factory.mktemp("site")
    write_phantom(PhantomConfig(num_lesions=500, seed=77), folder / "source")
    config = PrepareConfig(
        size=96, num_folds=2, calibration_fraction=0.6, test_fraction=0.1, population="Site B"
    )
    prepare(folder / "source", folder / "dataset", config, executor=LocalExecutor())
    return open_prepared(folder / "dataset")


@pytest.fixture
def fresh(site: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The site's data set, opened by nobody yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert isinstance(site.folder, Path)
    ignored = shutil.ignore_patterns("*.jsonl")
    return Path(shutil.copytree(site.folder, tmp_path / "dataset", ignore=ignored))


def test_the_network_stays_and_the_contract_is_of_the_site(
    bundle_dir: Path, fresh: Path, tmp_path: Path
) -> None:
    before, data = load_bundle(bundle_dir), open_prepared(fresh)
    manifest = recontract(bundle_dir, fresh, tmp_path / "out")
    after = load_bundle(tmp_path / "out")
    assert after.manifest == manifest
    assert manifest.files[WEIGHTS] == before.manifest.files[WEIGHTS]
    contract = manifest.operating_point.contract
    assert contract.population == "Site B"
    assert manifest.split_hash == data.manifest.split_hash
    assert contract.access == 1
    assert len(data.accesses("calibration")) == 1
    assert manifest.origin is not None
    assert manifest.origin.version == before.manifest.version
    assert manifest.origin.operating_point == before.manifest.operating_point
    assert contract.num_target != before.manifest.operating_point.contract.num_target
    assert [found for found in verify_bundle(tmp_path / "out") if "contract" not in found] == []
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert f"The network is that of the bundle `{before.manifest.version}`" in card
    assert "was chosen on validation fold" not in card
    known = pd.read_parquet(tmp_path / "out" / "known_images.parquet")
    assert (
        len(known)
        >= len(data.records) + len(pd.read_parquet(bundle_dir / "known_images.parquet")) - 1
    )


def test_an_ensemble_gets_a_contract_of_the_site_too(
    trained: torch.nn.Module,
    tiny_config: TrainConfig,
    unopened: PreparedData,
    fresh: Path,
    tmp_path: Path,
) -> None:
    networks = [trained, *(copy.deepcopy(trained) for _ in range(2))]
    (tmp_path / "three").mkdir()
    packed = pack(
        Ensemble(networks), tiny_config, unopened, tmp_path / "three", best_epochs=(8, 9, 10)
    )
    assert packed.num_networks == 3
    manifest = recontract(tmp_path / "three", fresh, tmp_path / "out")
    assert manifest.files[WEIGHTS] == packed.files[WEIGHTS]
    assert (manifest.num_networks, manifest.best_epochs) == (3, (8, 9, 10))
    contract = manifest.operating_point.contract
    assert (contract.population, contract.basis) == ("Site B", "split")
    assert [found for found in verify_bundle(tmp_path / "out") if "contract" not in found] == []
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert "3 times test_convnext, whose logits are averaged" in card


def test_the_images_of_a_contract_are_not_new_to_the_next_one(
    bundle_dir: Path, fresh: Path, tmp_path: Path
) -> None:
    recontract(bundle_dir, fresh, tmp_path / "first")
    log = open_prepared(fresh).accesses("calibration")
    with pytest.raises(DataError, match="must hold new images"):
        recontract(tmp_path / "first", fresh, tmp_path / "second")
    assert open_prepared(fresh).accesses("calibration") == log
    assert not (tmp_path / "second").exists()


def test_images_that_the_network_was_trained_on_are_refused(
    bundle_dir: Path, prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    log = len(prepared.accesses("calibration"))
    with pytest.raises(DataError, match=r"of its \d+ are of the data set of the bundle"):
        recontract(bundle_dir, prepared.folder, tmp_path / "out")
    assert len(prepared.accesses("calibration")) == log
    assert not (tmp_path / "out").exists()


def test_images_of_another_size_are_refused_before_anything_is_opened(
    bundle_dir: Path, tmp_path: Path
) -> None:
    write_phantom(PhantomConfig(num_lesions=60, seed=5), tmp_path / "source")
    config = PrepareConfig(size=64, num_folds=2)
    prepare(tmp_path / "source", tmp_path / "dataset", config, executor=LocalExecutor())
    with pytest.raises(DataError, match="--size 96"):
        recontract(bundle_dir, tmp_path / "dataset", tmp_path / "out")
    assert open_prepared(tmp_path / "dataset").accesses("calibration") == []


def test_a_promise_of_ones_own_is_made(bundle_dir: Path, fresh: Path, tmp_path: Path) -> None:
    manifest = recontract(bundle_dir, fresh, tmp_path / "out", promise=0.8)
    assert manifest.operating_point.contract.target_sensitivity == 0.8
    assert manifest.origin is not None
    assert manifest.origin.operating_point.contract.target_sensitivity == 0.9
