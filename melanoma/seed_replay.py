"""Rebuilds the split of the seed system, the one that this project started from, on HAM10000.

That system promised "90 % melanoma recall on unseen patients" and published two tables with counts
by class. They are those of `GroupShuffleSplit(random_state=42)` over lesions in the order of the
published metadata: 70 % for training, and the rest halved.
"""

import dataclasses
import math
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from melanoma.bundle.bundle import load_bundle
from melanoma.bundle.known_images import fingerprinted, is_known
from melanoma.bundle.manifest import read_manifest
from melanoma.data.dataset import PreparedData, open_prepared
from melanoma.data.pairs import read_pairs
from melanoma.data.prepare import prepare
from melanoma.data.prepare_config import PrepareConfig
from melanoma.data.records import read_source
from melanoma.errors import DataError
from melanoma.evaluation import evaluate
from melanoma.evidence.intervals import clopper_pearson
from melanoma.evidence.levels import image_level
from melanoma.evidence.numbers import numbers_of
from melanoma.executor import Counted, Executor, silently
from melanoma.io.files import new_folder, read_parquet, write_text
from melanoma.io.storage import AnyPath, to_path
from melanoma.task import DEFAULT_TASK, TASKS

SPLITS_FILE, EVIDENCE, DATASET = "splits.csv", "evidence", "dataset"
PUBLISHED = {
    "train": (207, 381, 741, 89, 770, 4718, 96),
    "test": (63, 68, 152, 7, 187, 996, 21),
}
"""Images by class that the seed system published: of its "clinical validation" and of its test."""
_CLAIMS = {"its table": 127, "its README": 168}
"""Melanoma images of test found, as 0.68 and 90 % of 187."""
_FRACTIONS, _SEED = (0.3, 0.5), 42


@dataclasses.dataclass(frozen=True)
class Claim:
    """A recall that the seed system published.

    Attributes:
        where: it is published.
        found: melanoma images found.
        num: melanoma images of the test part.
        value: the recall.
        low: lower bound of its 95 % interval, as if images were independent.
        high: upper bound.
    """

    where: str
    found: int
    num: int
    value: float
    low: float
    high: float


def seed_replay(
    source: str | AnyPath,
    *,
    bundle: str | AnyPath | None = None,
    same_lesion: str | AnyPath | None = None,
    out: str | AnyPath | None = None,
    executor: Executor | None = None,
    counted: Counted = silently,
) -> dict[str, Any]:
    """Rebuild the seed system's split and tell what follows from it.

    Args:
        source: HAM10000, with its metadata in their published order.
        bundle: a bundle to evaluate on the 1,494 images of the test part. It must have been trained
            on this split, or on none of these images.
        same_lesion: CSV of known pairs of images of one lesion; None counts none.
        out: new folder for splits.csv, which `prepare --splits` takes, and for the evidence of the
            bundle. None writes nothing.
        executor: where images are scored; None takes this process.
        counted: shows the progress.

    Returns:
        counts (part -> class -> images), lesions (part -> lesions), claims, known_pairs (num,
        across, train_test), and ours, the numbers of the bundle for each image or None.

    Raises:
        DataError: if the metadata are not HAM10000's, or the bundle knows the images.
    """
    folder, task = to_path(source), TASKS[DEFAULT_TASK]
    table, parts = _split(folder)
    by_part = pd.crosstab(parts, table["dx"]).reindex(columns=list(task.classes), fill_value=0)
    for part, published in PUBLISHED.items():
        if part not in by_part.index or tuple(by_part.loc[part]) != published:
            raise _other_metadata(folder)
    is_target = (parts == "test") & table["dx"].isin(task.targets)
    targets = int(is_target.sum())
    found: dict[str, Any] = {
        "counts": {
            part: {name: int(by_part.loc[part, name]) for name in task.classes}
            for part in by_part.index
        },
        "lesions": table["lesion_id"].groupby(parts).nunique().astype(int).to_dict(),
        "target_lesions": table["lesion_id"][is_target].nunique(),
        "claims": [
            dataclasses.asdict(
                Claim(where, num, targets, num / targets, *clopper_pearson(num, targets))
            )
            for where, num in _CLAIMS.items()
        ],
        "known_pairs": _pairs(table, parts, same_lesion),
        "ours": None,
    }
    with tempfile.TemporaryDirectory() if out is None else new_folder(to_path(out)) as place:
        work = Path(place)
        write_text(work / SPLITS_FILE, _splits_csv(parts))
        if bundle is not None:
            found["ours"] = _ours(folder, bundle, work, executor, counted)
    return found


