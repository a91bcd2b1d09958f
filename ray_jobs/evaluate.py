"""Batch prediction of a bundle over a data set, with Ray Data, and what it proves."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import ray.data
import torch

from melanoma.bundle.bundle import Bundle, load_bundle
from melanoma.bundle.predictor import Prediction, Predictor
from melanoma.config import CLASSES
from melanoma.data.dataset import ImageDataset, PreparedData, open_prepared
from melanoma.data.external import EXTERNAL, read_external
from melanoma.data.left_out import left_out_sentence
from melanoma.data.names import shown
from melanoma.data.rejections import REJECTED, UNREADABLE, Rejection, reason_of, write_rejections
from melanoma.errors import DataError, InvalidImageError
from melanoma.evidence.report import Evaluated, write_report
from melanoma.imaging.decode import check_content, decode_image
from melanoma.io.files import new_folder
from melanoma.io.storage import AnyPath, is_address, to_path
from ray_jobs.cluster import collect, connect, cpus_per_worker, node_resources
from ray_jobs.progress import say

BATCH = 64


def evaluate(
    bundle_dir: AnyPath,
    data_dir: AnyPath,
    out: AnyPath,
    *,
    split: str | None = None,
    num_workers: int = 1,
    skip_bad: bool = False,
    on_image: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score a bundle on a split of a prepared data set (test unless named), or on a whole SOURCE folder, and write the evidence.

    Args:
        bundle_dir: of the bundle.
        data_dir: a prepared data set or a SOURCE folder.
        out: folder to write.
        split: of a prepared data set.
        num_workers: scoring actors.
        skip_bad: go on without the bad rows and images of a SOURCE folder, and say what was left out.
        on_image: called with (done, total).

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
            "--split needs a prepared data set, DATA is a folder of images; leave --split out or prepare it first."
        )
    if prepared is None:
        name, external = EXTERNAL, read_external(data_dir, tuple(bundle.manifest["group_columns"]), skip_bad=skip_bad)
        rows, population = external.rows, shown(data_dir.resolve().name)
        for note in external.notes:
            say(note)
    else:
        name, external = split or "test", None
        rows, population = _prepared_rows(bundle, prepared, name), prepared.manifest["name"]
    connect(num_workers=num_workers)  # a cluster that is not there must not cost a look
    with new_folder(out, replace_if="report.json") as work:
        accesses: list[dict[str, Any]] = []
        if prepared is not None and name != "train":
            # Logged before anything is predicted: a look that crashed has still been a look.
            accesses = prepared.log_access(
                name, {"bundle_version": bundle.version, "weights_sha256": bundle.weights_sha256, "num": len(rows)}
            )
        scored = _predict(bundle_dir, data_dir, rows, num_workers=num_workers, on_image=on_image)
        left_out = {} if prepared is None else prepared.manifest.get("left_out", {})
        if external is not None:
            bad = _unreadable(scored)
            left_out = external.left_out(bad, skip_bad=skip_bad)
            if rejections := [*external.rejections, *bad]:
                write_rejections(work / REJECTED, rejections)
        predictions = scored[scored["reason"] == ""].drop(columns=["reason", "detail"]).reset_index(drop=True)
        if predictions.empty:
            raise DataError(f"SOURCE must hold at least one usable image, it has none. {left_out_sentence(left_out)}")
        same_data = prepared is not None and prepared.manifest["split_hash"] == bundle.manifest["split_hash"]
        evaluated = Evaluated(
            bundle,
            predictions,
            split=name,
            population=f"{population}, {name}",
            accesses=accesses,
            same_splits=same_data,
            left_out=left_out,
        )
        return write_report(evaluated, work)


def _prepared_rows(bundle: Bundle, data: PreparedData, split: str) -> pd.DataFrame:
    """Return the rows of a split, once all is sure that can be known before its look is logged."""
    rows, stored_shape = data.rows(split), bundle.preprocess.stored_shape
    if data.stored_shape != stored_shape:
        raise DataError(
            f"the bundle takes images of {stored_shape[1]} x {stored_shape[0]} px, the data set holds {data.stored_shape[1]} x {data.stored_shape[0]}; prepare it again "
            f"with --size {stored_shape[1]}."
        )
    missing = [name for name in sorted(set(rows["shard"])) if not (data.folder / "shards" / name).is_file()]
    if missing:
        raise DataError(f"the data set must hold shards/{missing[0]}, it is missing; prepare the data set again.")
    if split != "train":
        data.check_writable()
    return rows.assign(path="")


def _unreadable(scored: pd.DataFrame) -> list[Rejection]:
    bad = scored.loc[scored["reason"] != "", ["image_id", "reason", "detail"]]
    return [Rejection(*row) for row in bad.itertuples(index=False)]


def _predict(
    bundle_dir: AnyPath,
    data_dir: AnyPath,
    rows: pd.DataFrame,
    *,
    num_workers: int,
    on_image: Callable[[int, int], None] | None,
) -> pd.DataFrame:
    """Predict all rows in parallel and return predictions.parquet's table, in the order of rows, with why some could not be judged."""
    chunks = [{"start": start, "stop": min(start + BATCH, len(rows))} for start in range(0, len(rows), BATCH)]
    num_cpus = cpus_per_worker(node_resources(), num_workers)
    dataset = ray.data.from_items(chunks, override_num_blocks=len(chunks)).map_batches(
        _Scorer,
        fn_constructor_args=[str(bundle_dir.resolve()), str(data_dir.resolve()), rows, num_cpus],
        batch_size=1,
        num_cpus=num_cpus,
        compute=ray.data.ActorPoolStrategy(size=num_workers),
    )
    scored = pd.DataFrame(collect(dataset, len(rows), on_image)).sort_values("position").set_index("position")
    return rows[["image_id", "lesion_id", "group", "split", "label"]].join(scored)


