"""Evaluates a bundle on a data set and writes the evidence."""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from melanoma.bundle.bundle import Bundle, library_versions, load_bundle
from melanoma.bundle.known_images import is_known
from melanoma.bundle.predictor import Prediction, Predictor
from melanoma.data.dataset import ImageDataset, PreparedData, open_prepared
from melanoma.data.external import EXTERNAL, read_external
from melanoma.data.image_files import read_image
from melanoma.data.left_out import left_out_sentence
from melanoma.data.manifest import MANIFEST
from melanoma.data.names import shown
from melanoma.data.rejections import REJECTED, UNREADABLE, Rejection, reason_of, write_rejections
from melanoma.errors import DataError, InvalidImageError
from melanoma.evidence.evaluated import RECORDED, Evaluated
from melanoma.evidence.metrics import title_of
from melanoma.evidence.report import write_report
from melanoma.evidence.sections import LEVELS, is_metric, overlap_sentence
from melanoma.executor import Executor, Item, LocalExecutor, Progress, Row
from melanoma.imaging.decode import check_content, decode_image
from melanoma.imaging.fingerprint import fingerprint
from melanoma.imaging.skin_tone import skin_tone
from melanoma.io.files import new_folder
from melanoma.io.storage import AnyPath, is_address, to_path
from melanoma.task import Task, task_of

BATCH = 64
log = logging.getLogger(__name__)


