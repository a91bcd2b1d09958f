"""Pictures -> decoded, grouped, split shards, with Ray Data doing the decoding in parallel.

Every shard is written by the task that made it, so that no picture passes through the driver or the object store. Splits are
drawn after decoding, for identical pixels must not be split; then each split gets shards of its own, so that what must not be
looked at need not even be there.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import ray
import ray.data

from melanoma.config import CLASSES
from melanoma.data.dataset import FORMAT_VERSION
from melanoma.data.groups import join_groups
from melanoma.data.pairs import read_pairs, reject_pairs
from melanoma.data.records import Rejection, Source, read_source, reject_conflicts
from melanoma.data.shards import open_shard, write_shard
from melanoma.data.splits import apply_splits, draw_splits, split_hash
from melanoma.errors import DataError, InvalidImageError, SettingError
from melanoma.files import new_folder, shared_folder, write_json, write_parquet, write_text
from melanoma.images import Uint8Array, canvas_shape, decode_image, to_canvas
from melanoma.storage import Place, is_address, place, remove_folder
from ray_jobs.cluster import collect, connect

SHARD_ROWS, SHARD_BYTES = 512, 96 * 2**20
DECODED = "decoded"
MANIFEST = "manifest.json"
REJECTED = "rejected.csv"
RECORD_COLUMNS = (
    "image_id", "lesion_id", "patient_id", "group", "label", "dx", "split", "fold", "age", "sex", "site", "source",
    "width_px", "height_px", "sha256", "shard", "row",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """How to prepare a data set.

    Attributes:
        size: long side of the stored pictures, px.
        num_folds: folds of the training part, at least 2.
        test_fraction: share of the pictures for test.
        calibration_fraction: share for calibration.
        seed: of the splits.
        group_by: metadata columns that must not be split; None takes patient_id and lesion_id, whichever are there.
        same_lesion: CSV of known pairs (two columns of image ids), or None.
        splits: CSV `image_id,split` to take instead of drawing, or None.
        skip_bad: go on without the bad rows.
    """

    size: int = 256
    num_folds: int = 5
    test_fraction: float = 0.15
    calibration_fraction: float = 0.15
    seed: int = 0
    group_by: tuple[str, ...] | None = None
    same_lesion: Place | None = None
    splits: Place | None = None
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if not 64 <= self.size <= 2048:
            raise SettingError(f"--size must be 64 to 2048 px, got {self.size}.")


def prepare(
    source_dir: Place, out: Place, config: PrepareConfig, *, on_picture: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Prepare a data set and return its manifest.

    Raises:
        DataError: if SOURCE cannot be used as it is; bad rows are then listed in OUT/rejected.csv.
        LeakageError: if given splits part a group.
    """
    source = read_source(source_dir)
    group_columns = _group_columns(source, config.group_by)
    pairs = read_pairs(config.same_lesion, set(source.records["image_id"]))
    source.rejections.extend(reject_pairs(source.records, pairs))
    given = _read_given(config.splits)
    with _work_folder(out) as work:
        (work / DECODED).mkdir()
        decoded = _decode(source, work / DECODED, config.size, on_picture)
        everything, rejections = _join(source, decoded)
        # Grouped before anything is left out: two lesions may be known to be one only by a picture that cannot be read.
        everything["group"] = _groups(everything, group_columns, pairs)
        bad = {rejection.image_id for rejection in rejections}
        records = everything[~everything["image_id"].isin(bad)].sort_values("image_id", ignore_index=True)
        _write_rejections(work / REJECTED, rejections)
        if not rejections or config.skip_bad:
            if records.empty:
                raise DataError(
                    "SOURCE must hold at least one usable picture, it has none; see the reasons with --skip-bad left out."
                )
            manifest = _write_dataset(
                work,
                records,
                config,
                given=given,
                pairs=pairs,
                group_columns=group_columns,
                name=source_dir.resolve().name,
            )
        remove_folder(work / DECODED)
    if rejections and not config.skip_bad:
        raise DataError(_count_reasons(rejections, out))
    return manifest


def _read_given(splits: Place | None) -> pd.DataFrame | None:
    if splits is None:
        return None
    with splits.open("rb") as file:
        return pd.read_csv(file, dtype=str)