class _Scorer:
    """A Ray Data actor that holds the bundle and the data set; scores chunks of rows.

    Both are opened for the first chunk: of what fails in a constructor, Ray tells the driver only a text.
    """

    def __init__(self, bundle_dir: str, data_dir: str, rows: pd.DataFrame, num_threads: int) -> None:
        self._bundle_dir, self._data_dir, self._rows, self._num_threads = bundle_dir, data_dir, rows, num_threads

    @functools.cached_property
    def _predictor(self) -> Predictor:
        torch.set_num_threads(self._num_threads)
        return Predictor(load_bundle(to_path(self._bundle_dir)), allow_uncontracted=True)

    @functools.cached_property
    def _dataset(self) -> ImageDataset | None:
        is_prepared = (to_path(self._data_dir) / "manifest.json").is_file()
        return ImageDataset(open_prepared(to_path(self._data_dir)), self._rows) if is_prepared else None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        positions = [i for start, stop in zip(batch["start"], batch["stop"], strict=True) for i in range(start, stop)]
        images = [self._image(position) for position in positions]
        readable = [image for image in images if isinstance(image, np.ndarray)]
        predictions = iter(self._predictor.predict(readable) if readable else [])
        rows = [
            _row(position, next(predictions) if isinstance(image, np.ndarray) else image)
            for position, image in zip(positions, images, strict=True)
        ]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _image(self, position: int) -> np.ndarray | tuple[str, str]:
        """Return an image as it was stored, or reason and detail of why the server would refuse it."""
        if self._dataset is not None:
            return self._dataset.images([position])[0].numpy()
        path = self._rows["path"].iloc[position]
        try:
            image = decode_image(to_path(path).read_bytes())
            check_content(image)
            return self._predictor.bundle.preprocess.stored(image)
        except InvalidImageError as error:
            return reason_of(error), f"{error.code}: {error}"
        except OSError as error:
            if is_address(path) and not isinstance(error, FileNotFoundError):
                raise  # a storage that is away says nothing against the image
            return UNREADABLE, error.strerror or type(error).__name__


def _row(position: int, judged: Prediction | tuple[str, str]) -> dict[str, Any]:
    nothing = np.full(len(CLASSES), np.nan)
    logits, probabilities, decision, why = nothing, nothing, "cannot_assess", ("", "")
    if isinstance(judged, Prediction):
        logits, probabilities, decision = judged.logits, judged.probabilities, judged.decision
    else:
        why = judged
    return {
        "position": position,
        **{f"logit_{name}": float(logits[i]) for i, name in enumerate(CLASSES)},
        **{f"probability_{name}": float(probabilities[i]) for i, name in enumerate(CLASSES)},
        "decision": decision,
        "reason": why[0],
        "detail": why[1],
    }


def describe_evaluation(report: dict[str, Any], out: AnyPath) -> str:
    """Return the evaluation as a table for people."""
    lines = [f"{report['population']}: {report['image']['num']} images, {report['lesion']['num']} lesions", ""]
    lines.append(f"{'':32}{'per image':>26}{'per lesion':>26}")
    for name in (key for key, value in report["image"].items() if isinstance(value, dict) and "value" in value):
        cells = [_cell(report[level][name]) for level in ("image", "lesion")]
        lines.append(f"{name:32}{cells[0]:>26}{cells[1]:>26}")
    lines += ["", f"contract here: {report['contract']['status']}. {report['contract']['sentence']}"]
    if report["accesses"]:
        lines.append(f"this {report['split']} split has been opened {len(report['accesses'])} time(s)")
    if report["left_out"]:
        lines.append(left_out_sentence(report["left_out"]))
    return "\n".join([*lines, f"written to {out}"])


def _cell(metric: dict[str, float | None]) -> str:
    if None in metric.values():
        return "undefined here"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"
