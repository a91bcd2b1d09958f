"""Evaluates a bundle on a data set and writes the evidence."""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from melanoma.arrays import FloatArray
from melanoma.bundle.bundle import Bundle, library_versions, load_bundle
from melanoma.bundle.known_images import is_known
from melanoma.bundle.predictor import Predictor
from melanoma.data.dataset import ImageDataset, PreparedData, open_prepared
from melanoma.data.external import EXTERNAL, External, read_external
from melanoma.data.left_out import left_out_sentence
from melanoma.data.manifest import MANIFEST
from melanoma.data.names import shown
from melanoma.data.rejections import Rejection, write_rejections
from melanoma.errors import DataError
from melanoma.evidence.evaluated import RECORDED, Evaluated
from melanoma.evidence.report import write_report
from melanoma.executor import Executor, Item, LocalExecutor, Progress, Row
from melanoma.imaging.fingerprint import fingerprint
from melanoma.imaging.skin_tone import skin_tone
from melanoma.io.files import new_folder
from melanoma.io.storage import AnyPath, to_path
from melanoma.judging import embeddings_for, in_threads, judge, read_stored
from melanoma.places import REJECTED
from melanoma.submission import Submission
from melanoma.task import Task

BATCH = 64
EVALUATION = "report.json"
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
    embeddings: str | AnyPath | None = None,
    submission: str | None = None,
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
        embeddings: for a bundle that takes them, the embeddings of the images.
        submission: a challenge (isic2018, isic2019 or isic2020) whose table is written too,
            OUT/submission_<challenge>.csv.
        executor: where images are scored; None takes this process.
        progress: called with (images done, images in all).

    Returns:
        The content of report.json.

    Raises:
        BundleError: if the bundle cannot be loaded.
        DataError: if the data cannot be used.
        SettingError: if the bundle's task cannot answer the challenge.
    """
    bundle_dir, data_dir, out = to_path(bundle_dir), to_path(data_dir), to_path(out)
    executor, bundle = executor or LocalExecutor(), load_bundle(bundle_dir)
    challenge = None if submission is None else Submission.of(submission, bundle.task)
    asked = read_asked(bundle, data_dir, split=split, skip_bad=skip_bad)
    if challenge is not None:
        challenge.check_names(asked.rows["image_id"].tolist())
    learned = asked.prepared if known is None else open_prepared(to_path(known))
    if learned is not None and learned.task != bundle.task:
        learned = None
    vectors = embeddings_for(bundle, embeddings, asked.rows["image_id"].tolist())
    executor.start(num_workers)  # An unreachable cluster must not cost an access.
    with new_folder(out, replace_if=EVALUATION) as work:
        # Log before anything is predicted, because an evaluation that crashes may still have shown
        # something.
        accesses = asked.log_access(bundle)
        score = ScoreRows(str(bundle_dir.resolve()), str(data_dir.resolve()), asked.rows, vectors)
        scored = _predict(score, executor, num_workers=num_workers, progress=progress)
        left_out = asked.left_out(scored, work, skip_bad=skip_bad)
        if challenge is not None:
            challenge.write_scores(work, scored["image_id"].tolist(), scored)
        evaluated = _evaluated(
            bundle,
            asked,
            scored,
            left_out=left_out,
            accesses=accesses,
            train=None if learned is None else learned.rows("train"),
        )
        return write_report(evaluated, work)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is evaluated: a split of a prepared data set, or a SOURCE folder.

    Attributes:
        name: of the split, or external.
        population: describes what the images are.
        rows: the records of the images.
        prepared: the data set; None for a folder.
        external: what was read from the folder; None for a data set.
    """

    name: str
    population: str
    rows: pd.DataFrame
    prepared: PreparedData | None = None
    external: External | None = None

    def log_access(self, bundle: Bundle) -> list[dict[str, Any]]:
        """Log an access to calibration or test, and return all of them."""
        if self.prepared is None or self.name == "train":
            return []
        return self.prepared.log_access(self.name, {**_identity(bundle), "num": len(self.rows)})

    def left_out(
        self, scored: pd.DataFrame, work: AnyPath, *, skip_bad: bool
    ) -> Mapping[str, Mapping[str, int]]:
        """Return what is left out, reason -> class -> number; write a list of it for a folder."""
        if self.prepared is not None:
            return self.prepared.manifest.left_out
        assert self.external is not None
        bad = _unreadable(scored)
        left_out = self.external.left_out(bad, skip_bad=skip_bad)
        if rejections := [*self.external.rejections, *bad]:
            write_rejections(work / REJECTED, rejections)
        return left_out


