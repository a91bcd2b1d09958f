"""A second site with another camera: the old promise does not hold there, and the new one does.

The images of the site stand for all that its camera will take. Calibration sets are drawn from them
with replacement, so that the true sensitivity of each threshold is known.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from melanoma.bundle.bundle import load_bundle
from melanoma.bundle.held_out import group_codes
from melanoma.data.dataset import ImageDataset, PreparedData, open_prepared
from melanoma.data.phantom.config import PhantomConfig
from melanoma.data.phantom.layout import write_phantom
from melanoma.data.prepare import prepare
from melanoma.data.prepare_config import PrepareConfig
from melanoma.evidence.operating_point import (
    Promise,
    choose_units,
    is_referred,
    select_operating_point,
)
from melanoma.executor import LocalExecutor
from melanoma.imaging.preprocess import Preprocess
from melanoma.recontract import recontract
from melanoma.training.engine import predict
from tests.bundles import INFORMATIVE

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]
DRAWS = 2000
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Other lesions, some of which look like the other class, through a brighter, duller camera."""
    folder = tmp_path_factory.mktemp("site")
    write_phantom(
        PhantomConfig(num_lesions=1500, seed=99, melanomas=0.3, mimics=0.2), folder / "source"
    )
    curve = [round(255 * (value / 255) ** 0.7) for value in range(256)]
    red = [round(0.95 * value) for value in curve]
    for path in sorted((folder / "source" / "images").glob("*.jpg")):
        image = Image.open(path).convert("RGB").filter(ImageFilter.GaussianBlur(1.2))
        image.point(red + curve + curve).save(path, quality=90)
    config = PrepareConfig(
        size=96, num_folds=2, calibration_fraction=0.5, test_fraction=0.1, population="site B"
    )
    prepare(folder / "source", folder / "dataset", config, executor=LocalExecutor())
    return open_prepared(folder / "dataset")


def _scores(bundle_dir: Path, site: PreparedData) -> tuple[np.ndarray, np.ndarray]:
    """Return a bundle's scores of one target image and of one other image of each group."""
    bundle, rows = load_bundle(bundle_dir), site.records
    preprocess = Preprocess(site.stored_shape, bundle.manifest.training_config.data)
    seen = predict(bundle.model, ImageDataset(site, rows), preprocess, tta=bundle.manifest.tta)
    scores = bundle.task.target_scores(bundle.manifest.calibrator(seen.logits))
    targets, others = choose_units(bundle.task.is_target(seen.labels), group_codes(rows), seed=0)
    return scores[targets], scores[others]


def test_the_promise_of_a_site_holds_there_and_the_old_one_does_not(
    bundle_dir: Path,
    site: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Record,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert isinstance(site.folder, Path)
    dataset = Path(shutil.copytree(site.folder, tmp_path / "dataset"))
    manifest = recontract(bundle_dir, dataset, tmp_path / "out")
    new, old = manifest.operating_point, load_bundle(bundle_dir).operating_point
    targets, others = _scores(tmp_path / "out", site)
    before, _ = _scores(bundle_dir, site)
    assert new.contract.status == "met"
    assert is_referred(before, old.threshold).mean() < old.contract.target_sensitivity

    rng = np.random.default_rng(0)
    num = new.contract.num_target
    promise = Promise(manifest.task.targets, 0.9, INFORMATIVE, "one image per lesion", "site B")
    found = np.array(
        [
            is_referred(
                targets,
                select_operating_point(rng.choice(targets, num), others, promise).threshold,
            ).mean()
            for _ in range(DRAWS)
        ]
    )
    broken = float((found < promise.target_sensitivity).mean())
    assert broken <= promise.error + 3 * np.sqrt(promise.error / DRAWS)
    record_property(
        "measured",
        f"old {is_referred(before, old.threshold).mean():.2f}; new broken in {broken:.1%} of draws",
    )
