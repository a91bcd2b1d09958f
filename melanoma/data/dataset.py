"""Reads a prepared data set: its manifest, records, memory-mapped images and access log."""

import dataclasses
import datetime
import errno
import hashlib
import json
import re
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from melanoma.arrays import Uint8Array
from melanoma.data.embeddings import Embeddings
from melanoma.data.manifest import DatasetManifest, read_manifest
from melanoma.data.shards import open_shard
from melanoma.data.splits import SPLITS, check_splits, split_hash
from melanoma.errors import DataError
from melanoma.io.cache import local_file
from melanoma.io.files import read_parquet, sha256_of
from melanoma.io.storage import AnyPath, RemotePath, files_below
from melanoma.task import Task

_COLUMNS = {"image_id", "group", "label", "dx", "split", "fold", "shard", "row"}
ACCESS_LOG, ACCESSES = "access_log.jsonl", "access_log"
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_DENIED = re.compile("ACCESS_DENIED|PERMISSION_DENIED|HTTP status 40[13]")


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """A prepared data set.

    Attributes:
        folder: where it is. From object storage each node fetches once what it reads.
        manifest: `manifest.json`.
        records: `records.parquet`, a row for each image.
        embeddings: what a model outside says of the images, in place of a network; None without.
    """

    folder: AnyPath
    manifest: DatasetManifest
    records: pd.DataFrame
    embeddings: Embeddings | None = None

    @property
    def stored_shape(self) -> tuple[int, int]:
        """(H, W) of the stored images, px."""
        return self.manifest.stored_shape

    @property
    def task(self) -> Task:
        """What the labels mean."""
        return self.manifest.task

    @property
    def content_hash(self) -> str:
        """A hash of everything that a run depends on: the splits and the stored images."""
        described = json.dumps(
            [self.manifest.split_hash, self.stored_shape, sorted(self.manifest.shards.items())]
        )
        return hashlib.sha256(described.encode()).hexdigest()

    def shard(self, name: str) -> Path:
        """Return the path of a shard on this node."""
        height, width = self.stored_shape
        # Room for the pixels and the name of each image. A larger file is not this shard.
        max_bytes = int((self.records["shard"] == name).sum()) * (height * width * 3 + 4096) + 2**20
        return local_file(
            self.folder / "shards" / name, self.manifest.shards[name], max_bytes=max_bytes
        )

    def rows(
        self, split: str, *, fold: int | None = None, without_fold: int | None = None
    ) -> pd.DataFrame:
        """Return the records of a split, of one of its folds, or of all its folds but one.

        Args:
            split: train, calibration or test.
            fold: the fold to return; None returns every fold.
            without_fold: a fold to leave out; None leaves none out.

        Raises:
            DataError: if there is no such split, or it has no such row.
        """
        if split not in SPLITS:
            raise DataError(f"The split must be one of {', '.join(SPLITS)}; it is {split}.")
        chosen = self.records["split"] == split
        if fold is not None:
            chosen &= self.records["fold"] == fold
        if without_fold is not None:
            chosen &= self.records["fold"] != without_fold
        if not chosen.any():
            where = split if fold is None else f"{split}, fold {fold}"
            raise DataError(
                f"The data set must hold images in {where}; it has none. Prepare it with other"
                " fractions or folds."
            )
        return self.records[chosen].reset_index(drop=True)

    def log_access(self, split: str, entry: dict[str, Any]) -> list[dict[str, Any]]:
        """Log one access to a split and return all accesses to it so far.

        Args:
            split: test or calibration.
            entry: plain values that say what the access was for.
        """
        now = datetime.datetime.now(datetime.UTC)
        line = json.dumps({"time": now.isoformat(timespec="seconds"), "split": split, **entry})
        if isinstance(self.folder, RemotePath):
            # Object storage cannot append, and two accesses may happen at once. So each access is
            # an object of its own, in the order of their names.
            name = f"{now.isoformat(timespec='microseconds')}-{uuid.uuid4().hex}.json"
            (self.folder / ACCESSES / name).write_bytes(line.encode())
        else:
            with (self.folder / ACCESS_LOG).open("a") as log:
                log.write(line + "\n")
        return self.accesses(split)

    def check_writable(self) -> None:
        """Check, before any work, that accesses to calibration and test can be logged.

        Raises:
            DataError: if the folder cannot be written, such as on a read-only mount.
        """
        try:
            if isinstance(self.folder, RemotePath):
                (self.folder / ACCESSES / "writable").write_bytes(b"")
                (self.folder / ACCESSES / "writable").unlink()
            elif (self.folder / ACCESS_LOG).exists():
                (self.folder / ACCESS_LOG).open("a").close()
            else:
                tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            if error.errno not in _READ_ONLY and not _DENIED.search(str(error)):
                raise
            raise DataError(
                f"The data set must be writable for its access log; {self.folder} is not"
                f" ({error.strerror or 'access denied'}). Copy it to a place that can be written,"
                " or mount it writable."
            ) from error

    def accesses(self, split: str) -> list[dict[str, Any]]:
        """Return all accesses to a split so far."""
        if isinstance(self.folder, RemotePath):
            texts = [found.read_text() for found in files_below(self.folder / ACCESSES, {".json"})]
        else:
            path = self.folder / ACCESS_LOG
            texts = path.read_text().splitlines() if path.is_file() else []
        accesses = [json.loads(text) for text in texts]
        return [access for access in accesses if access["split"] == split]


