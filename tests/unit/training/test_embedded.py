"""A head on embeddings from outside, from the table to the bundle."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from melanoma.bundle.bundle import load_bundle, verify_bundle
from melanoma.bundle.predictor import Predictor
from melanoma.config import TrainConfig
from melanoma.data.dataset import PreparedData
from melanoma.data.embeddings import read_embeddings
from melanoma.errors import DataError, SettingError
from melanoma.evaluation import evaluate
from melanoma.predict import predict_files
from melanoma.recontract import recontract
from melanoma.scoring import score
from melanoma.training.run import on_embeddings, train
from serve.local_graph import LocalService, _check
from tests.datasets import copied
from tests.tasks import MELANOMA_INDEX


@pytest.fixture
def table(prepared: PreparedData) -> pd.DataFrame:
    """Return embeddings of which one number tells melanomas, with noise."""
    records = prepared.records
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(len(records), 5)).astype(np.float32)
    vectors[:, 2] += 3 * (records["label"] == MELANOMA_INDEX)
    return pd.DataFrame({"image_id": records["image_id"], "embedding": list(vectors)})


def _written(table: pd.DataFrame, folder: Path) -> Path:
    table.to_parquet(folder / "table.parquet")
    return folder / "table.parquet"


def test_a_bundle_comes_from_embeddings_alone(
    table: pd.DataFrame,
    prepared: PreparedData,
    tiny_config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A copy without a log, and a registry of its own: this is the first access.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    data = copied(prepared, tmp_path / "data")
    path = _written(table, tmp_path)
    config = on_embeddings(tiny_config, path)
    result = train(data.folder, tmp_path / "run", config, embeddings=path)
    bundle = load_bundle(result.bundle)
    assert bundle.manifest.architecture.embedding_size == 5
    assert result.validation["auroc"] > 0.95
    assert result.contract.status == "met"
    assert verify_bundle(result.bundle) == []
    card = (result.bundle / "MODEL_CARD.md").read_text()
    assert "Network: a linear layer, on embeddings of 5 numbers" in card
    assert "heatmap shows" not in card


def test_a_number_in_each_column_is_the_same(table: pd.DataFrame, tmp_path: Path) -> None:
    wide = (
        pd.DataFrame(np.stack(table["embedding"]))
        .add_prefix("e")
        .assign(image_id=table["image_id"])
    )
    ids = table["image_id"].tolist()[:3]
    (tmp_path / "wide").mkdir()
    wide.to_csv(tmp_path / "wide.csv", index=False, sep=";")
    paths = (_written(table, tmp_path), _written(wide, tmp_path / "wide"), tmp_path / "wide.csv")
    first, *others = (read_embeddings(path).of(ids) for path in paths)
    assert all(np.allclose(first, other, rtol=1e-6) for other in others)


def test_an_image_without_an_embedding_is_refused_before_training(
    table: pd.DataFrame, prepared: PreparedData, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    ids = prepared.rows("calibration")["image_id"].iloc[:2]
    path = _written(table[~table["image_id"].isin(ids)], tmp_path)
    config = on_embeddings(tiny_config, path)
    with pytest.raises(DataError, match="it lacks 2 of"):
        train(prepared.folder, tmp_path / "run", config, embeddings=path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.rename(columns={"image_id": "id"}), "must have the column image_id"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "name every image once"),
        (lambda t: t.assign(embedding=1.0), "as many for every"),
        (lambda t: t.assign(Image_ID="x"), "several called image_id"),
        (lambda t: t.assign(embedding=[[1.0]] + [[1.0, 2.0]] * (len(t) - 1)), "as many for every"),
        (
            lambda t: t.assign(embedding=[[np.nan]] * len(t)),
            r"the embeddings of \d+ images, such as",
        ),
    ],
)
def test_a_bad_table_is_refused(table, tmp_path: Path, change, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=said):
        read_embeddings(_written(change(table), tmp_path))


def test_settings_for_images_do_not_fit_embeddings(
    table: pd.DataFrame, prepared: PreparedData, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=r"model\.embedding_size must be that of"):
        train(prepared.folder, tmp_path / "run", tiny_config, embeddings=_written(table, tmp_path))


def test_evaluation_and_scoring_take_the_table(
    table: pd.DataFrame,
    prepared: PreparedData,
    phantom_source: Path,
    tiny_config: TrainConfig,
    tmp_path: Path,
) -> None:
    path = _written(table, tmp_path)
    config = on_embeddings(tiny_config, path)
    bundle = train(prepared.folder, tmp_path / "run", config, embeddings=path).bundle
    with pytest.raises(DataError, match="Pass --embeddings TABLE"):
        evaluate(bundle, prepared.folder, tmp_path / "none")
    report = evaluate(bundle, prepared.folder, tmp_path / "evidence", embeddings=path)
    assert report["image"]["auroc"]["value"] > 0.95
    scores = score(bundle, phantom_source / "images", tmp_path / "scores", embeddings=path)
    evaluated = pd.read_parquet(tmp_path / "evidence" / "predictions.parquet")
    by_image = scores.assign(image_id=scores["path"].str.removesuffix(".jpg")).set_index("image_id")
    both = by_image.loc[evaluated["image_id"]]
    assert np.allclose(both["logit_mel"], evaluated["logit_mel"], atol=1e-5)
    other = table.assign(embedding=[np.asarray(each) + 1 for each in table["embedding"]])
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="differs in embeddings"):
        score(
            bundle,
            phantom_source / "images",
            tmp_path / "scores",
            embeddings=_written(other, tmp_path / "other"),
        )


def test_a_bundle_on_images_takes_no_table(
    table: pd.DataFrame, bundle_dir: Path, prepared: PreparedData, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="Leave --embeddings out"):
        evaluate(
            bundle_dir, prepared.folder, tmp_path / "out", embeddings=_written(table, tmp_path)
        )


def test_a_bundle_on_embeddings_refuses_images(
    table: pd.DataFrame, prepared: PreparedData, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    path = _written(table, tmp_path)
    bundle = train(
        prepared.folder, tmp_path / "run", on_embeddings(tiny_config, path), embeddings=path
    ).bundle
    image = np.full((*prepared.stored_shape, 3), 128, dtype=np.uint8)
    with pytest.raises(SettingError, match="not images"):
        Predictor(load_bundle(bundle)).predict([image])
    with pytest.raises(SettingError, match="not images"):
        predict_files(
            bundle, [tmp_path / "a.jpg"], explain=None, out=None, allow_uncontracted=False
        )
    with pytest.raises(SettingError, match="not images"):
        recontract(bundle, prepared.folder, tmp_path / "recontracted")
    service = LocalService(str(bundle), "127.0.0.1", 8000, 1, False, False)
    with pytest.raises(SettingError, match="not images"):
        _check(service)
