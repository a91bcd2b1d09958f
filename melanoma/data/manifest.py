"""The manifest of a prepared data set: `manifest.json` as a dataclass, and its one reader."""

import dataclasses
import json
from typing import Literal

from melanoma.data.groups import LargeGroup
from melanoma.data.left_out import LeftOut
from melanoma.errors import DataError
from melanoma.io.storage import AnyPath, is_plain_name, is_sha256
from melanoma.io.typed import Strict, from_json
from melanoma.places import MANIFEST as MANIFEST
from melanoma.places import check_dataset
from melanoma.task import Task

KIND, FORMAT_VERSION = "melanoma-dataset", 4
_REMEDY = "Prepare the data set again."


@dataclasses.dataclass(frozen=True)
class DatasetManifest(Strict):
    """What a prepared data set holds.

    Attributes:
        population: what the images are a sample of, in words. A contract names it.
        task: the classes.
        image_height_px: of the stored images.
        image_width_px: of the stored images.
        num_images: in all splits.
        num_groups: in all splits.
        counts: split -> class -> images.
        num_folds: of the training split.
        seed: of the splits.
        group_columns: the columns whose equal values were never split.
        num_without_group_id: number of images without a value in any of these columns.
        num_known_pairs: number of pairs of `--same-lesion` that were joined.
        left_out: reason -> class -> images that were left out.
        largest_groups: the groups with the most images.
        splits: whether the splits were drawn or given.
        split_hash: of image ids, splits and folds.
        shards: name -> sha256 of every shard.
    """

    population: str
    task: Task
    image_height_px: int
    image_width_px: int
    num_images: int
    num_groups: int
    counts: dict[str, dict[str, int]]
    num_folds: int
    seed: int
    group_columns: tuple[str, ...]
    num_without_group_id: int
    num_known_pairs: int
    left_out: LeftOut
    largest_groups: tuple[LargeGroup, ...]
    splits: Literal["drawn", "given"]
    split_hash: str
    shards: dict[str, str]
    kind: Literal["melanoma-dataset"] = "melanoma-dataset"
    format_version: Literal[4] = 4

    @property
    def stored_shape(self) -> tuple[int, int]:
        """(H, W) of the stored images, px."""
        return self.image_height_px, self.image_width_px

    def num_targets(self, split: str) -> int:
        """Return how many images of the target classes a split holds."""
        by_class = self.counts.get(split, {})
        return sum(by_class.get(name, 0) for name in self.task.targets)


def read_manifest(folder: AnyPath) -> DatasetManifest:
    """Read the manifest of a data set.

    The names in it are checked, so that none can lead out of the folder.

    Raises:
        DataError: if it is missing, of another format version, incomplete or unsafe.
    """
    check_dataset(folder)
    path = folder / MANIFEST
    data = path.read_bytes()
    _check_kind(data, path)
    manifest = from_json(DatasetManifest, data, what=str(path), error=DataError, remedy=_REMEDY)
    for name, digest in manifest.shards.items():
        if not (is_plain_name(name) and is_sha256(digest)):
            raise DataError(
                f"{MANIFEST} must list plain file names with their sha256; {name!r} is not one. Do"
                " not use this data set."
            )
    return manifest


def _check_kind(data: bytes, path: AnyPath) -> None:
    """Raise DataError if a file has another kind or format version, before its fields are read."""
    try:
        values = json.loads(data)
    except ValueError as error:
        raise DataError(f"{path} must be JSON; it is damaged. {_REMEDY}") from error
    if not isinstance(values, dict) or values.get("kind") != KIND:
        raise DataError(f"{path} must describe a data set; it describes something else. {_REMEDY}")
    if values.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"The format version of the data set must be {FORMAT_VERSION}; it is"
            f" {values.get('format_version')!r}. {_REMEDY}"
        )