def read_asked(bundle: Bundle, data_dir: AnyPath, *, split: str | None, skip_bad: bool) -> Asked:
    """Read what is to be evaluated, after all checks that are possible before an access."""
    if (data_dir / MANIFEST).is_file():
        prepared, name = open_prepared(data_dir), split or "test"
        rows = _prepared_rows(bundle, prepared, name)
        return Asked(name, prepared.manifest.population, rows, prepared=prepared)
    if split is not None:
        raise DataError(
            "--split needs a prepared data set; DATA is a folder of images. Leave --split out, or"
            " prepare the folder first."
        )
    external = read_external(
        data_dir, bundle.task, bundle.manifest.group_columns, skip_bad=skip_bad
    )
    for note in external.notes:
        log.info("%s", note)
    return Asked(EXTERNAL, shown(data_dir.resolve().name), external.rows, external=external)


def _evaluated(
    bundle: Bundle,
    asked: Asked,
    scored: pd.DataFrame,
    *,
    left_out: Mapping[str, Mapping[str, int]],
    accesses: list[dict[str, Any]],
    train: pd.DataFrame | None,
) -> Evaluated:
    """Return what was predicted, with what is known of the bundle and of the images.

    Args:
        bundle: what predicted.
        asked: what was asked of it.
        scored: the rows of all images.
        left_out: reason -> class -> number.
        accesses: every access to this split so far.
        train: records to fit the reference models to; None if there are none.
    """
    predictions = _usable(scored, left_out, bundle.task)
    split_hash = "" if asked.prepared is None else asked.prepared.manifest.split_hash
    same_splits = split_hash == bundle.manifest.split_hash
    return Evaluated(
        task=bundle.task,
        operating_point=bundle.operating_point,
        calibrator=bundle.manifest.calibrator,
        several_images=bundle.manifest.several_images,
        bundle_version=bundle.manifest.version,
        weights_sha256=bundle.manifest.weights_sha256,
        predictions=predictions.drop(columns="fingerprint"),
        split=asked.name,
        population=f"{asked.population}, {asked.name}",
        same_splits=same_splits,
        left_out=left_out,
        known=frozenset() if same_splits else _known(bundle, predictions, asked.rows),
        data_hash=_data_hash(asked.rows),
        split_hash=split_hash,
        versions=library_versions(),
        accesses=accesses,
        train=train,
    )


def _usable(
    scored: pd.DataFrame, left_out: Mapping[str, Mapping[str, int]], task: Task
) -> pd.DataFrame:
    """Return the images that could be judged.

    Raises:
        DataError: if there is none, or none that the bundle assesses.
    """
    predictions = (
        scored[scored["reason"] == ""].drop(columns=["reason", "detail"]).reset_index(drop=True)
    )
    if predictions.empty:
        said = left_out_sentence(left_out, task)
        raise DataError(f"SOURCE must hold at least one usable image; it has none. {said}")
    if (predictions["decision"] == "cannot_assess").all():
        raise DataError(
            "DATA must hold images like those that the bundle was trained on; it can assess"
            f" none of {len(predictions)}. Evaluate dermoscopic images, upright and in colour."
        )
    return predictions


def _known(bundle: Bundle, predictions: pd.DataFrame, rows: pd.DataFrame) -> frozenset[str]:
    """Return the ids of the images that are of the data set that the bundle was made from."""
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
    score: "ScoreRows", executor: Executor, *, num_workers: int, progress: Progress | None
) -> pd.DataFrame:
    """Predict all rows.

    Returns:
        The table of predictions.parquet in the order of rows, with the reason and detail of each
        image that could not be judged.
    """
    rows = score.rows
    chunks = [
        {"start": start, "stop": min(start + BATCH, len(rows))}
        for start in range(0, len(rows), BATCH)
    ]
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
        rows: the records of the N images that are scored.
        embeddings: ``(N, F)``, if the bundle takes them in place of images.
    """

    bundle_dir: str
    data_dir: str
    rows: pd.DataFrame
    embeddings: FloatArray | None = None

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
        images = self.images(positions)
        described = in_threads(_described, images)
        embedded = None if self.embeddings is None else self.embeddings[list(positions)]
        rows = judge(self._predictor, images, embedded)
        return [
            {"position": position, **description, **row}
            for position, description, row in zip(positions, described, rows, strict=True)
        ]

    def images(self, positions: range) -> list[np.ndarray | tuple[str, str]]:
        """Return stored images, or the reason and detail for which the server refuses one."""
        if self._dataset is not None:
            return list(self._dataset.images(positions).numpy())
        paths = self.rows["path"].iloc[list(positions)].tolist()
        read = functools.partial(read_stored, bundle=self._predictor.bundle)
        return in_threads(read, paths)


def _described(image: np.ndarray | tuple[str, str]) -> Row:
    """Return the fingerprint and the skin's tone of an image that could be read."""
    if not isinstance(image, np.ndarray):
        return {"fingerprint": b"", "ita": float("nan")}
    return {"fingerprint": fingerprint(image), "ita": skin_tone(image)}
