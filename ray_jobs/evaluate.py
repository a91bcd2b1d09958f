"""Batch prediction of a bundle over a data set, with Ray Data, and what it proves."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import ray.data
import torch

from melanoma.bundle import load_bundle
from melanoma.config import CLASSES
from melanoma.data.dataset import PictureDataset, open_prepared
from melanoma.data.groups import join_groups
from melanoma.data.records import read_source
from melanoma.errors import DataError
from melanoma.evidence.report import Evaluated, write_report
from melanoma.files import new_folder, sha256_of
from melanoma.images import decode_image
from melanoma.predictor import Prediction, Predictor
from melanoma.storage import Place, is_address, place
from ray_jobs.cluster import collect, connect, cpus_per_worker, node_resources
from ray_jobs.progress import say

BATCH = 64
EXTERNAL = "external"


def evaluate(
    bundle_dir: Place,
    data_dir: Place,
    out: Place,
    *,
    split: str | None = None,
    num_workers: int = 1,
    on_picture: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score a bundle on a split of a prepared data set (test unless named), or on a whole SOURCE folder, and write the evidence.

    Returns:
        report.json.

    Raises:
        BundleError: if the bundle cannot be loaded.
        DataError: if the data cannot be used.
    """
    bundle = load_bundle(bundle_dir)
    prepared = open_prepared(data_dir) if (data_dir / "manifest.json").is_file() else None
    if prepared is None and split is not None:
        raise DataError(
            "--split needs a prepared data set, DATA is a folder of pictures; leave --split out or prepare it first."
        )
    name = EXTERNAL if prepared is None else split or "test"
    rows = _external_rows(data_dir) if prepared is None else prepared.rows(name).assign(path="")
    with new_folder(out, replace_if="report.json") as work:
        accesses: list[dict[str, Any]] = []
        if prepared is not None and name != "train":
            # Logged before anything is predicted: a look that crashed has still been a look.
            accesses = prepared.log_access(
                name, {"bundle_version": bundle.version, "weights_sha256": bundle.weights_sha256, "num": len(rows)}
            )
        predictions = _predict(bundle_dir, data_dir, rows, num_workers=num_workers, on_picture=on_picture)
        same_data = prepared is not None and prepared.manifest["split_hash"] == bundle.manifest["split_hash"]
        population = f"{data_dir.resolve().name if prepared is None else prepared.manifest['name']}, {name}"
        evaluated = Evaluated(
            bundle, predictions, split=name, population=population, accesses=accesses, same_splits=same_data
        )
        return write_report(evaluated, work)


def _external_rows(folder: Place) -> pd.DataFrame:
    """Return the usable rows of a SOURCE folder: every picture with a known label and a group."""
    source = read_source(folder)
    bad = {rejection.image_id for rejection in source.rejections if rejection.reason != "picture_without_row"}
    rows = source.records[~source.records["image_id"].isin(bad)].reset_index(drop=True)
    if rows.empty:
        raise DataError(f"SOURCE must hold at least one usable picture, {folder} has none.")
    if not source.group_columns:
        raise DataError(
            "the metadata must have patient_id or lesion_id, without which no interval is honest; add one of them."
        )
    if len(rows) < len(source.records):
        reasons = pd.Series([r.reason for r in source.rejections]).value_counts().to_dict()
        say(
            f"{len(source.records) - len(rows)} rows are left out: {', '.join(f'{num} {name}' for name, num in reasons.items())}"
        )
    keys = [rows[column].tolist() for column in source.group_columns]
    keys.append([sha256_of(place(path)) for path in rows["path"]])  # a copy under another name is no further unit
    return rows.assign(group=join_groups(rows["image_id"].tolist(), keys), split=EXTERNAL)


