"""Scores images without labels with a bundle.

The folder may have any size and be on a disk or in object storage. Scoring can be interrupted and
resumed.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from melanoma.arrays import FloatArray
from melanoma.bundle.bundle import load_bundle
from melanoma.bundle.deciding import NO_CONTRACT, Decider
from melanoma.bundle.predictor import Predictor
from melanoma.data.image_files import is_read
from melanoma.data.names import OTHER_SUFFIXES, shown, without_suffix
from melanoma.data.prediction_tables import UNASSESSED
from melanoma.errors import DataError
from melanoma.evaluation import BATCH
from melanoma.executor import Executor, Item, LocalExecutor, Progress, Row
from melanoma.io.files import claim_folder, locked, read_parquet, write_parquet
from melanoma.io.storage import AnyPath, files_below, remove_folder, to_path
from melanoma.judging import embeddings_for, in_threads, judge, judge_batches, read_stored
from melanoma.lesion_scores import LESION_SCORES, lesion_scores, read_lesions
from melanoma.places import check_images
from melanoma.submission import Submission, submission_file

SCORES, PARTS = "scores.parquet", "parts"
CHUNK = 16 * BATCH
"""Images in a part. After an interruption, finished parts are not scored again."""
log = logging.getLogger(__name__)


def score(
    bundle_dir: str | AnyPath,
    folder: str | AnyPath,
    out: str | AnyPath,
    *,
    num_workers: int = 1,
    submission: str | None = None,
    lesions: str | AnyPath | None = None,
    embeddings: str | AnyPath | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Score every image below a folder and write OUT/scores.parquet.

    The same call continues a scoring that was interrupted. Images that the server would refuse are
    kept with the reason and get no decision. While the bundle's contract is not met, no image gets
    a decision.

    Example:
        >>> table = score(bundle_dir, phantom / "images", tmp_path / "scores")
        >>> bool((table["reason"] == "").all()), "refer" in set(table["decision"])
        (True, True)

    Args:
        bundle_dir: folder of the bundle.
        folder: folder of the images; hidden files and folders called masks are ignored.
        out: folder to write, new or of the same scoring.
        num_workers: number of workers that score.
        submission: a challenge (isic2018, isic2019 or isic2020) whose table is written too,
            OUT/submission_<challenge>.csv; also for a scoring that is finished.
        lesions: a CSV or parquet file with the columns image and lesion_id; the images of each
            lesion are also judged together, and OUT/lesions.parquet is written.
        embeddings: for a bundle that takes them, the embeddings of the images, by file name without
            suffix.
        executor: where images are scored; None takes this process.
        progress: called with (images done, images in all).

    Returns:
        The table in scores.parquet: path below the folder, logits, probabilities, decision, and
        reason and detail if an image could not be judged.

    Raises:
        BundleError: if the bundle cannot be loaded.
        DataError: if there is no image, OUT holds something else, or a table does not fit.
        SettingError: if the bundle's task cannot answer the challenge.
    """
    bundle_dir, folder, out = to_path(bundle_dir), to_path(folder), to_path(out)
    executor, bundle = executor or LocalExecutor(), load_bundle(bundle_dir)
    names = _image_names(folder)
    challenge = None if submission is None else Submission.of(submission, bundle.task)
    if challenge is not None:
        challenge.check_names(names)
    decider = Decider(bundle.manifest)
    of_lesions = {} if lesions is None else read_lesions(to_path(lesions), names)
    if of_lesions:
        decider.check_num_images(max(map(len, of_lesions.values())))
    vectors = embeddings_for(bundle, embeddings, [_stem(name) for name in names])
    with locked(out):
        listed = hashlib.sha256(json.dumps(names).encode()).hexdigest()
        described = {
            "bundle": bundle.manifest.version,
            "folder": str(folder.resolve()),
            "images": listed,
        }
        if vectors is not None:
            described["embeddings"] = hashlib.sha256(vectors.tobytes()).hexdigest()
        claim_folder(out, described)
        if (out / SCORES).is_file():
            table = read_parquet(out / SCORES)
        else:
            work = ScoreFiles(
                str(bundle_dir.resolve()),
                str(folder.resolve()),
                str((out / PARTS).resolve()),
                tuple(names),
                vectors,
            )
            table = _score_parts(work, out, executor, num_workers, progress)
        if challenge is not None:
            challenge.write_scores(out, table["path"].tolist(), table)
        if of_lesions:
            write_parquet(out / LESION_SCORES, lesion_scores(table, of_lesions, decider))
    return table


def describe_scores(
    table: pd.DataFrame, out: AnyPath, *, submission: str | None = None, with_lesions: bool = False
) -> tuple[dict[str, Any], str]:
    """Return what `score` wrote as plain values, and as text for people.

    Args:
        table: what it returned.
        out: the folder that it wrote to.
        submission: the challenge whose table it wrote too, if any.
        with_lesions: whether it judged lesions too.
    """
    unusable = int((table["reason"] != "").sum())
    found: dict[str, Any] = {
        "scores": str(out / SCORES),
        "num_images": len(table),
        **_counts(table),
        "num_unusable": unusable,
    }
    lines = [
        f"{len(table)} images: {_listed(found['decisions'])}; {unusable} could not be scored",
        *_reasons(found),
        f"scores {found['scores']}",
    ]
    if submission is not None:
        found["submission"] = str(out / submission_file(submission))
        lines.append(f"submission {found['submission']}")
    if with_lesions:
        lesions = read_parquet(out / LESION_SCORES)
        counts, others = _counts(lesions), len(table) - int(lesions["num_images"].sum())
        found |= {
            "lesions": str(out / LESION_SCORES),
            "num_lesions": len(lesions),
            **{f"lesion_{name}": value for name, value in counts.items()},
            "num_without_lesion": others,
        }
        lines += [
            f"{len(lesions)} lesions: {_listed(counts['decisions'])}; {others} images are of none"
            " of them",
            *_reasons(counts),
            f"lesions {found['lesions']}",
        ]
    return found, "\n".join(lines)