def open_prepared(folder: AnyPath, *, verify: bool = False) -> PreparedData:
    """Open a prepared data set and check that it agrees with its manifest.

    Args:
        folder: as written by prepare.
        verify: also read every shard and compare its checksum.

    Raises:
        DataError: if it is not a data set, of another format version, or damaged.
        LeakageError: if a group is on two sides of a split.
    """
    manifest = read_manifest(folder)
    records = read_parquet(folder / "records.parquet")
    if missing := _COLUMNS - set(records.columns):
        raise DataError(
            f"records.parquet must have the column {min(missing)}; it is missing. Prepare the data"
            " set again."
        )
    if split_hash(records["image_id"], records["split"], records["fold"]) != manifest.split_hash:
        raise DataError(
            "The splits in records.parquet must match the hash in manifest.json; they do not."
            " Prepare the data set again."
        )
    if unknown := set(records["shard"]) - set(manifest.shards):
        raise DataError(
            "Every shard in records.parquet must be listed in manifest.json;"
            f" {min(map(str, unknown))!r} is not. Prepare the data set again."
        )
    check_splits(records["group"], records["split"], records["fold"])
    if verify:
        for name, digest in manifest.shards.items():
            if (
                not (folder / "shards" / name).is_file()
                or sha256_of(folder / "shards" / name) != digest
            ):
                raise DataError(
                    f"shards/{name} must match its checksum in manifest.json; it does not. Prepare"
                    " the data set again."
                )
    return PreparedData(folder, manifest, records)


class ImageDataset:
    """The memory-mapped images of some records of a prepared data set, with their embeddings."""

    def __init__(self, data: PreparedData, rows: pd.DataFrame) -> None:
        self.image_ids: list[str] = rows["image_id"].tolist()
        self.groups: list[str] = rows["group"].tolist()
        self.sources: list[str] = rows["source"].tolist()
        self.embeddings = None if data.embeddings is None else data.embeddings.of(self.image_ids)
        self.labels = torch.tensor(rows["label"].to_numpy(), dtype=torch.long)
        names = sorted(set(rows["shard"]))
        self._shards: dict[str, Uint8Array] = {
            name: open_shard(data.shard(name), data.stored_shape) for name in names
        }
        self._places: list[tuple[str, int]] = list(zip(rows["shard"], rows["row"], strict=True))

    def __len__(self) -> int:
        return len(self.image_ids)

    def feature_map(self, indices: Sequence[int]) -> Tensor | None:
        """Return the embeddings at some indices as feature maps ``(N, F, 1, 1)``, if there are."""
        if self.embeddings is None:
            return None
        return torch.from_numpy(self.embeddings[list(indices)])[:, :, None, None]

    def images(self, indices: Sequence[int]) -> Tensor:
        """Return the images at some indices, ``(N, H, W, 3)`` uint8."""
        return torch.from_numpy(
            np.stack(
                [
                    self._shards[name][row]
                    for name, row in (self._places[index] for index in indices)
                ]
            )
        )
