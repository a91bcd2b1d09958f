"""Checks that a folder is what a command takes, before anything slow is imported.

Knows only the names of the files that mark such a folder, not what it holds.
"""

from melanoma.errors import BundleError, DataError
from melanoma.io.storage import AnyPath

MANIFEST = "manifest.json"
REJECTED = "rejected.csv"
"""The images that a refused `prepare` could not use."""


def check_dataset(folder: AnyPath) -> None:
    """Raise DataError if a folder holds no prepared data set."""
    if not (folder / MANIFEST).is_file():
        raise DataError(
            f"DATASET must be a folder made by `melanoma data prepare`; {folder} has no {MANIFEST}."
        )


def check_bundle(folder: AnyPath) -> None:
    """Raise BundleError if a folder holds no bundle."""
    if not (folder / MANIFEST).is_file():
        raise BundleError(
            f"BUNDLE must be a folder that `melanoma train` wrote; {folder} has no {MANIFEST}. Pass"
            " OUT/RUN/bundle."
        )


def check_images(folder: AnyPath) -> None:
    """Raise DataError if there is no folder of images."""
    if not folder.is_dir():
        raise DataError(f"FOLDER must be a folder of images; {folder} is not a folder.")


def check_data(folder: AnyPath) -> None:
    """Raise DataError if there is neither a prepared data set nor a folder of images."""
    if not folder.is_dir():
        raise DataError(
            "DATA must be a folder made by `melanoma data prepare`, or one with a metadata CSV and"
            f" images; {folder} is not a folder."
        )


def check_source(folder: AnyPath) -> None:
    """Raise DataError if there is no folder of images and metadata."""
    if not folder.is_dir():
        raise DataError(
            f"SOURCE must be a folder with a metadata CSV and images; {folder} is not a folder."
        )


def check_masks(folder: AnyPath) -> None:
    """Raise DataError if there is no folder of lesion masks."""
    if not folder.is_dir():
        raise DataError(f"--masks must be a folder of PNG masks; {folder} is not a folder.")
