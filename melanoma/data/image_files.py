"""Finds the images below a SOURCE folder by the ids of its metadata, and says why one is missing.

Opens a file only to compare copies, and to tell DICOM without a suffix.
"""

import dataclasses
import functools
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from melanoma.data.names import (
    IMAGE_SUFFIXES,
    OTHER_SUFFIXES,
    how_they_differ,
    loose,
    number_of,
    path_parts,
    shown,
    without_suffix,
)
from melanoma.errors import DataError
from melanoma.imaging.dicom import MAGIC, MAGIC_AT
from melanoma.io.files import sha256_of
from melanoma.io.storage import AnyPath, to_path

if TYPE_CHECKING:
    import h5py

READ = "JPEG, PNG, WebP and DICOM are read"


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Images below a folder.

    Attributes:
        by_stem: name without suffix, in Unicode's form C -> the files of that name, in order.
        unread: the same for files in formats that are not read.
        dangling: links in the folder whose target is missing.
    """

    by_stem: dict[str, list[AnyPath]]
    unread: dict[str, list[AnyPath]]
    dangling: tuple[str, ...]

    def find(self, image_id: str, given: str) -> list[AnyPath]:
        """Return the files that an id may mean.

        Of several files of one name, those whose folders the table names are returned. Of copies
        with the same bytes only the first is.

        Args:
            image_id: as `image_id_of` gives it, or with folders.
            given: as the table writes it.
        """
        found = self.by_stem.get(path_parts(image_id)[-1], [])
        folders = path_parts(given)[:-1]
        named = [path for path in found if folders and _folders(path)[-len(folders) :] == folders]
        if "/" in image_id:  # Other rows have the same name in other folders.
            return _one_of_copies(named)
        return found if len(found) < 2 else _one_of_copies(named or found)

    def why_missing(self, image_id: str) -> str:
        """Return why no file has an id, as far as the names of the files show it."""
        stem = path_parts(image_id)[-1]
        if stem in self.unread:
            return f"{shown(self.unread[stem][0].name)} is there, but only {READ}; convert it"
        near = self._near(stem)
        if near is None:
            return "no image below SOURCE has this name"
        return (
            f"no image below SOURCE has this name; {shown(near.name)} differs"
            f" {how_they_differ(stem, _stem(near))}"
        )

    def _near(self, stem: str) -> AnyPath | None:
        """Return the one file whose name equals an id up to case, separators and leading zeros."""
        found = self._by_loose.get(loose(stem), [])
        if not found and stem.removesuffix(".0").isdigit():
            found = self._by_number.get(number_of(stem) or "", [])
        return found[0] if len(found) == 1 else None

    @functools.cached_property
    def _by_loose(self) -> dict[str, list[AnyPath]]:
        return _index(self.by_stem, loose)

    @functools.cached_property
    def _by_number(self) -> dict[str, list[AnyPath]]:
        return _index(self.by_stem, number_of)

    def none_found(self, image_ids: Sequence[str], tables: Sequence[str]) -> str:
        """Return the error message for a folder that holds no image of its metadata.

        It names an id, a file and the likely cause.

        Args:
            image_ids: the ids of the metadata.
            tables: the names of the tables that they come from.
        """
        said = (
            f"SOURCE must hold the images that its metadata name; none of {len(image_ids)} was"
            " found. "
        )
        said += f"{' and '.join(tables)} names {image_ids[0]!r}; "
        unread = Counter(paths[0].suffix.lower() for paths in self.unread.values())
        if not self.by_stem and unread:
            kinds = " and ".join(
                f"{num} files end in {suffix}" for suffix, num in unread.most_common(3)
            )
            return f"{said}{kinds}. Only {READ}: convert them."
        if not self.by_stem:
            links = (
                f", and the target of the link {self.dangling[0]} is missing"
                if self.dangling
                else ""
            )
            return f"{said}SOURCE holds no image{links}. Unpack the images below it."
        paths = next(iter(self.by_stem.values()))
        pairs = ((image_id, self._near(path_parts(image_id)[-1])) for image_id in image_ids)
        near = next(((image_id, path) for image_id, path in pairs if path is not None), None)
        there = f"the first of {len(self.by_stem)} images is {shown(paths[0].name)!r}"
        if near is None:
            return (
                f"{said}{there}. The ids must be the names of the files, with or without their"
                " suffix."
            )
        image_id, path = near
        return (
            f"{said}{there}. {image_id!r} and {shown(path.name)!r} differ"
            f" {how_they_differ(path_parts(image_id)[-1], _stem(path))}."
        )


def _index(
    by_stem: Mapping[str, list[AnyPath]], key: Callable[[str], str | None]
) -> dict[str, list[AnyPath]]:
    found: dict[str, list[AnyPath]] = {}
    for stem, paths in by_stem.items():
        if name := key(stem):
            found.setdefault(name, []).append(paths[0])
    return found


_HDF5_SUFFIXES = {".hdf5", ".h5"}


def read_image(path: str) -> bytes:
    """Return the encoded image at a path.

    A path below an HDF5 file names a data set in that file, as in ISIC 2024.

    Raises:
        OSError: if it cannot be read.
    """
    found = to_path(path)
    if (
        isinstance(found, Path)
        and found.parent.suffix.lower() in _HDF5_SUFFIXES
        and found.parent.is_file()
    ):
        try:
            return bytes(_open_hdf5(str(found.parent))[found.name][()])
        except (KeyError, ValueError, TypeError) as error:
            raise OSError(0, f"{found.parent.name} holds no image called {found.name}") from error
    return found.read_bytes()


@functools.lru_cache(maxsize=1)
def _open_hdf5(path: str) -> "h5py.File":
    import h5py

    return h5py.File(path, "r")


def _in_hdf5(path: AnyPath) -> dict[str, AnyPath]:
    """Return name -> path of the images in an HDF5 file.

    Raises:
        DataError: if it is not an HDF5 file, or is in object storage.
    """
    if not isinstance(path, Path):
        raise DataError(
            f"{shown(path.name)} must be on a local disk; it is in object storage. Copy it, or"
            " unpack its images below SOURCE."
        )
    try:
        return {unicodedata.normalize("NFC", name): path / name for name in _open_hdf5(str(path))}
    except OSError as error:
        raise DataError(
            f"{shown(path.name)} must be an HDF5 file with one image under each id; it cannot be"
            " opened. Download it again."
        ) from error


def is_read(path: AnyPath) -> bool:
    """Return whether the name of a file says that it is an image of a format that is read.

    Archives of hospitals name DICOM files by numbers, without a suffix. On this machine they are
    told by their content; in object storage they need a suffix.
    """
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return True
    return (not suffix or suffix[1:].isdigit()) and isinstance(path, Path) and _is_dicom(path)


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] == MAGIC
    except OSError:
        return False


def find_images(folder: AnyPath, files: Sequence[AnyPath]) -> ImageFiles:
    """Sort the files of a SOURCE folder by name.

    Folders named ``masks`` are skipped, because they hold segmentations.

    Args:
        folder: SOURCE.
        files: the files below it.

    Raises:
        DataError: if an HDF5 file cannot be read.
    """
    by_stem: dict[str, list[AnyPath]] = {}
    unread: dict[str, list[AnyPath]] = {}
    archives: list[AnyPath] = []
    for path in files:
        if "masks" in path.parts[len(folder.parts) : -1]:
            continue
        if path.suffix.lower() in _HDF5_SUFFIXES:
            archives.append(path)
        elif is_read(path):
            by_stem.setdefault(_stem(path), []).append(path)
        elif path.suffix.lower() in OTHER_SUFFIXES:
            unread.setdefault(_stem(path), []).append(path)
    for archive in archives:
        for name, path in _in_hdf5(archive).items():
            by_stem.setdefault(name, [path])  # A file beside the archive is the same image.
    return ImageFiles(by_stem, unread, _dangling(folder))


def _stem(path: AnyPath) -> str:
    return without_suffix(unicodedata.normalize("NFC", shown(path.name)))


def _folders(path: AnyPath) -> list[str]:
    return [unicodedata.normalize("NFC", part) for part in path.parts[:-1]]


def _dangling(folder: AnyPath) -> tuple[str, ...]:
    if not isinstance(folder, Path):
        return ()
    return tuple(
        sorted(
            shown(path.name) for path in folder.iterdir() if path.is_symlink() and not path.exists()
        )
    )


def _one_of_copies(paths: list[AnyPath]) -> list[AnyPath]:
    """Return the first of several files if all hold the same bytes, or else all of them."""
    if len(paths) < 2:
        return paths
    if len({path.stat().st_size for path in paths if isinstance(path, Path)}) > 1:
        return paths
    return paths[:1] if len({sha256_of(path) for path in paths}) == 1 else paths