def evaluate(
    bundle_dir: str | AnyPath,
    data_dir: str | AnyPath,
    out: str | AnyPath,
    *,
    split: str | None = None,
    num_workers: int = 1,
    skip_bad: bool = False,
    known: str | AnyPath | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a bundle on a data set and write the evidence.

    The data are one split of a prepared data set, or a whole SOURCE folder.

    Example:
        >>> report = evaluate(bundle_dir, dataset, tmp_path / "evidence")
        >>> report["split"], report["contract"]["bundle_status"]
        ('test', 'met')

    Args:
        bundle_dir: folder of the bundle.
        data_dir: a prepared data set or a SOURCE folder.
        out: folder to write; an earlier evaluation there is replaced.
        split: of a prepared data set; None takes test.
        num_workers: number of workers that score.
        skip_bad: leave out bad rows and images of a SOURCE folder, and report them, instead of
            refusing them.
        known: the prepared data set that the bundle was trained on. Reference models are fitted to
            its records; None fits them to a prepared data set's own train split.
        executor: where images are scored; None takes this process.
        progress: called with (images done, images in all).

    Returns:
        The content of report.json.

    Raises:
        BundleError: if the bundle cannot be loaded.
        DataError: if the data cannot be used.
    """
    bundle_dir, data_dir, out = to_path(bundle_dir), to_path(data_dir), to_path(out)
    executor, bundle = executor or LocalExecutor(), load_bundle(bundle_dir)
    prepared = open_prepared(data_dir) if (data_dir / MANIFEST).is_file() else None
    if prepared is None and split is not None:
        raise DataError(
            "--split needs a prepared data set; DATA is a folder of images. Leave --split out, or"
            " prepare the folder first."
        )
    if prepared is None:
        columns = bundle.manifest.group_columns
        name, external = EXTERNAL, read_external(data_dir, bundle.task, columns, skip_bad=skip_bad)
        rows, population = external.rows, shown(data_dir.resolve().name)
        for note in external.notes:
            log.info("%s", note)
    else:
        name, external = split or "test", None
        rows, population = _prepared_rows(bundle, prepared, name), prepared.manifest.population
    learned = prepared if known is None else open_prepared(to_path(known))
    if learned is not None and learned.task != bundle.task:
        learned = None
    executor.start(num_workers)  # An unreachable cluster must not cost an access.
    with new_folder(out, replace_if="report.json") as work:
        accesses: list[dict[str, Any]] = []
        if prepared is not None and name != "train":
            # Log before anything is predicted, because an evaluation that crashes may still have
            # shown something.
            accesses = prepared.log_access(name, {**_identity(bundle), "num": len(rows)})
        scored = _predict(
            bundle_dir, data_dir, rows, executor, num_workers=num_workers, progress=progress
        )
        left_out = {} if prepared is None else prepared.manifest.left_out
        if external is not None:
            bad = _unreadable(scored)
            left_out = external.left_out(bad, skip_bad=skip_bad)
            if rejections := [*external.rejections, *bad]:
                write_rejections(work / REJECTED, rejections)
        predictions = (
            scored[scored["reason"] == ""].drop(columns=["reason", "detail"]).reset_index(drop=True)
        )
        if predictions.empty:
            said = left_out_sentence(left_out, bundle.task)
            raise DataError(f"SOURCE must hold at least one usable image; it has none. {said}")
        if (predictions["decision"] == "cannot_assess").all():
            raise DataError(
                "DATA must hold images like those that the bundle was trained on; it can assess"
                f" none of {len(predictions)}. Evaluate dermoscopic images, upright and in colour."
            )
        same_data = (
            prepared is not None and prepared.manifest.split_hash == bundle.manifest.split_hash
        )
        seen = _known(bundle, predictions, rows) if not same_data else frozenset()
        evaluated = Evaluated(
            task=bundle.task,
            operating_point=bundle.operating_point,
            **_identity(bundle),
            predictions=predictions.drop(columns="fingerprint"),
            split=name,
            population=f"{population}, {name}",
            accesses=accesses,
            same_splits=same_data,
            left_out=left_out,
            train=None if learned is None else learned.rows("train"),
            known=seen,
            data_hash=_data_hash(rows),
            split_hash="" if prepared is None else prepared.manifest.split_hash,
            versions=library_versions(),
        )
        return write_report(evaluated, work)


def _known(bundle: Bundle, predictions: pd.DataFrame, rows: pd.DataFrame) -> frozenset[str]:
    """Return the ids of the images that the bundle was trained or calibrated on."""
    hashes = rows.set_index("image_id")["sha256"]
    asked = predictions.assign(sha256=predictions["image_id"].map(hashes))
    return frozenset(predictions.loc[is_known(bundle.known_images, asked), "image_id"])


def _data_hash(rows: pd.DataFrame) -> str:
    """Return a hash of the images that were evaluated."""
    return hashlib.sha256("\n".join(sorted(rows["sha256"])).encode()).hexdigest()


def _identity(bundle: Bundle) -> dict[str, str]:
    return {
        "bundle_version": bundle.manifest.version,
        "weights_sha256": bundle.manifest.weights_sha256,
    }


def _prepared_rows(bundle: Bundle, data: PreparedData, split: str) -> pd.DataFrame:
    """Return the rows of a split, after all checks that are possible before its access is logged.

    Raises:
        DataError: if the data set cannot be evaluated.
    """
    rows, stored_shape = data.rows(split), bundle.preprocess.stored_shape
    if data.stored_shape != stored_shape:
        raise DataError(
            f"The data set must hold images of {stored_shape[1]} x {stored_shape[0]} px for this"
            f" bundle; it holds {data.stored_shape[1]} x {data.stored_shape[0]}. Prepare it again"
            f" with --size {stored_shape[1]}."
        )
    missing = [
        name for name in sorted(set(rows["shard"])) if not (data.folder / "shards" / name).is_file()
    ]
    if missing:
        raise DataError(
            f"The data set must hold shards/{missing[0]}; it is missing. Prepare the data set"
            " again."
        )
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
    executor: Executor,
    *,
    num_workers: int,
    progress: Progress | None,
) -> pd.DataFrame:
    """Predict all rows.

    Returns:
        The table of predictions.parquet in the order of rows, with the reason and detail of each
        image that could not be judged.
    """
    chunks = [
        {"start": start, "stop": min(start + BATCH, len(rows))}
        for start in range(0, len(rows), BATCH)
    ]
    score = ScoreRows(str(bundle_dir.resolve()), str(data_dir.resolve()), rows)
    found = executor.map(score, chunks, num_workers=num_workers, progress=progress, total=len(rows))
    scored = pd.DataFrame(found).sort_values("position").set_index("position")
    kept = ["image_id", "lesion_id", "group", "split", "label", *RECORDED]
    return rows[kept].join(scored)


@dataclasses.dataclass(frozen=True)
class ScoreRows:
    """Scores some rows of a data set.

    A worker loads the bundle and the data set for its first chunk and keeps them.

    Attributes:
        bundle_dir: folder of the bundle.
        data_dir: a prepared data set, or a SOURCE folder.
        rows: the records of everything that is scored.
    """

    bundle_dir: str
    data_dir: str
    rows: pd.DataFrame

    @functools.cached_property
    def _predictor(self) -> Predictor:
        return Predictor(load_bundle(self.bundle_dir), allow_uncontracted=True)

    @functools.cached_property
    def _dataset(self) -> ImageDataset | None:
        folder = to_path(self.data_dir)
        return (
            ImageDataset(open_prepared(folder), self.rows)
            if (folder / MANIFEST).is_file()
            else None
        )

    def __call__(self, item: Item) -> list[Row]:
        """Score the rows from start up to stop."""
        positions = range(item["start"], item["stop"])
        images = [self._image(position) for position in positions]
        rows = judge(self._predictor, images)
        return [
            {
                "position": position,
                "fingerprint": fingerprint(image) if isinstance(image, np.ndarray) else b"",
                "ita": skin_tone(image) if isinstance(image, np.ndarray) else float("nan"),
                **row,
            }
            for position, image, row in zip(positions, images, rows, strict=True)
        ]

    def _image(self, position: int) -> np.ndarray | tuple[str, str]:
        """Return a stored image, or the reason and detail for which the server would refuse it."""
        if self._dataset is not None:
            return self._dataset.images([position])[0].numpy()
        return read_stored(self.rows["path"].iloc[position], self._predictor.bundle)


def read_stored(path: str, bundle: Bundle) -> np.ndarray | tuple[str, str]:
    """Return the image at a path as a bundle takes it.

    If it cannot be judged, return a reason and a detail instead.
    """
    try:
        image = decode_image(read_image(path))
        check_content(image)
        return bundle.preprocess.stored(image)
    except InvalidImageError as error:
        return reason_of(error), f"{error.code}: {error}"
    except OSError as error:
        if is_address(path) and not isinstance(error, FileNotFoundError):
            raise  # Unreachable storage does not mean that the image is bad.
        return UNREADABLE, error.strerror or type(error).__name__


def judge(predictor: Predictor, images: Sequence[np.ndarray | tuple[str, str]]) -> list[Row]:
    """Predict the images that could be read; return a row for each, in order.

    Args:
        predictor: what predicts.
        images: stored images, or reason and detail of why one cannot be judged.
    """
    readable = [image for image in images if isinstance(image, np.ndarray)]
    predictions = iter(predictor.predict(readable) if readable else [])
    return [
        judged_row(
            predictor.bundle.task, next(predictions) if isinstance(image, np.ndarray) else image
        )
        for image in images
    ]


def judged_row(task: Task, judged: Prediction | tuple[str, str]) -> Row:
    """Return the columns of one image: logits, probabilities, decision, reason and detail.

    If it could not be judged, the numbers are NaN.

    Args:
        task: the classes.
        judged: its prediction, or the reason and detail for which there is none.
    """
    nothing = np.full(task.num_classes, np.nan)
    logits, probabilities, decision, why = nothing, nothing, "cannot_assess", ("", "")
    if isinstance(judged, Prediction):
        logits, probabilities, decision = judged.logits, judged.probabilities, judged.decision
        # The image was judged; the detail tells why it got no decision.
        why = ("", ", ".join(judged.warnings) if decision == "cannot_assess" else "")
    else:
        why = judged
    return {
        **{f"logit_{name}": float(logits[i]) for i, name in enumerate(task.classes)},
        **{f"probability_{name}": float(probabilities[i]) for i, name in enumerate(task.classes)},
        "decision": decision,
        "reason": why[0],
        "detail": why[1],
    }


def describe_evaluation(report: dict[str, Any], out: AnyPath) -> str:
    """Return the evaluation as a table for people."""
    levels = [level for level in LEVELS if level in report]
    image = report["image"]
    lesions = f", {report['lesion']['num']} lesions" if "lesion" in report else ""
    lines = [
        f"{report['population']}: {image['num']} images{lesions}, {image['num_groups']} groups",
        "",
        f"{'':36}{''.join(f'{LEVELS[level]:>26}' for level in levels)}",
    ]
    for name in (key for key, value in image.items() if is_metric(value)):
        cells = [_cell(report[level][name]) for level in levels]
        lines.append(f"{title_of(name):36}{''.join(f'{cell:>26}' for cell in cells)}")
    lines += [
        f"{'AUROC within sources':36}{_cell(report['within_source']):>26}",
        "",
        f"contract here: {report['contract']['status']}. {report['contract']['sentence']}",
    ]
    if report["flow"]["known_to_the_bundle"]:
        lines.append(overlap_sentence(report))
    if report["accesses"]:
        lines.append(
            f"this {report['split']} split has been opened {len(report['accesses'])} time(s)"
        )
    if report["left_out"]:
        lines.append(left_out_sentence(report["left_out"], task_of(report["task"])))
    return "\n".join([*lines, f"written to {out}"])


def _cell(metric: dict[str, float | None]) -> str:
    if None in metric.values():
        return "undefined here"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"