def _predict(
    bundle_dir: Place,
    data_dir: Place,
    rows: pd.DataFrame,
    *,
    num_workers: int,
    on_picture: Callable[[int, int], None] | None,
) -> pd.DataFrame:
    """Predict all rows in parallel and return predictions.parquet's table, in the order of rows."""
    connect(num_workers=num_workers)
    chunks = [{"start": start, "stop": min(start + BATCH, len(rows))} for start in range(0, len(rows), BATCH)]
    num_cpus = cpus_per_worker(node_resources(), num_workers)
    dataset = ray.data.from_items(chunks, override_num_blocks=len(chunks)).map_batches(
        _Scorer,
        fn_constructor_args=[str(bundle_dir.resolve()), str(data_dir.resolve()), rows, num_cpus],
        batch_size=1,
        num_cpus=num_cpus,
        compute=ray.data.ActorPoolStrategy(size=num_workers),
    )
    scored = pd.DataFrame(collect(dataset, len(rows), on_picture)).sort_values("position").set_index("position")
    table = rows[["image_id", "lesion_id", "group", "split", "label"]].join(scored)
    if scored["failed"].any():
        first = rows["image_id"].iloc[int(scored.index[scored["failed"]][0])]
        raise DataError(
            f"every picture must be readable, {int(scored['failed'].sum())} are not (the first is {first}); mend or remove them."
        )
    return table.drop(columns="failed")


class _Scorer:
    """A Ray Data actor that holds the bundle and the data set; scores chunks of rows."""

    def __init__(self, bundle_dir: str, data_dir: str, rows: pd.DataFrame, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._predictor = Predictor(load_bundle(place(bundle_dir)), allow_uncontracted=True)
        self._rows = rows
        is_prepared = (place(data_dir) / "manifest.json").is_file()
        self._dataset = PictureDataset(open_prepared(place(data_dir)), self._rows) if is_prepared else None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        positions = [i for start, stop in zip(batch["start"], batch["stop"], strict=True) for i in range(start, stop)]
        pictures = [self._picture(position) for position in positions]
        readable = [picture for picture in pictures if picture is not None]
        predictions = iter(self._predictor.predict(readable) if readable else [])
        rows = [
            _row(position, None if picture is None else next(predictions))
            for position, picture in zip(positions, pictures, strict=True)
        ]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _picture(self, position: int) -> np.ndarray | None:
        if self._dataset is not None:
            return self._dataset.pictures([position])[0].numpy()
        try:
            return self._predictor.bundle.preprocess.stored(
                decode_image(place(self._rows["path"].iloc[position]).read_bytes())
            )
        except (DataError, OSError) as error:
            path = self._rows["path"].iloc[position]
            if isinstance(error, OSError) and is_address(path) and not isinstance(error, FileNotFoundError):
                raise  # a storage that is away says nothing against the picture
            return None


def _row(position: int, prediction: Prediction | None) -> dict[str, Any]:
    nothing = np.full(len(CLASSES), np.nan)
    logits, probabilities = (nothing, nothing) if prediction is None else (prediction.logits, prediction.probabilities)
    return {
        "position": position,
        **{f"logit_{name}": float(logits[i]) for i, name in enumerate(CLASSES)},
        **{f"probability_{name}": float(probabilities[i]) for i, name in enumerate(CLASSES)},
        "decision": "cannot_assess" if prediction is None else prediction.decision,
        "failed": prediction is None,
    }


def describe_evaluation(report: dict[str, Any], out: Place) -> str:
    """Return the evaluation as a table for people."""
    lines = [f"{report['population']}: {report['image']['num']} pictures, {report['lesion']['num']} lesions", ""]
    lines.append(f"{'':32}{'per picture':>26}{'per lesion':>26}")
    for name in (key for key, value in report["image"].items() if isinstance(value, dict) and "value" in value):
        cells = [_cell(report[level][name]) for level in ("image", "lesion")]
        lines.append(f"{name:32}{cells[0]:>26}{cells[1]:>26}")
    lines += ["", f"contract here: {report['contract']['status']}. {report['contract']['sentence']}"]
    if report["accesses"]:
        lines.append(f"this {report['split']} split has been opened {len(report['accesses'])} time(s)")
    return "\n".join([*lines, f"written to {out}"])


def _cell(metric: dict[str, float | None]) -> str:
    if None in metric.values():
        return "undefined here"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"
