"""Prepares a data set from images and metadata: checks, groups, decodes and splits them.

Everything that the metadata and the arguments alone can show is checked before the first image is
read. Splits are drawn after decoding, because identical pixels must not be split. README.md in this
folder says why images are written twice.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from melanoma.data.decoding import decode_images, store_by_split
from melanoma.data.groups import join_groups, key_column, largest_groups
from melanoma.data.left_out import LeftOut, count_left_out, describe_left_out, left_out_sentence
from melanoma.data.manifest import MANIFEST, DatasetManifest
from melanoma.data.names import shown
from melanoma.data.pairs import read_pairs, reject_pairs
from melanoma.data.prepare_config import PrepareConfig
from melanoma.data.records import Source, read_source
from melanoma.data.rejections import (
    Rejection,
    faults_in,
    reject_conflicts,
    write_rejections,
)
from melanoma.data.splits import (
    SPLITS,
    apply_splits,
    draw_splits,
    read_splits,
    split_hash,
)
from melanoma.errors import DataError
from melanoma.executor import Executor, LocalExecutor, Progress
from melanoma.imaging.letterbox import letterbox_shape
from melanoma.io.files import new_folder, shared_folder, write_json, write_parquet, write_text
from melanoma.io.storage import AnyPath, remove_folder, to_path
from melanoma.io.typed import to_plain
from melanoma.places import REJECTED
from melanoma.task import Task

DECODED = "decoded"
NOTES = "notes.txt"
LARGE_GROUP, LARGE_GROUP_IMAGES = 0.05, 3
"""A group with a larger share of the images and more images than this gets a warning."""
RECORD_COLUMNS = (
    "image_id", "lesion_id", "patient_id", "group", "label", "dx", "dx_type", "split", "fold",
    "age", "sex", "site", "source", "skin_type", "width_px", "height_px", "file_bytes",
    "sha256", "shard", "row",
)  # fmt: skip


def prepare(
    source_dir: str | AnyPath,
    out: str | AnyPath,
    config: PrepareConfig | None = None,
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> DatasetManifest:
    """Prepare a data set and return its manifest.

    Example:
        >>> manifest = prepare(phantom, tmp_path / "dataset", PrepareConfig(size=64, num_folds=2))
        >>> manifest.task.name, manifest.num_folds
        ('ham10000', 2)

    Args:
        source_dir: SOURCE, a folder with metadata and images.
        out: the folder to write, new or empty.
        config: how to prepare it; None takes the defaults.
        executor: where images are decoded; None takes this process.
        progress: called with (images done, images in all).

    Raises:
        DataError: if SOURCE cannot be used. If the cause is bad rows, OUT/rejected.csv lists them.
        LeakageError: if the given splits separate images of a group.
    """
    config, executor = config or PrepareConfig(), executor or LocalExecutor()
    source_dir, out = to_path(source_dir), to_path(out)
    plan = _plan(source_dir, config)
    source = plan.source
    executor.start()
    with _work_folder(out) as work:
        (work / DECODED).mkdir()
        decoded = decode_images(
            source, work / DECODED, config.size, executor=executor, progress=progress
        )
        everything, rejections = _join(source, decoded)
        # Group before anything is left out: an image that cannot be read may be the only evidence
        # that two lesions are one.
        everything["group"] = _groups(everything, plan.group_columns, plan.pairs)
        records = _usable(everything, rejections)
        reasons = [(rejection.image_id, rejection.reason) for rejection in rejections]
        left_out = count_left_out(reasons, source.records, config.task)
        write_rejections(work / REJECTED, rejections)
        faults = faults_in(rejections)
        if not faults or config.skip_bad:
            if records.empty:
                said = left_out_sentence(left_out, config.task)
                raise DataError(f"SOURCE must hold at least one usable image; it has none. {said}")
            population = config.population or shown(source_dir.resolve().name)
            manifest = _write_dataset(
                work,
                records,
                config,
                plan=plan,
                left_out=left_out,
                population=population,
                executor=executor,
            )
        remove_folder(work / DECODED)
    if faults and not config.skip_bad:
        raise DataError(_refusal(faults, left_out, out))
    return manifest


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is known before any image is read.

    Attributes:
        source: what SOURCE holds.
        group_columns: names of the columns that group images.
        pairs: known pairs of images.
        given: the splits to use, as `read_splits` returns them. None means they are drawn.
    """

    source: Source
    group_columns: tuple[str, ...]
    pairs: list[tuple[str, str]]
    given: pd.DataFrame | None


