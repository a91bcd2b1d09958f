"""Writes atomically: a killed process leaves the old file or folder, or the whole new one."""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa

from melanoma.errors import DataError
from melanoma.io.storage import (
    AnyPath,
    RemotePath,
    check_free,
    occupied,
    publish,
    remove_folder,
)

INCOMPLETE = ".incomplete"
"""File that marks a folder in object storage as incomplete.

Folders there cannot be renamed. So the mark means that one is being written, or that its writer was
killed.
"""
_NO_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST}
"""Errors that mean that a folder cannot be made in its place, and not that the disk is full."""


def write_text(path: AnyPath, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write into, which replaces the one at a path when the block succeeds.

    It is flushed to disk before. The umask sets its mode.

    Args:
        path: the file to write.
    """
    work = path.with_name(_hidden(path.name))
    try:
        with work.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(work, path)
    except BaseException:
        work.unlink(missing_ok=True)
        raise


def _hidden(name: str) -> str:
    """Return a new hidden name for a file or folder that is renamed when it is whole.

    `tempfile` is not used, because only the owner could read its files and folders.
    """
    return f".{name[:200]}.{secrets.token_hex(8)}"


def write_bytes(path: AnyPath, data: bytes | pa.Buffer) -> None:
    """Write a file atomically.

    On a disk it is written beside its place, flushed and renamed. In object storage it is written
    as one object.
    """
    if isinstance(path, RemotePath):
        path.write_bytes(data)
        return
    with new_file(path) as file:
        file.write(data)


def write_json(path: AnyPath, value: Any) -> None:
    """Write a JSON file atomically.

    Raises:
        ValueError: if the value holds NaN, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: AnyPath) -> Any:
    """Read a JSON file of this product.

    Raises:
        DataError: if it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # Not JSON, or not UTF-8.
        raise DataError(
            f"{path} must be JSON; it is damaged ({error}). Restore it from a copy."
        ) from error


def write_parquet(path: AnyPath, table: pd.DataFrame) -> None:
    """Write a table as parquet atomically."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_bytes(path, buffer.getvalue())


def read_parquet(path: AnyPath) -> pd.DataFrame:
    """Read a parquet table.

    Raises:
        DataError: if it is damaged.
    """
    data = path.read_bytes()
    try:
        return pd.read_parquet(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:  # Arrow raises OSError for a damaged page.
        raise DataError(
            f"{path} must be a parquet table; it is damaged, or another kind of file ({error})."
            " Restore it from a copy, or write it again."
        ) from error


def claim_folder(folder: AnyPath, described: Any) -> bool:
    """Tie a run folder to its settings, so that no other run continues from what it holds.

    Args:
        folder: the run folder; made if it is missing.
        described: plain values that identify the run; kept in run.json.

    Returns:
        Whether the folder already held this run.

    Raises:
        DataError: if the folder holds another run or something else.
    """
    path, described = folder / "run.json", json.loads(json.dumps(described))
    with _making(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise DataError(
                f"A run folder must be new or hold this run; {folder} holds something else. Choose"
                " another folder (train and tune: another --name)."
            )
        write_json(path, described)
        return False
    differing = _differing(read_json(path), described)
    if differing:
        raise DataError(
            f"Run folder {folder} must hold a run with the same settings and data; it holds one"
            f" that differs in {', '.join(differing[:4])}. Choose another folder (train and tune:"
            " another --name)."
        )
    return True


def _differing(old: Any, new: Any, path: str = "") -> list[str]:
    """Return the dotted names under which two nested dicts of plain values differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [path]
    names = [*old, *(name for name in new if name not in old)]
    return [
        found
        for name in names
        for found in _differing(old.get(name), new.get(name), f"{path}.{name}".strip("."))
    ]


@contextlib.contextmanager
def _making(folder: AnyPath) -> Iterator[None]:
    """Raise DataError if a folder cannot be made in its place.

    Other errors, such as a full disk, pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        raise DataError(
            f"{folder} must be a folder that can be made and written; it is not"
            f" ({error.strerror}). Choose another place or change its permissions."
        ) from error


@contextlib.contextmanager
def locked(folder: AnyPath) -> Iterator[None]:
    """Lock a folder against every other process until the block ends; make it if it is missing.

    Object storage has no locks that end with their holder. There the caller must not run two
    commands at once.

    Raises:
        DataError: if another process holds the lock, or the folder cannot be made.
    """
    if isinstance(folder, RemotePath):
        yield
        return
    with _making(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")  # Not "w", which would change the file.
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"Run folder {folder} is locked by another process. Wait for it or choose another"
                " folder (train and tune: another --name)."
            ) from error
        yield


@contextlib.contextmanager
def new_folder(path: AnyPath, *, replace_if: str | None = None) -> Iterator[Path]:
    """Give a folder of this node to write into, which takes its place when the block succeeds.

    Args:
        path: the folder to make.
        replace_if: a file that marks an older folder of the same kind, which is then replaced. In
            object storage, where folders cannot be renamed, this file is written last.

    Raises:
        DataError: if the path holds something else, or the folder cannot be made.
    """
    if isinstance(path, RemotePath):
        with _new_remote_folder(path, replace_if=replace_if) as work:
            yield work
        return
    if not (replace_if is not None and path.is_dir() and (path / replace_if).is_file()):
        check_free(path)
    with _making(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_name(_hidden(path.name))
        work.mkdir()
    old = work.with_name(f"{work.name}.old")
    try:
        yield work
        if path.exists():
            os.replace(path, old)
        os.replace(work, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _new_remote_folder(path: RemotePath, *, replace_if: str | None) -> Iterator[Path]:
    _check_free(path, replace_if=replace_if)  # Before anything is computed for it.
    with tempfile.TemporaryDirectory(prefix="melanoma-") as folder:
        yield Path(folder)
        with shared_folder(path, replace_if=replace_if):
            publish(Path(folder), path, last=replace_if)


@contextlib.contextmanager
def shared_folder(path: RemotePath, *, replace_if: str | None = None) -> Iterator[RemotePath]:
    """Give a new folder in object storage that every node can write into.

    It holds the file INCOMPLETE until the block succeeds.

    Args:
        path: the folder to make.
        replace_if: a file that marks an older folder of the same kind, which is then replaced.

    Raises:
        DataError: if the path holds something else, which is then left as it is.
    """
    _check_free(path, replace_if=replace_if)
    remove_folder(path)
    write_text(path / INCOMPLETE, "")
    try:
        yield path
    except BaseException:
        remove_folder(path)
        raise
    (path / INCOMPLETE).unlink()


def _check_free(path: RemotePath, *, replace_if: str | None) -> None:
    """Raise DataError unless a path is free.

    What a killed process left there, or an older folder that may be replaced, counts as free.
    """
    allowed = [INCOMPLETE, *([replace_if] if replace_if else [])]
    if path.is_bucket or (path.exists() and not any((path / name).is_file() for name in allowed)):
        raise occupied(path)


def sha256_of(path: AnyPath) -> str:
    """Return the sha256 of a file."""
    if isinstance(path, RemotePath):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