def _split(folder: AnyPath) -> tuple[pd.DataFrame, pd.Series]:
    """Return the metadata in their order, and the part of each image by its id."""
    from sklearn.model_selection import GroupShuffleSplit

    records = read_source(folder, TASKS[DEFAULT_TASK]).records
    table = records.set_index("image_id", drop=False).rename_axis(None)

    def halve(rows: pd.DataFrame, share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        splitter = GroupShuffleSplit(n_splits=1, test_size=share, random_state=seed)
        first, second = next(splitter.split(rows, groups=rows["lesion_id"]))
        return rows.iloc[first], rows.iloc[second]

    _, rest = halve(table, _FRACTIONS[0], _SEED)
    middle, test = halve(rest, _FRACTIONS[1], _SEED)
    # The seed system did not use this part; ours needs both.
    validation, calibration = halve(middle, 0.5, 0)
    parts = pd.Series("train", index=table.index)
    for name, rows in (("validation", validation), ("calibration", calibration), ("test", test)):
        parts[rows.index] = name
    return table, parts


def _other_metadata(folder: AnyPath) -> DataError:
    return DataError(
        "SOURCE must be HAM10000 with its 10,015 rows of metadata in their published order;"
        f" {folder} is not. Take HAM10000_metadata as it was published."
    )


def _pairs(
    table: pd.DataFrame, parts: pd.Series, same_lesion: str | AnyPath | None
) -> dict[str, int] | None:
    if same_lesion is None:
        return None
    # Validation and calibration are one part of the seed system's.
    part = parts.replace({"validation": "middle", "calibration": "middle"})
    pairs = read_pairs(to_path(same_lesion), set(table["image_id"]))
    sides = [{part[a], part[b]} for a, b in pairs]
    return {
        "num": len(sides),
        "across": sum(len(side) > 1 for side in sides),
        "train_test": sum(side == {"train", "test"} for side in sides),
    }


def _splits_csv(parts: pd.Series) -> str:
    return parts.rename("split").rename_axis("image_id").reset_index().to_csv(index=False)


def _ours(
    folder: AnyPath,
    bundle: str | AnyPath,
    work: Path,
    executor: Executor | None,
    counted: Counted,
) -> dict[str, Any]:
    """Return every number of a bundle on all images of the test part, by the splits in `work`."""
    manifest = read_manifest(to_path(bundle))
    config = PrepareConfig(
        task=manifest.task,
        size=max(manifest.preprocessing.stored_shape),
        group_by=("lesion_id",),
        splits=work / SPLITS_FILE,
    )
    with counted("decoding", "images") as progress:
        prepare(folder, work / DATASET, config, executor=executor, progress=progress)
    data = open_prepared(work / DATASET)
    if manifest.split_hash != data.manifest.split_hash and _knows(bundle, data):
        raise DataError(
            "BUNDLE must have been trained on this split, or on none of its images; it was trained"
            " on HAM10000 with another split, so that it may know test. Train on a data set"
            " prepared with --splits OUT/splits.csv and the default folds and seed."
        )
    with counted("predicting", "images") as progress:
        evaluate(bundle, work / DATASET, work / EVIDENCE, executor=executor, progress=progress)
    # All images count, as they did for the seed system, also those that get cannot_assess.
    predictions = read_parquet(work / EVIDENCE / "predictions.parquet")
    images = image_level(predictions, manifest.task)
    return {
        "bundle_version": manifest.version,
        "cannot_assess": int((predictions["decision"] == "cannot_assess").sum()),
        **numbers_of(images, manifest.operating_point.threshold),
    }


def _knows(bundle: str | AnyPath, data: PreparedData) -> bool:
    """Return whether a bundle was made from a data set with one of these images."""
    return bool(is_known(load_bundle(bundle).known_images, fingerprinted(data)).any())


def describe_seed_replay(found: dict[str, Any]) -> str:
    """Return what follows from the split, as text for a terminal."""
    counts, lesions = pd.DataFrame(found["counts"]).T, found["lesions"]
    train, test = (sum(PUBLISHED[part]) for part in ("train", "test"))
    middle = int(counts.loc[["validation", "calibration"]].to_numpy().sum())
    lines = [
        f"{counts.assign(images=counts.sum(axis=1))}",
        "",
        f"All {sum(map(len, PUBLISHED.values()))} class counts that the seed system published match"
        f" train ({train:,} images) and test ({test:,}).",
        f"So the {train:,} images of its clinical validation are very likely those that it was"
        f" trained on; the other {middle:,} appear in none of its tables.",
        "It was split by lesion: HAM10000 has no patients, so nothing is known of unseen ones.",
        f"Its test has {lesions['test']:,} lesions, {found['target_lesions']} of them melanomas.",
    ]
    for claim in found["claims"]:
        lines.append(
            f"{claim['where']}: {claim['found']} of {claim['num']} melanoma images found,"
            f" {claim['value']:.3f} [{claim['low']:.3f}, {claim['high']:.3f}]"
        )
    if pairs := found["known_pairs"]:
        lines.append(
            f"{pairs['across']} of {pairs['num']} known pairs of images of one lesion stand on two"
            f" sides of the split, {pairs['train_test']} of them in train and test."
        )
    if ours := found["ours"]:
        lines += ["", *_describe_ours(ours)]
    return "\n".join(lines)


def _describe_ours(ours: dict[str, Any]) -> list[str]:
    names = {
        "auroc": "AUROC of melanoma",
        "target_recall_argmax": "melanoma recall, likeliest class",
        "accuracy": "accuracy",
        "macro_f1": "macro-F1",
        "sensitivity": "sensitivity at the threshold",
        "specificity": "specificity at the threshold",
        "specificity_at_sensitivity_90": "specificity at 90 % sensitivity",
    }
    lines = [
        f"this bundle, on the same {ours['num']:,} images, with 95 % intervals over lesions (a"
        f" server would answer cannot_assess to {ours['cannot_assess']} of them):"
    ]
    for name, title in names.items():
        metric = ours[name]
        bounds = (
            "no interval"
            if not math.isfinite(metric["low"])
            else f"[{metric['low']:.3f}, {metric['high']:.3f}]"
        )
        lines.append(f"{title}: {metric['value']:.3f} {bounds}")
    return lines