def _counts(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Return how many rows have each decision, and how many each code for none."""
    codes = table["detail"].where(table["reason"] == "", table["reason"])
    codes = codes[table["decision"] == UNASSESSED].str.split(", ").explode()
    return {
        name: {str(key): int(num) for key, num in column.value_counts().items()}
        for name, column in (("decisions", table["decision"]), (UNASSESSED, codes))
    }


def _reasons(found: dict[str, Any]) -> list[str]:
    """Return lines that tell why some get no decision."""
    why = found[UNASSESSED]
    lines = [f"{UNASSESSED}: {_listed(why)}"] if why else []
    if NO_CONTRACT in why:
        lines.append("without a contract nothing is decided; `melanoma bundle verify` says why")
    return lines


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{num} {name}" for name, num in sorted(counts.items()))


def _score_parts(
    work: "ScoreFiles",
    out: AnyPath,
    executor: Executor,
    num_workers: int,
    progress: Progress | None,
) -> pd.DataFrame:
    """Score the parts that are missing, and join all parts to OUT/scores.parquet."""
    executor.start(num_workers)
    num = len(work.names)
    parts = {start: out / PARTS / f"{start:09d}.parquet" for start in range(0, num, CHUNK)}
    missing = [
        {"start": start, "part": path.name} for start, path in parts.items() if not path.is_file()
    ]
    done = sum(min(CHUNK, num - start) for start, path in parts.items() if path.is_file())
    log.info("%d images to score%s.", num - done, f"; {done} are scored already" if done else "")
    (out / PARTS).mkdir(exist_ok=True)

    def report(now: int) -> None:
        if progress is not None:
            progress(done + now, num)

    executor.map(
        work,
        missing,
        num_workers=num_workers,
        progress=_Announced(num - done, CHUNK * num_workers, report),
        total=num - done,
    )
    table = pd.concat([read_parquet(path) for path in parts.values()], ignore_index=True)
    write_parquet(out / SCORES, table)
    remove_folder(out / PARTS)
    return table


class _Announced:
    """Passes progress on, and says once how long the rest will take.

    Args:
        total: number of images to score.
        enough: number of images after which the rate is known: a part of each worker.
        progress: called with the images done.
    """

    def __init__(self, total: int, enough: int, progress: Callable[[int], object]) -> None:
        self._total, self._enough, self._progress = total, enough, progress
        self._started = time.monotonic()

    def __call__(self, done: int, _: int) -> None:
        if self._enough <= done < self._total:
            seconds = (time.monotonic() - self._started) / done * (self._total - done)
            log.info(
                "The other %d images will take about %s.", self._total - done, _duration(seconds)
            )
            self._enough = self._total
        self._progress(done)


def _duration(seconds: float) -> str:
    """Return a duration in words, rounded up to whole units."""
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds > 2 * size:
            return f"{math.ceil(seconds / size)} {unit}"
    return f"{max(1, math.ceil(seconds))} seconds"


def _image_names(folder: AnyPath) -> list[str]:
    check_images(folder)
    paths = [
        path
        for path in files_below(folder)
        if "masks" not in path.relative_to(folder).parts[:-1]  # type: ignore[arg-type]
    ]
    readable = [path for path in paths if is_read(path)]
    if not readable:
        raise DataError(f"FOLDER must hold JPEG, PNG, WebP or DICOM images; {folder} holds none.")
    if num_other := sum(path.suffix.lower() in OTHER_SUFFIXES for path in paths):
        log.info(
            "Images are JPEG, PNG, WebP or DICOM; %d with other suffixes are not scored.", num_other
        )
    return [str(path.relative_to(folder)) for path in readable]  # type: ignore[arg-type]


def _stem(name: str) -> str:
    return without_suffix(name.rpartition("/")[2])


@dataclasses.dataclass(frozen=True)
class ScoreFiles:
    """Scores parts of a list of image files and writes each part once it is complete.

    Attributes:
        bundle_dir: folder of the bundle.
        folder: folder of the images.
        parts: folder to write to.
        names: paths of the N images below their folder.
        embeddings: ``(N, F)``, if the bundle takes them in place of images.
    """

    bundle_dir: str
    folder: str
    parts: str
    names: tuple[str, ...]
    embeddings: FloatArray | None = None

    @functools.cached_property
    def _predictor(self) -> Predictor:
        return Predictor(load_bundle(self.bundle_dir))

    def __call__(self, item: Item) -> list[Row]:
        """Score the part that begins at start; return a row for each image to count progress."""
        names = self.names[item["start"] : item["start"] + CHUNK]
        batches = [names[start : start + BATCH] for start in range(0, len(names), BATCH)]
        if self.embeddings is None:
            found = judge_batches(self._predictor, batches, self._read)
        else:
            embedded = self.embeddings[item["start"] :]
            found = judge(self._predictor, in_threads(self._read, names), embedded[: len(names)])
        rows = [{"path": shown(name), **row} for name, row in zip(names, found, strict=True)]
        write_parquet(to_path(self.parts) / item["part"], pd.DataFrame(rows))
        return [{"path": shown(name)} for name in names]

    def _read(self, name: str) -> np.ndarray | tuple[str, str]:
        return read_stored(str(to_path(self.folder) / name), self._predictor.bundle)