@contextlib.contextmanager
def _work_folder(out: Place) -> Iterator[Place]:
    """Give the folder to write into: it must be one that the tasks of every node reach.

    In object storage it is OUT itself, for folders there have no name to change.
    """
    replace_if = REJECTED if _holds_only_rejections(out) else None
    with (
        new_folder(out, replace_if=replace_if)
        if isinstance(out, Path)
        else shared_folder(out, replace_if=replace_if) as work
    ):
        yield work


def _group_columns(source: Source, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    columns = source.group_columns if wanted is None else wanted
    missing = [column for column in columns if column not in source.group_columns]
    if missing or not columns:
        what = f"lack {', '.join(missing)}" if missing else "give no picture a patient_id or lesion_id"
        raise DataError(
            f"the metadata must have the columns that group pictures, they {what}; add them or name others with --group-by."
        )
    return columns


def _shard_rows(size: int) -> int:
    """Return how many pictures a shard holds: 512, or fewer large ones, for a task holds a shard in memory."""
    height, width = canvas_shape(size)
    return max(1, min(SHARD_ROWS, SHARD_BYTES // (3 * height * width)))


def _holds_only_rejections(out: Place) -> bool:
    return out.is_dir() and [path.name for path in out.iterdir()] == [REJECTED]


def _decode(source: Source, shards: Place, size: int, on_picture: Callable[[int, int], None] | None) -> pd.DataFrame:
    """Decode every picture that has a row; return image_id, shard, row, sizes and hashes, or why it cannot be used."""
    bad = {rejection.image_id for rejection in source.rejections}
    rows, num_rows = source.records[source.records["path"] != ""].drop_duplicates("image_id"), _shard_rows(size)
    chunks = [
        {
            "shard": f"shard-{start // num_rows:05d}.arrow",
            "image_ids": part["image_id"].tolist(),
            "paths": part["path"].tolist(),
        }
        for start in range(0, len(rows), num_rows)
        for part in [rows.iloc[start : start + num_rows]]
    ]
    if not chunks:
        raise DataError(
            f"SOURCE must hold the pictures that its metadata name, none of {len(source.records)} was found; unpack them below it."
        )
    connect()
    dataset = ray.data.from_items(chunks, override_num_blocks=len(chunks)).flat_map(
        decode_chunk,  # type: ignore[arg-type]
        fn_kwargs={"shards": str(shards), "size": size, "skip": bad},
    )
    return pd.DataFrame(collect(dataset, len(rows), on_picture))


def decode_chunk(chunk: dict[str, Any], *, shards: str, size: int, skip: set[str]) -> list[dict[str, Any]]:
    """Decode the pictures of one shard, write it, and return a row a picture. Runs in a Ray Data task."""
    shape = canvas_shape(size)
    image_ids: list[str] = []
    pictures: list[Uint8Array] = []
    rows: list[dict[str, Any]] = []
    for image_id, path in zip(chunk["image_ids"], chunk["paths"], strict=True):
        row: dict[str, Any] = {"image_id": image_id, "shard": chunk["shard"], "row": -1, "reason": "", "detail": ""}
        row |= {"width_px": 0, "height_px": 0, "sha256": "", "pixel_sha256": ""}
        rows.append(row)
        try:
            data = place(path).read_bytes()
            image = decode_image(data)
        except InvalidImageError as error:
            row |= {"reason": "picture_unreadable", "detail": f"{error.code}: {error}"}
            continue
        except OSError as error:
            if is_address(path) and not isinstance(error, FileNotFoundError):
                raise  # a storage that is away says nothing against the picture
            row |= {"reason": "picture_unreadable", "detail": error.strerror or type(error).__name__}
            continue
        pixels = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
        row |= {
            "width_px": image.width,
            "height_px": image.height,
            "sha256": hashlib.sha256(data).hexdigest(),
            "pixel_sha256": pixels,
        }
        if image_id not in skip:
            row["row"] = len(pictures)
            image_ids.append(image_id)
            pictures.append(to_canvas(image, shape))
    if pictures:
        write_shard(place(shards) / str(chunk["shard"]), image_ids, pictures)
    return rows


def _join(source: Source, decoded: pd.DataFrame) -> tuple[pd.DataFrame, list[Rejection]]:
    """Join metadata and decoding; return every record, and what is wrong with some."""
    rejections = list(source.rejections)
    unreadable = decoded[decoded["reason"] != ""]
    rejections += (
        [Rejection(*row) for row in unreadable[["image_id", "reason", "detail"]].itertuples(index=False)]
        if len(unreadable)
        else []
    )
    records = source.records.drop_duplicates("image_id").merge(
        decoded.drop(columns=["reason", "detail"], errors="ignore"), on="image_id", how="left"
    )
    records = records.fillna({"sha256": "", "pixel_sha256": ""})
    rejections += reject_conflicts(
        records, "pixel_sha256", "picture_with_two_labels", "one picture under several names"
    )
    return records, rejections


def _groups(records: pd.DataFrame, columns: tuple[str, ...], pairs: list[tuple[str, str]]) -> list[str]:
    keys = [records[column].tolist() for column in (*columns, "sha256", "pixel_sha256")]
    return join_groups(records["image_id"].tolist(), keys, pairs)


def _write_rejections(path: Place, rejections: list[Rejection]) -> None:
    table = pd.DataFrame(
        [dataclasses.asdict(rejection) for rejection in rejections], columns=["image_id", "reason", "detail"]
    )
    write_text(path, table.sort_values(["reason", "image_id"]).to_csv(index=False))


def _count_reasons(rejections: list[Rejection], out: Place) -> str:
    reasons = pd.Series([rejection.reason for rejection in rejections]).value_counts()
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    num = len({rejection.image_id for rejection in rejections})
    return (
        f"every picture must be usable, {num} are not ({counts}); see {out / REJECTED}, mend them or pass --skip-bad."
    )


def _write_dataset(
    work: Place,
    records: pd.DataFrame,
    config: PrepareConfig,
    *,
    given: pd.DataFrame | None,
    pairs: list[tuple[str, str]],
    group_columns: tuple[str, ...],
    name: str,
) -> dict[str, Any]:
    drawn = _split(records, config, given)
    records["split"], records["fold"] = drawn["split"], drawn["fold"]
    records, digests = _store_by_split(
        work, records.astype({"width_px": int, "height_px": int, "row": int}), config.size
    )
    write_parquet(work / "records.parquet", records[list(RECORD_COLUMNS)])
    height, width = canvas_shape(config.size)
    manifest = {
        "kind": "melanoma-dataset",
        "format_version": FORMAT_VERSION,
        "name": name,
        "classes": list(CLASSES),
        "image_height_px": height,
        "image_width_px": width,
        "num_images": len(records),
        "num_groups": int(records["group"].nunique()),
        "counts": {
            part: rows["dx"].value_counts().reindex(CLASSES, fill_value=0).to_dict()
            for part, rows in records.groupby("split")
        },
        "num_folds": int(records["fold"].max()) + 1,
        "seed": config.seed,
        "group_columns": list(group_columns),
        "num_without_group_id": int((records[list(group_columns)] == "").all(axis=1).sum()),
        "num_known_pairs": len(pairs),
        "splits": "drawn" if given is None else "given",
        "split_hash": split_hash(records["image_id"], records["split"], records["fold"]),
        "shards": digests,
    }
    write_json(work / MANIFEST, manifest)
    return manifest


def _store_by_split(work: Place, records: pd.DataFrame, size: int) -> tuple[pd.DataFrame, dict[str, str]]:
    """Write the pictures of each split into shards of its own; return the records with their new places, and the shards' hashes."""
    (work / "shards").mkdir()
    store = ray.remote(store_shard)
    stored, waiting = [], {}
    for split, rows in records.sort_values(["shard", "row"]).groupby("split"):
        for number, start in enumerate(range(0, len(rows), _shard_rows(size))):
            part = rows.iloc[start : start + _shard_rows(size)]
            path = work / "shards" / f"{split}-{number:05d}.arrow"
            places = part[["image_id", "shard", "row"]]
            waiting[path.name] = store.remote(path, places, work / DECODED, canvas_shape(size))
            stored.append(part.assign(shard=path.name, row=range(len(part))))
    digests = dict(zip(waiting, ray.get(list(waiting.values())), strict=True))
    return pd.concat(stored).sort_values("image_id", ignore_index=True), dict(sorted(digests.items()))


def store_shard(path: Place, places: pd.DataFrame, decoded: Place, shape: tuple[int, int]) -> str:
    """Write one shard from the decoded pictures at some places (image_id, shard, row); return its sha256. Runs in a Ray task."""
    shards = {name: open_shard(decoded / name, shape) for name in set(places["shard"])}
    pictures = [shards[name][row] for name, row in zip(places["shard"], places["row"], strict=True)]
    return write_shard(path, places["image_id"].tolist(), pictures)


def _split(records: pd.DataFrame, config: PrepareConfig, given: pd.DataFrame | None) -> pd.DataFrame:
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
