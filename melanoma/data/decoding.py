"""The parallel work of `prepare`: decodes images into shards, then gives each split its own.

Workers write every shard themselves, so no image passes through the calling process. They import
this module, so it must load quickly: nothing here imports torch or scipy.
"""

import dataclasses
import hashlib
import os
from typing import TYPE_CHECKING

import pandas as pd

from melanoma.arrays import Uint8Array
from melanoma.data.image_files import read_image
from melanoma.data.rejections import UNREADABLE, reason_of
from melanoma.data.shards import open_shard, write_shard
from melanoma.errors import InvalidImageError
from melanoma.executor import Executor, Item, Progress, Row
from melanoma.imaging.decode import check_content, decode_image
from melanoma.imaging.letterbox import letterbox, letterbox_shape
from melanoma.io.storage import AnyPath, is_address, to_path

if TYPE_CHECKING:  # it would load scipy
    from melanoma.data.records import Source

SHARD_ROWS, SHARD_BYTES = 512, 96 * 2**20


def shard_rows(size: int) -> int:
    """Return how many images a shard holds.

    It is at most 512, and less for large images, because a worker holds a shard in memory.
    """
    height, width = letterbox_shape(size)
    return max(1, min(SHARD_ROWS, SHARD_BYTES // (3 * height * width)))


def decode_images(
    source: "Source",
    shards: AnyPath,
    size: int,
    *,
    executor: Executor,
    progress: Progress | None,
) -> pd.DataFrame:
    """Decode every image that has a row in the metadata, into shards in their order.

    Args:
        source: what SOURCE holds.
        shards: the folder to write to, which every worker can reach.
        size: long side of the stored images, px.
        executor: where images are decoded.
        progress: called with (images done, images in all).

    Returns:
        A row for each image: image_id, shard, row, sizes and hashes, or the reason why it cannot be
        used.
    """
    bad = frozenset(rejection.image_id for rejection in source.rejections)
    rows = source.records[source.records["path"] != ""].drop_duplicates("image_id")
    num_rows = shard_rows(size)
    chunks = [
        {
            "shard": f"shard-{start // num_rows:05d}.arrow",
            "image_ids": part["image_id"].tolist(),
            # As bytes: a file name need not be UTF-8, but Arrow's text must be.
            "paths": [os.fsencode(path) for path in part["path"]],
        }
        for start in range(0, len(rows), num_rows)
        for part in [rows.iloc[start : start + num_rows]]
    ]
    decode = DecodeChunk(str(shards), size, bad)
    return pd.DataFrame(executor.map(decode, chunks, progress=progress, total=len(rows)))


@dataclasses.dataclass(frozen=True)
class DecodeChunk:
    """Decodes the images of one shard, writes it and returns a row for each image.

    Attributes:
        shards: the folder to write to.
        size: long side of the stored images, px.
        skip: ids of images that are decoded and hashed but not stored.
    """

    shards: str
    size: int
    skip: frozenset[str]

    def __call__(self, item: Item) -> list[Row]:
        """Decode one chunk, given by its shard, image_ids and paths."""
        shape = letterbox_shape(self.size)
        image_ids: list[str] = []
        images: list[Uint8Array] = []
        rows: list[Row] = []
        for image_id, path in zip(item["image_ids"], map(os.fsdecode, item["paths"]), strict=True):
            row: Row = {
                "image_id": image_id,
                "shard": item["shard"],
                "row": -1,
                "reason": "",
                "detail": "",
            }
            row |= {"width_px": 0, "height_px": 0, "file_bytes": 0}
            row |= {"sha256": "", "pixel_sha256": ""}
            rows.append(row)
            try:
                data = read_image(path)
                image = decode_image(data)
                check_content(image)
            except InvalidImageError as error:
                row |= {"reason": reason_of(error), "detail": f"{error.code}: {error}"}
                continue
            except OSError as error:
                if is_address(path) and not isinstance(error, FileNotFoundError):
                    raise  # Unreachable storage does not mean that the image is bad.
                row |= {"reason": UNREADABLE, "detail": error.strerror or type(error).__name__}
                continue
            pixels = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
            row |= {
                "width_px": image.width,
                "height_px": image.height,
                "file_bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "pixel_sha256": pixels,
            }
            if image_id not in self.skip:
                row["row"] = len(images)
                image_ids.append(image_id)
                images.append(letterbox(image, shape))
        if images:
            write_shard(to_path(self.shards) / item["shard"], image_ids, images)
        return rows


def store_by_split(
    records: pd.DataFrame, decoded: AnyPath, shards: AnyPath, size: int, *, executor: Executor
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Write the images of each split into shards of its own.

    Args:
        records: a row for each image: image_id, split, and its shard and row in ``decoded``.
        decoded: the folder that `decode_images` wrote to.
        shards: the folder to write to.
        size: long side of the stored images, px.
        executor: where shards are written.

    Returns:
        The records with their new shards and rows, and the sha256 of every shard by name.
    """
    shards.mkdir()
    stored, items = [], []
    for split, rows in records.sort_values(["shard", "row"]).groupby("split"):
        for number, start in enumerate(range(0, len(rows), shard_rows(size))):
            part = rows.iloc[start : start + shard_rows(size)]
            name = f"{split}-{number:05d}.arrow"
            items.append(
                {
                    "name": name,
                    **{column: part[column].tolist() for column in ("image_id", "shard", "row")},
                }
            )
            stored.append(part.assign(shard=name, row=range(len(part))))
    store = StoreShard(str(decoded), str(shards), letterbox_shape(size))
    digests = {row["name"]: row["sha256"] for row in executor.map(store, items)}
    return pd.concat(stored).sort_values("image_id", ignore_index=True), dict(
        sorted(digests.items())
    )


@dataclasses.dataclass(frozen=True)
class StoreShard:
    """Writes one shard of a split from the decoded images.

    Attributes:
        decoded: the folder of the decoded shards.
        shards: the folder to write to.
        shape: (H, W) of the images, px.
    """

    decoded: str
    shards: str
    shape: tuple[int, int]

    def __call__(self, item: Item) -> list[Row]:
        """Write one shard and return its name and sha256.

        The item holds the name of the shard, and the image_id, shard and row of its images.
        """
        opened = {
            name: open_shard(to_path(self.decoded) / name, self.shape)
            for name in set(item["shard"])
        }
        images = [opened[name][row] for name, row in zip(item["shard"], item["row"], strict=True)]
        digest = write_shard(to_path(self.shards) / item["name"], item["image_id"], images)
        return [{"name": item["name"], "sha256": digest}]