def _plan(source_dir: AnyPath, config: PrepareConfig) -> _Plan:
    """Read the metadata and check everything that they and the arguments alone can show."""
    source = read_source(source_dir, config.task)
    group_columns = source.group_by(config.group_by)
    pairs = read_pairs(config.same_lesion, set(source.records["image_id"]))
    given = None if config.splits is None else read_splits(config.splits)
    source.check_found()
    source.rejections.extend(reject_pairs(source.records, pairs))
    plan = _Plan(source, group_columns, pairs, given)
    if given is not None:
        _check_given(plan, config)
    return plan


def _check_given(plan: _Plan, config: PrepareConfig) -> None:
    """Check given splits against the groups that the metadata alone show.

    Copies of an image may join some of these groups later.
    """
    records = plan.source.records.drop_duplicates("image_id").assign(sha256="", pixel_sha256="")
    records["group"] = _groups(records, plan.group_columns, plan.pairs)
    usable = _usable(records, plan.source.rejections)
    if len(usable):
        _split(usable, config, plan.given)


def _usable(records: pd.DataFrame, rejections: list[Rejection]) -> pd.DataFrame:
    bad = {rejection.image_id for rejection in rejections}
    return records[~records["image_id"].isin(bad)].sort_values("image_id", ignore_index=True)


@contextlib.contextmanager
def _work_folder(out: AnyPath) -> Iterator[AnyPath]:
    """Give the folder to write into, which the workers on every node must reach.

    In object storage it is OUT itself, because folders there cannot be renamed.
    """
    replace_if = REJECTED if _holds_only_rejections(out) else None
    with (
        new_folder(out, replace_if=replace_if)
        if isinstance(out, Path)
        else shared_folder(out, replace_if=replace_if)
    ) as work:
        yield work


def _holds_only_rejections(out: AnyPath) -> bool:
    return out.is_dir() and [path.name for path in out.iterdir()] == [REJECTED]


def _join(source: Source, decoded: pd.DataFrame) -> tuple[pd.DataFrame, list[Rejection]]:
    """Join the metadata and what was decoded; return all records and all rejections."""
    rejections = list(source.rejections)
    unreadable = decoded[decoded["reason"] != ""]
    rejections += (
        [
            Rejection(*row)
            for row in unreadable[["image_id", "reason", "detail"]].itertuples(index=False)
        ]
        if len(unreadable)
        else []
    )
    records = source.records.drop_duplicates("image_id").merge(
        decoded.drop(columns=["reason", "detail"], errors="ignore"), on="image_id", how="left"
    )
    records = records.fillna({"sha256": "", "pixel_sha256": ""})
    rejections += reject_conflicts(
        records, "pixel_sha256", "image_with_two_labels", "one image under several names"
    )
    return records, rejections


def _groups(
    records: pd.DataFrame, columns: tuple[str, ...], pairs: list[tuple[str, str]]
) -> list[str]:
    keys = [
        records[column].tolist() for column in (*map(key_column, columns), "sha256", "pixel_sha256")
    ]
    return join_groups(records["image_id"].tolist(), keys, pairs)


def _refusal(rejections: list[Rejection], left_out: LeftOut, out: AnyPath) -> str:
    num = len({rejection.image_id for rejection in rejections})
    reasons = pd.Series([rejection.reason for rejection in rejections]).value_counts()
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    first = rejections[0]
    return (
        f"Every image must be usable; {num} are not ({counts}). By class:"
        f" {describe_left_out(left_out)}. The first is {first.image_id}:"
        f" {first.detail.rstrip('.')}. Fix those listed in {out / REJECTED}, or pass --skip-bad."
    )


def _write_dataset(
    work: AnyPath,
    records: pd.DataFrame,
    config: PrepareConfig,
    *,
    plan: _Plan,
    left_out: LeftOut,
    population: str,
    executor: Executor,
) -> DatasetManifest:
    drawn = _split(records, config, plan.given)
    records["split"], records["fold"] = drawn["split"], drawn["fold"]
    records = records.astype(dict.fromkeys(("width_px", "height_px", "file_bytes", "row"), int))
    records, digests = store_by_split(
        records, work / DECODED, work / "shards", config.size, executor=executor
    )
    write_parquet(work / "records.parquet", records[list(RECORD_COLUMNS)])
    height, width = letterbox_shape(config.size)
    manifest = DatasetManifest(
        population=population,
        task=config.task,
        image_height_px=height,
        image_width_px=width,
        num_images=len(records),
        num_groups=int(records["group"].nunique()),
        counts={
            str(part): {name: int((rows["dx"] == name).sum()) for name in config.task.classes}
            for part, rows in records.groupby("split")
        },
        num_folds=int(records["fold"].max()) + 1,
        seed=config.seed,
        group_columns=plan.group_columns,
        num_without_group_id=int(
            (records[list(map(key_column, plan.group_columns))] == "").all(axis=1).sum()
        ),
        num_known_pairs=len(plan.pairs),
        left_out=left_out,
        largest_groups=tuple(largest_groups(records, plan.group_columns)),
        splits="drawn" if plan.given is None else "given",
        split_hash=split_hash(records["image_id"], records["split"], records["fold"]),
        shards=digests,
    )
    notes = [*plan.source.notes, *_warnings(records, plan, config.task)]
    write_text(work / NOTES, "".join(f"{note}\n" for note in notes))
    write_json(work / MANIFEST, to_plain(manifest))
    return manifest


def read_notes(folder: AnyPath) -> list[str]:
    """Return notes on how a prepared data set was read, for its owner."""
    path = folder / NOTES
    return path.read_text().splitlines() if path.is_file() else []


def _warnings(records: pd.DataFrame, plan: _Plan, task: Task) -> list[str]:
    """Return what a person should check before training on these records."""
    warnings = []
    for found in largest_groups(records, plan.group_columns, num=20):
        share, num = found.num_images / len(records), found.num_images
        if share > LARGE_GROUP and num > LARGE_GROUP_IMAGES:
            ids = ", ".join(
                f"{name} {', '.join(values)}" for name, values in found.ids.items() if values
            )
            warnings.append(
                f"one group holds {num} of {len(records)} images ({share:.0%};"
                f" {ids or 'identical images'}), all in {found.split}; make sure that its id is not"
                " a placeholder"
            )
    targets = records[records["dx"].isin(task.targets)]
    if len(targets) and plan.given is not None and "calibration" not in set(records["split"]):
        warnings.append(
            "the splits file gives no image to calibration, and `train` needs some to make a"
            " contract; add such rows"
        )
    else:
        for split in sorted(set(SPLITS) - set(targets["split"])) if len(targets) else []:
            warnings.append(
                f"{split} holds no {task.noun[0]}, of {len(targets)} in all; other fractions or a"
                " finer group column may spread them"
            )
    return warnings


def _split(
    records: pd.DataFrame, config: PrepareConfig, given: pd.DataFrame | None
) -> pd.DataFrame:
    if given is not None:
        return apply_splits(records, given, num_folds=config.num_folds, seed=config.seed)
    return draw_splits(
        records["group"].tolist(),
        records["label"].tolist(),
        test_fraction=config.test_fraction,
        calibration_fraction=config.calibration_fraction,
        num_folds=config.num_folds,
        seed=config.seed,
    )
